"""A harness with everything it needs but a server: gateway, scripted model, and a host that answers its gate.

Tests drive a `Rig`; when it closes it checks what must hold of every dialogue, whatever the case was about.
"""

import asyncio
import fnmatch
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnigent import processes
from omnigent.events import (
    Body,
    ImagePart,
    MessageCompleted,
    NoticeRaised,
    ReasoningCompleted,
    TextPart,
    ToolCompleted,
    ToolRequested,
    ToolStarted,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    text_of,
)
from omnigent.gateway import Gateway
from omnigent.harnesses import (
    Ask,
    Binary,
    Command,
    Emit,
    Gone,
    Harness,
    HarnessSession,
    Launch,
    McpServer,
    NativeRef,
    ProcessSpec,
    Ready,
    Refuse,
    Say,
    SessionOutput,
    StartTurn,
    Steer,
    Verdict,
    Wire,
)
from omnigent.harnesses._wire import open_agent
from omnigent.history import History, Image
from omnigent.ids import new_id
from omnigent.providers import Upstream
from omnigent.testing.scripted_model import RecordedRequest, ScriptedModel, history_of, tools_of

type End = TurnCompleted | TurnFailed | TurnInterrupted
type Judge = Callable[[Ask], Verdict | None]

PATIENCE = 30.0
"""Seconds an agent may take for a step that needs no waiting."""


def allow(ask: Ask) -> Verdict | None:
    return Verdict(ask.item_id, allow=True)


def hold(ask: Ask) -> Verdict | None:
    return None


def deny(reason: str) -> Judge:
    return lambda ask: Verdict(ask.item_id, allow=False, reason=reason)


@dataclass(slots=True)
class Turn:
    """One turn as the host saw it; grows while it runs."""

    turn_id: str
    message_id: str
    outputs: list[SessionOutput] = field(default_factory=list[SessionOutput])
    end: End | None = None

    @property
    def text(self) -> str:
        """What the agent said, its whole messages one a line."""
        said = [body.content for body in self.bodies(MessageCompleted)]
        return "\n".join(text_of(content) for content in said)

    @property
    def asks(self) -> list[Ask]:
        return [output for output in self.outputs if isinstance(output, Ask)]

    def bodies[B: Body](self, kind: type[B]) -> list[B]:
        found = [output.body for output in self.outputs if isinstance(output, Emit)]
        return [body for body in found if isinstance(body, kind)]

    def said(self, stream: str) -> str:
        """All deltas of a stream."""
        says = [output for output in self.outputs if isinstance(output, Say)]
        return "".join(say.text for say in says if say.stream == stream)

    def completion(self, ask: Ask) -> ToolCompleted | None:
        """How the call of an ask ended, None while it hasn't."""
        own = (out.body for out in self.outputs if isinstance(out, Emit) and out.item_id == ask.item_id)
        return next((body for body in own if isinstance(body, ToolCompleted)), None)


