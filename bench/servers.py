"""The two servers under test: started, asked, measured, stopped."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from bare_server import seed
from http_calls import JSON, Connection

from omnigent import events as ev
from omnigent.events import Draft
from omnigent.ids import new_id, now
from omnigent.log import SqliteLog
from omnigent.views import SessionProjector

CHECKOUT = Path(__file__).resolve().parent.parent
HARNESSES = CHECKOUT / ".tools" / "harnesses"
KEY = "bench-key-0123456789"
"""What the scripted model takes for a real key."""
MODELS = {
    "scripted": ("messages", "scripted-1"),
    "claude-code": ("messages", "claude-sonnet-5"),
    "codex": ("responses", "gpt-5.5"),
    "pi": ("messages", "pi-model"),
}
"""Per harness: its provider, and a model."""
POLL = 0.002
"""Seconds between two looks at what has no other way to tell that it is done."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(look: Callable[[], bool], seconds: float, what: str, pause: float = POLL) -> None:
    """Wait until something holds. Raises `TimeoutError` naming it."""
    limit = time.monotonic() + seconds
    while not look():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


@contextmanager
def scratch() -> Generator[Path]:
    """A directory for homes, outside TMPDIR since Codex refuses to work below that; gone afterwards."""
    path = CHECKOUT / ".tools" / "bench-homes" / f"{os.getpid()}-{secrets.token_hex(3)}"
    path.mkdir(parents=True, mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Server:
    """A server process on a port of its own. `token` is known once it has answered."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.port = free_port()
        self.token = ""
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> float:
        """Milliseconds from the start of the process to its first 200 on /healthz."""
        request = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        environment = {**os.environ, "OMNIGENT_HOME": str(self.home), "BENCH_KEY": KEY}

        def answers() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {(self.home / 'out').read_text()[-2000:]}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                    connection.sendall(request)
                    return connection.recv(4096).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

        with (self.home / "out").open("ab") as out:
            began = time.perf_counter()
            self._process = subprocess.Popen(
                self.command(), env=environment, stdout=out, stderr=out, start_new_session=True
            )
            until(answers, 60, "the server's start")
        took = (time.perf_counter() - began) * 1000
        self._know_token()
        return took

    def _know_token(self) -> None:
        pass

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def connect(self) -> Connection:
        return Connection(self.port, self.token)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class BareServer(Server):
    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.token = secrets.token_urlsafe(32)

    def command(self) -> list[str]:
        database = str(self.home / "bare.db")
        program = str(Path(__file__).with_name("bare_server.py"))
        return [
            sys.executable,
            program,
            "--port",
            str(self.port),
            "--database",
            database,
            "--token",
            self.token,
        ]

    def fill(self, sessions: int) -> None:
        seed(self.home / "bare.db", sessions)


class OurServer(Server):
    def __init__(self, home: Path, model_url: str = "http://127.0.0.1:9") -> None:
        super().__init__(home)
        if HARNESSES.is_dir():
            (home / "harnesses").symlink_to(HARNESSES)
        self.workspace = make_workspace(home / "workspace")
        key = {"env": "BENCH_KEY"}
        config = {
            "server": {"port": self.port},
            "providers": {
                "messages": {"api": "anthropic-messages", "base_url": model_url, "key": key},
                "responses": {"api": "openai-responses", "base_url": f"{model_url}/v1", "key": key},
            },
            "defaults": {
                name: {"provider": provider, "model": model} for name, (provider, model) in MODELS.items()
            },
        }
        (home / "config.yaml").write_text(json.dumps(config))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "omnigent.server", "--home", str(self.home)]

    def _know_token(self) -> None:
        self.token = (self.home / "token").read_text().strip()

    def fill(self, sessions: int) -> None:
        """Give its log so many sessions, before it is started."""
        asyncio.run(self._fill(sessions))

    async def _fill(self, sessions: int) -> None:
        log = SqliteLog(self.home / "omnigent.db", SessionProjector(), now)
        for start in range(0, sessions, 250):
            numbers = range(start, min(start + 250, sessions))
            await asyncio.gather(
                *(log.create(new_id("ses"), [self.created(f"session {n}")]) for n in numbers)
            )
        await log.close()

    def created(self, title: str) -> Draft:
        return Draft(
            ev.SessionCreated(
                title=title,
                harness="scripted",
                model="scripted-1",
                provider="messages",
                workspace=str(self.workspace),
                approvals="ask",
                owner="local",
            )
        )

    def warm(self) -> None:
        """Wait until no session has a runner, and what runners are forked from has imported everything."""
        until(lambda: not self.leases() and self.spawner() is not None, 30, "a server ready to start", 0.05)

    def spawner(self) -> int | None:
        """What runners are forked from, once it waits for work: it ignores SIGCHLD from then on."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or parent_of(int(entry.name)) != self.pid:
                continue
            if b"omnigent.runner" in (entry / "cmdline").read_bytes():
                status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
                ready = int(status["SigIgn"], 16) >> (signal.SIGCHLD - 1) & 1
                return int(entry.name) if ready else None
        return None

    def leases(self) -> int:
        """Sessions that have a runner."""
        database = sqlite3.connect(f"file:{self.home / 'omnigent.db'}?mode=ro", uri=True)
        try:
            return database.execute("SELECT count(*) FROM lease").fetchone()[0]
        finally:
            database.close()


def make_workspace(path: Path) -> Path:
    """A git repository with one commit."""
    path.mkdir(parents=True)
    (path / "README.md").write_text("A small repository.\n")
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for argv in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "start")):
        subprocess.run(("git", "-C", str(path), *argv), check=True, capture_output=True)
    return path


class Model:
    """The scripted model, in a process of its own."""

    def __init__(self, place: Path, script: JSON) -> None:
        path = place / "script.json"
        path.write_text(json.dumps(script))
        command = [sys.executable, "-m", "omnigent.testing.scripted_model", "--script", str(path)]
        self._process = subprocess.Popen(
            [*command, "--require-key-env", "BENCH_KEY", "--until-eof"],
            env={**os.environ, "BENCH_KEY": KEY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.url: str = json.loads(self._process.stdout.readline())["url"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{pid} tells no resident size")


def parent_of(pid: int) -> int:
    """0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
