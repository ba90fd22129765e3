"""What this machine has and lacks for running Omnigent, and the command that mends each lack."""

import json
import platform
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omnigent.errors import MissingBinary
from omnigent.harnesses.install import PINS, find_node, locate, unusable, version_of
from omnigent.harnesses.probe_results import known, standing


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. `mend` is a command or a sentence; empty when there is nothing to do."""

    name: str
    ok: bool
    what: str
    mend: str = ""


def doctor(home: Path, port: int = 6767) -> list[Finding]:
    """Every finding, in the order a person would look."""
    return [
        _python(),
        _program("git", "Workspaces, diffs and undo need it.", "Install git with the system's packages."),
        _sandbox(),
        _node_found(home),
        *(_agent_found(name, home) for name in PINS),
        _home_found(home),
        _room_found(home),
        _port_found(port),
    ]


def _python() -> Finding:
    version, ok = platform.python_version(), sys.version_info >= (3, 12)
    return Finding("python", ok, version, "" if ok else "uv python install 3.12")


def _program(command: str, why: str, mend: str) -> Finding:
    version = version_of((command_path,)) if (command_path := shutil.which(command)) else ""
    return Finding(command, True, version) if version else Finding(command, False, f"Not found. {why}", mend)


def _sandbox() -> Finding:
    """Information only: without it, sessions run without a sandbox and say so."""
    if shutil.which("bwrap"):
        return Finding("bubblewrap", True, "found")
    mend = "apt install bubblewrap" if sys.platform == "linux" else ""
    return Finding("bubblewrap", True, "Not found: sessions have no sandbox.", mend)


def _node_found(home: Path) -> Finding:
    least = PINS["pi"].node
    try:
        found = find_node(home, least)
    except MissingBinary as error:
        return Finding("node", False, f"{error.detail} Pi needs it.", error.hint)
    return Finding("node", True, f"{version_of((found,))} ({found})")


def _agent_found(name: str, home: Path) -> Finding:
    try:
        binary = locate(name, home)
    except MissingBinary as error:
        return Finding(name, False, error.detail, error.hint)
    what = f"{binary.version} ({binary.source}: {binary.argv[-1]})"
    if binary.in_range:
        return Finding(name, True, what)
    seen = known(home, binary)
    held = seen is not None and seen.outcome == "held"
    what = f"{what} is {standing(PINS[name].tested, binary, home)}"
    return Finding(name, held, what, f"omnigent harness install {name}")


def _home_found(home: Path) -> Finding:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return Finding("home", True, str(home))
    except OSError as error:
        problem = unusable(error, home)
        return Finding("home", False, problem.detail, problem.hint)


def _room_found(home: Path) -> Finding:
    """Room for one more agent, on the disk of the home or of the parent it will be made in."""
    standing = next(path for path in (home, *home.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(standing).free, max(pin.room_mb for pin in PINS.values()) * 1_000_000
    what = f"{free / 1e9:.1f} GB free"
    mend = "Free some space, or set OMNIGENT_HOME to a larger disk."
    return Finding("disk", free >= needed, what, "" if free >= needed else mend)


def _port_found(port: int) -> Finding:
    """Free, or held by an Omnigent server; anything else is in the way."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            if _answers(port):
                return Finding("port", True, f"{port}: the Omnigent server is running")
            mend = "Set `server.port` in config.yaml to a free port."
            return Finding("port", False, f"{port} is taken by another program.", mend)
    return Finding("port", True, f"{port} is free")


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/healthz", timeout=2) as response:
            body: Any = json.loads(response.read(10_000))
    except (OSError, ValueError, urllib.error.URLError):
        return False
    return isinstance(body, dict) and "version" in cast(dict[str, Any], body)
