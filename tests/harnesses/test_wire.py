"""A process under the reaper, lines in and out, the end. The agents are scraps of shell and Python."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from omnigent import processes
from omnigent.events import NoticeRaised, TurnFailed, TurnInterrupted
from omnigent.harnesses import (
    Emit,
    Exited,
    Gone,
    HarnessSession,
    Input,
    Interrupt,
    NativeRef,
    Opened,
    Output,
    ProcessSpec,
    Raw,
    Ready,
    Send,
    SessionOutput,
    SetTimer,
    StartTurn,
    Tick,
)
from omnigent.harnesses._wire import GarbageMeter, LineSplitter, open_agent

pytestmark = pytest.mark.anyio

START = StartTurn("turn_1", "msg_1", ())


class Recorder:
    """A translator that shows its inputs: a Raw becomes a `NativeRef` of its `say`, or does its `do`."""

    def __init__(self) -> None:
        self.turn: str | None = None
        self.inputs: list[Input] = []

    def step(self, given: Input) -> list[Output]:
        self.inputs.append(given)
        match given:
            case Opened():
                return [Send({"hello": "ä\n"})]
            case Raw({"do": "ready"}):
                return [Ready(None, "1")]
            case Raw({"do": "interrupted"}):
                return self.end(TurnInterrupted())
            case Raw({"do": "timer"}):
                return [SetTimer("never", 0.01), SetTimer("never", None), SetTimer("soon", 0.01)]
            case Raw({"do": "fail"}):
                raise KeyError("frame")
            case Raw(message):
                return [NativeRef(str(message.get("say")))]
            case StartTurn(turn_id=turn_id):
                self.turn = turn_id
                return [Send({"turn": turn_id})]
            case Interrupt():
                return [Send({"interrupt": True})]
            case Tick(timer):
                return [NativeRef(f"tick {timer}")]
            case Exited():
                return self.end(TurnFailed(code="agent_exited", detail="gone"))
            case _:
                return []

    def end(self, body: TurnInterrupted | TurnFailed) -> list[Output]:
        turn, self.turn = self.turn, None
        return [Emit(body, turn_id=turn)] if turn else []


class Agent:
    """An opened agent, read output by output."""

    def __init__(self, session: HarnessSession, marker: str) -> None:
        self.session = session
        self.marker = marker
        self.outputs = session.outputs()

    async def next(self, seconds: float = 10) -> SessionOutput:
        return await asyncio.wait_for(anext(self.outputs), seconds)

    async def rest(self) -> list[SessionOutput]:
        async with asyncio.timeout(20):
            return [output async for output in self.outputs]

    def alive(self) -> list[str]:
        """The command lines of what carries this run's marker, the reaper left out."""
        found = [Path(f"/proc/{pid}/cmdline") for pid, _ in processes.carrying(self.marker)]
        lines = [path.read_bytes().replace(b"\0", b" ").decode() for path in found if path.exists()]
        return [line for line in lines if line and "reaper.py" not in line]


@asynccontextmanager
async def agent(tmp_path: Path, argv: tuple[str, ...], **options: float) -> AsyncGenerator[Agent]:
    marker = f"{tmp_path.name}:{os.urandom(4).hex()}"
    environment = {"PATH": os.environ["PATH"], processes.MARKER: marker}
    session = await open_agent(ProcessSpec(argv, environment, tmp_path), Recorder(), **options)  # pyright: ignore[reportArgumentType]
    found = Agent(session, marker)
    try:
        yield found
    finally:
        await session.close()
        assert processes.carrying(marker) == []


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-u", "-c", script)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.01)


async def test_lines_go_both_ways_and_the_end_is_told(tmp_path: Path) -> None:
    script = "import sys\nprint('{\"say\": ' + sys.stdin.readline().strip() + '}')\nsys.exit('oops')"
    async with agent(tmp_path, python(script)) as it:
        assert await it.rest() == [NativeRef("{'hello': 'ä\\n'}"), Gone(1, "oops\n")]


