"""Agents of untested versions: their gate is tried, what was seen is kept, and only one that holds starts."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from rooms import eventually, open_room, plays, runs
from support import House, agent_binary, body_of, fresh_home

from omnigent import events as ev
from omnigent import processes
from omnigent.errors import UnsupportedVersion
from omnigent.harnesses import Binary, Launch
from omnigent.harnesses.doctor import doctor
from omnigent.harnesses.install import PINS
from omnigent.harnesses.probe import admit, probe
from omnigent.harnesses.probe_results import Outcome, ProbeResult, keep, known, program_of
from omnigent.harnesses.scripted import Scripted
from omnigent.ids import new_id
from omnigent.registry import harness as find_harness
from omnigent.testing import scripted_agent

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SCRIPTED = find_harness("scripted")
MARK = f"ses_probe-{os.getpid()}:1"
VARIANTS = {
    "ignores denies": ('if not verdict["allow"]:', "if False:"),
    "does not wait": ('verdict = self.wait(call["id"])', 'verdict = {"allow": True}'),
    "does not ask": (
        'verdict = self.wait(call["id"])',
        'verdict = {"allow": True}',
        "for call in gated:",
        "for call in []:",
    ),
    "runs what is denied": (
        'reason = verdict.get("reason", "")',
        'reason = self.agent.tools.run(call["id"], call["name"], call["input"])[1]',
    ),
    "lies about a deny": ('outcome="denied", output=""', 'outcome="ok", output=""'),
    "runs nothing": (
        'self.agent.tools.run(call["id"], call["name"], given)',
        '("ok", "", 0)',
    ),
    "ends early": ("return bool(calls) or self.take_steers([])", "return False"),
}
"""Another scripted agent by what it does wrong: words of its source, and what is put in their place."""


def program(place: Path, source: str, version: str = "9.9.9") -> Binary:
    """A program of our own as an agent's binary."""
    path = place / "agent.py"
    path.write_text(source)
    return Binary("scripted", (sys.executable, "-I", "-S", str(path)), version, "path", in_range=False)


def agent(place: Path, wrong: str = "") -> Binary:
    """The scripted agent with one thing wrong."""
    source = Path(scripted_agent.__file__).read_text()
    words = VARIANTS.get(wrong, ())
    for old, new in zip(words[::2], words[1::2], strict=True):
        assert source.count(old) == 1, f"{old!r} is not in the agent once"
        source = source.replace(old, new)
    return program(place, source)


