"""A whole Omnigent for tests: a home of its own, a scripted model, a real server that can be killed."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omnigent import processes
from omnigent.client import Client
from omnigent.events import Body, Event, MessageSubmitted, parse_event, text_of, verify
from omnigent.harnesses import Binary, install
from omnigent.testing.scripted_model import RecordedRequest, ScriptedModel

JSON = dict[str, Any]
CHECKOUT = Path(__file__).resolve().parent.parent
AGENTS = CHECKOUT / ".tools"
"""The home with the real agents: what `./dev setup` fills."""
KEY = "test-key-0123456789"
"""What the scripted model takes for a real key."""

PRICE = {"input": 3.0, "output": 15.0}
"""USD per million tokens of the models that no price list knows."""

EVERY_COMMAND_ASKS = "policies:\n  - {name: commands, use: approve, with: {exec: all}}\n"
"""A session's own rule for tests in which a person is asked, whatever the command."""

MODELS = {
    "scripted": ("messages", "scripted-1"),
    "claude-code": ("messages", "claude-sonnet-5"),
    "codex": ("responses", "gpt-5.5"),
    "pi": ("messages", "pi-model"),
}
"""Per harness: its provider in the test's configuration, and a model."""


def agent_binary(name: str, version: str) -> Binary:
    """A real agent of the checkout, by its exact version."""
    found = next((one for one in install.installed(name, AGENTS) if one.version == version), None)
    assert found, f"{name} {version} isn't installed: run ./dev setup"
    # What comes before the program, a Node.js for instance, is the same for all versions.
    runtime = install.locate(name, AGENTS).argv[:-1]
    return Binary(name, (*runtime, str(found.program)), version, "managed", in_range=True)


def wait_for[T](look: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first truthy answer of `look`, which is asked less and less often. Fails after `seconds`."""
    limit, pause = time.monotonic() + seconds, 0.02
    while not (found := look()):
        assert time.monotonic() < limit, f"{what}: not within {seconds} s"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.15)
    return found


def body_of[B: Body](event: Event, cls: type[B]) -> B:
    """The event's body, which must be of that kind."""
    body = event.body
    assert isinstance(body, cls), event.kind
    return body


def submitted_text(event: Event) -> str:
    """What a person wrote."""
    return text_of(body_of(event, MessageSubmitted).content)


def free_port() -> int:
    """One that no connection is given by chance, as those of the range beginning at 32768 are: it is still
    free when its server starts, and starts again."""
    while True:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def make_repository(path: Path) -> Path:
    """A git repository with one commit."""
    path.mkdir(parents=True)
    (path / "README.md").write_text("A small repository.\n")
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for argv in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "start")):
        subprocess.run(("git", "-C", str(path), *argv), check=True, capture_output=True)
    return path


