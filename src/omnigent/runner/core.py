"""A runner: bound to a session once, it drives one agent and tells the server what the agent does."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Literal

from omnigent import frames, processes, workspace
from omnigent.errors import UnsupportedVersion
from omnigent.events import (
    JSON,
    Body,
    Carried,
    Draft,
    HarnessExited,
    HarnessStarted,
    HarnessUpdated,
    MessageCompleted,
    MessageStarted,
    NoticeRaised,
    QuestionAnswered,
    QuestionAsked,
    ReasoningCompleted,
    ToolCompleted,
    ToolRequested,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnPaused,
    TurnStarted,
    WorkspaceCheckpointed,
)
from omnigent.gateway import Gateway
from omnigent.harnesses import (
    Answer,
    Ask,
    Command,
    Emit,
    Gone,
    Harness,
    HarnessSession,
    Interrupt,
    Launch,
    NativeRef,
    Ping,
    Pong,
    Ready,
    Refuse,
    Say,
    SessionOutput,
    StartTurn,
    Verdict,
)
from omnigent.harnesses._wire import open_agent
from omnigent.harnesses.probe_results import untested
from omnigent.ids import new_id, now
from omnigent.providers import Upstream
from omnigent.redaction import Redactor
from omnigent.registry import admission as find_admission
from omnigent.registry import harness as find_harness
from omnigent.runner.link import Link
from omnigent.runner.metering import LinkMeter
from omnigent.runner.orders import misread, read_command, read_launch, secrets_of
from omnigent.runner.spool import Spool, to_blob
from omnigent.runner.stall import Stall
from omnigent.runner.streams import Streams

HEARTBEAT_SECONDS = 3.0
WATCH_SECONDS = 0.25
"""The resolution of every deadline in `_watch`."""
REMEMBERED = 1000
"""Keys of commands; the server sends none again that is older."""
UNBOUND_GRACE_SECONDS = 10.0

Ending = Literal["closed", "idle", "switched", "crashed", "grace_expired", "failed_to_start"]
"""Why this runner comes to its end."""


class Runner:
    """Created unbound; a `launch` binds it, once."""

    def __init__(self, boot: JSON) -> None:
        self._token: str = boot["token"]
        self._link = Link(boot["socket"], self._hello, self._on_frame)
        self._loop = asyncio.get_running_loop()
        self._bound: JSON = {}
        """The launch; empty until there is one."""
        self._agent: HarnessSession | None = None
        self._gateway: Gateway | None = None
        self._meter = LinkMeter(self._link.send, self._emit_own)
        self._cut_short: TurnFailed | None = None
        """Why the server had the open turn interrupted."""
        self._redactor = Redactor(())
        self._spool = Spool()
        self._streams = Streams(self._split, self._send_deltas, self._emit)
        self._seen: dict[str, None] = {}
        """Keys of the commands that were carried out, oldest first."""
        self._held: dict[str, None] = {}
        """Calls that wait for a verdict, oldest first."""
        self._questions: set[str] = set()
        self._calls: set[str] = set()
        self._turn: str | None = None
        self._stall = Stall()
        self._ready = False
        self._ending: Ending | None = None
        self._done = asyncio.Event()
        self._commands: asyncio.Queue[JSON] = asyncio.Queue()
        self._checkpoint: workspace.Checkpoint | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the agent has ended and the server knows, or nobody has come back for the grace."""
        parts = (self._link.run(self._lost), self._obey(), self._watch())
        work = [self._loop.create_task(part) for part in parts]
        done = self._loop.create_task(self._done.wait())
        try:
            finished, _ = await asyncio.wait([*work, done], return_when=asyncio.FIRST_COMPLETED)
            for task in finished - {done}:
                task.result()
        finally:
            for task in [*work, done]:
                task.cancel()
            if self._agent is not None:
                await self._agent.close()
            await self._link.drain()

    # The link.

    def _hello(self) -> JSON:
        return {
            "type": "hello",
            "token": self._token,
            "pid": os.getpid(),
            "pid_started": processes.start_time(os.getpid()),
            "session_id": self._bound.get("session_id"),
            "run": self._bound.get("run"),
            "epoch": self._bound.get("epoch"),
            "harness": self._bound.get("harness"),
        }

    def _on_frame(self, frame: JSON) -> None:
        match frame["type"]:
            case "launch":
                self._bound = frame
                self._start(frame)
            case "resume":
                self._resume(frame["acked"])
            case "ack":
                self._spool.acknowledge(frame["acked"])
                self._end_if_told()
            case "command" | "close":
                self._commands.put_nowait(frame)
            case "grant":
                self._meter.answered(frame)
            case "ask_again":
                self._meter.ask_again(frame["call_id"])
            case "fenced":
                self._done.set()
            case _:
                self._notice("link", "warning", f"The server sent an unknown frame {frame['type']!r}.")

    def _resume(self, acked: int) -> None:
        """After a reconnect: what isn't stored again, then what is open."""
        self._spool.acknowledge(acked)
        for entry in self._spool.entries:
            self._link.send(entry.frame())
        self._link.send(
            {
                "type": "synced",
                "seen": list(self._seen),
                "held": list(self._held),
                "questions": list(self._questions),
                "calls": self._meter.calls(),
                "ready": self._ready,
            }
        )
        self._send_deltas(self._streams.whole())
        self._meter.ask_again()
        if self._gateway is not None:
            self._gateway.release()
        self._end_if_told()

    def _lost(self) -> None:
        if self._gateway is not None:
            self._gateway.hold()

    def _emit(
        self,
        body: Body,
        item_id: str | None = None,
        *,
        parent_item_id: str | None = None,
        turn_id: str | None = None,
        agent: bool = True,
    ) -> None:
        """An event, spooled until the server has stored it."""
        blobs: dict[str, str] = {}
        if isinstance(body, ToolCompleted):
            whole = body.output.model_copy(update={"text": self._redactor.text(body.output.text)})
            output, blobs = to_blob(whole)
            body = body.model_copy(update={"output": output})
        draft = Draft(body, item_id, parent_item_id, turn_id or self._turn, observed_at=now())
        entry = self._spool.add(self._redactor.value(frames.pack_draft(draft, agent)), blobs)
        self._streams.flush()
        self._link.send(entry.frame())

    def _emit_own(self, body: Body) -> None:
        self._emit(body, agent=False)

    def _notice(self, code: str, level: Literal["warning", "error"], detail: str) -> None:
        self._emit(NoticeRaised(code=code, level=level, detail=detail), agent=False)

    def _send_deltas(self, deltas: list[JSON]) -> None:
        self._link.send({"type": "deltas", "items": deltas})

    def _split(self, text: str) -> tuple[str, str]:
        return self._redactor.split(text)

    # Starting.

    def _start(self, frame: JSON) -> None:
        task = self._loop.create_task(self._drive(frame))
        self._tasks.add(task)
        task.add_done_callback(self._driven)

    def _driven(self, task: asyncio.Task[None]) -> None:
        """The agent is over. A failure of ours must reach the log, not vanish with the task."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed_to_start(f"{type(error).__name__}: {error}")
        self._finished(task)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._end_if_told()

    def _failed_to_start(self, detail: str) -> None:
        self._emit(HarnessExited(reason="failed_to_start", stderr_tail=detail[-4000:]), agent=False)
        self._ending = "failed_to_start"
        self._end_if_told()

    async def _drive(self, frame: JSON) -> None:
        try:
            upstream = Upstream(**frame["upstream"])
            self._redactor = Redactor([*secrets_of(upstream), *frame["secrets"]])
            listener = socket.create_server(("127.0.0.1", 0))
            gateway = Gateway(upstream, frame["placeholder"], listener, self._meter)
            launch, home = read_launch(frame, upstream, gateway), Path(frame["home"])
            checkpoint = frame.get("checkpoint")
            self._checkpoint = workspace.Checkpoint(**checkpoint) if checkpoint else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._failed_to_start(misread(error))
            return
        self._gateway = gateway
        harness = find_harness(frame["harness"])
        if not launch.binary.in_range and not await self._admitted(harness, launch, home):
            return
        await gateway.start()
        launch.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = await asyncio.to_thread(harness.prepare, launch)
        self._agent = await open_agent(spec, harness.translator(launch, new_id))
        self._stall.heard(self._loop.time())
        async for output in self._agent.outputs():
            await self._spool.room.wait()
            self._take(output)
        await gateway.close()

    async def _admitted(self, harness: Harness, launch: Launch, home: Path) -> bool:
        """Whether an agent of an untested version may start: its gate must be seen to hold."""
        self._notice("untested_version", "warning", untested(harness, launch.binary))
        try:
            await find_admission()(harness, launch, home)
        except UnsupportedVersion as error:
            self._failed_to_start(f"{error.detail} {error.hint}")
            return False
        return True

    # What the agent does.

    def _take(self, output: SessionOutput) -> None:
        self._stall.heard(self._loop.time())
        match output:
            case Emit():
                self._take_event(output)
            case Say():
                self._streams.say(output)
            case Ask():
                self._calls.add(output.item_id)
                self._held[output.item_id] = None
                self._emit(output.body, output.item_id, parent_item_id=output.parent_item_id)
            case Ready():
                self._take_ready(output)
            case NativeRef(ref):
                self._emit(HarnessUpdated(native_ref=ref), agent=False)
            case Refuse(code, detail):
                self._notice(code, "error", detail)
                if not self._ready:
                    self._failed_to_start(detail)
            case Gone():
                self._take_gone(output)
            case Pong():
                pass  # being heard is all it says

    def _take_event(self, emit: Emit) -> None:
        body = self._as_it_ended(emit.body)
        match body:
            case TurnStarted():
                self._turn = emit.turn_id
            case MessageStarted():
                self._streams.begin(emit.item_id or "")
            case MessageCompleted() | ReasoningCompleted():
                self._streams.end(emit.item_id or "")
            case ToolCompleted():
                self._streams.end(emit.item_id or "")
                self._calls.discard(emit.item_id or "")
                self._held.pop(emit.item_id or "", None)
            case QuestionAsked():
                self._questions.add(emit.item_id or "")
            case QuestionAnswered():
                self._questions.discard(emit.item_id or "")
            case ToolRequested():
                self._calls.add(emit.item_id or "")
            case _:
                pass
        self._emit(body, emit.item_id, parent_item_id=emit.parent_item_id, turn_id=emit.turn_id)
        if isinstance(body, TurnCompleted | TurnFailed | TurnInterrupted | TurnPaused):
            self._turn_ended()

    def _as_it_ended(self, body: Body) -> Body:
        """A turn's end as it really came about. The agent only knows that a call was refused, or that it was
        interrupted; what we did it for is ours to say."""
        if not isinstance(body, TurnCompleted | TurnFailed | TurnInterrupted):
            return body
        stopped, cut = self._meter.instead, self._cut_short
        self._meter.instead = self._cut_short = None
        if cut is not None:
            return cut
        if stopped is None or isinstance(body, TurnInterrupted):
            return body
        return stopped

    def _turn_ended(self) -> None:
        turn, self._turn = self._turn, None
        self._streams.clear()
        self._calls.clear()
        self._held.clear()
        self._questions.clear()
        task = self._loop.create_task(self._keep_workspace(turn))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def _keep_workspace(self, turn: str | None) -> None:
        path, session_id = Path(self._bound["workspace"]), self._bound["session_id"]
        kept = await asyncio.to_thread(workspace.checkpoint, path, session_id, self._checkpoint)
        if kept is not None:
            self._checkpoint = kept
            body = WorkspaceCheckpointed(head=kept.head, tree=kept.tree)
            self._emit(body, turn_id=turn, agent=False)

    def _take_ready(self, ready: Ready) -> None:
        self._ready = True
        capabilities = find_harness(self._bound["harness"]).capabilities
        body = HarnessStarted(
            harness=self._bound["harness"],
            version=ready.version,
            native_ref=ready.native_ref,
            covers_seq=self._bound["covers_seq"],
            model=ready.model or self._bound["model"],
            provider=self._bound["provider"],
            billing=self._bound["billing"],
            credential=self._bound["credential"],
            metering="gateway",
            capabilities={name: getattr(capabilities, name) for name in capabilities.__slots__},
            tools=ready.tools,
            mcp_servers=ready.mcp_servers,
            how=ready.how,
            carried=self._carried(ready),
        )
        self._emit(body, agent=False)
        names = [server["name"] for server in self._bound["mcp_servers"]]
        if names and not capabilities.mcp_servers:
            detail = f"{self._bound['harness']} takes no MCP servers; not handed over: {', '.join(names)}."
            self._notice("mcp_servers_left_out", "warning", detail)

    def _carried(self, ready: Ready) -> Carried | None:
        """What the agent was told, with what the session had left out to make it fit."""
        dropped = tuple(self._bound["dropped"])
        if ready.carried is None or not dropped:
            return ready.carried
        return ready.carried.model_copy(update={"dropped": (*dropped, *ready.carried.dropped)})

    def _take_gone(self, gone: Gone) -> None:
        if self._ending == "failed_to_start":
            return  # told already
        if not self._ready and self._ending is None:
            self._failed_to_start(
                gone.stderr_tail or f"The agent exited with {gone.code} before it was ready."
            )
            return
        reason = self._ending or "crashed"
        body = HarnessExited(
            reason=reason,
            exit_code=gone.code,
            stderr_tail=gone.stderr_tail if reason == "crashed" else "",
        )
        self._emit(body, agent=False)
        self._ending = reason
        self._end_if_told()

    def _end_if_told(self) -> None:
        """Exit once everything is stored: the agent is gone, so nothing else will come."""
        if self._ending and not self._spool.entries and (self._agent is None or self._agent_gone()):
            self._done.set()

    def _agent_gone(self) -> bool:
        return not any(not task.done() for task in self._tasks)

    # What the server wants.

    async def _obey(self) -> None:
        """Commands in order. One whose key was seen is done already."""
        while True:
            frame = await self._commands.get()
            if frame["type"] == "close":
                await self._close(frame["reason"])
                continue
            key: str = frame["key"]
            if key in self._seen or self._agent is None:
                continue
            self._seen[key] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            command = read_command(frame["command"])
            if frame["command"]["type"] == "cut_short":
                self._cut_short = TurnFailed(code=frame["command"]["code"], detail=frame["command"]["detail"])
            self._note(command)
            await self._agent.send(command)

    def _note(self, command: Command) -> None:
        match command:
            case StartTurn():
                self._turn = command.turn_id
                self._meter.instead = self._cut_short = None
                self._stall.begin(self._loop.time())
            case Verdict():
                self._held.pop(command.item_id, None)
            case Answer():
                self._questions.discard(command.question_id)
            case _:
                pass

    async def _close(self, reason: str) -> None:
        if self._agent is None:
            self._done.set()
            return
        self._ending = self._ending or (reason if reason in ("idle", "switched") else "closed")
        await self._agent.close()

    # The clock.

    async def _watch(self) -> None:
        """Checkpoints, heartbeats, the grace and the stall: everything that time alone brings about."""
        beat = 0.0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            at = self._loop.time()
            if at - beat >= HEARTBEAT_SECONDS:
                self._link.send({"type": "heartbeat"})
                beat = at
            self._streams.checkpoint_old()
            if self._grace_over(at):
                self._ending = self._ending or "grace_expired"
                self._done.set()
            await self._watch_stall(at)

    def _grace_over(self, at: float) -> bool:
        grace = self._bound.get("grace_seconds", UNBOUND_GRACE_SECONDS)
        away = self._link.away_since
        return away is not None and at - away >= grace

    async def _watch_stall(self, at: float) -> None:
        """Silence counts only while nothing explains it: a tool, a question, a model call, no server."""
        if self._agent is None or self._gateway is None:
            return
        waits = self._turn is None or self._gateway.in_flight or self._calls or self._questions
        explained = bool(waits) or self._link.away_since is not None
        match self._stall.look(at, self._bound["stall_seconds"], explained=explained):
            case "ping":
                silent = self._stall.silent_seconds(at)
                self._notice("stalled", "warning", f"The agent has been silent for {silent} s.")
                await self._agent.send(Ping())
            case "interrupt":
                await self._agent.send(Interrupt())
            case None:
                pass