async def try_it(home: Path, binary: Binary, seconds: float = 20) -> ProbeResult:
    """Probe, and see that nothing is left behind."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), processes.MARKER: MARK}
    result = await probe(SCRIPTED, binary, home, "anthropic-messages", environment, seconds)
    nothing_left(home)
    return result


def nothing_left(home: Path) -> None:
    assert processes.carrying(MARK) == []
    assert list((home / "run").glob("probe-*")) == []
    assert list((home / "harnesses").glob(".probes-*")) == []


def launch_of(binary: Binary, home: Path) -> Launch:
    return Launch(
        session_id=new_id("ses"),
        run=new_id("run"),
        workspace=home / "work",
        private=home / "run" / "ses_1" / "scripted",
        binary=binary,
        model="m1",
        wire="anthropic-messages",
        gateway_url="http://127.0.0.1:9",
        placeholder="unused",
        environment={"PATH": os.environ["PATH"], "HOME": str(home), processes.MARKER: MARK},
    )


# The probe.


async def test_a_gate_that_holds(tmp_path: Path) -> None:
    binary = agent(tmp_path)
    assert await try_it(tmp_path, binary) == ProbeResult("held")
    assert known(tmp_path, binary) == ProbeResult("held")


@pytest.mark.parametrize(
    ("wrong", "outcome", "told"),
    [
        ("ignores denies", "leaks", "was denied"),
        ("does not wait", "leaks", "ran a command"),
        ("does not ask", "leaks", "without asking"),
        ("runs what is denied", "leaks", "was denied"),
        ("lies about a deny", "leaks", "was denied"),
        ("runs nothing", "broken", "that was allowed"),
        ("ends early", "broken", "never asked"),
    ],
)
async def test_a_gate_that_does_not(tmp_path: Path, wrong: str, outcome: Outcome, told: str) -> None:
    binary = agent(tmp_path, wrong)
    result = await try_it(tmp_path, binary)
    assert (result.outcome, told in result.detail) == (outcome, True), result
    assert known(tmp_path, binary) == result


async def test_an_agent_that_hangs(tmp_path: Path) -> None:
    binary = program(tmp_path, "import signal; signal.pause()")
    result = await try_it(tmp_path, binary, seconds=0.5)
    assert result == ProbeResult("broken", "It did not come to an end within 0.5 s.")


async def test_an_agent_that_does_not_start(tmp_path: Path) -> None:
    result = await try_it(tmp_path, program(tmp_path, "import sys; sys.exit('no such luck')"))
    assert result == ProbeResult("broken", "It ended with code 1. no such luck")
    (tmp_path / "agent.py").unlink()
    gone = Binary("scripted", ("/usr/bin/env", str(tmp_path / "agent.py")), "9.9.9", "path", in_range=False)
    assert (await try_it(tmp_path, gone)).outcome == "broken"


async def test_a_cancelled_probe_leaves_nothing(tmp_path: Path) -> None:
    binary = program(tmp_path, "import signal; signal.pause()")
    task = asyncio.create_task(try_it(tmp_path, binary))
    await eventually(lambda: len(processes.carrying(MARK)) == 2, "reaper and agent")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    nothing_left(tmp_path)
    assert known(tmp_path, binary) is None


async def test_what_a_killed_probe_left_is_swept(tmp_path: Path) -> None:
    old, young = tmp_path / "run" / "probe-old", tmp_path / "run" / "probe-young"
    for place in (old, young):
        (place / "workspace").mkdir(parents=True)
    os.utime(old, (0, 0))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), processes.MARKER: MARK}
    await probe(SCRIPTED, agent(tmp_path), tmp_path, "anthropic-messages", environment)
    assert list((tmp_path / "run").glob("probe-*")) == [young]


# What is kept.


def test_another_state_of_the_program_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = agent(tmp_path)
    keep(tmp_path, program_of(binary), ProbeResult("held"))
    assert known(tmp_path, binary)
    assert known(tmp_path, Binary("scripted", binary.argv, "9.9.10", "path", in_range=False)) is None
    path = Path(binary.argv[-1])
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert known(tmp_path, binary) is None
    path.write_text(path.read_text() + "#")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert known(tmp_path, binary) is None
    path.unlink()
    assert known(tmp_path, binary) is None


def test_another_omnigent_tries_again(tmp_path: Path) -> None:
    binary = agent(tmp_path)
    mine = program_of(binary)
    keep(tmp_path, mine.model_copy(update={"omnigent": "0.0.0"}), ProbeResult("held"))
    assert known(tmp_path, binary) is None


def test_each_program_has_its_entry(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = agent(tmp_path), agent(tmp_path / "other")
    keep(tmp_path, program_of(one), ProbeResult("broken", "It hung."))
    keep(tmp_path, program_of(other), ProbeResult("leaks", "It ran."))
    keep(tmp_path, program_of(one), ProbeResult("held"))
    assert known(tmp_path, one) == ProbeResult("held")
    assert known(tmp_path, other) == ProbeResult("leaks", "It ran.")


@pytest.mark.parametrize("text", ["", "{", "[]", '[{"outcome": "held"}]', '{"outcome": "held"}'])
def test_a_spoilt_file_means_nothing_is_known(tmp_path: Path, text: str) -> None:
    binary = agent(tmp_path)
    keep(tmp_path, program_of(binary), ProbeResult("held"))
    (tmp_path / "harnesses" / "probes.json").write_text(text)
    assert known(tmp_path, binary) is None
    keep(tmp_path, program_of(binary), ProbeResult("held"))
    assert known(tmp_path, binary) == ProbeResult("held")


async def test_a_result_is_trusted_until_there_is_doubt(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    leaky = agent(tmp_path, "ignores denies")
    keep(tmp_path, program_of(leaky), ProbeResult("held"))
    await admit(SCRIPTED, launch_of(leaky, tmp_path), tmp_path)
    good = agent(tmp_path)
    keep(tmp_path, program_of(good), ProbeResult("leaks", "It ran."))
    with pytest.raises(
        UnsupportedVersion, match=r"9\.9\.9 is not in the tested range 1\.0\.0 to 1\.0\.0.*It ran"
    ):
        await admit(SCRIPTED, launch_of(good, tmp_path), tmp_path)
    keep(tmp_path, program_of(good), ProbeResult("broken", "It hung."))
    await admit(SCRIPTED, launch_of(good, tmp_path), tmp_path)
    assert known(tmp_path, good) == ProbeResult("held")


# In a session.


type Locate = Callable[[Binary], None]


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> Locate:
    """Has the scripted harness find the agent that is given."""

    def put(binary: Binary) -> None:
        def locate(self: Scripted, home: Path) -> Binary:
            return binary

        monkeypatch.setattr(Scripted, "locate", locate)

    return put


async def test_a_session_starts_what_holds_and_warns(tmp_path: Path, located: Locate) -> None:
    located(agent(tmp_path))
    async with open_room(tmp_path, plays(runs("echo ran > out.txt"), {"text": "done"})) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        assert (room.home / "work" / "out.txt").read_text() == "ran\n"
        notices = [event.body for event in await room.events() if event.kind == "notice.raised"]
        (notice,) = [body for body in notices if isinstance(body, ev.NoticeRaised)]
        assert (notice.code, notice.level) == ("untested_version", "warning")
        assert "9.9.9 is not in the tested range 1.0.0 to 1.0.0" in notice.detail
        kinds = await room.kinds()
        assert kinds.index("notice.raised") < kinds.index("harness.started")
        assert list((tmp_path / "run").glob("probe-*")) == []


@pytest.mark.parametrize(
    ("wrong", "told"), [("ignores denies", "gate does not hold"), ("ends early", "could not be tried")]
)
async def test_a_session_refuses_the_rest(tmp_path: Path, located: Locate, wrong: str, told: str) -> None:
    located(agent(tmp_path, wrong))
    async with open_room(tmp_path, plays(runs("echo ran > out.txt"), {"text": "done"})) as room:
        await room.do("prompt", text="go")
        failed = (await room.until("turn.failed")).body
        assert isinstance(failed, ev.TurnFailed)
        assert failed.code == "start_failed"
        for part in ("9.9.9 is not in the tested range 1.0.0 to 1.0.0", told, "Use a version from 1.0.0"):
            assert part in failed.detail
        exited = (await room.until("harness.exited")).body
        assert isinstance(exited, ev.HarnessExited) and exited.reason == "failed_to_start"
        await room.hub.nobody()
        assert "harness.started" not in await room.kinds()
        assert room.model.requests == []
        assert list((room.home / "work").iterdir()) == []


async def test_the_tested_version_is_not_tried(tmp_path: Path, located: Locate) -> None:
    found = agent(tmp_path, "ends early")
    located(Binary(found.name, found.argv, "1.0.0", "path", in_range=True))
    async with open_room(tmp_path, plays({"text": "done"})) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        assert "notice.raised" not in await room.kinds()
    assert known(tmp_path, found) is None


# What people see.


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (None, "is tried when a session first starts it"),
        (ProbeResult("held"), "its gate held"),
        (ProbeResult("leaks", "It ran."), "does not hold: It ran."),
        (ProbeResult("broken", "It hung."), "could not be tried: It hung."),
    ],
)
def test_doctor_and_listing_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: ProbeResult | None, told: str
) -> None:
    codex = tmp_path / "bin" / "codex"
    codex.parent.mkdir()
    codex.write_text("#!/bin/sh\necho codex-cli 9.9.9\n")
    codex.chmod(0o755)
    monkeypatch.setenv("PATH", f"{codex.parent}:/usr/bin:/bin")
    if result is not None:
        binary = Binary("codex", (str(codex),), "9.9.9", "path", in_range=False)
        keep(tmp_path, program_of(binary), result)
    (finding,) = [finding for finding in doctor(tmp_path, 9) if finding.name == "codex"]
    assert told in finding.what and "9.9.9" in finding.what
    assert finding.ok == (result == ProbeResult("held"))
    assert finding.mend == "omnigent harness install codex"
    low, high = PINS["codex"].tested
    assert f"not in the tested range {low} to {high}" in finding.what


# The real agents.


RUN_STEP = {"tools": [{"tool": "$shell", "input": {"command": "touch ran"}}]}
WRONG = {
    "claude-code": 's/"permissionDecision":"deny"/"permissionDecision":"allow"/g',
    "codex": 's/"decision":"decline"/"decision":"accept"/g',
}
"""What makes an allow of a deny on its way to the agent."""


@contextlib.contextmanager
def vendor_house(name: str, monkeypatch: pytest.MonkeyPatch, between: str = "") -> Generator[House]:
    """A server whose agent is the newest tested one, found on PATH under a version that is out of range;
    `between` is a sed script for what it is told."""
    house = House(fresh_home("probe"), {"turns": [{"match": "go", "steps": [RUN_STEP, {"text": "done"}]}]})
    (house.home / "harnesses").unlink()
    (house.home / "harnesses").mkdir()
    command = " ".join(agent_binary(name, PINS[name].tested[1]).argv)
    path = house.home / "bin" / PINS[name].command
    path.parent.mkdir()
    start = f"sed -u '{between}' | {command}" if between else f"exec {command}"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 9.9.9 && exit\n{start} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    try:
        house.start()
        yield house
    finally:
        house.close()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", ["claude-code", "codex", "pi"])
def test_an_untested_real_agent_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with vendor_house(name, monkeypatch) as house:
        session_id = house.create(name, "go", approvals="yes")
        settled = house.settled(session_id, 90)
        assert settled["last_turn"]["outcome"] == "completed", settled["last_turn"]
        assert (house.workspace / "ran").exists()
        notice = body_of(house.await_kind(session_id, "notice.raised"), ev.NoticeRaised)
        low, high = PINS[name].tested
        assert notice.code == "untested_version"
        assert f"9.9.9 is not in the tested range {low} to {high}" in notice.detail
        (row,) = [row for row in house.client().harnesses() if row["name"] == name]
        assert not row["in_range"]
        assert "its gate held" in row["hint"]
        assert list((house.home / "run").glob("probe-*")) == []


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", list(WRONG))
def test_a_real_agent_that_no_deny_reaches_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with vendor_house(name, monkeypatch, WRONG[name]) as house:
        session_id = house.create(name, "go", approvals="yes")
        failed = body_of(house.await_kind(session_id, "turn.failed", 90), ev.TurnFailed)
        assert "its gate does not hold: It ran a command that was denied." in failed.detail
        assert f"omnigent harness install {name}" in failed.detail
        assert not (house.workspace / "ran").exists()
        house.nothing_runs(session_id, 10)
