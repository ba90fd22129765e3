"""Control from the command line against the real server, the real scripted agent and the scripted model."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omnigent import processes
from omnigent.testing.scripted_model import ScriptedModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

JSON = dict[str, Any]


def runs(*commands: str) -> list[JSON]:
    """Steps that run these one after another, then say so."""
    steps: list[JSON] = [
        {"tools": [{"tool": "$shell", "input": {"command": command}}]} for command in commands
    ]
    return [*steps, {"text": "It ran."}]


SCRIPT: JSON = {
    "turns": [
        {"match": "push it", "steps": runs("git push", "git push", "git push --tags")},
        {"match": "install and push", "steps": runs("npm ci", "git push")},
        {"match": "curl it", "steps": runs("curl https://example.invalid/")},
        {"match": "spend it", "steps": [{"text": "This never leaves the gateway."}]},
        {"match": "You were paused", "steps": runs("echo one >> spent.txt", "echo two >> spent.txt")},
    ]
}
PUSH = """\
policies:
  - name: push-after-install
    when: {exec: git push}
    after: {exec: [npm install, npm ci]}
    then: ask
    reason: Dependencies changed before this push.
"""
NO_CURL = """\
policies:
  - name: no-curl
    when: {exec: curl}
    then: deny
    reason: Nothing is fetched here.
