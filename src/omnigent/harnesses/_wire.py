"""The I/O shell all adapters share: a process under the reaper, JSON lines both ways, timers, the end.

A translator decides, the wire carries out. `step` is called from one event loop, never while another step
runs, and what it answers is carried out in order. Nothing here knows any vendor.
"""

import asyncio
import json
import re
import socket
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from omnigent import processes, reaper
from omnigent.events import Body, NoticeRaised, TurnCompleted, TurnFailed, TurnInterrupted, TurnStarted
from omnigent.harnesses import (
    Command,
    Emit,
    Exited,
    Gone,
    HarnessSession,
    Input,
    Interrupt,
    Opened,
    Output,
    ProcessSpec,
    Raw,
    Ready,
    Refuse,
    Send,
    SessionOutput,
    SetTimer,
    StartTurn,
    Tick,
    Translator,
)

LONGEST_LINE = 64 * 1024 * 1024
STDERR_TAIL = 8 * 1024
_READ_SIZE = 1 << 18
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def open_agent(
    spec: ProcessSpec,
    translator: Translator,
    *,
    queue_size: int = 1000,
    grace_seconds: float = 1.0,
    interrupt_seconds: float = 5.0,
) -> HarnessSession:
    """Start the agent and begin to translate. Returns once the process exists; `Ready` comes as an output.

    The environment is `spec.environment` and nothing else; its marker (`processes.MARKER`) is how the agent's
    processes are found if even the reaper is killed. At most `queue_size` outputs wait for the consumer, then
    the agent's stdout isn't read until there is room. A turn still open `interrupt_seconds` after an
    `Interrupt` ends with the process; `close` lets it `grace_seconds` to go by itself if no turn is open.

    A program that can't be started is no error here: the reaper says why on stderr and exits with 127.
    Raises OSError if `spec.cwd` doesn't exist.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: _Protocol(_READ_SIZE, loop),
                *reaper.command(theirs.fileno(), spec.argv),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=spec.cwd,
                env=spec.environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    process = Process(transport, protocol, loop)
    limits = _Limits(queue_size, grace_seconds, interrupt_seconds)
    session = _Session(process, protocol.exited, ours, translator, limits)
    session.marker = spec.environment.get(processes.MARKER, "")
    session.open()
    return session


@dataclass(slots=True)
class LineSplitter:
    """Bytes in, lines out, split at LF only. A line longer than `longest` is skipped and counted."""

    longest: int = LONGEST_LINE
    skipped: int = 0
    """Lines skipped so far."""
    _part: bytearray = field(default_factory=bytearray)
    _skipping: bool = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            start = end + 1
            line, self._part = self._part, bytearray()
            if self._skipping:
                self._skipping = False
            elif line:
                yield bytes(line)
        self._add(data[start:])

    def rest(self) -> bytes:
        """What came after the last LF."""
        return b"" if self._skipping else bytes(self._part)

    def _add(self, piece: bytes) -> None:
        if self._skipping:
            return
        if len(self._part) + len(piece) > self.longest:
            self._part = bytearray()
            self._skipping = True
            self.skipped += 1
        else:
            self._part += piece


@dataclass(slots=True)
class GarbageMeter:
    """Turns a flood of garbage into few notices: a handful at once, then one every `every` seconds."""

    burst: int = 5
    every: float = 10.0
    _credit: float = 5.0
    _last: float = 0.0
    _silent: int = 0

    def notice(self, detail: str, at: float) -> NoticeRaised | None:
        """The notice for this piece, or None if it is only counted. `at` is a monotonic time in seconds."""
        self._credit = min(self.burst, self._credit + (at - self._last) / self.every)
        self._last = at
        if self._credit < 1:
            self._silent += 1
            return None
        self._credit -= 1
        return self._raise(detail)

    def remainder(self) -> NoticeRaised | None:
        """One notice for all that were only counted."""
        return self._raise("The agent wrote lines that are not JSON.") if self._silent else None

    def _raise(self, detail: str) -> NoticeRaised:
        more = f" (and {self._silent} more before)" if self._silent else ""
        self._silent = 0
        return NoticeRaised(code="garbage", level="warning", detail=detail + more)


class _Protocol(SubprocessStreamProtocol):
    """Tells of the exit at once; `Process.wait` may wait for the pipes too, which others may hold open."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        self.exited.set()
        super().process_exited()


