"""One process per live session: it holds the agent, its gateway and its workspace, and obeys one server.

It starts unbound (so that a warm one can wait), says `hello` on the link, and is bound to a session by
`launch`. While the server is away it holds gate questions and model calls and spools events; after the grace
it ends its agent and exits. If it dies itself, the reaper ends the agent.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from omnigent import __version__, frames, processes, reaper, workspace
from omnigent.events import (
    JSON,
    Body,
    Carried,
    Content,
    Draft,
    HarnessExited,
    HarnessStarted,
    HarnessUpdated,
    ItemUpdated,
    MessageCompleted,
    MessageStarted,
    NoticeRaised,
    QuestionAnswered,
    QuestionAsked,
    ReasoningCompleted,
    Stream,
    ToolCompleted,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    WorkspaceCheckpointed,
)
from omnigent.events import Output as ToolOutput
from omnigent.gateway import Gateway
from omnigent.harnesses import (
    Answer,
    Ask,
    Binary,
    Emit,
    Gone,
    Harness,
    HarnessSession,
    Interrupt,
    Launch,
    McpServer,
    NativeRef,
    Ping,
    Pong,
    Prices,
    Ready,
    Refuse,
    Say,
    SetModel,
    StartTurn,
    Steer,
    Verdict,
)
from omnigent.harnesses._wire import open_agent
from omnigent.history import History, Image
from omnigent.ids import new_id, now
from omnigent.providers import Upstream
from omnigent.registry import harness as find_harness
from omnigent.secrets import Redactor

INLINE_BYTES = 32 * 1024
"""A longer tool output goes to a blob; the event keeps its head and tail."""
HEAD, TAIL = 8 * 1024, 4 * 1024
"""Code points of a long output kept in the event."""
SPOOL_BYTES = 64 * 1024 * 1024
"""Unacknowledged events beyond this stop the reading of the agent's output."""
CHECKPOINT_CHARS, CHECKPOINT_SECONDS = 8 * 1024, 2.0
DELTA_SECONDS = 0.02
HEARTBEAT_SECONDS = 3.0
PING_SECONDS = 10.0
REMEMBERED = 1000
"""Keys of commands; the server sends none again that is older."""

_CONTENT: TypeAdapter[tuple[Content, ...]] = TypeAdapter(tuple[Content, ...])


@dataclass(slots=True)
class _Streamed:
    """An item that is being streamed: its text so far and how much of it is durable."""

    stream: Stream
    text: str = ""
    held: str = ""
    """The end of what came, kept back while it may be the beginning of a secret."""
    durable: int = 0
    durable_at: float = 0.0


@dataclass(slots=True)
class _Spooled:
    number: int
    draft: JSON
    blobs: dict[str, str]
    size: int


@dataclass(slots=True)
class Spool:
    """Events not yet acknowledged, numbered from 1, in order."""

    last: int = 0
    entries: deque[_Spooled] = field(default_factory=deque[_Spooled])
    size: int = 0

    def add(self, draft: JSON, blobs: dict[str, str]) -> _Spooled:
        self.last += 1
        size = len(json.dumps(draft)) + sum(map(len, blobs.values()))
        entry = _Spooled(self.last, draft, blobs, size)
        self.entries.append(entry)
        self.size += size
        return entry

    def acknowledge(self, number: int) -> None:
        while self.entries and self.entries[0].number <= number:
            self.size -= self.entries.popleft().size