async def test_garbage_and_long_lines_are_survived(tmp_path: Path) -> None:
    script = (
        "import json\n"
        "print('not json'); print('[1]'); print('\\xff'); print()\n"
        "print(json.dumps({'say': 'x' * 10_000_000}))\n"
        "print(json.dumps({'say': '\\ud800|'}) + '\\r')\n"
        "print(json.dumps({'do': 'fail'}))\n"
        "print(json.dumps({'say': 'a\\u2028b'}, ensure_ascii=False), end='')\n"
    )
    async with agent(tmp_path, python(script)) as it:
        outputs = await it.rest()
    notices = [out.body for out in outputs if isinstance(out, Emit)]
    assert [n.code for n in notices if isinstance(n, NoticeRaised)] == ["garbage"] * 3 + ["adapter_error"]
    assert [out.ref for out in outputs if isinstance(out, NativeRef)] == ["x" * 10_000_000, "?|", "a\u2028b"]


async def test_a_flood_of_garbage_is_a_handful_of_notices(tmp_path: Path) -> None:
    async with agent(tmp_path, python("for n in range(20_000): print('garbage', n)")) as it:
        outputs = await it.rest()
    notices = [out.body for out in outputs if isinstance(out, Emit)]
    assert 2 <= len(notices) <= 10
    last = notices[-1]
    assert isinstance(last, NoticeRaised)
    assert "more before" in last.detail


async def test_timers_tick_and_can_be_stopped(tmp_path: Path) -> None:
    async with agent(tmp_path, shell("""echo '{"do": "timer"}'; exec cat >/dev/null""")) as it:
        assert await it.next() == NativeRef("tick soon")


async def test_a_lagging_consumer_stops_the_agent_and_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import pathlib\nfor n in range(40_000):\n print('{\"say\": %d}' % n)\npathlib.Path('done').touch()\n"
    )
    async with agent(tmp_path, python(script), queue_size=10) as it:
        assert await it.next() == NativeRef("0")
        # A command is taken while the reader waits for room.
        await asyncio.wait_for(it.session.send(START), 5)
        assert not (tmp_path / "done").exists()
        rest = await it.rest()
    assert [out.ref for out in rest if isinstance(out, NativeRef)] == [str(n) for n in range(1, 40_000)]
    assert isinstance(rest[-1], Gone)


async def test_an_interrupt_sweeps_what_was_spawned_since_ready(tmp_path: Path) -> None:
    script = (
        'sleep 1001 & echo \'{"do": "ready"}\'; read hello; read turn;'
        '(setsid nohup sleep 1002 >/dev/null 2>&1 &); sleep 1003 & echo \'{"say": "running"}\';'
        'read interrupt; echo \'{"do": "interrupted"}\'; echo \'{"say": "later"}\'; read more; exit'
    )
    async with agent(tmp_path, shell(script)) as it:
        assert isinstance(await it.next(), Ready)
        await it.session.send(START)
        assert await it.next() == NativeRef("running")
        await until(lambda: any("sleep 1002" in line for line in it.alive()))
        await it.session.send(Interrupt())
        assert await it.next() == Emit(TurnInterrupted(), turn_id="turn_1")
        assert [line for line in it.alive() if "sleep" in line and "sh" not in line] == ["sleep 1001 "]
        assert await it.next() == NativeRef("later")


async def test_an_interrupt_that_is_ignored_ends_the_process(tmp_path: Path) -> None:
    script = "trap '' TERM INT; sleep 1004 & echo '{\"do\": \"ready\"}'; while true; do read line; done"
    async with agent(tmp_path, shell(script), interrupt_seconds=0.2) as it:
        assert isinstance(await it.next(), Ready)
        await it.session.send(START)
        await it.session.send(Interrupt())
        ended = await it.next()
        assert isinstance(ended, Emit)
        assert isinstance(ended.body, TurnFailed)
        assert isinstance(await it.next(), Gone)
        assert it.alive() == []
        await it.session.send(START)  # nobody there: no error, nothing more
        assert await it.rest() == []


