"""The server of this machine, or the one `$OMNIGENT_SERVER` names: found, and started when none runs."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from omnigent import __version__
from omnigent.cli.talk import tell
from omnigent.client import ANSWER_TIMEOUT, HEALTH_TIMEOUT, PATIENCE, Client
from omnigent.errors import OmnigentError, ServerUnreachable, Unauthorized, WorkspaceMissing


def home_path() -> Path:
    """`$OMNIGENT_HOME`, else `~/.omnigent`. (`config.home_path`, without what that module imports.)"""
    named = os.environ.get("OMNIGENT_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".omnigent"


def here() -> Path:
    """The current directory. Raises `WorkspaceMissing` if it was deleted under us."""
    try:
        return Path.cwd()
    except OSError as error:
        raise WorkspaceMissing("The current directory no longer exists; give one with -C.") from error


def is_remote() -> bool:
    return bool(os.environ.get("OMNIGENT_SERVER"))


def connect(*, start: bool = True, patience: float = PATIENCE) -> Client:
    """A client of the server; it is started if it is ours to start, none runs and `start`."""
    remote = os.environ.get("OMNIGENT_SERVER")
    if remote:
        return _remote(remote, patience)
    home = home_path()
    client = running(home)
    if client is not None:
        _tell_skew(home)
    else:
        if not start:
            raise ServerUnreachable(f"No server runs for {home}.", hint="`omnigent server start` starts it.")
        from omnigent.cli.launch import launch  # half of Omnigent: only when a server must be started

        client = launch(home)
    client.patience = patience
    return client


def running(home: Path) -> Client | None:
    """A client of the server of this home if one answers now."""
    record = server_record(home)
    if record is None:
        return None
    client = Client(str(record["url"]), read_token(home), via="cli", patience=0, timeout=HEALTH_TIMEOUT)
    try:
        health = client.health()
    except OmnigentError:
        return None
    client.timeout = ANSWER_TIMEOUT
    return client if health.get("status") == "ok" else None


def server_record(home: Path) -> dict[str, Any] | None:
    """What the server wrote about itself when it was ready: pid, port, url, version."""
    try:
        record: Any = json.loads((home / "server.json").read_bytes())
        return record if record["url"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tell_skew(home: Path) -> None:
    """One line if the server that runs is of another version: the program was replaced under it."""
    version = (server_record(home) or {}).get("version")
    if version not in (None, __version__):
        mend = "`omnigent server stop`, then any command, starts the new one"
        tell(f"warning: the running server is Omnigent {version}, this command is {__version__}: {mend}")


def read_token(home: Path) -> str:
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return ""


def _remote(url: str, patience: float) -> Client:
    """`$OMNIGENT_TOKEN`, else a `#token=…` of the URL, else for loopback this home's token."""
    parts = urlsplit(url)
    named = os.environ.get("OMNIGENT_TOKEN") or "".join(parse_qs(parts.fragment).get("token", []))
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    token = named or (read_token(home_path()) if local else "")
    if not token:
        raise Unauthorized(f"There is no token for {parts.netloc}.", hint="Set OMNIGENT_TOKEN to yours.")
    return Client(
        parts._replace(path="", query="", fragment="").geturl(), token, via="cli", patience=patience
    )