class Link:
    """The runner's end of the link: connects, sends what is due, and connects again while the grace lasts."""

    def __init__(self, path: str, hello: Callable[[], JSON], on_frame: Callable[[JSON], None]) -> None:
        self._path = path
        self._hello = hello
        self._on_frame = on_frame
        self._writer: asyncio.StreamWriter | None = None
        self.away_since: float | None = None
        """Loop time since when no server is there; None while one is."""

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def send(self, frame: JSON) -> None:
        """Nothing if the server is away: what must not be lost is spooled by the caller."""
        if self._writer is not None:
            self._writer.write(frames.pack(frame))

    async def drain(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def run(self, on_lost: Callable[[], None]) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self.away_since = loop.time()
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await asyncio.sleep(0.1)  # how often a returning server is looked for
                continue
            self._writer, self.away_since = writer, None
            self.send(self._hello())
            while (frame := await frames.read_frame(reader)) is not None:
                self._on_frame(frame)
            self._writer, self.away_since = None, loop.time()
            writer.close()
            on_lost()
            await asyncio.sleep(0.1)  # a server that refuses us at once is not asked without pause


class Runner:
    """A bound runner. Created unbound; `launch` binds it, once."""

    def __init__(self, boot: JSON) -> None:
        self._token: str = boot["token"]
        self._link = Link(boot["socket"], self._hello, self._on_frame)
        self._loop = asyncio.get_running_loop()
        self._bound: JSON | None = None
        self._harness: Harness | None = None
        self._agent: HarnessSession | None = None
        self._gateway: Gateway | None = None
        self._redactor = Redactor(())
        self._spool = Spool()
        self._room = asyncio.Event()
        self._room.set()
        self._streams: dict[str, _Streamed] = {}
        self._deltas: list[JSON] = []
        self._delta_timer: asyncio.TimerHandle | None = None
        self._delta_at = 0.0
        self._seen: dict[str, None] = {}
        """Keys of the commands that were carried out, oldest first."""
        self._held: dict[str, Ask] = {}
        self._questions: set[str] = set()
        self._calls: set[str] = set()
        self._turn: str | None = None
        self._heard_at = 0.0
        self._stalled = False
        self._pinged_at: float | None = None
        self._ready = False
        self._ending: str | None = None
        self._done = asyncio.Event()
        self._commands: asyncio.Queue[JSON] = asyncio.Queue()
        self._checkpoint: workspace.Checkpoint | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the agent has ended and the server knows, or nobody has come back for the grace."""
        link = self._loop.create_task(self._link.run(self._lost))
        work = [link, self._loop.create_task(self._obey()), self._loop.create_task(self._watch())]
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
        bound = self._bound or {}
        return {
            "type": "hello",
            "token": self._token,
            "pid": os.getpid(),
            "pid_started": processes.start_time(os.getpid()),
            "session_id": bound.get("session_id"),
            "run": bound.get("run"),
            "epoch": bound.get("epoch"),
            "harness": bound.get("harness"),
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
                if self._spool.size < SPOOL_BYTES:
                    self._room.set()
                self._end_if_told()
            case "command" | "close":
                self._commands.put_nowait(frame)
            case "fenced":
                self._done.set()
            case _:
                self._notice("link", "warning", f"The server sent an unknown frame {frame['type']!r}.")

    def _resume(self, acked: int) -> None:
        """After a reconnect: what isn't stored again, then what is open."""
        self._spool.acknowledge(acked)
        for entry in self._spool.entries:
            self._send_entry(entry)
        self._link.send(
            {
                "type": "synced",
                "seen": list(self._seen),
                "held": list(self._held),
                "questions": list(self._questions),
                "ready": self._ready,
            }
        )
        whole = [
            {"item_id": item_id, "stream": item.stream, "offset": 0, "text": item.text}
            for item_id, item in self._streams.items()
        ]
        self._link.send({"type": "deltas", "items": whole})
        if self._gateway is not None:
            self._gateway.release()
        self._end_if_told()

    def _lost(self) -> None:
        if self._gateway is not None:
            self._gateway.hold()

    def _send_entry(self, entry: _Spooled) -> None:
        self._link.send(
            {"type": "events", "first": entry.number, "drafts": [entry.draft], "blobs": entry.blobs}
        )

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
            output, blobs = _to_blob(whole)
            body = body.model_copy(update={"output": output})
        draft = Draft(body, item_id, parent_item_id, turn_id or self._turn, observed_at=now())
        entry = self._spool.add(self._redactor.value(frames.pack_draft(draft, agent)), blobs)
        self._flush_deltas()
        self._send_entry(entry)
        if self._spool.size >= SPOOL_BYTES:
            self._room.clear()

    def _notice(self, code: str, level: Any, detail: str) -> None:
        self._emit(NoticeRaised(code=code, level=level, detail=detail), agent=False)

    # Starting.

    def _launch(self, frame: JSON) -> Launch:
        upstream = Upstream(**frame["upstream"])
        self._redactor = Redactor(_secrets(upstream))
        listener = socket.create_server(("127.0.0.1", 0))
        self._gateway = Gateway(upstream, frame["placeholder"], listener)
        fields: JSON = {**frame["binary"], "argv": tuple(frame["binary"]["argv"])}
        binary = Binary(**fields)
        history = History.model_validate(frame["history"]) if frame["history"] else None
        checkpoint = frame.get("checkpoint")
        self._checkpoint = workspace.Checkpoint(**checkpoint) if checkpoint else None
        return Launch(
            session_id=frame["session_id"],
            run=frame["run"],
            workspace=Path(frame["workspace"]),
            private=Path(frame["private"]),
            binary=binary,
            model=frame["model"],
            wire=upstream.wire,
            gateway_url=self._gateway.url(upstream.wire),
            placeholder=frame["placeholder"],
            environment={**frame["environment"], processes.MARKER: f"{frame['session_id']}:{frame['epoch']}"},
            native_ref=frame["native_ref"],
            history=history,
            mcp_servers=tuple(
                McpServer(raw["name"], tuple(raw["command"]), raw["environment"])
                for raw in frame["mcp_servers"]
            ),
            prices={model: Prices(**row) for model, row in frame["prices"].items()},
        )

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
            launch = self._launch(frame)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._failed_to_start(_misread(error))
            return
        assert self._gateway is not None and self._bound is not None
        await self._gateway.start()
        self._harness = find_harness(self._bound["harness"])
        launch.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = await asyncio.to_thread(self._harness.prepare, launch)
        self._agent = await open_agent(spec, self._harness.translator(launch, new_id))
        self._heard_at = self._loop.time()
        async for output in self._agent.outputs():
            await self._room.wait()
            self._take(output)
        await self._gateway.close()

    # What the agent does.

    def _take(self, output: Any) -> None:
        self._heard_at = self._loop.time()
        self._stalled, self._pinged_at = False, None
        match output:
            case Emit():
                self._take_event(output)
            case Say():
                self._say(output)
            case Ask():
                self._calls.add(output.item_id)
                self._held[output.item_id] = output
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
            case _:
                assert isinstance(output, Pong)

    def _take_event(self, emit: Emit) -> None:
        body = emit.body
        match body:
            case TurnStarted():
                self._turn = emit.turn_id
            case MessageStarted():
                self._streams.setdefault(emit.item_id or "", _Streamed("text"))
            case MessageCompleted() | ReasoningCompleted():
                self._streams.pop(emit.item_id or "", None)
            case ToolCompleted():
                self._streams.pop(emit.item_id or "", None)
                self._calls.discard(emit.item_id or "")
                self._held.pop(emit.item_id or "", None)
            case QuestionAsked():
                self._questions.add(emit.item_id or "")
            case QuestionAnswered():
                self._questions.discard(emit.item_id or "")
            case _:
                if body.KIND == "tool.requested" and emit.item_id:
                    self._calls.add(emit.item_id)
        self._emit(body, emit.item_id, parent_item_id=emit.parent_item_id, turn_id=emit.turn_id)
        if isinstance(body, TurnCompleted | TurnFailed | TurnInterrupted):
            self._turn_ended()

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
        assert self._bound is not None
        path, session_id = Path(self._bound["workspace"]), self._bound["session_id"]
        kept = await asyncio.to_thread(workspace.checkpoint, path, session_id, self._checkpoint)
        if kept is not None:
            self._checkpoint = kept
            body = WorkspaceCheckpointed(head=kept.head, tree=kept.tree)
            self._emit(body, turn_id=turn, agent=False)

    def _take_ready(self, ready: Ready) -> None:
        assert self._bound is not None and self._harness is not None
        self._ready = True
        capabilities = self._harness.capabilities
        body = HarnessStarted(
            harness=self._bound["harness"],
            version=ready.version,
            native_ref=ready.native_ref,
            covers_seq=self._bound["covers_seq"],
            model=ready.model or self._bound["model"],
            provider=self._bound["provider"],
            billing=self._bound["billing"],
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
        assert self._bound is not None
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
            reason=reason if reason in _EXIT_REASONS else "closed",  # pyright: ignore[reportArgumentType]
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

    # Deltas.

    def _say(self, say: Say) -> None:
        item = self._streams.setdefault(say.item_id, _Streamed(say.stream))
        if not item.text:
            item.durable_at = self._loop.time()
        text, item.held = self._redactor.split(item.held + say.text)
        if not text:
            return
        self._deltas.append(
            {"item_id": say.item_id, "stream": say.stream, "offset": len(item.text), "text": text}
        )
        item.text += text
        if len(item.text) - item.durable >= CHECKPOINT_CHARS and _checkpoints(item):
            self._make_durable(say.item_id, item)
        wait = self._delta_at + DELTA_SECONDS - self._loop.time()
        if wait <= 0:
            self._flush_deltas()
        elif self._delta_timer is None:
            self._delta_timer = self._loop.call_later(wait, self._flush_deltas)

    def _flush_deltas(self) -> None:
        if self._delta_timer is not None:
            self._delta_timer.cancel()
            self._delta_timer = None
        if self._deltas:
            self._link.send({"type": "deltas", "items": _joined(self._deltas)})
            self._deltas = []
            self._delta_at = self._loop.time()

    def _make_durable(self, item_id: str, item: _Streamed) -> None:
        end = INLINE_BYTES if item.stream == "output" else len(item.text)
        body = ItemUpdated(stream=item.stream, offset=item.durable, text=item.text[item.durable : end])
        item.durable, item.durable_at = len(item.text), self._loop.time()
        self._emit(body, item_id)

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
            await self._agent.send(self._command(frame["command"]))

    def _command(self, raw: JSON) -> Any:
        match raw["type"]:
            case "turn":
                self._turn = raw["turn_id"]
                self._heard_at = self._loop.time()
                return StartTurn(raw["turn_id"], raw["message_id"], *_content(raw))
            case "steer":
                return Steer(raw["message_id"], *_content(raw))
            case "interrupt":
                return Interrupt()
            case "set_model":
                return SetModel(raw["model"], raw["effort"])
            case "verdict":
                self._held.pop(raw["item_id"], None)
                return Verdict(raw["item_id"], raw["allow"], raw["reason"])
            case "answer":
                self._questions.discard(raw["question_id"])
                values = tuple(tuple(value) for value in raw["values"])
                return Answer(raw["question_id"], values, raw["cancelled"])
            case _:
                raise ValueError(f"unknown command {raw['type']!r}")

    async def _close(self, reason: str) -> None:
        if self._agent is None:
            self._done.set()
            return
        self._ending = self._ending or reason
        await self._agent.close()

    # The clock.

    async def _watch(self) -> None:
        """Checkpoints, heartbeats, the grace and the stall: everything that time alone brings about."""
        beat = 0.0
        while True:
            await asyncio.sleep(0.25)  # the resolution of every deadline below
            at = self._loop.time()
            if at - beat >= HEARTBEAT_SECONDS:
                self._link.send({"type": "heartbeat"})
                beat = at
            for item_id, item in list(self._streams.items()):
                late = at - item.durable_at >= CHECKPOINT_SECONDS
                if late and len(item.text) > item.durable and _checkpoints(item):
                    self._make_durable(item_id, item)
            if self._grace_over(at):
                self._ending = self._ending or "grace_expired"
                self._done.set()
            await self._watch_stall(at)

    def _grace_over(self, at: float) -> bool:
        grace = (self._bound or {}).get("grace_seconds", 10.0)
        away = self._link.away_since
        return away is not None and at - away >= grace

    async def _watch_stall(self, at: float) -> None:
        """Silence counts only while nothing explains it: a tool, a question, a model call, no server."""
        busy = self._gateway is None or self._gateway.in_flight or self._calls or self._questions
        if self._turn is None or self._agent is None or busy or not self._link.connected:
            self._heard_at = at if not self._stalled else self._heard_at
            return
        assert self._bound is not None
        if not self._stalled and at - self._heard_at >= self._bound["stall_seconds"]:
            self._stalled, self._pinged_at = True, at
            silent = int(at - self._heard_at)
            self._notice("stalled", "warning", f"The agent has been silent for {silent} s.")
            await self._agent.send(Ping())
        elif self._stalled and self._pinged_at and at - self._pinged_at >= PING_SECONDS:
            self._pinged_at = None
            await self._agent.send(Interrupt())


def _misread(error: Exception) -> str:
    """Why a launch can't be read, without its values. Servers and runners of one version never come to this:
    the program was replaced under a running server."""
    what = f" {error}" if isinstance(error, KeyError | TypeError) else ""
    return (
        f"The runner ({__version__}) can't read what the server sent it ({type(error).__name__}{what}): "
        "they are of different versions. Run `omnigent server stop`, then any command."
    )


_EXIT_REASONS = {"closed", "idle", "switched", "crashed", "grace_expired"}


def _secrets(upstream: Upstream) -> list[str]:
    """The values of headers and query parameters that carry a credential, without their scheme."""
    fields = {**upstream.headers, **upstream.query}
    words = ("auth", "key", "token", "secret", "cookie", "password")
    named = [value for name, value in fields.items() if any(word in name.lower() for word in words)]
    return [value.split()[-1] for value in named if value.split()]


def _content(raw: JSON) -> tuple[tuple[Content, ...], tuple[Image, ...]]:
    return _CONTENT.validate_python(raw["content"]), tuple(Image(**image) for image in raw["images"])


def _checkpoints(item: _Streamed) -> bool:
    """Whether more of it goes into the log before it ends. A long output is a blob in the end, and each
    checkpoint writes its item anew."""
    return item.stream != "output" or item.durable < INLINE_BYTES


def _joined(deltas: list[JSON]) -> list[JSON]:
    """Neighbouring deltas of one stream as one."""
    joined: list[JSON] = []
    for delta in deltas:
        last = joined[-1] if joined else None
        if last and (last["item_id"], last["stream"]) == (delta["item_id"], delta["stream"]):
            last["text"] += delta["text"]
        else:
            joined.append(dict(delta))
    return joined


def _to_blob(output: ToolOutput) -> tuple[ToolOutput, dict[str, str]]:
    """A long output cut to head and tail, and its whole as a blob to store first."""
    data = output.text.encode(errors="replace")
    if len(data) <= INLINE_BYTES:
        return output.model_copy(update={"size": len(data)}), {}
    name = hashlib.sha256(data).hexdigest()
    short = output.model_copy(
        update={
            "text": output.text[:HEAD],
            "tail": output.text[-TAIL:],
            "size": len(data),
            "truncated": True,
            "blob": name,
        }
    )
    return short, {name: base64.b64encode(data).decode()}


async def _main() -> None:
    boot = json.loads(sys.stdin.readline())
    runner = Runner(boot)
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await runner.run()


def main() -> None:
    """`python -m omnigent.runner`: one JSON line on stdin says where the server is and who we are."""
    reaper.become_subreaper()
    asyncio.run(_main())


if __name__ == "__main__":
    main()
