"""What is asked wrongly gets one error that names the fix: through the command line and through HTTP.

No model is ever called here: each case is refused before a turn.
"""

import http.client
import io
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from omnigent import events as ev
from omnigent.client import Client

JSON = dict[str, Any]
LAB = {"api": "anthropic-messages", "base_url": "http://127.0.0.1:9", "key": {"secret": "lab"}}
CONFIG: JSON = {
    "server": {"port": 0},
    "providers": {"lab": LAB, "chat": LAB | {"api": "openai-chat"}},
    "defaults": {"harness": "scripted", "scripted": {"provider": "lab", "model": "m"}},
}
NEWER = "ses_01JZZZZZZZZZZZZZZZZZZZZZZZ"


@dataclass
class Place:
    """A home, and a machine on whose PATH there is git and no agent."""

    home: Path
    here: Path

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        known = {"PATH": str(self.here / "bin"), "HOME": str(self.here), "OMNIGENT_HOME": str(self.home)}
        return subprocess.run(
            [sys.executable, "-m", "omnigent", *words], cwd=self.here, env=known | env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def ok(self, *words: str) -> str:
        ran = self.run(*words)
        assert ran.returncode == 0, (words, ran)
        return ran.stdout

    def refused(self, *words: str, code: int, **env: str) -> str:
        """What stderr says: one error, perhaps with a hint, and nothing on stdout."""
        ran = self.run(*words, **env)
        assert (ran.returncode, ran.stdout) == (code, ""), ran
        assert ran.stderr.count("error: ") == 1 and "Traceback" not in ran.stderr, ran.stderr
        return ran.stderr

    def record(self) -> JSON:
        return json.loads((self.home / "server.json").read_bytes())

    @contextmanager
    def client(self) -> Generator[Client]:
        with Client(self.record()["url"], (self.home / "token").read_text().strip()) as client:
            yield client

    def ask(self, method: str, path: str, body: JSON | None = None, **headers: str) -> tuple[int, JSON]:
        """(status, JSON), past the client library. A header name's underscores are hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= {"Authorization": f"Bearer {(self.home / 'token').read_text().strip()}"}
        with closing(http.client.HTTPConnection("127.0.0.1", self.record()["port"], timeout=30)) as link:
            link.request(method, path, None if body is None else json.dumps(body), sent)
            response = link.getresponse()
            return response.status, json.loads(response.read())

    def create(self, key: str, **fields: Any) -> tuple[int, JSON]:
        return self.ask("POST", "/v1/sessions", fields, Idempotency_Key=key)


pytestmark = pytest.mark.slow


def make_place(base: Path, config: JSON) -> Place:
    home, here = base / "home", base / "here"
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "lab").write_text("a-key")
    (home / "config.yaml").write_text(json.dumps(config))
    (here / "bin").mkdir(parents=True)
    git = shutil.which("git")
    assert git
    (here / "bin" / "git").symlink_to(git)
    return Place(home, here)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    place = make_place(tmp_path_factory.mktemp("wrong"), CONFIG)
    place.ok("server", "start")
    yield place
    place.ok("server", "stop")


@pytest.fixture(scope="module")
def session(place: Place) -> str:
    status, made = place.create("session", workspace=str(place.here))
    assert status == 201
    return made["id"]


# What a session is made of.


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["-H", "codx"], 2, ["no harness named 'codx'", "Did you mean codex?"]),
        (["-H", "claude-code", "-P", "lab"], 3, ["not installed", "omnigent harness install claude-code"]),
        (["-H", "pi", "-P", "lab"], 3, ["not installed", "omnigent harness install pi"]),
        (["-H", "codex", "-P", "lab"], 2, ["codex speaks openai-responses", "not anthropic-messages"]),
        (["-H", "codex"], 2, ["No configured provider fits for codex"]),
        (["-P", "nobody"], 2, ["no provider named 'nobody'", "lab, chat"]),
        (["-P", "chat"], 2, ["not openai-chat (provider chat)", "Providers that fit: lab"]),
        (["-C", "no/such/place"], 2, ["no directory no/such/place", "mkdir -p no/such/place"]),
        (["-C", "bin/git"], 2, ["bin/git is not a directory"]),
    ],
)
def test_run_is_refused_by_name(place: Place, words: Sequence[str], code: int, told: list[str]) -> None:
    said = place.refused("run", "-p", *words, "hello", code=code)
    for text in told:
        assert text in said
    assert json.loads(place.ok("ls", "--json", "--query", "hello"))["items"] == []


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"harness": "codx"}, "unknown_harness", "Did you mean codex?"),
        ({"harness": "claude-code", "provider": "lab"}, "missing_binary", "omnigent harness install"),
        ({"harness": "codex", "provider": "lab"}, "wire_mismatch", "Providers that fit: none"),
        ({"provider": "nobody"}, "provider_missing", "Configured: lab, chat."),
        ({"workspace": "/no/such/place"}, "workspace_missing", "Name a directory"),
        ({"workspace": None}, "workspace_missing", "absolute path"),
        ({"workspace": ""}, "workspace_missing", "absolute path"),
        ({"workspace": "here"}, "workspace_missing", "absolute path"),
        ({"workspace": "~nobody-of-that-name/x"}, "workspace_missing", "Name a directory"),
    ],
)
def test_create_is_refused_by_code(place: Place, fields: JSON, code: str, told: str) -> None:
    status, problem = place.create(f"refused {fields}", **{"workspace": str(place.here)} | fields)
    assert (status, problem["code"]) == (422, code), problem
    assert told in problem["hint"]


def test_a_session_is_in_no_directory_that_nobody_named(place: Place) -> None:
    status, problem = place.create("nowhere", title="nowhere")
    assert (status, problem["code"], problem["path"]) == (422, "workspace_missing", "workspace")


def test_a_fork_is_told_of_the_wire_before_the_program(place: Place, session: str) -> None:
    said = place.refused("fork", session, "-H", "codex", "-P", "lab", "--share-workspace", code=2)
    assert "codex speaks openai-responses, not anthropic-messages" in said
    said = place.refused("fork", session, "-H", "pi", "-P", "lab", "--share-workspace", code=3)
    assert "omnigent harness install pi" in said


# Which session, where in it, and what of it.


@pytest.mark.parametrize("verb", ["show", "logs", "send", "attach", "stop", "export", "interrupt", "close"])
def test_an_unknown_session_is_not_found(place: Place, verb: str) -> None:
    more = ["hello"] if verb == "send" else []
    for named in ("ses_00000000000000000000000000", "no such title"):
        assert named in place.refused(verb, named, *more, code=3)


def test_a_cursor_beyond_the_log_is_named(place: Place, session: str) -> None:
    said = place.refused("logs", "--after", "99", session, code=2)
    assert "after=99 is beyond the log's head 2" in said and "hint: " in said
    stream = {"Accept": "text/event-stream"}
    path = f"/v1/sessions/{session}/events"
    for query, headers in (("?after=99", {}), ("?after=99", stream), ("", stream | {"Last_Event_ID": "99"})):
        status, problem = place.ask("GET", path + query, None, **headers)
        assert (status, problem["code"], problem["head"]) == (400, "bad_cursor", 2)
    for query in ("?after=x", "?after=-1", "?limit=0"):
        status, problem = place.ask("GET", path + query)
        assert (status, problem["code"], problem["path"]) == (400, "malformed", query[1:].split("=")[0])


def test_an_unknown_command_is_told_the_known_ones(place: Place, session: str) -> None:
    path = f"/v1/sessions/{session}/commands"
    status, problem = place.ask("POST", path, {"type": "promt", "text": "x", "idempotency_key": "a"})
    assert (status, problem["code"]) == (400, "malformed")
    assert {"prompt", "interrupt", "resolve", "switch"} <= set(problem["allowed"])
    assert "'promt' is unknown" in problem["detail"]
    near = place.refused("sned", "hello", code=2)
    assert "omnigent send" in near


def test_a_key_is_for_one_body(place: Place, session: str) -> None:
    path = f"/v1/sessions/{session}/commands"
    for key, body in (("one", {"type": "interrupt"}), ("one", {"type": "interrupt"})):
        assert place.ask("POST", path, body | {"idempotency_key": key})[0] == 202
    status, problem = place.ask("POST", path, {"type": "stop", "idempotency_key": "one"})
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    assert problem["hint"]
    fields = {"workspace": str(place.here)}
    assert place.create("two", **fields)[0] == 201
    status, problem = place.create("two", **fields, title="another")
    assert (status, problem["code"]) == (422, "idempotency_key_reused")


# Where the server is to live.


def test_a_port_that_is_taken_is_named_with_its_holder(tmp_path: Path, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        other = make_place(tmp_path / "a", CONFIG | {"server": {"port": port}})
        said = other.refused("ls", code=5)
        assert f"Port {port} on 127.0.0.1 is taken by another program" in said and "server.port" in said
    port = place.record()["port"]
    other = make_place(tmp_path / "b", CONFIG | {"server": {"port": port}})
    said = other.refused("ls", code=5)
    assert f"the Omnigent server of another home, {place.home}" in said
    assert f"OMNIGENT_HOME={place.home} omnigent server stop" in said


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    other = make_place(tmp_path, CONFIG)
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "home", Path("/proc/omnigent")):
        said = other.refused("ls", code=1, OMNIGENT_HOME=str(home))
        assert f"{home} can't be written" in said and "OMNIGENT_HOME" in said


def test_a_home_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    other = make_place(tmp_path, CONFIG)
    path = other.home / "omnigent.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE schema (number INTEGER PRIMARY KEY)")
        database.execute("INSERT INTO schema VALUES (9999)")
    before = path.read_bytes()
    said = other.refused("ls", code=1)
    assert "was written by a newer Omnigent (schema 9999" in said and "hint: " in said
    assert path.read_bytes() == before


# A log with kinds that come later.


def _chained(events: list[ev.Event]) -> list[ev.Event]:
    """The events with the hashes they must have."""
    chained: list[ev.Event] = []
    before = ev.GENESIS
    for event in events:
        fitting = replace(event, body_sha256=ev.sha256(event.body_text), typed=[], wire=[])
        before = ev.chain(before, fitting.envelope())
        chained.append(replace(fitting, hash=before))
    assert ev.verify(chained) is None
    return chained


def _from_the_future(archive: bytes) -> tuple[bytes, list[str]]:
    """An export as a newer version would write it, and its lines: an unknown kind and an unknown value."""
    with zipfile.ZipFile(io.BytesIO(archive)) as given:
        line = given.read("events.jsonl").decode().splitlines()[0]
    first = replace(ev.parse_event(line), session_id=NEWER, root_id=NEWER)
    bodies = [
        ("later.kind", {"words": "from the future"}),
        ("notice.raised", {"code": "new", "level": "catastrophe", "detail": "a level of later"}),
        ("session.updated", {"title": "Of tomorrow", "archived": None, "labels": None}),
    ]
    events = [first]
    for seq, (kind, body) in enumerate(bodies, start=2):
        text = ev.canonical(body)
        item = f"item_{seq}"
        events.append(
            replace(first, seq=seq, tree_pos=seq, producer_seq=seq, id=f"evt_{seq}", kind=kind, item_id=item,
                    body_text=text)
        )  # fmt: skip
    lines = [event.json_text() for event in _chained(events)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("events.jsonl", "\n".join(lines) + "\n")
    return buffer.getvalue(), lines


def test_a_log_with_newer_kinds_lists_shows_and_exports(place: Place, session: str) -> None:
    with place.client() as client:
        archive, lines = _from_the_future(client.export(session))
    (place.here / "newer.zip").write_bytes(archive)
    assert place.ok("import", "newer.zip").strip() == NEWER
    rows = json.loads(place.ok("ls", "--json"))["items"]
    assert [row["title"] for row in rows if row["id"] == NEWER] == ["Of tomorrow"]
    assert "Of tomorrow" in place.ok("show", NEWER)
    place.ok("logs", NEWER)
    assert place.ok("logs", "--json", NEWER).splitlines() == lines
    place.ok("attach", NEWER)
    assert place.ask("GET", f"/v1/sessions/{NEWER}/items")[0] == 200
    place.ok("export", NEWER, "-o", "again.zip")
    with zipfile.ZipFile(place.here / "again.zip") as again:
        assert again.read("events.jsonl").decode().splitlines() == lines
    child = place.ok("fork", NEWER, "--share-workspace").strip()
    assert json.loads(place.ok("show", child, "--json"))["forked_from"]["session_id"] == NEWER


# Control.

RULES = "policies:\n  - name: no-curl\n    when: {exec: curl}\n    then: deny\n"


def test_a_wrong_rule_is_marked_in_its_file(place: Place, session: str) -> None:
    path = place.here / "wrong.yaml"
    path.write_text(RULES.replace("then: deny", "thn: deny"))
    marked = ["error: wrong.yaml:4:5: ", "    4 |     thn: deny", "      |     ^", "hint: "]
    for words in (
        ("policy", "check", "wrong.yaml"),
        ("policy", "add", "wrong.yaml", "--session", session),
        ("policy", "add", "wrong.yaml", "--scope", "server"),
        ("policy", "test", "wrong.yaml", "--events", session),
        ("policy", "replay", session, "--policy", "wrong.yaml"),
        ("run", "-p", "--policy", "wrong.yaml", "with a wrong rule"),
    ):
        said = place.refused(*words, code=2)
        assert all(text in said for text in marked), said
    assert json.loads(place.ok("ls", "--json", "--query", "with a wrong rule"))["items"] == []
    path.write_text("policies:\n  - name: [\n")
    assert "wrong.yaml:3:" in place.refused("policy", "check", "wrong.yaml", code=2)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["policy", "rm", "nothing", "--scope", "server"], 3, ["no policy 'nothing'", "There is "]),
        (["policy", "rm", "nothing", "--session", "SESSION"], 3, ["no policy 'nothing'"]),
        (
            ["policy", "add", "rules.yaml", "--scope", "project", "--session", "SESSION"],
            2,
            ["--session doesn't"],
        ),
        (["policy", "add", "rules.yaml", "--session", "SESSION", "-C", "."], 2, ["Say --scope project"]),
        (
            ["policy", "add", "rules.yaml", "--scope", "project", "-C", "no/place"],
            2,
            ["no directory no/place"],
        ),
        (
            ["policy", "test", "rules.yaml", "--events", "none.jsonl"],
            3,
            ["no file none.jsonl", "logs --json"],
        ),
        (
            ["policy", "test", "rules.yaml", "--events", "rules.yaml"],
            2,
            ["rules.yaml:1: this line is no event"],
        ),
        (["policy", "test", "rules.yaml", "--events", "nobody"], 3, ["no session 'nobody'"]),
        (["policy", "test", "rules.yaml", "--events", "SESSION", "--at", "noon"], 2, ["2026-11-24T22:00"]),
        (["policy", "explain", "tc_none", "--session", "SESSION"], 3, ["'tc_none'", "tc_…"]),
        (["budget", "SESSION", "lots"], 2, ["US dollars like 3 or 2.50, not 'lots'"]),
        (["budget", "nobody", "5"], 3, ["no session 'nobody'"]),
        (["revoke", "gr_none"], 3, ["no grant 'gr_none'", "omnigent grants"]),
        (["run", "-p", "--budget", "lots", "x"], 2, ["--budget takes US dollars"]),
        (["run", "-p", "--policy", "none.yaml", "x"], 2, ["none.yaml can't be read"]),
        (["audit", "verify", "--house", "SESSION"], 2, ["--house is no session's"]),
        (["audit", "export", "SESSION", "-o", "rules.yaml"], 5, ["rules.yaml is there already", "--force"]),
        (["usage", "--session", "nobody"], 3, ["no session 'nobody'"]),
        (["approve", "ap_none"], 3, ["no open approval 'ap_none'", "omnigent inbox"]),
    ],
)
def test_control_is_refused_by_name(
    place: Place, session: str, words: list[str], code: int, told: list[str]
) -> None:
    (place.here / "rules.yaml").write_text(RULES)
    said = place.refused(*(session if word == "SESSION" else word for word in words), code=code)
    for text in told:
        assert text in said


@pytest.mark.slow
def test_what_loosens_asks_and_elsewhere_than_on_a_terminal_wants_a_yes(place: Place) -> None:
    (place.here / "rules.yaml").write_text(RULES)
    assert "+ project.no-curl" in place.run("policy", "add", "rules.yaml", "--scope", "project").stderr
    shown = place.ok("policy", "ls")
    assert f"project {place.here}" in shown and "no-curl" in shown and "run curl: deny" in shown
    said = place.refused("policy", "rm", "no-curl", "--scope", "project", code=2)
    assert "- project.no-curl" in said and "looser" in said and "Say --yes." in said
    assert "no-curl" in place.ok("policy", "ls")
    assert "applied to project" in place.run("policy", "rm", "no-curl", "--scope", "project", "--yes").stderr
    assert "no-curl" not in place.ok("policy", "ls")
    changed = [row for row in map(json.loads, place.ok("audit", "export", "--house").splitlines())
               if row["event"]["kind"] == "policy.changed"]  # fmt: skip
    assert [row["event"]["body"]["loosens"] for row in changed] == [False, True]
    assert {row["event"]["actor"]["via"] for row in changed} == {"cli"}
    assert "whole" in place.ok("audit", "verify", "--house")


@pytest.mark.slow
def test_a_projects_file_is_proposed_with_the_command_that_applies_it(place: Place) -> None:
    path = place.here / ".omnigent" / "policies.yaml"
    path.parent.mkdir()
    path.write_text(RULES)
    try:
        said = place.run("policy", "ls").stderr
        assert f"{path} differs from what is applied" in said
        command = next(line.strip() for line in said.splitlines() if line.strip().startswith("omnigent "))
        assert place.run(*command.split()[1:]).returncode == 0
        assert "differs" not in place.run("policy", "ls").stderr
        assert place.run("policy", "rm", "no-curl", "--scope", "project", "--yes").returncode == 0
    finally:
        shutil.rmtree(path.parent)


@pytest.mark.slow
def test_a_session_has_rules_and_a_budget_of_its_own(place: Place, session: str) -> None:
    (place.here / "rules.yaml").write_text(RULES)
    assert "+ session.no-curl" in place.run("policy", "add", "rules.yaml", "--session", session).stderr
    assert "no-curl" in place.ok("policy", "ls", session)
    assert "may spend $2.50" in place.run("budget", session, "2.50").stderr
    assert place.ok("budget", session) == "$0.00 of $2.50\n"
    shown = place.ok("show", session)
    assert "budget     $0.00 of $2.50" in shown and "sandbox: host" in shown and "policies " in shown
    assert "no cap" in place.run("budget", session, "off").stderr
    assert place.ok("budget", session) == "no cap\n"
    assert place.run("grants", session).stderr == "Nothing is allowed without asking again.\n"
    assert place.run("policy", "rm", "session.no-curl", "--session", session, "--yes").returncode == 0
    assert "no-curl" not in place.ok("policy", "ls", session)
    log = place.ok("logs", session)
    assert "+ session.no-curl" in log and "budget: $2.50" in log and "budget: no cap" in log


@pytest.mark.slow
def test_a_tested_log_fails_on_what_it_is_told_to(place: Place, session: str) -> None:
    (place.here / "rules.yaml").write_text(RULES)
    ran = place.run("policy", "test", "rules.yaml", "--events", session, "--fail-on", "deny")
    assert (ran.returncode, ran.stderr) == (0, "0 allowed, 0 asked, 0 paused, 0 denied\n")
    first = json.loads(place.ok("logs", "--json", session).splitlines()[0])
    body = {
        "tool": "bash", "title": "curl x", "parsed": "full", "raw": "{}", "native_id": "1", "gated": True,
        "actions": [{"type": "exec", "command": "curl x", "argv": ["curl", "x"], "program": "curl"}],
    }  # fmt: skip
    asked = first | {"seq": 2, "tree_pos": 2, "kind": "tool.requested", "item_id": "tc_1", "body": body}
    (place.here / "log.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(asked)}\n")
    ran = place.run("policy", "test", "rules.yaml", "--events", "log.jsonl", "--fail-on", "deny")
    assert (ran.returncode, "1 denied" in ran.stderr) == (6, True), ran
    assert "session.no-curl" in ran.stdout and "curl x" in ran.stdout
    assert place.run("policy", "test", "rules.yaml", "--events", "log.jsonl").returncode == 0


# Links, and a program that was replaced under its server.


def test_show_prints_the_link_and_elsewhere_than_on_a_terminal_no_token(place: Place, session: str) -> None:
    token = (place.home / "token").read_text().strip()
    assert f"{place.record()['url']}/s/{session}\n" in place.ok("show", session)
    assert token not in place.ok("show", session) + place.ok("show", session, "--json")


def test_a_server_of_another_version_is_told_once_with_the_mend(tmp_path: Path) -> None:
    other = make_place(tmp_path, CONFIG)
    assert other.run("ls", "--json").stderr == ""
    (other.home / "server.json").write_text(json.dumps(other.record() | {"version": "0.0.1"}))
    ran = other.run("ls", "--json")
    assert (ran.returncode, json.loads(ran.stdout)["items"]) == (0, [])
    (line,) = ran.stderr.splitlines()
    assert line.startswith("warning: the running server is Omnigent 0.0.1, this command is ")
    assert "`omnigent server stop`" in line
    assert "warning" not in other.run("server", "stop").stderr
    assert other.run("ls").returncode == 0
    assert "warning" not in other.run("ls").stderr
    other.ok("server", "stop")