async def test_close_leaves_no_process_and_ends_the_outputs(tmp_path: Path) -> None:
    script = "trap '' TERM HUP; (setsid nohup sleep 1005 &) ; echo '{\"do\": \"ready\"}'; sleep 1006; exit"
    async with agent(tmp_path, shell(script), grace_seconds=0.1) as it:
        assert isinstance(await it.next(), Ready)
        await asyncio.wait_for(asyncio.gather(it.session.close(), it.session.close()), 5)
        assert processes.carrying(it.marker) == []
        assert [type(out) for out in await it.rest()] == [Gone]


async def test_a_polite_agent_goes_by_itself(tmp_path: Path) -> None:
    async with agent(tmp_path, shell("cat >/dev/null; exit 5"), grace_seconds=20) as it:
        await asyncio.wait_for(it.session.close(), 5)
        assert await it.rest() == [Gone(5, "")]


async def test_the_reapers_death_leaves_no_process(tmp_path: Path) -> None:
    script = '(setsid nohup sleep 1008 &) ; echo \'{"do": "ready"}\'; sleep 1009'
    async with agent(tmp_path, shell(script)) as it:
        assert isinstance(await it.next(), Ready)
        for pid, _ in processes.carrying(it.marker):
            if b"reaper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, 9)
        assert [type(out) for out in await it.rest()] == [Gone]
        assert processes.carrying(it.marker) == []


async def test_a_program_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with agent(tmp_path, ("/no/such/agent",)) as it:
        (gone,) = await it.rest()
    assert isinstance(gone, Gone)
    assert gone.code == 127
    assert "/no/such/agent: No such file" in gone.stderr_tail


async def test_the_end_of_the_runner_is_the_end_of_the_agent(tmp_path: Path) -> None:
    """A runner killed with SIGKILL: its agent, and a command in a session of its own, end within 2 s."""
    marker = f"{tmp_path.name}:runner"
    environment = {"PATH": os.environ["PATH"], processes.MARKER: marker}
    argv = shell("(setsid nohup sleep 1010 &) ; sleep 1011")
    program = (
        "import asyncio, pathlib\n"
        "from omnigent.harnesses import ProcessSpec\n"
        "from omnigent.harnesses._wire import open_agent\n"
        "class T:\n def step(self, given): return []\n"
        "async def main():\n"
        f" spec = ProcessSpec({argv!r}, {environment!r}, pathlib.Path({str(tmp_path)!r}))\n"
        " await open_agent(spec, T())\n"
        " await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    runner = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await until(lambda: len(processes.carrying(marker)) >= 4)
    runner.kill()
    await runner.wait()
    await until(lambda: not processes.carrying(marker), seconds=2)


async def test_cancelling_the_owner_of_a_session_leaves_no_process(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with agent(tmp_path, shell("sleep 1012")) as it:
        await until(lambda: it.alive() != [])
        for task in asyncio.all_tasks():
            if task.get_name() == "agent":
                task.cancel()
        await until(lambda: it.alive() == [])
        assert await it.rest() == []
    await until(lambda: asyncio.all_tasks() == before)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_split_at_lf_whatever_the_reads(size: int) -> None:
    data = "ä\n\nb\u2028c\r\n".encode() + b"x" * 60 + b"\nd\ne"
    lines = LineSplitter(longest=50)
    found = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    assert found == ["ä".encode(), "b\u2028c\r".encode(), b"d"]
    assert lines.rest() == b"e"
    assert lines.skipped == 1


def test_the_garbage_meter_counts_what_it_keeps_back() -> None:
    meter = GarbageMeter()
    told = [notice.detail for n in range(100) if (notice := meter.notice(f"g{n}", 1000.0))]
    assert told == ["g0", "g1", "g2", "g3", "g4"]
    later = meter.notice("again", 1010.0)
    assert later
    assert later.detail == "again (and 95 more before)"
    assert meter.remainder() is None