@dataclass(frozen=True, slots=True)
class _Limits:
    queue_size: int
    grace_seconds: float
    interrupt_seconds: float


class _Session:
    """A running agent. One task owns everything; it ends when the agent has, and puts `Gone` last."""

    def __init__(
        self,
        process: Process,
        exited: asyncio.Event,
        control: socket.socket,
        translator: Translator,
        limits: _Limits,
    ) -> None:
        self.marker = ""
        self._process = process
        self._exited = exited
        self._control = control
        self._translator = translator
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._queue: deque[SessionOutput] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._settled = asyncio.Event()
        """Clear while a sweep goes on: no input but timers is stepped, and outputs are held back."""
        self._settled.set()
        self._held: list[SessionOutput] = []
        self._closing = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._turn_open = False
        self._baseline: list[processes.Process] | None = None
        self._garbage = GarbageMeter()
        self._stderr = bytearray()
        self._gone = False
        self._tasks: asyncio.TaskGroup | None = None
        self._owner: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._step(Opened())
        self._owner = self._loop.create_task(self._own(), name="agent")

    # The session's face.

    async def send(self, command: Command) -> None:
        """Hand a command to the translator. Nothing if the agent has ended: `Gone` says so.

        Doesn't wait for the agent to read, since an agent that waits for us to read its output wouldn't.
        """
        await self._settled.wait()
        if self._gone or self._exited.is_set():
            return
        if isinstance(command, StartTurn):
            self._turn_open = True
        self._step(command)
        if isinstance(command, Interrupt) and self._turn_open and self._deadline is None:
            self._deadline = self._loop.call_later(self._limits.interrupt_seconds, self._kill)

    async def outputs(self) -> AsyncIterator[SessionOutput]:
        while True:
            while not self._queue:
                if self._gone:
                    return
                self._filled.clear()
                await self._filled.wait()
            output = self._queue.popleft()
            if len(self._queue) < self._limits.queue_size:
                self._room.set()
            yield output

    async def close(self) -> None:
        self._closing.set()
        self._room.set()
        if self._owner:
            await asyncio.wait([self._owner])
            await self._exited.wait()
            if not self._owner.cancelled():
                self._owner.result()

    # The owner: reads until the agent has ended.

    async def _own(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                closer = tasks.create_task(self._close_when_asked())
                readers = [tasks.create_task(self._read_stdout()), tasks.create_task(self._read_stderr())]
                await self._exited.wait()
                code = self._process.returncode or 0
                if code < 0:  # the reaper itself was killed
                    await asyncio.to_thread(self._kill_by_marker)
                await asyncio.wait(readers)
                await self._settled.wait()
                closer.cancel()
            self._end(code)
        finally:
            self._stop()

    def _end(self, code: int) -> None:
        if notice := self._garbage.remainder():
            self._put(Emit(notice))
        tail = self._stderr.decode(errors="replace")
        self._step(Exited(code, tail))
        self._put(Gone(code, tail))

    def _stop(self) -> None:
        """Let go of everything. Without its control socket the reaper ends what still runs."""
        self._gone = True
        self._control.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._cancel_deadline()
        if stdin := self._process.stdin:
            stdin.close()
        self._settled.set()
        self._filled.set()

    async def _close_when_asked(self) -> None:
        """A turn that is open is cut: with its stdin closed the agent could go on with it, unheard."""
        await self._closing.wait()
        if self._turn_open:
            self._kill()
        if stdin := self._process.stdin:
            stdin.close()
        await self._exit_or_kill()

    async def _exit_or_kill(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), self._limits.grace_seconds)
        self._kill()

    def _kill(self) -> None:
        """The reaper reads end of file and kills all. May be called twice."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def _kill_by_marker(self) -> None:
        if self.marker:
            processes.kill_carrying(self.marker)

    # In.

    async def _read_stdout(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        lines = LineSplitter()
        while data := await stdout.read(_READ_SIZE):
            skipped = lines.skipped
            for line in lines.feed(data):
                await self._take(line)
            if lines.skipped > skipped:
                self._complain(f"A line longer than {lines.longest} bytes was skipped.")
        if rest := lines.rest():
            await self._take(rest)
        # Without stdout nobody can talk to it.
        if not self._closing.is_set():
            await self._exit_or_kill()

    async def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        await self._room.wait()
        await self._settled.wait()
        message = _parse(line)
        if message is None:
            self._complain(line[:800].decode(errors="replace")[:200])
        else:
            self._step(Raw(message))

    async def _read_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while data := await stderr.read(_READ_SIZE):
            self._stderr += data
            del self._stderr[:-STDERR_TAIL]

    def _complain(self, detail: str) -> None:
        if notice := self._garbage.notice(detail, self._loop.time()):
            self._put(Emit(notice))

    def _tick(self, timer: str) -> None:
        del self._timers[timer]
        self._step(Tick(timer))

    # Out.

    def _step(self, given: Input) -> None:
        try:
            outputs = self._translator.step(given)
        except Exception as error:  # noqa: BLE001 - a frame an adapter can't read must not end the session
            what = type(given).__name__
            detail = f"The adapter failed at a {what}: {type(error).__name__}: {error}"
            outputs: list[Output] = [Emit(NoticeRaised(code="adapter_error", level="error", detail=detail))]
        for output in outputs:
            self._carry_out(output)

    def _carry_out(self, output: Output) -> None:
        match output:
            case Send(message):
                self._write(message)
            case SetTimer(timer, seconds):
                self._set_timer(timer, seconds)
            case Emit(body=body):
                self._note_turn(body)
                self._put(output)
            case Ready():
                if self._baseline is None:
                    self._baseline = processes.descendants(self._process.pid)
                self._put(output)
            case Refuse():
                self._put(output)
                self._kill()
            case _:
                self._put(output)

    def _write(self, message: dict[str, Any]) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _set_timer(self, timer: str, seconds: float | None) -> None:
        if old := self._timers.pop(timer, None):
            old.cancel()
        if seconds is not None and not self._gone:
            self._timers[timer] = self._loop.call_later(seconds, self._tick, timer)

    def _note_turn(self, body: Body) -> None:
        match body:
            case TurnStarted():
                self._turn_open = True
            case TurnCompleted() | TurnFailed() | TurnInterrupted():
                self._turn_open = False
                self._cancel_deadline()
                if isinstance(body, TurnInterrupted) and not self._exited.is_set() and self._tasks:
                    self._settled.clear()
                    self._tasks.create_task(self._sweep())
            case _:
                pass

    def _cancel_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    async def _sweep(self) -> None:
        """Kill what was spawned since `Ready`; then hand on what was held back."""
        try:
            await self._ask_reaper(f"sweep {json.dumps(self._baseline or [])}\n")
        except OSError:
            pass  # the reaper has ended, and all below it
        finally:
            self._settled.set()
            held, self._held = self._held, []
            for output in held:
                self._put(output)

    async def _ask_reaper(self, line: str) -> bytes:
        await self._loop.sock_sendall(self._control, line.encode())
        answer = b""
        while not answer.endswith(b"\n"):
            got = await self._loop.sock_recv(self._control, 1 << 16)
            if not got:
                break
            answer += got
        return answer

    def _put(self, output: SessionOutput) -> None:
        if not self._settled.is_set():
            self._held.append(output)
            return
        self._queue.append(output)
        self._filled.set()
        if len(self._queue) >= self._limits.queue_size and not self._closing.is_set():
            self._room.clear()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, None if it is none. Lone surrogates, which no UTF-8 has, are replaced."""
    try:
        message: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    if _SURROGATE.search(line):
        text = json.dumps(message, ensure_ascii=False)
        message = json.loads(text.encode(errors="replace"))
    return cast(dict[str, Any], message)
