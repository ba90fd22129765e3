"""The core loop of one session: command in → append → runner; event in → append → gate → follow.

Only this appends to a session's log. All state is a fold of that log (`view`); what lives beside it (which
runner answers, which text is streaming) can be lost and found again. Every entry point takes the session's
lock, so that facts are decided one after another.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from omnigent import carry, commands, policies, processes
from omnigent import events as ev
from omnigent.blobs import Blobs
from omnigent.config import Config, child_environment
from omnigent.errors import (
    BadCursor,
    Conflict,
    Draining,
    KeyReused,
    Malformed,
    NotFound,
    OmnigentError,
    TooLarge,
    Unprocessable,
)
from omnigent.events import JSON, Actor, Body, Delta, Draft, Event
from omnigent.feed import Feed, Frame, delta_frame, event_frame
from omnigent.history import History
from omnigent.ids import Clock, NewId
from omnigent.log import CommandRecord, Log
from omnigent.providers import Choice, choose, upstream
from omnigent.registry import harness as find_harness
from omnigent.registry import harness_name
from omnigent.views import SessionProjector, SessionView

logger = logging.getLogger(__name__)

LONGEST_PROMPT = 1_000_000
"""Bytes of a prompt's text in UTF-8."""
LARGEST_IMAGE = 20 * 1024 * 1024
OPEN_TEXT = 256 * 1024
"""Code points of an open item kept for those who join late."""

_PROJECTOR = SessionProjector()


class Runners(Protocol):
    """The processes that run agents, as a session sees them."""

    async def launch(self, session_id: str, frame: JSON) -> None:
        """Start a runner for it. Its words come back through `connected`, `ingest` and `gone`."""
        ...

    def send(self, session_id: str, frame: JSON) -> None:
        """Nothing if it isn't connected: `synced` will tell what it missed."""
        ...

    def state(self, session_id: str) -> str:
        """`none`, `starting`, `live` (connected) or `away` (its process may live, the link doesn't)."""
        ...


@dataclass(frozen=True, slots=True)
class House:
    """What every session of a server shares."""

    home: Path
    config: Config
    log: Log
    blobs: Blobs
    runners: Runners
    clock: Clock
    new_id: NewId
    environ: dict[str, str]