class Rig:
    """A harness, opened as often as the test likes; each time with the same home, workspace and model."""

    def __init__(self, harness: Harness, place: Path, launch: Launch, model: ScriptedModel) -> None:
        self.harness = harness
        self.place = place
        self.launch = launch
        self.model = model
        self.workspace = launch.workspace
        self.home = Path(launch.environment["HOME"])
        self.key = ""
        """The real key, which the agent must never see."""
        self.marker = launch.environment[processes.MARKER]
        self.judge: Judge = allow
        self.wrap: Callable[[ProcessSpec], ProcessSpec] = lambda spec: spec
        self.turns: list[Turn] = []
        self.outputs: list[SessionOutput] = []
        """Everything since the last `open`."""
        self.native_ref: str | None = None
        self.session: HarnessSession | None = None
        self._listener: asyncio.Task[None] | None = None

    async def open(self, native_ref: str | None = None, history: History | None = None) -> Ready:
        """Start the agent and wait for its `Ready`."""
        launch = replace(self.launch, native_ref=native_ref, history=history, run=new_id("run"))
        spec = self.wrap(await asyncio.to_thread(self.harness.prepare, launch))
        self.outputs = []
        self.session = await open_agent(spec, self.harness.translator(launch, new_id))
        self._listener = asyncio.create_task(self._listen(self.session))
        await self.until(lambda: self.ready is not None or self.over, PATIENCE, "the agent to be ready")
        assert self.ready is not None, f"the agent was never ready: {self.outputs}"
        return self.ready

    async def close(self) -> None:
        """End the agent, then check what must always hold."""
        if self.session is None or self._listener is None:
            return
        session, self.session = self.session, None
        await asyncio.wait_for(session.close(), 15)
        await asyncio.wait_for(self._listener, 5)
        assert isinstance(self.outputs[-1], Gone)
        assert processes.carrying(self.marker) == [], f"left behind: {self.command_lines()}"
        check_dialogue(self.outputs)
        check_inventory(self.harness, self.launch.mcp_servers, self.model.requests)

    @property
    def ready(self) -> Ready | None:
        return next((output for output in self.outputs if isinstance(output, Ready)), None)

    @property
    def over(self) -> bool:
        return bool(self.outputs) and isinstance(self.outputs[-1], Gone | Refuse)

    async def send(self, command: Command) -> None:
        assert self.session
        await self.session.send(command)

    async def start(self, text: str, images: tuple[Image, ...] = ()) -> Turn:
        """Begin a turn, without waiting for its end."""
        turn = Turn(new_id("turn"), new_id("msg"))
        self.turns.append(turn)
        parts = [ImagePart(media_type=i.media_type, blob="0" * 64, size=len(i.data)) for i in images]
        await self.send(StartTurn(turn.turn_id, turn.message_id, (TextPart(text=text), *parts), images))
        return turn

    async def steer(self, text: str) -> str:
        """Send a message into the running turn; its id."""
        message_id = new_id("msg")
        await self.send(Steer(message_id, (TextPart(text=text),)))
        return message_id

    async def end(self, turn: Turn, seconds: float = PATIENCE) -> End:
        await self.until(lambda: turn.end is not None, seconds, f"the turn's end; seen: {turn.outputs[-8:]}")
        assert turn.end
        return turn.end

    async def turn(self, text: str, images: tuple[Image, ...] = (), seconds: float = PATIENCE) -> Turn:
        """A whole turn, which must complete."""
        turn = await self.start(text, images)
        end = await self.end(turn, seconds)
        assert isinstance(end, TurnCompleted), f"{end}: {turn.outputs[-8:]}"
        return turn

    async def asked(self, turn: Turn, part: str = "", seconds: float = PATIENCE) -> Ask:
        """The first ask whose raw input contains `part`."""

        def found() -> Ask | None:
            return next((ask for ask in turn.asks if part in ask.body.raw), None)

        def settled() -> bool:
            return found() is not None or turn.end is not None

        await self.until(settled, seconds, f"an ask with {part!r}")
        ask = found()
        assert ask, f"the turn ended without an ask with {part!r}: {turn.outputs[-8:]}"
        return ask

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE, what: str = "") -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what or condition}"
            await asyncio.sleep(0.01)

    def requests(self) -> list[RecordedRequest]:
        """The agent's model calls, without side requests (titles, probes), which offer no tools."""
        return [request for request in self.model.requests if request.step >= 0 and tools_of(request)]

    def agent(self) -> int:
        """The agent's process: the reaper's first child."""
        found = {pid: line for pid, line in self.command_lines().items() if "reaper.py" in line}
        (reaper,) = found
        return min(pid for pid, _ in processes.descendants(reaper) if parent_of(pid) == reaper)

    def command_lines(self) -> dict[int, str]:
        """Every process that carries the run's marker."""
        pids = [pid for pid, _ in processes.carrying(self.marker)]
        return {pid: proc_file(pid, "cmdline").replace(b"\0", b" ").decode() for pid in pids}

    async def _listen(self, session: HarnessSession) -> None:
        async for output in session.outputs():
            self.outputs.append(output)
            if self.turns and self.turns[-1].end is None:
                self._note(self.turns[-1], output)
            if isinstance(output, Ready | NativeRef):
                ref = output.ref if isinstance(output, NativeRef) else output.native_ref
                self.native_ref = ref or self.native_ref
            if isinstance(output, Ask) and (verdict := self.judge(output)):
                await session.send(verdict)

    def _note(self, turn: Turn, output: SessionOutput) -> None:
        turn.outputs.append(output)
        if isinstance(output, Emit) and isinstance(output.body, TurnCompleted | TurnFailed | TurnInterrupted):
            turn.end = output.body


@asynccontextmanager
async def open_rig(
    harness: Harness, binary: Binary, wire: Wire, model_name: str | None, script: dict[str, Any], place: Path
) -> AsyncGenerator[Rig]:
    """A rig whose agent isn't started yet. Everything is below `place` and gone when it closes."""
    key = f"real-{secrets.token_hex(16)}"
    placeholder = f"placeholder-{secrets.token_hex(8)}"
    workspace, private, home = (place / name for name in ("workspace", "private", "home"))
    for folder in (workspace, private, home, place / "tmp"):
        folder.mkdir(mode=0o700, exist_ok=True)
    async with ScriptedModel(script, require_key=key) as model:
        header = {"x-api-key": key} if wire == "anthropic-messages" else {"authorization": f"Bearer {key}"}
        base_url = model.url if wire == "anthropic-messages" else f"{model.url}/v1"
        listener = socket.create_server(("127.0.0.1", 0))
        gateway = Gateway(Upstream(wire, base_url, header), placeholder, listener)
        await gateway.start()
        launch = Launch(
            session_id=new_id("ses"),
            run=new_id("run"),
            workspace=workspace,
            private=private,
            binary=binary,
            model=model_name,
            wire=wire,
            gateway_url=gateway.url(wire),
            placeholder=placeholder,
            environment={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "TMPDIR": str(place / "tmp"),
                "LANG": "C.UTF-8",
                processes.MARKER: f"{new_id('ses')}:1",
            },
        )
        rig = Rig(harness, place, launch, model)
        rig.key = key
        try:
            yield rig
            await rig.close()
            assert find_secret(key, place) == [], "the real key is on disk"
        finally:
            if rig.session:
                await rig.session.close()
            await gateway.close()


