"""Which agents Omnigent installs, where they are, and whether this machine can run them.

Managed agents stand side by side in `HOME/harnesses/<name>/<version>/`, put there by one rename: what has
that name is whole. `pins/pins.toml` says what is installed; nothing is ever installed globally.
"""

import contextlib
import errno
import fcntl
import functools
import importlib.resources
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from omnigent.errors import HomeUnusable, MissingBinary, UnknownHarness, UnsupportedVersion
from omnigent.harnesses import Binary, fetch
from omnigent.harnesses.fetch import InstallFailed, Progress, Report

Source = Literal["wheel", "tarball", "lock"]

_MARKER = "installed.json"
_PATIENCE = 30.0
"""Seconds an agent may take to tell its version."""

_ENV_KEPT = re.compile(
    r"(?i)PATH|HOME|USER|LOGNAME|SHELL|TERM|TMPDIR|LANG|LC_.*|XDG_.*|(https?|all|no)_proxy"
    r"|SSL_CERT_(FILE|DIR)|NODE_EXTRA_CA_CERTS|npm_config_.*|NVM_DIR|VOLTA_HOME"
)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a registry: `digest` is `sha256-<hex>` or `sha512-<base64>`."""

    file: str
    digest: str
    package: str = ""
    program: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """One version that may be installed. `files` by platform; `lock` names a directory of `pins/`."""

    version: str
    source: Source
    package: str
    program: str = ""
    files: Mapping[str, File] = field(default_factory=dict[str, File])
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Pin:
    """What is pinned of one agent: the first release is the default, `node` the least Node.js it runs on."""

    name: str
    title: str
    command: str
    room_mb: int
    releases: tuple[Release, ...]
    node: str = ""

    @property
    def tested(self) -> tuple[str, str]:
        """The lowest and the highest version this Omnigent was tested with."""
        versions = sorted((release.version for release in self.releases), key=order)
        return versions[0], versions[-1]

    def covers(self, version: str) -> bool:
        """Is the version inside the tested range?"""
        low, high = self.tested
        return bool(order(version)) and order(low) <= order(version) <= order(high)


@dataclass(frozen=True, slots=True)
class Installed:
    """A managed agent on disk. `program` is what to start (for Pi: what to give to Node.js)."""

    name: str
    version: str
    root: Path
    program: Path


@dataclass(frozen=True, slots=True)
class _Site:
    """Where an installation happens: into which home, told to whom, with which store of downloads."""

    home: Path
    report: Report
    cache: Path | None


def order(version: str) -> tuple[int, ...]:
    """A sort key for dotted versions; empty for what isn't one. Pre-release tails don't count."""
    number = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in number[0].split(".")) if number else ()


def silent(_: Progress) -> None:
    """A `Report` that tells nobody."""


def install(
    name: str,
    home: Path,
    version: str | None = None,
    progress: Report = silent,
    *,
    cache: Path | None = None,
) -> Installed:
    """Install an agent into `home`, or find it there already. Safe to run twice at once, and to kill.

    `cache` (else $OMNIGENT_CACHE) keeps downloads by digest, for machines that install often.
    """
    pin = pin_of(name)
    release = _release(pin, version)
    kept = cache or (Path(os.environ["OMNIGENT_CACHE"]) if os.environ.get("OMNIGENT_CACHE") else None)
    return _install(pin, release, _Site(home, progress, kept))


def installed(name: str, home: Path) -> list[Installed]:
    """The managed versions on disk, newest first; pinned by this Omnigent or by an earlier one."""
    room = _room(name, home)
    if not room.is_dir():
        return []
    found = [one for path in room.iterdir() if (one := _read(name, path))]
    return sorted(found, key=lambda one: order(one.version), reverse=True)


def locate(name: str, home: Path) -> Binary:
    """The newest managed version of the tested range, else the vendor's own program on PATH."""
    pin = pin_of(name)
    for one in installed(name, home):
        if pin.covers(one.version):
            argv = (*_runtime(pin, home), str(one.program))
            return Binary(name, argv, one.version, "managed", True)
    found = shutil.which(pin.command)
    if not found:
        raise MissingBinary(f"{pin.title} is not installed.", hint=f"omnigent harness install {name}")
    argv = _argv_on_path(pin, found, home)
    version = version_of(argv)
    return Binary(name, argv, version or "unknown", "path", pin.covers(version))


def pin_of(name: str) -> Pin:
    """The pin of a harness."""
    if name not in PINS:
        raise UnknownHarness(f"There is no harness {name!r}.", hint=f"Take one of: {', '.join(PINS)}.")
    return PINS[name]


def here() -> str:
    """This machine as the pins name it, for instance `linux-x86_64`."""
    machine = platform.machine().lower()
    return f"{sys.platform}-{'x86_64' if machine == 'amd64' else machine}"