class Session:
    def __init__(self, house: House, view: SessionView) -> None:
        self.view = view
        self.id = view.session_id
        self.feed = Feed(view.as_of_seq)
        self.idle_since = asyncio.get_running_loop().time()
        """Loop time since when nothing is open."""
        self._house = house
        self._lock = asyncio.Lock()
        self._texts: dict[str, tuple[ev.Stream, str]] = {}
        self._ready = False
        """The agent has answered its handshake and takes commands."""
        self._handed = view.turn is not None
        """A runner may have the open turn's message. What an earlier server did is unknown until `synced`."""
        self._launched_for: str | None = None
        """The turn that was open when an agent was last started."""
        self._epoch = 0
        """That of the last start by this server."""
        self._change: JSON | None = None
        """The switch whose new agent is being started: its entry in the queue."""
        self._stopping = False
        self._closing: str | None = None
        """Why the runner was told to close; it is told again until it is gone."""
        self._interrupting: str | None = None
        """The turn that is to be interrupted, until it ends: told again to a runner that was away."""
        self._expiry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.deleted = asyncio.Event()
        self.settled = asyncio.Event()
        """Set while no turn is open."""
        if view.turn is None:
            self.settled.set()

    # Following.

    async def follow(self, after: int) -> AsyncIterator[list[Frame]]:
        """Frames from the past into live. Raises `BadCursor` beyond the head."""
        if after > self.feed.head or after < 0:
            raise BadCursor(f"after={after} is beyond the log's head {self.feed.head}.", head=self.feed.head)
        async for batch in self.feed.follow(after, self._read, self._snapshot):
            yield batch

    async def _read(self, after: int, limit: int) -> list[Event]:
        return await self._house.log.read(self.id, after=after, limit=limit)

    def _snapshot(self) -> list[Delta]:
        return [Delta(item_id, stream, 0, text) for item_id, (stream, text) in self._texts.items()]

    # Commands.

    async def submit(self, command: commands.Command, actor: Actor) -> tuple[JSON, bool]:
        """Carry out a command. The answer, and whether it is the replay of an earlier one.

        Raises `KeyReused`, `Conflict`, `NotFound`, `Unprocessable`, `Malformed`, `TooLarge`.
        """
        arguments = command.model_dump(mode="json", exclude={"idempotency_key"})
        digest = ev.sha256(ev.canonical(arguments))
        async with self._lock:
            self.idle_since = asyncio.get_running_loop().time()
            known = await self._house.log.command(self.id, command.idempotency_key)
            if known is not None:
                if known.request_sha256 != digest:
                    raise KeyReused(
                        "This idempotency key was used with another body.", hint="Make a new key."
                    )
                return known.answer, True
            command_id = self._house.new_id("cmd")
            drafts, extra, after = await self._accept(command, arguments, command_id)
            answer = {"command_id": command_id, "state": "accepted", **extra}
            record = CommandRecord(self.id, command.idempotency_key, digest, answer)
            marked = [
                Draft(d.body, d.item_id, turn_id=d.turn_id, actor=actor, cause=command_id) for d in drafts
            ]
            await self._append(marked, record)
            answer |= {"session_id": self.id, "seq": self.view.as_of_seq}  # as the log stores it
            await after()
            await self._advance()
        return answer, False

    async def _accept(
        self, command: commands.Command, arguments: JSON, command_id: str
    ) -> tuple[list[Draft], JSON, Callable[[], Awaitable[None]]]:
        """(what to append, more for the answer, what to do once it is stored)."""
        match command:
            case commands.Prompt():
                return self._prompt(command)
            case commands.Edit():
                self._queued(command.message_id)
                content = self._stored(command.content)
                return [Draft(ev.MessageEdited(content=content), command.message_id)], {}, _nothing
            case commands.Cancel():
                self._queued(command.message_id)
                return [Draft(ev.MessageCancelled(), command.message_id)], {}, _nothing
            case commands.Interrupt():
                return self._cancelled("interrupted"), {}, self._interrupt
            case commands.Resolve():
                return await self._resolve(command)
            case commands.Answer():
                return await self._answer(command)
            case commands.SetModel() | commands.Switch():
                return self._queue_change(command, arguments, command_id)
            case commands.Resume():
                return ([Draft(ev.SessionReopened())] if self.view.closed else []), {}, _nothing
            case commands.Stop():
                return self._stop_drafts(), {}, self._stop
            case commands.Close():
                return [*self._stop_drafts(), Draft(ev.SessionClosed())], {}, self._stop

    def _prompt(self, command: commands.Prompt) -> tuple[list[Draft], JSON, Callable[[], Awaitable[None]]]:
        view = self.view
        if view.closed:
            raise Conflict("The session is closed.", hint="Reopen it with `resume`.", current="closed")
        if self.draining:
            raise Draining("The server is stopping.", hint="Try again when it has started anew.")
        inputs = command.content
        if command.text is not None:
            inputs = (commands.TextInput(text=command.text), *inputs)
        content = self._stored(inputs)
        message_id = self._house.new_id("msg")
        drafts = [Draft(ev.MessageSubmitted(content=content, when=command.when), message_id)]
        more = {"message_id": message_id}
        if view.turn is None and not view.queue:
            turn_id = self._house.new_id("turn")
            drafts.append(Draft(ev.TurnStarted(trigger="prompt", message_id=message_id), turn_id=turn_id))
            return drafts, more | {"turn_id": turn_id}, self._hand_over
        if command.when == "steer" and view.turn is not None and self._can("steers"):
            return drafts, more, lambda: self._steer(message_id)
        drafts.append(Draft(ev.MessageQueued(), message_id))
        if command.when == "now" and view.turn is not None:
            return [*drafts, *self._cancelled("interrupted")], more | {"state": "queued"}, self._interrupt
        return drafts, more | {"state": "queued"}, _nothing

    def _stored(self, inputs: Sequence[commands.Input]) -> tuple[ev.Content, ...]:
        """The content with its images in the blob store. Raises `Malformed`, `TooLarge`."""
        content: list[ev.Content] = []
        for part in inputs:
            if isinstance(part, commands.TextInput):
                content.append(ev.TextPart(text=part.text))
                continue
            try:
                data = base64.b64decode(part.data, validate=True)
            except ValueError as error:
                raise Malformed("An image's data isn't base64.") from error
            if len(data) > LARGEST_IMAGE:
                raise TooLarge("An image is larger than 20 MB.", hint="Send a smaller one.")
            content.append(
                ev.ImagePart(media_type=part.media_type, blob=self._house.blobs.put(data), size=len(data))
            )
        text = ev.text_of(tuple(content))
        if len(text.encode()) > LONGEST_PROMPT:
            raise TooLarge("The prompt is longer than 1 MB.", hint="Put it in a file and name the file.")
        if not text.strip() and not any(isinstance(part, ev.ImagePart) for part in content):
            raise Malformed("The prompt is empty.", hint="Give it some text.")
        return tuple(content)

    def _queued(self, message_id: str) -> None:
        entries = [entry["id"] for entry in self.view.queue if entry["type"] == "message"]
        if message_id not in entries:
            raise Conflict(f"{message_id} isn't in the queue.", current="not_queued", queue=entries)

    # Approvals and questions.

    async def _resolve(
        self, command: commands.Resolve
    ) -> tuple[list[Draft], JSON, Callable[[], Awaitable[None]]]:
        asked = self.view.approvals_open.get(command.approval_id)
        if asked is None:
            raise await self._late(command.approval_id, "approval")
        if asked["expires_at"] <= self._house.clock():
            await self._expire()
            raise await self._late(command.approval_id, "approval")
        allowed = command.decision == "allow"
        body = ev.ApprovalResolved(
            outcome="allowed" if allowed else "denied",
            grant=command.grant,
            reason=command.reason or ("" if allowed else "A person denied this call."),
        )
        call_id: str = asked["call_id"]
        return [Draft(body, command.approval_id)], {}, lambda: self._send_verdict(call_id)

    async def _answer(
        self, command: commands.Answer
    ) -> tuple[list[Draft], JSON, Callable[[], Awaitable[None]]]:
        if command.question_id not in self.view.questions_open:
            raise await self._late(command.question_id, "question")
        body = ev.QuestionAnswered(outcome="answered", values=command.values)

        async def pass_on() -> None:
            self._send_answer(command.question_id, [list(v) for v in command.values], cancelled=False)

        return [Draft(body, command.question_id)], {}, pass_on

    async def _late(self, item_id: str, what: str) -> OmnigentError:
        """The error for one who answers what isn't open: who or what ended it."""
        row = await self._house.log.item(self.id, item_id)
        if row is None or row.data["type"] != what:
            return NotFound(f"There is no {what} {item_id} in this session.")
        status: str = row.data["status"]
        by: JSON = row.data.get("by") or {"id": "omnigent"}
        return Conflict(f"This {what} was already {status} by {by['id']}.", current=status, by=by)

    def _cancelled(self, by: Any) -> list[Draft]:
        """Open approvals and questions end before what cancels them acts."""
        drafts = [
            Draft(ev.ApprovalResolved(outcome="cancelled", cancelled_by=by), item_id)
            for item_id in self.view.approvals_open
        ]
        return drafts + [
            Draft(ev.QuestionAnswered(outcome="cancelled"), item_id) for item_id in self.view.questions_open
        ]

    async def _expire(self) -> None:
        """Deny what ran out of time. Nothing to do is no error: timers may come early."""
        self._expiry = None
        at = self._house.clock()
        over = {k: v for k, v in self.view.approvals_open.items() if v["expires_at"] <= at}
        if over:
            body = ev.ApprovalResolved(outcome="expired", reason="Nobody answered in time.")
            await self._append([Draft(body, item_id) for item_id in over])
            for asked in over.values():
                await self._send_verdict(asked["call_id"])
        self._set_expiry()

    def _set_expiry(self) -> None:
        if self._expiry is None and self.view.approvals_open:
            soonest = min(asked["expires_at"] for asked in self.view.approvals_open.values())
            seconds = max(0.05, (soonest - self._house.clock()) / 1000)
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(min(seconds, 3600), self._spawn, self._expire_locked)

    async def _expire_locked(self) -> None:
        async with self._lock:
            await self._expire()

    # The queue and the turn.

    async def _advance(self) -> None:
        """If nothing is running, begin the next thing in the queue."""
        while self._may_begin():
            entry = self.view.queue[0]
            await self._begin(entry)
            if self.view.queue and self.view.queue[0]["id"] == entry["id"]:
                return  # a change that waits for an agent's end or start

    def _may_begin(self) -> bool:
        held_up = self.view.closed or self.draining or self._stopping or self._closing
        return bool(self.view.queue) and self.view.turn is None and self._change is None and not held_up

    async def _begin(self, entry: JSON) -> None:
        if entry["type"] != "message":
            await self._carry_out(entry)
            return
        turn_id = self._house.new_id("turn")
        body = ev.TurnStarted(trigger="queue", message_id=entry["id"])
        await self._append([Draft(body, turn_id=turn_id)])
        await self._hand_over()

    async def _hand_over(self) -> None:
        """Give the open turn's message to the agent, starting one if none runs."""
        if self._ready:
            await self._send_turn()
        elif self._house.runners.state(self.id) == "none":
            await self._launch(self.view.harness, self.view.provider, self.view.model)

    async def _launch(self, harness: str, provider: str | None, model: str | None) -> None:
        if self.view.run is not None:  # its runner is gone, but `gone` hasn't said so yet
            await self._append([Draft(ev.HarnessExited(reason="runner_lost"))])
        self._launched_for = self.view.turn["id"] if self.view.turn else None
        try:
            frame = await self._launch_frame(harness, provider, model)
            await self._house.runners.launch(self.id, frame)
        except OmnigentError as error:
            await self._start_failed(f"{error.detail} {error.hint}".strip())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            await self._start_failed(f"The runner can't be started: {reason}.")

    async def _start_failed(self, detail: str) -> None:
        if self._change is not None:
            await self._change_failed(self._change, detail)
        else:
            await self._end_turn(ev.TurnFailed(code="start_failed", detail=detail), delivered=False)

    async def _send_turn(self) -> None:
        turn = self.view.turn
        if turn is None or turn["delivered"]:
            return
        content, images = await self._content(turn["message_id"])
        command = {
            "type": "turn",
            "turn_id": turn["id"],
            "message_id": turn["message_id"],
            "content": content,
            "images": images,
        }
        self._handed = self._house.runners.state(self.id) == "live"  # else `synced` tells
        self._command(turn["id"], command)

    async def _steer(self, message_id: str) -> None:
        """Nothing before the agent is ready: its start hands over what waits."""
        if not self._ready:
            return
        content, images = await self._content(message_id)
        command = {"type": "steer", "message_id": message_id, "content": content, "images": images}
        self._command(message_id, command)

    async def _content(self, message_id: str) -> tuple[list[JSON], list[JSON]]:
        row = await self._house.log.item(self.id, message_id)
        content = cast(list[JSON], row.data["content"]) if row else []
        images = [
            {
                "media_type": part["media_type"],
                "data": base64.b64encode(self._house.blobs.get(part["blob"])).decode(),
            }
            for part in content
            if part["type"] == "image"
        ]
        return content, images

    def _command(self, key: str, command: JSON) -> None:
        self._house.runners.send(self.id, {"type": "command", "key": key, "command": command})

    async def _interrupt(self) -> None:
        turn = self.view.turn
        if turn is None:
            return
        if self._house.runners.state(self.id) == "none":  # nobody is left to interrupt it
            await self._end_turn(ev.TurnInterrupted(how="kill"), delivered=await self._was_delivered(turn))
        elif self._handed or turn["delivered"]:
            self._interrupting = turn["id"]
            self._command(self._house.new_id("cmd"), {"type": "interrupt"})
        else:  # the agent hasn't heard of it
            await self._end_turn(ev.TurnInterrupted(), delivered=False)

    async def _end_turn(self, body: ev.TurnFailed | ev.TurnInterrupted, *, delivered: bool | None) -> None:
        """End the open turn in the agent's stead. `delivered` None: nobody knows."""
        turn = self.view.turn
        if turn is None:
            return
        drafts = self._cancelled("interrupted" if isinstance(body, ev.TurnInterrupted) else "lost")
        if not turn["delivered"]:
            drafts.append(self._fate(turn, body, delivered))
        drafts.append(Draft(body, turn_id=turn["id"]))
        await self._append(drafts)
        await self._turn_ended()

    def _fate(self, turn: JSON, body: Body, delivered: bool | None) -> Draft:
        message_id: str = turn["message_id"]
        if delivered:
            return Draft(ev.MessageDelivered(as_="turn"), message_id, turn_id=turn["id"])
        if delivered is None:
            detail = "The agent ended before it said whether it got this. It is not sent again by itself."
            failed = ev.MessageFailed(code="delivery_unknown", detail=detail)
            return Draft(failed, message_id, turn_id=turn["id"])
        if isinstance(body, ev.TurnInterrupted):
            return Draft(ev.MessageCancelled(), message_id, turn_id=turn["id"])
        failed = ev.MessageFailed(code="not_delivered", detail=getattr(body, "detail", ""))
        return Draft(failed, message_id, turn_id=turn["id"])

    async def _turn_ended(self) -> None:
        """What the end of a turn leaves: steers the agent never took, approvals nobody needs any more."""
        self._handed, self._interrupting = False, None
        self._texts.clear()
        drafts = [Draft(ev.MessageQueued(), message_id) for message_id in self.view.steers]
        drafts += self._cancelled("superseded")
        if drafts:
            await self._append(drafts)
        if self._stopping:
            self._close_runner("closed")
        self.idle_since = asyncio.get_running_loop().time()

    # Stopping.

    def _stop_drafts(self) -> list[Draft]:
        waiting = [
            Draft(ev.MessageCancelled(), entry["id"])
            if entry["type"] == "message"
            else Draft(ev.CommandEnded(outcome="cancelled"), entry["id"])
            for entry in self.view.queue
        ]
        steers = [Draft(ev.MessageCancelled(), message_id) for message_id in self.view.steers]
        return [*self._cancelled("closed"), *waiting, *steers]

    async def _stop(self) -> None:
        if self._house.runners.state(self.id) == "none":
            await self._interrupt()
            return
        self._stopping = True
        self._change = None  # its entry was cancelled with the queue
        if self.view.turn is None:
            self._close_runner("closed")
        else:
            await self._interrupt()

    def _close_runner(self, reason: str) -> None:
        self._ready, self._closing = False, reason
        self._house.runners.send(self.id, {"type": "close", "reason": reason})

    async def close_idle(self) -> None:
        """End an agent with nothing to do; the next prompt starts it again."""
        async with self._lock:
            view = self.view
            waits = view.turn or view.queue or view.approvals_open or view.questions_open
            if self._ready and not waits:
                self._close_runner("idle")

    # Switching harness and model.

    def _queue_change(
        self, command: commands.Switch | commands.SetModel, arguments: JSON, command_id: str
    ) -> tuple[list[Draft], JSON, Callable[[], Awaitable[None]]]:
        if isinstance(command, commands.Switch):
            arguments["harness"] = harness_name(command.harness)
            choice = self._target(arguments["harness"], command.provider, command.model)
        else:
            provider = command.provider or self.view.provider
            choice = choose(self._house.config, find_harness(self.view.harness), provider, command.model)
        arguments |= {"provider": choice.name, "model": choice.model}
        drafts = [Draft(ev.CommandQueued(arguments=arguments), command_id)]
        waits = self.view.turn is not None or bool(self.view.queue)
        more = {"state": "queued"} if waits else {}
        if command.now and self.view.turn is not None:
            return [*drafts, *self._cancelled("switched")], more, self._interrupt
        return drafts, more, _nothing

    def _target(self, name: str, provider: str | None, model: str | None) -> Choice:
        """Named > the same where the target reaches it > the target's default > an error with the choices."""
        harness = find_harness(name)
        harness.locate(self._house.home)
        config = self._house.config
        same = config.providers.get(self.view.provider or "")
        if provider is None and same is not None and same.api in harness.wires:
            return choose(config, harness, self.view.provider, model or self.view.model)
        choice = choose(config, harness, provider, model)
        if choice.model is None:
            raise Unprocessable(
                f"No model is named for {name} with provider {choice.name}.",
                hint=f"Name one with --model, or set defaults.{name}.model in config.yaml.",
            )
        return choice

    async def _carry_out(self, entry: JSON) -> None:
        """The queue's head is a change: end the old agent, then start the new."""
        arguments = entry["arguments"]
        state = self._house.runners.state(self.id)
        if state != "none":
            if not self._ready and self.view.run is None and state != "away":
                return  # an agent is starting: its start, or its end, comes back here
            if self._ready and self._settable(entry):
                model = {"type": "set_model", "model": arguments["model"], "effort": arguments["effort"]}
                self._command(entry["id"], model)
                await self._changed_model(entry)
            else:
                self._close_runner("switched")
        elif entry["type"] == "set_model":
            await self._changed_model(entry)
        else:
            self._change = entry
            await self._launch(arguments["harness"], arguments["provider"], arguments["model"])

    def _settable(self, entry: JSON) -> bool:
        same = entry["arguments"]["provider"] == self.view.provider
        return entry["type"] == "set_model" and same and self._can("sets_model")

    async def _changed_model(self, entry: JSON) -> None:
        a = entry["arguments"]
        changed = ev.ModelChanged(model=a["model"], provider=a["provider"], effort=a.get("effort"))
        await self._append([Draft(changed), Draft(ev.CommandEnded(outcome="done"), entry["id"])])

    async def _changed(self, entry: JSON, started: ev.HarnessStarted) -> None:
        self._change = None
        a = entry["arguments"]
        nothing = ev.Carried(how="none")
        body = ev.HarnessChanged(
            from_=self.view.harness,
            to=a["harness"],
            model=started.model or a["model"],
            provider=a["provider"],
            carried=started.carried or nothing,
        )
        await self._append([Draft(body), Draft(ev.CommandEnded(outcome="done"), entry["id"])])

    async def _change_failed(self, entry: JSON, detail: str) -> None:
        self._change = None
        target = entry["arguments"]["harness"]
        notice = ev.NoticeRaised(
            code="switch_failed",
            level="error",
            detail=f"{target} didn't start, so the session stays with {self.view.harness}: {detail}",
        )
        ended = ev.CommandEnded(outcome="failed", detail=detail)
        await self._append([Draft(notice), Draft(ended, entry["id"])])

    # Launching.

    async def _launch_frame(self, name: str, provider: str | None, model: str | None) -> JSON:
        """All a runner needs, the real key included: it travels on the link alone."""
        house, view = self._house, self.view
        harness = find_harness(name)
        binary = harness.locate(house.home)
        choice = choose(house.config, harness, provider, model)
        native = view.native.get(name)
        resumable = native is not None and native["ref"] and not native["stale"]
        history, dropped = History(), list[str]()
        if not resumable:
            history, dropped = carry.fit(await self._history(), choice.provider.context_tokens)
        epoch = await house.log.take_epoch(self.id)
        source = await asyncio.to_thread(upstream, choice.provider, house.home)
        self._ready, self._handed, self._epoch = False, False, epoch
        return {
            "type": "launch",
            "session_id": self.id,
            "run": house.new_id("run"),
            "epoch": epoch,
            "harness": name,
            "provider": choice.name,
            "billing": choice.provider.billing,
            "model": choice.model,
            "workspace": view.workspace,
            "private": str(house.home / "run" / self.id / name),
            "binary": {
                "name": binary.name,
                "argv": list(binary.argv),
                "version": binary.version,
                "source": binary.source,
                "in_range": binary.in_range,
            },
            "upstream": {
                "wire": source.wire,
                "base_url": source.base_url,
                "headers": source.headers,
                "query": source.query,
            },
            "placeholder": f"omnigent-{house.new_id('run')[4:]}",
            "environment": child_environment(house.environ, house.config.environment),
            "native_ref": native["ref"] if native and resumable else None,
            "history": history.model_dump(mode="json") if history.entries else None,
            "dropped": dropped,
            "covers_seq": view.as_of_seq,
            "checkpoint": view.checkpoint and {k: view.checkpoint[k] for k in ("head", "tree")},
            "mcp_servers": [
                {"name": server, "command": list(row.command), "environment": row.environment}
                for server, row in house.config.mcp_servers.items()
            ],
            "prices": {model: row.model_dump() for model, row in choice.provider.prices.items()},
            "grace_seconds": house.config.runner.grace_seconds,
            "stall_seconds": house.config.runner.stall_seconds,
        }

    async def _history(self) -> History:
        """In the order of the conversation: a message that waited in the queue stands where it was taken."""
        found: list[tuple[int, JSON]] = []
        before: int | None = None
        while page := await self._house.log.items(self.id, before=before, limit=1000):
            found += [(row.data.get("place", row.pos), row.data) for row in page]
            before = page[-1].pos
        found.reverse()
        items = [data for _, data in sorted(found, key=lambda entry: entry[0])]
        current = self.view.turn["message_id"] if self.view.turn else None
        return carry.history_of((i for i in items if i["id"] != current), self._house.blobs.get)

    def _can(self, capability: str) -> bool:
        run = self.view.run
        return bool(run and run["capabilities"].get(capability))

    # What the runner says.

    async def ingest(self, run: str, epoch: int, first: int, drafts: list[Draft]) -> int:
        """Store a runner's events and answer them. Returns what may be acknowledged.

        Raises `Fenced` for an older epoch, `Gap` where numbers are missing.
        """
        async with self._lock:
            appended = await self._house.log.append(self.id, drafts, producer=run, first=first, epoch=epoch)
            turn = self.view.turn
            self._apply(appended.events)
            if turn is not None and self.view.turn is None:
                await self._tell_fate(turn, appended.events)
            for event in appended.events:
                await self._react(event)
            await self._advance()
            return appended.acked

    async def _tell_fate(self, turn: JSON, events: Sequence[Event]) -> None:
        """A turn that its agent ended without ever saying that it got the message."""
        settled = (ev.MessageDelivered, ev.MessageFailed, ev.MessageCancelled)
        message_id = turn["message_id"]
        said = any(isinstance(event.body, settled) and event.item_id == message_id for event in events)
        if turn["delivered"] or said:
            return
        completed = any(isinstance(event.body, ev.TurnCompleted) for event in events)
        delivered = True if completed else await self._was_delivered(turn)
        await self._append([self._fate(turn, ev.TurnCompleted(), delivered)])

    async def _react(self, event: Event) -> None:
        body = event.body
        match body:
            case ev.ToolRequested() if body.gated:
                call = self.view.calls.get(event.item_id or "")
                if call is not None and not call["decided"]:
                    await self._decide(event.item_id or "", body, event.turn_id)
            case ev.HarnessStarted():
                await self._started(body)
            case ev.HarnessExited():
                self._ready = False
                await self._exited(body)
            case ev.TurnCompleted() | ev.TurnFailed() | ev.TurnInterrupted():
                if _by_its_exit(body):
                    self._ready = False  # its `harness.exited` follows: hand nothing more to it
                if self.view.turn is None:
                    await self._turn_ended()
            case ev.MessageCompleted() | ev.ReasoningCompleted() | ev.ToolCompleted():
                self._texts.pop(event.item_id or "", None)
            case ev.QuestionAsked() if self.view.approvals == "deny":
                await self._append([Draft(ev.QuestionAnswered(outcome="cancelled"), event.item_id)])
                self._send_answer(event.item_id or "", [], cancelled=True)
            case _:
                pass

    async def _started(self, body: ev.HarnessStarted) -> None:
        self._ready = True
        if self._change is not None:
            await self._changed(self._change, body)
        if self._closing:  # told while it couldn't hear
            self._close_runner(self._closing)
            return
        await self._send_turn()
        for message_id in self.view.steers:
            await self._steer(message_id)

    async def _exited(self, body: ev.HarnessExited) -> None:
        detail = body.stderr_tail.strip() or "The agent ended."
        turn = self.view.turn
        if self._change is not None and body.reason == "failed_to_start":
            await self._change_failed(self._change, detail)
        elif turn is not None and not self._untold(turn):
            code = "start_failed" if body.reason == "failed_to_start" else "agent_exited"
            delivered = await self._was_delivered(turn)
            await self._end_turn(ev.TurnFailed(code=code, detail=detail), delivered=delivered)

    def _untold(self, turn: JSON) -> bool:
        """No agent was started for this turn or has heard of it: the next one can take it."""
        return not (self._handed or turn["delivered"] or self._launched_for == turn["id"])

    # The gate.

    async def _decide(self, item_id: str, call: ev.ToolRequested, turn_id: str | None) -> None:
        """The one place where a tool call is allowed, asked or denied."""
        approvals = cast(ev.Approvals, self.view.approvals)
        verdict = policies.decide(call, policies.State(approvals, self.view.grants))
        if verdict.decision == "allow":
            self._verdict(item_id, allow=True, reason="")
            return
        decided = ev.PolicyDecided(verdict=verdict.decision, rule_ids=verdict.rule_ids, reason=verdict.reason)
        drafts = [Draft(decided, item_id, turn_id=turn_id)]
        if verdict.decision == "ask":
            expires_at = self._house.clock() + self._house.config.approvals.expire_seconds * 1000
            asked = ev.ApprovalRequested(
                call_id=item_id,
                actions=call.actions,
                action_sha256=policies.digest(call.actions),
                title=call.title,
                reason=verdict.reason,
                rule_ids=verdict.rule_ids,
                expires_at=expires_at,
            )
            drafts.append(Draft(asked, self._house.new_id("ap"), turn_id=turn_id))
        await self._append(drafts)
        if verdict.decision == "deny":
            self._verdict(item_id, allow=False, reason=verdict.reason)
        self._set_expiry()

    async def _send_verdict(self, item_id: str) -> None:
        call = self.view.calls.get(item_id)
        if call is not None and call["decided"]:
            self._verdict(item_id, allow=call.get("deny") is None, reason=call.get("deny") or "")

    def _verdict(self, item_id: str, *, allow: bool, reason: str) -> None:
        verdict = {"type": "verdict", "item_id": item_id, "allow": allow, "reason": reason}
        self._command(f"verdict:{item_id}", verdict)

    def _send_answer(self, question_id: str, values: list[list[str]], *, cancelled: bool) -> None:
        answer = {"type": "answer", "question_id": question_id, "values": values, "cancelled": cancelled}
        self._command(f"answer:{question_id}", answer)

    # The runner's comings and goings.

    async def synced(self, seen: list[str], held: list[str], questions: list[str], ready: bool) -> None:
        """A runner is (again) there and has told all it had: give it what it missed."""
        async with self._lock:
            self._ready = ready and self.view.run is not None
            if self._closing:
                self._close_runner(self._closing)
            turn = self.view.turn
            if turn is not None and turn["message_id"] and not turn["delivered"]:
                self._handed = turn["id"] in seen
                if self._ready and not self._handed and self._interrupting is None:
                    await self._send_turn()
            for message_id in self.view.steers:
                if message_id not in seen:
                    await self._steer(message_id)
            if self._interrupting is not None:
                await self._interrupt()
            for item_id in held:
                await self._settle_held(item_id)
            for question_id in questions:
                await self._settle_question(question_id)
            self._set_expiry()
            await self._advance()

    async def _settle_held(self, item_id: str) -> None:
        call = self.view.calls.get(item_id)
        asked = any(a["call_id"] == item_id for a in self.view.approvals_open.values())
        if call is None:
            self._verdict(item_id, allow=False, reason="The call is no longer open.")
        elif call["decided"]:
            await self._send_verdict(item_id)
        elif not asked:
            row = await self._house.log.item(self.id, item_id)
            if row is None:
                raise NotFound(f"The call {item_id} has no item.")
            names = ("tool", "title", "actions", "parsed", "raw", "background")
            fields = {name: row.data[name] for name in names}
            requested = ev.ToolRequested.model_validate(fields | {"native_id": ""})
            await self._decide(item_id, requested, row.data["turn_id"])

    async def _settle_question(self, question_id: str) -> None:
        row = await self._house.log.item(self.id, question_id)
        if row is not None and row.data["status"] != "open":
            cancelled = row.data["status"] != "answered"
            self._send_answer(question_id, row.data.get("values") or [], cancelled=cancelled)

    async def say(self, deltas: list[JSON]) -> None:
        """Deltas from the runner: remembered for late joiners, passed on to everyone."""
        frames: list[Frame] = []
        for raw in deltas:
            delta = Delta(**raw)
            known = self._texts.get(delta.item_id, (delta.stream, ""))[1]
            text = known[: delta.offset] + delta.text if delta.offset <= len(known) else known + delta.text
            self._texts[delta.item_id] = (delta.stream, text[:OPEN_TEXT])
            frames.append(delta_frame(delta))
        if frames:
            self.feed.publish(frames)

    async def gone(self, epoch: int) -> None:
        """The runner's process has ended and its last words are stored. Leave nothing running or open."""
        await asyncio.to_thread(processes.kill_carrying, f"{self.id}:{epoch}")
        async with self._lock:
            if epoch < self._epoch:
                return  # a newer agent was started meanwhile, and that start told of this one's end
            self._ready, self._stopping, self._closing = False, False, None
            if self.view.run is not None:
                await self._append([Draft(ev.HarnessExited(reason="runner_lost"))])
            if self._change is not None:
                await self._change_failed(self._change, "Its runner ended.")
            await self._end_lost()
            await self._house.log.drop_lease(self.id, epoch)
            if self.view.turn is not None:
                await self._hand_over()
            await self._advance()

    async def _end_lost(self) -> None:
        """End what the runner that is gone had: not a turn that it never heard of."""
        turn = self.view.turn
        if turn is None:
            if cancelled := self._cancelled("lost"):
                await self._append(cancelled)
        elif not self._untold(turn):
            body = ev.TurnFailed(code="runner_lost", detail="The agent's runner ended unexpectedly.")
            await self._end_turn(body, delivered=await self._was_delivered(turn))

    async def _was_delivered(self, turn: JSON) -> bool | None:
        """Whether the agent got the turn's message: known not, found in its transcript, or unknown."""
        view = self.view
        if turn["delivered"]:
            return True
        if not self._handed:
            return False
        native = view.native.get(view.harness)
        if native is None or not native["ref"] or not turn["message_id"]:
            return None
        row = await self._house.log.item(self.id, turn["message_id"])
        text = "\n".join(p["text"] for p in row.data["content"] if p["type"] == "text") if row else ""
        private = self._house.home / "run" / self.id / view.harness
        held = await asyncio.to_thread(
            find_harness(view.harness).holds, native["ref"], private, turn["message_id"], text
        )
        return True if held else None

    async def begin(self) -> None:
        """Give a new session's first prompt to its agent."""
        async with self._lock:
            await self._hand_over()
            await self._advance()

    async def recover(self) -> None:
        """At the server's start: apply what expired meanwhile, end or begin what no runner has, go on.

        A turn without a lease was never given to a runner: the lease is written before, and dropped after
        the turn's end.
        """
        async with self._lock:
            await self._expire()
            turn = self.view.turn
            if turn is None:
                await self._turn_ended()
            elif self._house.runners.state(self.id) == "none":
                await self._take_up(turn)
            await self._advance()

    async def _take_up(self, turn: JSON) -> None:
        """A turn that was open when the server ended, and that no runner has."""
        self._handed = False
        if self.view.closed:
            await self._end_turn(ev.TurnInterrupted(how="kill"), delivered=False)
        elif turn["delivered"]:
            await self._end_lost()
        else:
            await self._hand_over()

    # Appending.

    async def _append(self, drafts: Sequence[Draft], record: CommandRecord | None = None) -> list[Event]:
        appended = await self._house.log.append(self.id, drafts, command=record)
        self._apply(appended.events)
        return appended.events

    def _apply(self, events: Sequence[Event]) -> None:
        for event in events:
            _PROJECTOR.fold(self.view, event, _no_item)
        if self.view.turn is None:
            self.settled.set()
        else:
            self.settled.clear()
        self.feed.publish(event_frame(event) for event in events)

    async def record(self, bodies: Sequence[Body], actor: Actor) -> None:
        """Facts that no command carries (a title, an archive mark)."""
        async with self._lock:
            await self._append([Draft(body, actor=actor) for body in bodies])

    def _spawn(self, work: Callable[[], Any]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _by_its_exit(body: ev.TurnCompleted | ev.TurnFailed | ev.TurnInterrupted) -> bool:
    """Whether the turn ended because the agent's process did."""
    match body:
        case ev.TurnFailed(code="agent_exited") | ev.TurnInterrupted(how="kill"):
            return True
        case _:
            return False


async def _nothing() -> None:
    pass


def _no_item(item_id: str) -> JSON | None:
    return None
