"""Installing pinned agents: against a small registry on loopback, and (slow lane) the real ones."""

import base64
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from omnigent.errors import HomeUnusable, MissingBinary, OmnigentError, UnknownHarness, UnsupportedVersion
from omnigent.harnesses import install as room
from omnigent.harnesses.doctor import Finding, doctor
from omnigent.harnesses.fetch import InstallFailed, Progress
from omnigent.harnesses.install import PINS, TOOLS, File, Pin, Release, here, install, installed, locate

CHECKOUT = Path(__file__).parents[2]
WHEEL = "fake_agent-1.2.3-py3-none-any.whl"
PATIENCE = 20.0


@dataclass
class Registry:
    """A package index on loopback. `serve` decides what a request for the wheel gets."""

    wheel: bytes
    url: str = ""
    page: str = "json"
    hits: Counter[str] = field(default_factory=Counter[str])
    authorizations: list[str | None] = field(default_factory=list[str | None])
    serve: Callable[["Registry", BaseHTTPRequestHandler], None] = lambda registry, door: registry.send_wheel(
        door
    )

    def answer(self, door: BaseHTTPRequestHandler) -> None:
        self.hits[door.path] += 1
        self.authorizations.append(door.headers.get("Authorization"))
        if door.path == "/simple/fake-agent/":
            self.send_page(door)
        elif door.path == f"/files/{WHEEL}":
            self.serve(self, door)
        else:
            door.send_error(404)

    def send_page(self, door: BaseHTTPRequestHandler) -> None:
        if self.page == "json":
            kind = "application/vnd.pypi.simple.v1+json"
            body = json.dumps({"files": [{"filename": WHEEL, "url": f"../../files/{WHEEL}"}]})
        else:
            kind, body = "text/html", f'<a href="../../files/{WHEEL}#sha256=00">{WHEEL}</a>'
        send(door, kind, body.encode())

    def send_wheel(self, door: BaseHTTPRequestHandler, cut: int = 0) -> None:
        send(door, "application/octet-stream", self.wheel, cut)

    @property
    def downloads(self) -> int:
        return self.hits[f"/files/{WHEEL}"]


def send(door: BaseHTTPRequestHandler, kind: str, body: bytes, cut: int = 0) -> None:
    """Answer 200, leaving out the last `cut` bytes of what was promised."""
    door.send_response(200)
    door.send_header("Content-Type", kind)
    door.send_header("Content-Length", str(len(body)))
    door.end_headers()
    door.wfile.write(body[: len(body) - cut])