def _install(pin: Pin, release: Release, site: _Site) -> Installed:
    _file_here(pin, release)
    room = _make_room(pin, site.home)
    if pin.node:
        _ensure_node(pin, site)
    with _alone(room, pin, site.report):
        target = room / release.version
        found = _read(pin.name, target) or _build(pin, release, target, site)
        site.report(Progress(f"{pin.title} {release.version}", "done"))
        return found


def _build(pin: Pin, release: Release, target: Path, site: _Site) -> Installed:
    """Build beside the target, look whether it runs, then rename."""
    stage = target.with_name(f".{release.version}.part")
    _sweep(stage.parent)
    _need_room(pin, site.home)
    try:
        stage.mkdir()
        program = _fill(pin, release, stage, site)
        site.report(Progress(f"{pin.title} {release.version}", "check"))
        _check(pin, release, (*_runtime(pin, site.home), str(stage / program)))
        mark = {"name": pin.name, "version": release.version, "program": program}
        (stage / _MARKER).write_text(json.dumps(mark))
        shutil.rmtree(target, ignore_errors=True)  # a directory of that name without the marker is no install
        stage.rename(target)
    except OSError as error:
        raise unusable(error, site.home) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Installed(pin.name, release.version, target, target / program)


def _fill(pin: Pin, release: Release, stage: Path, site: _Site) -> str:
    """Put the release into `stage`. Returns its program, relative to it."""
    if release.source == "lock":
        _npm_ci(pin, release, stage, site)
        return release.program
    file = _file_here(pin, release)
    archive = (site.cache or stage) / f"{file.digest[:23].replace('/', '_')}-{file.file}"
    if not fetch.matches(archive, file.digest):
        archive.parent.mkdir(parents=True, exist_ok=True)
        find = fetch.wheel_url if release.source == "wheel" else fetch.tarball_url
        url = find(file.package or release.package, file.file, os.environ)
        fetch.download(url, archive, file.digest, site.report)
    site.report(Progress(file.file, "unpack"))
    fetch.unpack(archive, stage)
    if not site.cache:
        archive.unlink()
    program = file.program or release.program
    (stage / program).chmod(0o755)
    return program