def check_dialogue(outputs: list[SessionOutput]) -> None:
    """Requests before starts before ends; deltas add up to what was completed; no adapter stumbled."""
    requested: set[str] = set()
    ungated: set[str] = set()
    open_calls: dict[str, bool] = {}
    deltas: dict[str, str] = {}
    for output in outputs:
        match output:
            case Emit(body=ToolRequested(gated=True)):
                raise AssertionError(f"a gated call that doesn't ask: {output}")
            case Ask(item_id=item_id) | Emit(body=ToolRequested(), item_id=str(item_id)):
                assert item_id not in requested, f"{item_id} was requested twice"
                requested.add(item_id)
                open_calls[item_id] = False
                if isinstance(output, Emit):
                    ungated.add(item_id)
            case Say(item_id, "text" | "reasoning", text):
                deltas[item_id] = deltas.get(item_id, "") + text
            case Emit(body=ToolStarted(), item_id=str(item_id)):
                open_calls[item_id] = True
            case Emit(body=ToolCompleted() as done, item_id=str(item_id)):
                started = open_calls.pop(item_id, None)
                assert started is not None, f"{item_id} completed but was not open"
                # The agent turns some calls down by itself (no such tool, bad input): those never start.
                turned_down = done.outcome == "error" and item_id in ungated
                assert started or turned_down or done.outcome not in ("ok", "error"), (
                    f"{item_id} ran without a verdict"
                )
            case Emit(body=MessageCompleted(status="complete", content=content), item_id=str(item_id)):
                said = deltas.get(item_id, text_of(content))
                assert said == text_of(content), f"the deltas {said!r} are not {text_of(content)!r}"
            case Emit(body=ReasoningCompleted(status="complete", text=text), item_id=str(item_id)):
                assert deltas.get(item_id, text) == text
            case Emit(body=NoticeRaised(code="adapter_error", detail=detail)):
                raise AssertionError(detail)
            case _:
                pass
    assert open_calls == {}, f"calls without an end: {open_calls}"


def check_inventory(
    harness: Harness, servers: tuple[McpServer, ...], requests: list[RecordedRequest]
) -> None:
    """Every tool the agent ever offered its model has a row, and none of them is one that is switched off;
    those of MCP servers are of servers it was given."""
    own = tuple(f"mcp__{server.name}__" for server in servers)
    for name in {name for request in requests for name in tools_of(request)}:
        assert not name.startswith("mcp__") or name.startswith(own), f"{name} is of a foreign MCP server"
        row = next((row for key, row in harness.tools.items() if fnmatch.fnmatchcase(name, key)), None)
        assert row, f"the tool {name} has no row in the inventory"
        assert row.kind in ("gated", "harmless"), f"the tool {name} is offered but {row.kind}"


def find_secret(secret: str, place: Path) -> list[Path]:
    """Files below `place` that hold the secret."""
    needle = secret.encode()
    files = (path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if needle in path.read_bytes()]


def proc_file(pid: int, name: str) -> bytes:
    """A file of a process in /proc; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def parent_of(pid: int) -> int:
    """0 if it has ended."""
    stat = proc_file(pid, "stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else 0


def body_text(request: RecordedRequest) -> str:
    """All that the model was told, as plain text."""
    return "\n".join(item.text for item in history_of(request))


def with_a_cut(flag: Path) -> Callable[[ProcessSpec], ProcessSpec]:
    """The same program, whose stdin ends once the file `flag` is there; it itself may go on."""
    between = (
        "import os, select, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE)\n"
        "while child.poll() is None and not os.path.exists(sys.argv[1]):\n"
        "    if select.select([0], [], [], 0.05)[0]:\n"
        "        data = os.read(0, 1 << 16)\n"
        "        if not data: break\n"
        "        child.stdin.write(data)\n"
        "        child.stdin.flush()\n"
        "child.stdin.close()\n"
        "sys.exit(child.wait())\n"
    )
    head = (sys.executable, "-I", "-S", "-c", between, str(flag))
    return lambda spec: replace(spec, argv=(*head, *spec.argv))


def with_noise(spec: ProcessSpec) -> ProcessSpec:
    """The same program, after a wrapper has written garbage and a line of 10 MB to its stdout."""
    noise = (
        "import os, sys\n"
        "os.write(1, b'garbage\\n{\"half\": \\n\\xff\\xfe\\n[1, 2]\\n\\n')\n"
        'line = b\'{"omnigent_noise": "\' + b"x" * 10_000_000 + b\'"}\\n\'\n'
        "while line: line = line[os.write(1, line):]\n"
        "os.execvpe(sys.argv[1], sys.argv[1:], os.environ)\n"
    )
    argv = (sys.executable, "-I", "-S", "-c", noise, *spec.argv)
    return replace(spec, argv=argv)
