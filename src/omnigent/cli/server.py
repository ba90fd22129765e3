"""`omnigent server start|stop|status|logs`."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from omnigent.cli import local, reader
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import FAILED, OK, TIMEOUT
from omnigent.cli.talk import out, out_json, tell
from omnigent.client import pause_before
from omnigent.errors import NotFound, OmnigentError, ServerUnreachable
from omnigent.processes import alive, start_time


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent server start\nomnigent server status --json\nomnigent server stop"
    verbs = parser.verbs()
    starting = verbs.add_parser("start", help="start it; it outlives this terminal")
    starting.example = "omnigent server start"
    add_json(starting)
    starting.set_defaults(call=start)
    stopping = verbs.add_parser("stop", help="let running turns end, then stop it")
    stopping.example = "omnigent server stop\nomnigent server stop --keep-runners"
    stopping.add_argument(
        "--keep-runners", action="store_true", help="for an upgrade: the agents go on meanwhile"
    )
    stopping.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="then exit 124")
    stopping.set_defaults(call=stop)
    status_ = verbs.add_parser("status", help="does it run, since when, where")
    status_.example = "omnigent server status --json"
    add_json(status_)
    status_.set_defaults(call=status)
    logging = verbs.add_parser("logs", help="what it wrote")
    logging.example = "omnigent server logs -f"
    logging.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logging.add_argument("-n", "--lines", type=int, default=100, metavar="N")
    logging.set_defaults(call=logs)


def start(options: argparse.Namespace) -> int:
    client = local.connect()
    health = client.health()
    if options.json:
        out_json({"url": client.url, **health})
    else:
        out(client.url)
    return OK


def stop(options: argparse.Namespace) -> int:
    if local.is_remote():
        client = local.connect()
        client.drain(keep_runners=options.keep_runners)
        tell(f"{client.url} is stopping")
        return OK
    return stop_local(local.home_path(), options.timeout, keep_runners=options.keep_runners)


def stop_local(home: Path, timeout: float, *, keep_runners: bool = False) -> int:
    """Drain the server of a home and wait until its process has ended."""
    record, client = local.server_record(home), local.running(home)
    if client is None:
        tell("No server runs.")
        return OK
    pid = int((record or {}).get("pid") or 0)
    started = start_time(pid) if pid else None
    client.patience = 5.0
    client.drain(keep_runners=keep_runners)
    deadline, attempt = time.monotonic() + timeout, 0
    told_at = time.monotonic()
    while _lives(home, pid, started):
        now = time.monotonic()
        if now > deadline:
            tell(f"The server (pid {pid}) still runs.")
            return TIMEOUT
        if now - told_at > 5:
            told_at = now
            tell("waiting for running turns to end …")
        time.sleep(min(0.5, pause_before(attempt)))
        attempt += 1
    tell("stopped")
    return OK


def _lives(home: Path, pid: int, started: int | None) -> bool:
    if pid and started is not None:
        return alive(pid, started)
    return local.running(home) is not None


def status(options: argparse.Namespace) -> int:
    found = _status()
    if options.json:
        out_json(found)
    elif found["running"]:
        pid = f"  pid {found['pid']}" if found.get("pid") else ""
        out(f"running  {found['url']}  version {found['version']}{pid}")
    else:
        out("not running")
        tell("hint: omnigent server start")
    return OK if found["running"] else FAILED


def _status() -> dict[str, Any]:
    home = local.home_path()
    try:
        client = local.connect(start=False, patience=0)
        health = client.health()
    except ServerUnreachable as error:
        return {"running": False, "detail": error.detail}
    except OmnigentError:
        raise
    record = {} if local.is_remote() else (local.server_record(home) or {})
    return {"running": True, "url": client.url, "version": health.get("version"), "pid": record.get("pid")}


def logs(options: argparse.Namespace) -> int:
    path = local.home_path() / "logs" / "server.log"
    try:
        log = path.open("rb")
    except OSError as error:
        raise NotFound(f"{path} can't be read: {error.strerror}.", hint="omnigent server start") from error
    if options.follow:
        reader.exit_when_gone()
    with log:
        lines = log.read()[-1_000_000:].splitlines(keepends=True)
        sys.stdout.buffer.write(b"".join(lines[-options.lines :] if options.lines > 0 else []))
        sys.stdout.buffer.flush()
        while options.follow:
            if more := log.read():
                sys.stdout.buffer.write(more)
                sys.stdout.buffer.flush()
            else:
                time.sleep(0.3)  # a plain file has no other way to tell that it grew
    return OK