class House:
    """One home with one server. `restart` keeps the port, as a real restart does."""

    def __init__(self, home: Path, script: JSON, *, grace_seconds: float = 60, **runner: float) -> None:
        self.home = home
        home.mkdir(parents=True, mode=0o700)
        agents = AGENTS / "harnesses"
        assert agents.is_dir(), "The agents aren't installed: run ./dev setup"
        (home / "harnesses").symlink_to(agents)
        self.workspace = make_repository(home / "workspace")
        self.port = free_port()
        self._running = ScriptedModel.in_thread(script, require_key=KEY)
        self.model = self._running.__enter__()
        self.process: subprocess.Popen[bytes] | None = None
        self._write_config(grace_seconds, runner)
        self._clients: dict[int, Client] = {}
        self._begun = 0
        """So many model calls were seen before this test."""

    def _write_config(self, grace_seconds: float, runner: dict[str, float]) -> None:
        url, key = self.model.url, {"env": "LAB_KEY"}
        ours = {"prices": dict.fromkeys(("scripted-1", "pi-model"), PRICE)}
        config = {
            "server": {"port": self.port},
            "runner": {"grace_seconds": grace_seconds, **runner},
            "providers": {
                "messages": {"api": "anthropic-messages", "base_url": url, "key": key, **ours},
                "responses": {"api": "openai-responses", "base_url": f"{url}/v1", "key": key},
                "chat": {"api": "openai-chat", "base_url": f"{url}/v1", "key": key, **ours},
            },
            "defaults": {
                name: {"provider": provider, "model": model} for name, (provider, model) in MODELS.items()
            },
        }
        (self.home / "config.yaml").write_text(json.dumps(config))

    # The server.

    def start(self) -> None:
        log = (self.home / "server.out").open("ab")
        # Login shells of agents don't run the profile of whoever runs the tests: killed halfway, such a
        # profile may leave locks behind.
        person = self.home / "person"
        person.mkdir(exist_ok=True)
        programs = self.home / "programs"
        programs.mkdir(exist_ok=True)
        (person / ".profile").write_text(f'PATH="{programs}:$PATH"\n')  # login shells begin a PATH anew
        environment = {
            **os.environ, "LAB_KEY": KEY, "OMNIGENT_HOME": str(self.home), "HOME": str(person),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }  # fmt: skip
        command = (sys.executable, "-m", "omnigent.server", "--home", str(self.home))
        with log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, 20, "the server's start")

    def _answers(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"the server ended with {code}: {(self.home / 'server.out').read_text()[-3000:]}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return (self.home / "server.json").exists()
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        (self.home / "server.json").unlink(missing_ok=True)
        self.process = None

    def restart(self) -> None:
        self.start()

    def close_server(self) -> None:
        """The polite end: turns finish, runners go."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(45)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.close_server()
        for pid in self.runner_pids():
            processes.kill_tree(pid)
        self._running.__exit__(None, None, None)
        if "OMNIGENT_KEEP_HOMES" not in os.environ:
            shutil.rmtree(self.home, ignore_errors=True)

    def begin(self, script: JSON) -> None:
        """Ready for the next test on this server: no session, an untouched workspace, another script."""
        if self.process is None:
            self.start()
        client = self.client()
        for session in list(client.sessions()):
            client.command(session["id"], "stop")
            self.settled(session["id"])
            client.delete(session["id"])
            self.nothing_runs(session["id"], 20)
        subprocess.run(("git", "-C", str(self.workspace), "clean", "-fdxq"), check=True)
        self.model.set_script(script)
        self._begun = len(self.model.requests)

    # The API.

    def client(self) -> Client:
        """One for each thread: calls of one client wait for each other."""
        thread = threading.get_ident()
        if thread not in self._clients:
            token = (self.home / "token").read_text().strip()
            self._clients[thread] = Client(f"http://127.0.0.1:{self.port}", token)
        return self._clients[thread]

    def create(self, harness: str, prompt: str | None = None, **more: Any) -> str:
        body: JSON = {"harness": harness, "workspace": str(self.workspace), **more}
        if prompt is not None:
            body["prompt"] = prompt
        return self.client().create(body)["id"]

    def prompt(self, session_id: str, text: str | None, **more: Any) -> JSON:
        return self.client().command(session_id, "prompt", text=text, **more)

    def session(self, session_id: str) -> JSON:
        return dict(self.client().session(session_id))

    def settled(self, session_id: str, seconds: float = 30) -> JSON:
        """The session once it is idle."""

        def idle() -> JSON | None:
            now = self.session(session_id)
            return now if now["status"] == "idle" else None

        return wait_for(idle, seconds, f"{session_id} idle")

    def at_rest(self, session_id: str, seconds: float = 30) -> JSON:
        """The session once no turn is open. What a person was asked by an agent that is gone is given up."""

        def rests() -> JSON | None:
            now = self.session(session_id)
            if now["status"] == "waiting" and now["turn"] is None:
                self.client().command(session_id, "interrupt")
            return now if now["status"] == "idle" else None

        return wait_for(rests, seconds, f"{session_id} at rest")

    def events(self, session_id: str) -> list[Event]:
        """The whole log, its chain verified, its seqs dense."""
        found = [parse_event(json.dumps(raw)) for raw in self.client().all_events(session_id)]
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        assert verify(found) is None
        return found

    def kinds(self, session_id: str) -> list[str]:
        return [event.kind for event in self.events(session_id)]

    def await_kind(self, session_id: str, kind: str, seconds: float = 30, count: int = 1) -> Event:
        """The `count`-th event of a kind, once it is there."""

        def look() -> Event | None:
            found = self.client().events(session_id, kinds=kind, limit=1000)["events"]
            return parse_event(json.dumps(found[count - 1])) if len(found) >= count else None

        return wait_for(look, seconds, f"{kind} in {session_id}")

    def place_program(self, name: str, script: str) -> None:
        """Put a program first on the PATH of the server and its agents: before `start`, or while it runs."""
        path = self.home / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def approve(self, session_id: str, **more: Any) -> None:
        asked = self.await_kind(session_id, "approval.requested")
        self.client().command(session_id, "resolve", approval_id=asked.item_id, decision="allow", **more)

    # Processes.

    def leases(self) -> dict[str, tuple[int, int]]:
        """session id → (runner's pid, epoch)."""
        database = sqlite3.connect(f"file:{self.home / 'omnigent.db'}?mode=ro", uri=True)
        try:
            rows = database.execute("SELECT session_id, pid, epoch FROM lease").fetchall()
        finally:
            database.close()
        return {session_id: (pid, epoch) for session_id, pid, epoch in rows}

    def runner_pids(self) -> list[int]:
        return [pid for pid, _ in self.leases().values()]

    def agent_processes(self, session_id: str) -> list[processes.Process]:
        """All that carry the marker of the session, whichever start they are from."""
        found: list[processes.Process] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environ = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"{processes.MARKER}={session_id}:".encode() in environ:
                    start = processes.start_time(int(entry.name))
                    if start is not None:
                        found.append((int(entry.name), start))
        return found

    def nothing_runs(self, session_id: str, seconds: float) -> None:
        wait_for(lambda: not self.agent_processes(session_id), seconds, "the agent's processes gone")

    def model_calls(self, text: str) -> list[RecordedRequest]:
        """The model calls whose newest prompt holds `text`."""
        return [request for request in self.model.requests[self._begun :] if text in request.prompt]


def fresh_home(name: str) -> Path:
    """A home outside TMPDIR, since Codex refuses to keep its helpers below it."""
    path = CHECKOUT / ".tools" / "test-homes" / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
    shutil.rmtree(path, ignore_errors=True)
    return path