def _npm_ci(pin: Pin, release: Release, stage: Path, site: _Site) -> None:
    """`npm ci` from the lock we ship: exact versions with digests; no package runs a script of its own."""
    for name in ("package.json", "package-lock.json"):
        (stage / name).write_bytes((_pins() / release.lock / name).read_bytes())
    node = find_node(site.home, pin.node)
    npm = _npm(node, site)
    env = _clean_env() | {"PATH": f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    env |= {"npm_config_cache": str(site.cache / "npm")} if site.cache else {}
    site.report(Progress(f"{pin.title} {release.version}", "npm"))
    flags = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error")
    ran = subprocess.run([*npm, *flags], cwd=stage, env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise InstallFailed(
            f"npm could not install {pin.title} {release.version}: {_last_line(ran.stderr)}",
            hint="Check the network and `npm config get registry`, then run it again.",
        )


def _npm(node: str, site: _Site) -> tuple[str, ...]:
    system = shutil.which("npm")
    if system:
        return (system,)
    pin = TOOLS["npm"]
    return (node, str(_install(pin, pin.releases[0], site).program))


def _ensure_node(pin: Pin, site: _Site) -> None:
    with contextlib.suppress(MissingBinary):
        find_node(site.home, pin.node)
        return
    tool = TOOLS["node"]
    _install(tool, tool.releases[0], site)


def find_node(home: Path, least: str) -> str:
    """The Node.js to use: ours if there is one, else the system's if it is new enough."""
    for one in installed("node", home):
        if order(one.version) >= order(least):
            return str(one.program)
    system = shutil.which("node")
    if system and order(version_of((system,))) >= order(least):
        return system
    raise MissingBinary(f"Node.js {least} or newer is missing.", hint="omnigent harness install pi")


def _runtime(pin: Pin, home: Path) -> tuple[str, ...]:
    return (find_node(home, pin.node),) if pin.node else ()


def _argv_on_path(pin: Pin, found: str, home: Path) -> tuple[str, ...]:
    """A Node.js program is started with a Node.js that can run it, which `env node` need not be."""
    script = Path(found).resolve()
    return (*_runtime(pin, home), str(script)) if pin.node and script.suffix == ".js" else (found,)


def _check(pin: Pin, release: Release, argv: tuple[str, ...]) -> None:
    version = _ask_version(argv)
    if order(version) != order(release.version):
        raise InstallFailed(
            f"{pin.title} {release.version} was unpacked but doesn't run here"
            f" (`{pin.command} --version` gave {version or 'no version'}).",
            hint=f"This machine is {here()}; a C library other than glibc isn't supported.",
        )


def version_of(argv: tuple[str, ...]) -> str:
    """The version a program tells, asked once per state of its file; empty if it doesn't tell."""
    try:
        state = Path(argv[-1]).stat()
    except OSError:
        return ""
    return _known_version(argv, state.st_mtime_ns, state.st_size)


@functools.cache
def _known_version(argv: tuple[str, ...], changed: int, size: int) -> str:
    return _ask_version(argv)


def _ask_version(argv: tuple[str, ...]) -> str:
    """Run `--version` in an empty home, so that asking leaves no trace in the person's."""
    with tempfile.TemporaryDirectory(prefix="omnigent-") as scratch:
        env = _clean_env() | {"HOME": scratch, "CODEX_HOME": scratch, "CLAUDE_CONFIG_DIR": scratch}
        try:
            ran = subprocess.run(
                [*argv, "--version"],
                env=env,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
    told = re.search(r"\d+\.\d+\.\d+[-.\w]*", ran.stdout)
    return told[0] if told and ran.returncode == 0 else ""


def _release(pin: Pin, version: str | None) -> Release:
    if version is None:
        return pin.releases[0]
    for release in pin.releases:
        if release.version == version:
            return release
    pinned = ", ".join(release.version for release in pin.releases)
    raise UnsupportedVersion(
        f"{pin.title} {version} is not pinned.", hint=f"Take one of: {pinned}.", pinned=pinned.split(", ")
    )


def _file_here(pin: Pin, release: Release) -> File:
    """The file for this platform (a lock serves them all)."""
    if release.source == "lock":
        return File("", "")
    file = release.files.get(here()) or release.files.get("any")
    if file is None:
        own = f"Install {pin.title} yourself so that `{pin.command}` is on PATH."
        raise InstallFailed(f"{pin.title} {release.version} is not pinned for {here()}.", hint=own)
    return file


def _room(name: str, home: Path) -> Path:
    return home / "harnesses" / name


def _make_room(pin: Pin, home: Path) -> Path:
    room = _room(pin.name, home)
    try:
        room.mkdir(parents=True, exist_ok=True)
        (room / ".lock").touch()
    except OSError as error:
        raise unusable(error, home) from error
    return room


def _need_room(pin: Pin, home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < pin.room_mb * 1_000_000:
        raise HomeUnusable(
            f"{pin.title} needs {pin.room_mb} MB, {home} has {free // 1_000_000} MB left.",
            hint="Free some space, or set OMNIGENT_HOME to a larger disk.",
        )


def unusable(error: OSError, home: Path) -> HomeUnusable:
    """A failed write, as the error a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HomeUnusable(f"The disk of {home} is full.", hint="Free some space and run it again.")
    return HomeUnusable(
        f"{home} can't be written: {error.strerror or error}.",
        hint="Set OMNIGENT_HOME to a directory that you can write to.",
    )


@contextlib.contextmanager
def _alone(room: Path, pin: Pin, report: Report) -> Generator[None]:
    """One installer per agent and home. The system releases the lock of a killed process."""
    with (room / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress(f"another installation of {pin.title}", "waiting"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(room: Path) -> None:
    """Remove what a killed installer left. Only with the lock held."""
    for leftover in room.glob(".*.part"):
        shutil.rmtree(leftover, ignore_errors=True)


def _read(name: str, path: Path) -> Installed | None:
    if path.name.startswith("."):
        return None
    try:
        mark: dict[str, str] = json.loads((path / _MARKER).read_bytes())
        program = path / mark["program"]
    except (OSError, ValueError, KeyError):
        return None
    return Installed(name, mark["version"], path, program) if program.is_file() else None


def _clean_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _ENV_KEPT.fullmatch(name)}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "code" not in line), lines[-1] if lines else "it said nothing")


def _pins() -> Traversable:
    return importlib.resources.files("omnigent.harnesses") / "pins"


def _pin(name: str, row: dict[str, Any]) -> Pin:
    releases = tuple(_release_row(release) for release in row.pop("releases"))
    return Pin(name=name, releases=releases, **row)


def _release_row(row: dict[str, Any]) -> Release:
    files = {system: File(**file) for system, file in row.pop("files", {}).items()}
    return Release(files=files, **row)


def _load() -> tuple[dict[str, Pin], dict[str, Pin]]:
    table = tomllib.loads((_pins() / "pins.toml").read_text("utf-8"))
    harnesses = {name: _pin(name, row) for name, row in table["harness"].items()}
    return harnesses, {name: _pin(name, row) for name, row in table["tool"].items()}


PINS, TOOLS = _load()
"""Harnesses that can be installed, and what they run on, by name."""
