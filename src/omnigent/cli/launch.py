"""Starting the server of a home: detached, once, and watched until it answers."""

import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from omnigent.cli import local
from omnigent.client import Client, pause_before
from omnigent.config import Config, child_environment, load_config, ready_home
from omnigent.errors import ConfigInvalid, Conflict, HomeUnusable, OmnigentError, ServerUnreachable

DEADLINE = 30.0
"""Seconds a server may take to answer: a cold start on a slow disk, with migrations."""


def launch(home: Path) -> Client:
    """A client of the home's server, started unless somebody else just did. Raises what hinders it."""
    ready_home(home)
    with _alone(home):
        client = local.running(home)
        if client is not None:
            return client
        config = load_config(home)
        _check_port(config, home)
        return _start(home, config)


@contextmanager
def _alone(home: Path) -> Generator[None]:
    """One starter per home. The system releases the lock of a killed process."""
    try:
        lock = (home / "server.start.lock").open("a")
    except OSError as error:
        raise HomeUnusable(f"{home} can't be written: {error.strerror}.") from error
    with lock:
        deadline = time.monotonic() + DEADLINE + 5
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerUnreachable(
                        "Another command has been starting the server for too long.",
                        hint=f"See {home / 'logs' / 'server.log'}.",
                    ) from None
                time.sleep(pause_before(0))
        yield


def _start(home: Path, config: Config) -> Client:
    log = home / "logs" / "server.log"
    try:
        log.parent.mkdir(mode=0o700, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise HomeUnusable(f"{log} can't be written: {error.strerror}.") from error
    began = os.fstat(output).st_size
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "omnigent.server", "--home", str(home)],
            cwd=home,
            env=server_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)
    return _await(child, home, config, log, began)


def server_environment(config: Config) -> dict[str, str]:
    """The allow-listed part of ours, and what the configuration names: providers' keys, agents' variables."""
    keys = tuple(row.key.env for row in config.providers.values() if row.key.env)
    return child_environment(dict(os.environ), keys + config.environment)


def _await(child: subprocess.Popen[bytes], home: Path, config: Config, log: Path, began: int) -> Client:
    try:
        client = _answering(child, home, config, log, began)
    except (KeyboardInterrupt, SystemExit):
        child.kill()  # nobody else knows of it yet
        child.wait()
        raise
    if client is None:
        child.kill()
        child.wait()
        raise ServerUnreachable(
            f"The server didn't answer within {DEADLINE:.0f} s and was ended.", hint=f"See {log}."
        )
    child.returncode = 0  # it lives on; tell subprocess not to warn about that
    return client


def _answering(
    child: subprocess.Popen[bytes], home: Path, config: Config, log: Path, began: int
) -> Client | None:
    deadline, attempt = time.monotonic() + DEADLINE, 0
    while time.monotonic() < deadline:
        client = local.running(home)
        if client is not None:
            return client
        if child.poll() is not None:
            _check_port(config, home)
            raise _died(child.returncode, log, began)
        time.sleep(min(0.05, pause_before(attempt)))
        attempt += 1
    return None


def _died(code: int, log: Path, began: int) -> OmnigentError:
    """The server's own `error:` and `hint:` lines if it wrote some."""
    with log.open("rb") as opened:
        opened.seek(began)
        lines = opened.read()[-20_000:].decode("utf-8", "replace").splitlines()
    said = dict(line.split(": ", 1) for line in lines if line.startswith(("error: ", "hint: ")))
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    kinds: dict[int, type[OmnigentError]] = {1: HomeUnusable, 2: ConfigInvalid, 5: Conflict}
    kind = kinds.get(code, ServerUnreachable) if "error" in said else ServerUnreachable
    detail = said.get("error") or f"The server ended at once: {last}"
    return kind(detail, hint=said.get("hint") or f"See {log}.")


def _check_port(config: Config, home: Path) -> None:
    """Raises if the configured port is taken: by another program, or another home's server."""
    host, port = config.server.host, config.server.port
    if port == 0:
        return
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        mend = f"Set `server.port` in {home / 'config.yaml'}, e.g. `server: {{port: {port + 1}}}`."
        who, other = _who(host, port), _home_at(port)
        if other is not None:
            who += f", {other}"
            mend += f" Or stop that one: OMNIGENT_HOME={shlex.quote(str(other))} omnigent server stop"
        raise Conflict(f"Port {port} on {host} is taken by {who}.", hint=mend, port=port)


def _who(host: str, port: int) -> str:
    try:
        Client(f"http://{host}:{port}", "", patience=0, timeout=1).health()
    except OmnigentError:
        return "another program"
    return "the Omnigent server of another home"


def _home_at(port: int) -> Path | None:
    """The home whose server has this port, if it can be known: from the words that our own servers were
    started with (Linux), and the record that each writes."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if "omnigent.server" in words and "--home" in words[:-1]:
            home = Path(words[words.index("--home") + 1])
            if (local.server_record(home) or {}).get("port") == port:
                return home
    return None