def make_wheel(script: str, *more: tuple[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        for name, mode in (("fake", 0o755), ("helper", 0o755), ("data", 0o644)):
            member = zipfile.ZipInfo(f"fake_agent/bin/{name}")
            member.external_attr = mode << 16
            wheel.writestr(member, script)
        for name, text in more:
            wheel.writestr(name, text)
    return packed.getvalue()


SCRIPT = '#!/bin/sh\nenv > "$0.env"\necho "fake 1.2.3 (Fake Agent)"\n'


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    made = Registry(make_wheel(SCRIPT))

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OMNIGENT_PYPI_INDEX", f"{made.url}/simple")
    monkeypatch.delenv("OMNIGENT_CACHE", raising=False)
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pin(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Pin:
    """A harness `fake` pinned to what the registry holds."""
    made = pin_for(registry.wheel)
    monkeypatch.setitem(PINS, "fake", made)
    return made


def pin_for(wheel: bytes, version: str = "1.2.3") -> Pin:
    file = File(WHEEL, f"sha256-{hashlib.sha256(wheel).hexdigest()}")
    release = Release(version, "wheel", "fake-agent", "fake_agent/bin/fake", {"any": file})
    return Pin("fake", "Fake Agent", "fake-agent-command", 1, (release,))


def left_in(home: Path) -> list[str]:
    """What an installation left in its room, but for the lock."""
    return sorted(path.name for path in (home / "harnesses" / "fake").iterdir() if path.name != ".lock")


def put_on_path(folder: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return program


@pytest.mark.parametrize("page", ["json", "html"])
def test_installs_from_an_index_and_locates(page: str, registry: Registry, pin: Pin, tmp_path: Path) -> None:
    registry.page = page
    seen: list[Progress] = []
    one = install("fake", tmp_path, progress=seen.append)
    assert one.version == "1.2.3"
    assert one.root == tmp_path / "harnesses" / "fake" / "1.2.3"
    assert [step.step for step in seen] == ["download", "unpack", "check", "done"]
    assert seen[0].done == seen[0].total == len(registry.wheel)
    assert installed("fake", tmp_path) == [one]
    binary = locate("fake", tmp_path)
    assert (binary.argv, binary.version, binary.source, binary.in_range) == (
        (str(one.program),),
        "1.2.3",
        "managed",
        True,
    )
    assert os.access(one.program.with_name("helper"), os.X_OK)
    assert not os.access(one.program.with_name("data"), os.X_OK)
    assert sorted(path.name for path in one.root.iterdir()) == ["fake_agent", "installed.json"]


def test_a_second_installation_fetches_nothing(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    first = install("fake", tmp_path)
    assert install("fake", tmp_path, "1.2.3") == first
    assert registry.downloads == 1


def test_the_cache_is_used_and_checked(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    install("fake", tmp_path / "a", cache=cache)
    install("fake", tmp_path / "b", cache=cache)
    assert registry.downloads == 1
    (kept,) = cache.iterdir()
    kept.write_bytes(b"rotten")
    install("fake", tmp_path / "c", cache=cache)
    assert registry.downloads == 2


def test_a_changed_file_is_refused(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    registry.wheel = make_wheel(SCRIPT + "# something more\n")
    with pytest.raises(InstallFailed, match="is not the file Omnigent pins"):
        install("fake", tmp_path)
    assert left_in(tmp_path) == []
    assert registry.downloads == 1  # the same bytes would come again


def test_a_broken_download_leaves_nothing(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    registry.serve = lambda registry, door: registry.send_wheel(door, cut=10)
    with pytest.raises(InstallFailed, match=r"broke off after [\d,]+ of [\d,]+ bytes") as caught:
        install("fake", tmp_path)
    assert caught.value.hint
    assert left_in(tmp_path) == []
    assert installed("fake", tmp_path) == []


def test_a_download_broken_once_is_tried_again(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    registry.serve = lambda registry, door: registry.send_wheel(
        door, cut=10 if registry.downloads == 1 else 0
    )
    install("fake", tmp_path)
    assert registry.downloads == 2


def test_a_killed_installation_is_no_installation(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    asked, gone = threading.Event(), threading.Event()

    def hold(registry: Registry, door: BaseHTTPRequestHandler) -> None:
        if registry.downloads > 1:
            registry.send_wheel(door)
            return
        asked.set()
        gone.wait(PATIENCE)

    registry.serve = hold
    lines = (
        "import sys; from pathlib import Path; from omnigent.harnesses.install import *",
        f"PINS['fake'] = {pin!r}",
        "install('fake', Path(sys.argv[1]))",
    )
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines), str(tmp_path)])
    try:
        assert asked.wait(PATIENCE)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        gone.set()
    assert left_in(tmp_path) == [".1.2.3.part"]
    assert installed("fake", tmp_path) == []
    install("fake", tmp_path)
    assert left_in(tmp_path) == ["1.2.3"]


def test_two_installations_at_once_fetch_once(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    waiting = threading.Event()

    def hold(registry: Registry, door: BaseHTTPRequestHandler) -> None:
        assert waiting.wait(PATIENCE)
        registry.send_wheel(door)

    def report(progress: Progress) -> None:
        if progress.step == "waiting":
            waiting.set()

    registry.serve = hold
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda: got.append(install("fake", tmp_path, progress=report)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert got == [*installed("fake", tmp_path)] * 2
    assert registry.downloads == 1
    assert left_in(tmp_path) == ["1.2.3"]


def test_an_unknown_version_names_the_pinned_ones(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        install("fake", tmp_path, "9.9.9")
    assert "1.2.3" in caught.value.hint
    assert not (tmp_path / "harnesses").exists()


def test_an_unknown_harness_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownHarness) as caught:
        install("clade", tmp_path)
    assert "claude-code" in caught.value.hint


def test_a_home_that_cannot_be_written(registry: Registry, pin: Pin, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    for home in (tmp_path / "home", Path("/proc/no-home-here")):
        with pytest.raises(HomeUnusable, match="can't be written") as caught:
            install("fake", home)
        assert "OMNIGENT_HOME" in caught.value.hint
    assert registry.downloads == 0


def test_a_full_disk_is_told_before_the_download(
    registry: Registry, pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1000))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(HomeUnusable, match="needs 1 MB"):
        install("fake", tmp_path)
    assert registry.downloads == 0


def test_another_platform_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(InstallFailed, match=re.escape(f"not pinned for {sys.platform}-riscv64")) as caught:
        install("codex", tmp_path)
    assert "`codex` is on PATH" in caught.value.hint


def test_what_does_not_run_is_not_installed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PINS, "fake", pin_for(registry.wheel, version="1.2.4"))
    with pytest.raises(InstallFailed, match=re.escape("gave 1.2.3")):
        install("fake", tmp_path)
    assert left_in(tmp_path) == []


def test_nothing_lands_outside(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.wheel = make_wheel(SCRIPT, ("../../../escaped", "x"), (f"{tmp_path}/absolute", "x"))
    monkeypatch.setitem(PINS, "fake", pin_for(registry.wheel))
    one = install("fake", tmp_path)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and one.root not in path.parents]
    assert [path.name for path in outside] == [".lock"]


def test_an_index_without_the_file(registry: Registry, pin: Pin, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMNIGENT_PYPI_INDEX", f"{registry.url}/elsewhere")
    with pytest.raises(InstallFailed, match="answered 404") as caught:
        install("fake", tmp_path)
    assert "OMNIGENT_PYPI_INDEX" in caught.value.hint


def test_no_network(registry: Registry, pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OMNIGENT_PYPI_INDEX", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        with pytest.raises(InstallFailed, match="Could not read the index page") as caught:
            install("fake", tmp_path)
    assert "network" in caught.value.hint


def test_credentials_of_the_index_are_sent_and_never_shown(
    registry: Registry, pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = registry.url.replace("http://", "http://someone:s3cr%40t@")
    monkeypatch.setenv("OMNIGENT_PYPI_INDEX", f"{secret}/simple")
    install("fake", tmp_path)
    assert set(registry.authorizations) == {f"Basic {base64.b64encode(b'someone:s3cr@t').decode()}"}
    monkeypatch.setenv("OMNIGENT_PYPI_INDEX", f"{secret}/elsewhere")
    with pytest.raises(InstallFailed) as caught:
        install("fake", tmp_path / "other")
    assert "s3cr" not in f"{caught.value.problem()}"


def test_asking_for_a_version_hands_over_no_secrets(
    registry: Registry, pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-s3cret")
    one = install("fake", tmp_path)
    told = Path(f"{one.program}.env").read_text()
    assert "PATH=" in told
    assert "s3cret" not in told


def test_a_program_on_path_is_second_best(
    registry: Registry, pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put_on_path(tmp_path / "bin", pin.command, "fake 1.2.3", monkeypatch)
    found = locate("fake", tmp_path)
    assert (found.source, found.argv, found.in_range) == ("path", (str(program),), True)
    install("fake", tmp_path)
    assert locate("fake", tmp_path).source == "managed"


@pytest.mark.parametrize(("says", "version"), [("fake 1.3.0", "1.3.0"), ("hello", "unknown")])
def test_a_program_on_path_may_be_out_of_range(
    says: str, version: str, pin: Pin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", pin.command, says, monkeypatch)
    found = locate("fake", tmp_path)
    assert (found.version, found.in_range) == (version, False)


def test_a_missing_agent_names_the_command(pin: Pin, tmp_path: Path) -> None:
    with pytest.raises(MissingBinary) as caught:
        locate("fake", tmp_path)
    assert caught.value.hint == "omnigent harness install fake"


def test_pi_without_a_fit_node_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path / "bin", "node", "v18.0.0", monkeypatch)
    script = put_on_path(tmp_path / "bin", "cli.js", "0.87.1", monkeypatch)
    (tmp_path / "bin" / "pi").symlink_to(script)
    with pytest.raises(MissingBinary, match=r"Node\.js 22\.19\.0 or newer is missing"):
        locate("pi", tmp_path)
    put_on_path(tmp_path / "bin", "node", "v24.1.0", monkeypatch)
    assert locate("pi", tmp_path).argv == (str(tmp_path / "bin" / "node"), str(script))


def test_the_pins_are_whole() -> None:
    for one in (*PINS.values(), *TOOLS.values()):
        assert one.releases[0].version == one.tested[1], "the default is the newest"
        for release in one.releases:
            assert release.lock or {"linux-x86_64", "any"} & set(release.files)
            for file in release.files.values():
                algorithm, _, text = file.digest.partition("-")
                raw = bytes.fromhex(text) if algorithm == "sha256" else base64.b64decode(text, validate=True)
                assert len(raw) == {"sha256": 32, "sha512": 64}[algorithm]


def test_the_locks_are_whole() -> None:
    pins = Path(room.__file__).parent / "pins"
    for release in PINS["pi"].releases:
        lock = json.loads((pins / release.lock / "package-lock.json").read_text())["packages"]
        assert lock[f"node_modules/{release.package}"]["version"] == release.version
        assert all(row["integrity"].startswith("sha512-") for name, row in lock.items() if name)
        assert not any("resolved" in row for row in lock.values()), "a lock names no registry"


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_the_doctor_names_what_mends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path / "bin", "codex", "codex-cli 0.1.0", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        findings = doctor(tmp_path, taken.getsockname()[1])
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.mend for finding in findings if not finding.ok)
    assert named(findings, "python").ok
    assert not named(findings, "git").ok
    assert named(findings, "bubblewrap").ok
    assert named(findings, "claude-code").mend == "omnigent harness install claude-code"
    assert "0.1.0" in named(findings, "codex").what
    assert "not in the tested range" in named(findings, "codex").what
    assert named(findings, "pi").mend == "omnigent harness install pi"
    assert not named(findings, "port").ok


def test_the_doctor_knows_our_own_server(registry: Registry, tmp_path: Path) -> None:
    port = int(registry.url.rpartition(":")[2])
    assert not named(doctor(tmp_path, port), "port").ok
    registry.answer = lambda door: send(door, "application/json", b'{"status":"ok","version":"0.1.0"}')
    assert named(doctor(tmp_path, port), "port").ok


def test_the_doctor_survives_a_bad_home(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    home = named(doctor(tmp_path / "home"), "home")
    assert not home.ok
    assert "OMNIGENT_HOME" in home.mend


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_agents_install_from_the_real_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pinned version, with neither node nor npm on PATH; then again with no registry at all."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    cache = Path(os.environ.get("OMNIGENT_CACHE", CHECKOUT / ".tools" / "cache"))
    for name, one in PINS.items():
        for release in one.releases:
            install(name, tmp_path, release.version, cache=cache)
        assert [got.version for got in installed(name, tmp_path)] == [
            release.version for release in one.releases
        ]
        binary = locate(name, tmp_path)
        assert (binary.version, binary.source, binary.in_range) == (one.releases[0].version, "managed", True)
        told = subprocess.run([*binary.argv, "--version"], capture_output=True, text=True, check=True)
        assert binary.version in told.stdout
    monkeypatch.setenv("OMNIGENT_PYPI_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    for name in PINS:
        install(name, tmp_path)
    findings = doctor(tmp_path)
    assert all(named(findings, name).ok for name in (*PINS, "node", "home"))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_npm_failure_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(os.environ.get("OMNIGENT_CACHE", CHECKOUT / ".tools" / "cache"))
    for tool in TOOLS.values():
        room._install(tool, tool.releases[0], room._Site(tmp_path, room.silent, cache))  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(InstallFailed, match="npm could not install Pi") as caught:
        install("pi", tmp_path)
    assert isinstance(caught.value, OmnigentError)
    assert "npm config get registry" in caught.value.hint
    assert installed("pi", tmp_path) == []


def test_this_platform_has_a_name() -> None:
    assert re.fullmatch(r"(linux|darwin)-\w+", here())