"""


@dataclass
class Place:
    home: Path
    here: Path

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        path = f"{self.home.parent / 'bin'}:{os.environ['PATH']}"
        env = {"PATH": path, "HOME": str(self.home.parent), "OMNIGENT_HOME": str(self.home)}
        return subprocess.run(
            [sys.executable, "-m", "omnigent", *words], cwd=self.here, env=env, input=stdin,
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    def ok(self, *words: str, stdin: str = "") -> str:
        ran = self.run(*words, stdin=stdin)
        assert ran.returncode == 0, (words, ran)
        return ran.stdout

    def start(self, prompt: str, *words: str) -> str:
        """A detached session's id."""
        return self.ok("run", "-d", *words, prompt).strip()

    def show(self, session: str) -> JSON:
        return json.loads(self.ok("show", session, "--json"))

    def asked(self, session: str) -> JSON:
        """The approval that the session waits for, once it does."""

        def look() -> JSON | None:
            rows = json.loads(self.ok("inbox", "--json"))["items"]
            return next((row["item"] for row in rows if row["session_id"] == session), None)

        return until(look)

    def events(self, session: str, kind: str) -> list[JSON]:
        lines = self.ok("logs", "--json", session).splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    """What `true` answers once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it didn't come true"
        threading.Event().wait(0.05)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    home = tmp_path_factory.mktemp("c") / "h"
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "lab").write_text("lab-key")
    npm = home.parent / "bin" / "npm"  # one that succeeds without a registry
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\nexit 0\n")
    npm.chmod(0o755)
    with ScriptedModel.in_thread(SCRIPT) as model:
        config = {
            "server": {"port": 0},
            "providers": {
                "lab": {
                    "api": "anthropic-messages", "base_url": model.url, "key": {"secret": "lab"},
                    "prices": {"dear": {"input": 1000.0, "output": 1000.0}},
                }
            },
            "defaults": {"harness": "scripted", "scripted": {"provider": "lab", "model": "dear"}},
        }  # fmt: skip
        (home / "config.yaml").write_text(json.dumps(config))
        yield home
        with suppress(OSError, ValueError, KeyError):
            record = json.loads((home / "server.json").read_bytes())
            Place(home, home).run("server", "stop", "--timeout", "20")
            processes.kill([(record["pid"], record["pid_started"])])


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Place:
    return Place(home, tmp_path)


def test_a_pattern_is_allowed_listed_and_revoked(place: Place) -> None:
    session = place.start("push it")
    first = place.asked(session)
    assert "exec: git push" in first["patterns"]
    assert "pattern: exec: git push" in place.ok("inbox")
    place.ok("approve", first["id"], "--pattern", "exec: git push", "--until", "2h")
    second = place.asked(session)  # the second `git push` passes, `git push --tags` doesn't
    assert second["actions"][0]["command"] == "git push --tags"
    listed = place.run("grants", session)
    assert "exec: git push until " in listed.stdout
    (grant,) = json.loads(place.ok("grants", session, "--json"))["items"]
    assert grant["grant_id"] in place.ok("show", session)
    place.ok("revoke", grant["grant_id"][:16])
    assert json.loads(place.ok("grants", session, "--json"))["items"] == []
    place.ok("deny", second["id"], "-m", "no tags")
    assert place.run("wait", session, "--timeout", "60").returncode == 0
    log = place.ok("logs", session)
    assert "and from now on exec: git push until " in log and "no longer allowed by itself" in log


def test_an_allowed_command_may_be_another(place: Place) -> None:
    session = place.start("curl it")
    asked = place.asked(session)
    if not asked["edit"]:
        refused = place.run("approve", asked["id"], "--edit", "echo edited > edited.txt")
        assert (refused.returncode, "can't run another command" in refused.stderr) == (2, True)
        place.ok("deny", asked["id"])
        return
    place.ok("approve", asked["id"], "--edit", "echo edited > edited.txt")
    assert place.run("wait", session, "--timeout", "60").returncode == 0
    assert (place.here / "edited.txt").read_text() == "edited\n"
    assert "edited to: echo edited" in place.ok("logs", session)


def test_a_rule_of_the_run_asks_and_is_explained(place: Place) -> None:
    (place.here / "rules.yaml").write_text(PUSH)
    ran = place.run("run", "-p", "--policy", "rules.yaml", "install and push")
    assert ran.returncode == 8
    session = ran.stderr.split()[1]
    asked = place.asked(session)
    if asked["actions"][0]["command"] == "npm ci":  # the defaults may ask about that too
        place.ok("approve", asked["id"])
        asked = place.asked(session)
    assert "session.push-after-install" in asked["rule_ids"]
    shown = place.ok("policy", "explain", asked["id"])
    assert "push-after-install (session)" in shown and ": npm ci" in shown
    found = json.loads(place.ok("policy", "explain", asked["id"], "--json"))
    (after,) = found["after"]
    requests = place.events(session, "tool.requested")
    assert after["seq"] in [event["seq"] for event in requests if "npm ci" in event["body"]["title"]]
    assert found["audited"]["verdict"] == "ask"
    place.ok("deny", asked["id"])
    assert place.run("wait", session, "--timeout", "60").returncode == 0
    assert "session.push-after-install" in place.ok("policy", "replay", session)


def test_a_rule_of_the_project_binds_a_session_that_runs(place: Place) -> None:
    (place.here / "rules.yaml").write_text(NO_CURL)
    session = place.start("curl it")
    place.asked(session)
    place.ok("policy", "add", "rules.yaml", "--scope", "project")
    place.ok("deny", session)
    assert place.run("wait", session, "--timeout", "60").returncode == 0
    again = place.run("send", session, "curl it")
    assert again.returncode == 0
    assert place.run("wait", session, "--timeout", "60").returncode == 0
    log = place.ok("logs", session)
    assert "+ project.no-curl" in log and "Nothing is fetched here." in log
    assert "no-curl" in place.ok("policy", "ls", session)


def test_a_budget_pauses_a_run_with_7_and_raising_it_goes_on(place: Place) -> None:
    ran = place.run("run", "-p", "--budget", "0.000001", "spend it")
    assert ran.returncode == 7, ran
    assert "paused (budget)" in ran.stderr and "omnigent budget ses_" in ran.stderr
    session = ran.stderr.split()[1]
    assert not (place.here / "spent.txt").exists()
    assert place.show(session)["status"] == "paused"
    assert place.run("wait", session).returncode == 7
    assert "omnigent resume" in place.ok("show", session)
    attached = place.run("attach", session)
    assert attached.returncode == 7 and "paused (budget)" in attached.stderr + attached.stdout
    place.ok("budget", session, "1000000")
    if place.show(session)["status"] == "paused":
        place.ok("resume", session)
    assert place.run("wait", session, "--timeout", "60").returncode == 0
    assert (place.here / "spent.txt").read_text() == "one\ntwo\n"
    prompts = [event for event in place.events(session, "message.submitted")
               if event["actor"]["kind"] == "person"]  # fmt: skip
    assert len(prompts) == 1
    usage = json.loads(place.ok("usage", "--session", session, "--json"))
    (row,) = usage["items"]
    assert row["key"] == "dear" and row["cost_usd"] > 0 and row["unknown_calls"] == 0
    assert "$" in place.ok("usage", "--by", "project")
    assert "whole" in place.ok("audit", "verify", session)
