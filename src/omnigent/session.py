"""The core loop of one session: command in → append → runner; event in → append → gate → follow.

Only this appends to a session's log. All state is a fold of that log (`view`); what lives beside it (which
runner answers, which text is streaming) can be lost and found again. Every entry point takes the session's
lock, so that facts are decided one after another.

Read `submit` (what people want), `_advance` (what runs next), `ingest` (what the agent does), and then how a
runner comes back (`synced`) or doesn't (`gone`, `recover`). What the agent is told is `driving.py`'s, what it
must wait for `gate.py`'s, and what its model calls cost `spending.py`'s.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnigent import commands, content, continuing, processes, switching
from omnigent import events as ev
from omnigent.deciding import Judge
from omnigent.driving import Driver, Line
from omnigent.errors import BadCursor, Conflict, Draining, KeyReused
from omnigent.events import JSON, Actor, Body, Delta, Draft, Event
from omnigent.feed import Feed, Frame, delta_frame, event_frame
from omnigent.gate import Gate
from omnigent.house import House
from omnigent.log import CommandRecord
from omnigent.metering import Cap, ModelCall
from omnigent.session_policies import SessionPolicies
from omnigent.spending import Spending
from omnigent.views import SessionProjector, SessionView

OPEN_TEXT = 256 * 1024
"""Code points of an open item kept for those who join late."""

_PROJECTOR = SessionProjector()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a command comes to."""

    drafts: list[Draft]
    more: JSON = field(default_factory=dict[str, Any])
    """For the answer, beside the command's id and state."""
    then: Callable[[], Awaitable[None]] | None = None
    """To do once the drafts are stored."""


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
        self._judge = Judge(house, view)
        self._policies = SessionPolicies(house, view)
        line = Line(house, view)
        self._gate = Gate(
            house, view, self._judge, self._append, line.command, line.cut_short, self._spawn_expire
        )
        self._spending = Spending(house, view, self._judge, self._gate, self._append_within, line.send)
        self._driver = Driver(house, view, line, self._gate, self._append)
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.deleted = asyncio.Event()
        self.settled = asyncio.Event()
        """Set while no turn is open."""
        if view.turn is None:
            self.settled.set()

    # What people want.

    async def submit(self, command: commands.Command, actor: Actor) -> tuple[JSON, bool]:
        """Carry out a command. The answer, and whether it is the replay of an earlier one.

        Raises `KeyReused`, `Conflict`, `NotFound`, `Unprocessable`, `Malformed`, `TooLarge`.
        """
        command = content.redacted(command, await self._house.redactor())
        digest = ev.sha256(ev.canonical(command.model_dump(mode="json", exclude={"idempotency_key"})))
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
            plan = await self._plan(command, command_id)
            answer = {"command_id": command_id, "state": "accepted", **plan.more}
            record = CommandRecord(self.id, command.idempotency_key, digest, answer)
            marked = [
                Draft(
                    d.body,
                    d.item_id,
                    turn_id=d.turn_id,
                    actor=continuing.HOST if d.actor is continuing.HOST else actor,
                    cause=command_id,
                )
                for d in plan.drafts
            ]
            await self._append(marked, record)
            answer |= {"session_id": self.id, "seq": self.view.as_of_seq}  # as the log stores it
            if plan.then is not None:
                await plan.then()
            await self._advance()
        return answer, False

    async def _plan(self, command: commands.Command, command_id: str) -> _Plan:
        match command:
            case commands.Prompt():
                return self._prompt(command)
            case commands.Edit():
                self._check_queued(command.message_id)
                body = ev.MessageEdited(content=content.take(command.content, self._house.blobs))
                return _Plan([Draft(body, command.message_id)])
            case commands.Cancel():
                self._check_queued(command.message_id)
                return _Plan([Draft(ev.MessageCancelled(), command.message_id)])
            case commands.Interrupt():
                return _Plan(self._gate.cancelled("interrupted"), then=self._driver.interrupt)
            case commands.Resolve():
                return await self._resolve(command)
            case commands.Answer():
                draft = await self._gate.answer(command)
                values = [list(labels) for labels in command.values]
                return _Plan([draft], then=lambda: self._gate.pass_answer(command.question_id, values))
            case commands.SetModel() | commands.Switch():
                return self._change_later(command, command_id)
            case commands.SetBudget():
                cap = None if command.cap_usd is None else round(command.cap_usd * 1e9)
                return _Plan([Draft(ev.BudgetChanged(cap_nanousd=cap))], then=self._go_on_if_free)
            case commands.SetPolicies():
                return _Plan([await self._policies.changed(command)], then=self._go_on_if_free)
            case commands.RevokeGrant():
                return _Plan([self._gate.revoke(command.grant_id)])
            case commands.Resume():
                return await self._resume()
            case commands.Stop():
                return _Plan(self._given_up(), then=self._driver.stop)
            case commands.Close():
                return _Plan([*self._given_up(), Draft(ev.SessionClosed())], then=self._driver.stop)

    async def _resolve(self, command: commands.Resolve) -> _Plan:
        await self._expire_now()  # before answers are taken
        drafts, asked = await self._gate.resolve(command)
        call_id: str = asked["call_id"]
        if asked["detached"]:
            reason = "" if command.decision == "allow" else command.reason or "No reason was given."
            return self._plan_to_go_on(drafts, continuing.answered(asked["title"], reason))
        if call_id.startswith("call_"):
            return _Plan(drafts, then=lambda: self._spending.resolved(call_id))
        if call_id.startswith("turn_"):
            return _Plan(drafts, then=lambda: self._driver.payer_answered(command.decision == "allow"))
        return _Plan(drafts, then=lambda: self._gate.pass_verdict(call_id))

    async def _resume(self) -> _Plan:
        """Reopen it, let the call that a rule paused run, or let the paused turn go on."""
        drafts = [Draft(ev.SessionReopened())] if self.view.closed else []
        held = self._gate.paused()
        if held:
            calls = [self.view.approvals_open[item_id]["call_id"] for item_id in held]
            drafts += [Draft(ev.ApprovalResolved(outcome="allowed"), item_id) for item_id in held]
            return _Plan(drafts, then=lambda: self._pass_verdicts(calls))
        if self.view.paused is None:
            return _Plan(drafts)
        if (reason := await self._spending.still_stopped()) is not None:
            raise Conflict(
                reason, hint="Raise the budget (`omnigent budget`) or change the policies.", current="paused"
            )
        return self._plan_to_go_on(drafts, continuing.PAUSED)

    def _plan_to_go_on(self, drafts: list[Draft], text: str) -> _Plan:
        more, begins = continuing.drafts(self._house, self.view, text)
        return _Plan([*drafts, *more], then=self._driver.hand_over if begins else None)

    async def _pass_verdicts(self, call_ids: Sequence[str]) -> None:
        for call_id in call_ids:
            await self._gate.pass_verdict(call_id)

    async def _go_on_if_free(self) -> None:
        """The budget or the rules changed: what they stopped goes on, if they let it."""
        await self._gate.reconsider()
        paused = self.view.paused
        if paused is None or paused["reason"] == "quota" or self.view.closed or self.draining:
            return
        if await self._spending.still_stopped() is None:
            await self._go_on()

    async def _go_on(self) -> None:
        drafts, begins = continuing.drafts(self._house, self.view, continuing.PAUSED)
        await self._append(drafts)
        if begins:
            await self._driver.hand_over()

    def _prompt(self, command: commands.Prompt) -> _Plan:
        view = self.view
        if view.closed:
            raise Conflict("The session is closed.", hint="Reopen it with `resume`.", current="closed")
        if self.draining:
            raise Draining("The server is stopping.", hint="Try again when it has started anew.")
        inputs = command.content
        if command.text is not None:
            inputs = (commands.TextInput(text=command.text), *inputs)
        body = ev.MessageSubmitted(content=content.take(inputs, self._house.blobs), when=command.when)
        message_id = self._house.new_id("msg")
        drafts = [Draft(body, message_id)]
        more: JSON = {"message_id": message_id}
        if view.turn is None and not view.queue and view.paused is None:
            turn_id = self._house.new_id("turn")
            drafts.append(Draft(ev.TurnStarted(trigger="prompt", message_id=message_id), turn_id=turn_id))
            return _Plan(drafts, more | {"turn_id": turn_id}, self._driver.hand_over)
        if command.when == "steer" and view.turn is not None and self._driver.can("steers"):
            return _Plan(drafts, more, lambda: self._driver.steer(message_id))
        drafts.append(Draft(ev.MessageQueued(), message_id))
        more["state"] = "queued"
        if command.when == "now" and view.turn is not None:
            return _Plan([*drafts, *self._gate.cancelled("interrupted")], more, self._driver.interrupt)
        return _Plan(drafts, more)

    def _change_later(self, command: commands.Switch | commands.SetModel, command_id: str) -> _Plan:
        arguments = switching.decided(self._house, self.view, command)
        drafts = [Draft(ev.CommandQueued(arguments=arguments), command_id)]
        waits = self.view.turn is not None or bool(self.view.queue)
        more = {"state": "queued"} if waits else {}
        if command.now and self.view.turn is not None:
            return _Plan([*drafts, *self._gate.cancelled("switched")], more, self._driver.interrupt)
        return _Plan(drafts, more)

    def _given_up(self) -> list[Draft]:
        """What a stop leaves of all that waits: nothing."""
        waiting = [
            Draft(ev.MessageCancelled(), entry["id"])
            if entry["type"] == "message"
            else Draft(ev.CommandEnded(outcome="cancelled"), entry["id"])
            for entry in self.view.queue
        ]
        steers = [Draft(ev.MessageCancelled(), message_id) for message_id in self.view.steers]
        return [*self._gate.cancelled("closed"), *waiting, *steers]

    def _check_queued(self, message_id: str) -> None:
        entries = [entry["id"] for entry in self.view.queue if entry["type"] == "message"]
        if message_id not in entries:
            raise Conflict(f"{message_id} isn't in the queue.", current="not_queued", queue=entries)

    async def record(self, bodies: Sequence[Body], actor: Actor) -> None:
        """Facts that no command carries (a title, an archive mark)."""
        async with self._lock:
            await self._append([Draft(body, actor=actor) for body in bodies])

    # What runs next.

    async def _advance(self) -> None:
        """While nothing is running, begin the next thing in the queue."""
        while self._may_begin():
            entry = self.view.queue[0]
            await self._begin(entry)
            if self.view.queue and self.view.queue[0]["id"] == entry["id"]:
                return  # a change that waits for an agent's end or start

    def _may_begin(self) -> bool:
        view = self.view
        if not view.queue or view.turn is not None:
            return False
        if view.paused is not None and view.queue[0]["type"] == "message":
            return False  # it waits behind the turn that is to go on
        return not (view.closed or self.draining or self._driver.busy)

    async def _begin(self, entry: JSON) -> None:
        if entry["type"] != "message":
            await self._driver.begin_change(entry)
            return
        turn_id = self._house.new_id("turn")
        body = ev.TurnStarted(trigger="queue", message_id=entry["id"])
        await self._append([Draft(body, turn_id=turn_id)])
        await self._driver.hand_over()

    async def close_idle(self) -> None:
        """End an agent with nothing to do; the next prompt starts it again."""
        async with self._lock:
            self._driver.close_idle()

    async def let_go(self) -> None:
        """End an agent that has long been waiting for a person: the answer starts it again."""
        async with self._lock:
            await self._driver.let_go()

    # What the agent does.

    async def ingest(self, run: str, epoch: int, first: int, drafts: list[Draft]) -> int:
        """Store a runner's events and answer them. Returns what may be acknowledged.

        Raises `Fenced` for an older epoch, `Gap` where numbers are missing.
        """
        async with self._lock:
            drafts = await self._spending.priced(drafts)
            appended = await self._house.log.append(self.id, drafts, producer=run, first=first, epoch=epoch)
            turn = self.view.turn
            self._apply(appended.events)
            if turn is not None and self.view.turn is None:
                await self._driver.tell_fate(turn, appended.events)
            for event in appended.events:
                await self._react(event)
            await self._advance()
            return appended.acked

    async def _react(self, event: Event) -> None:
        body = event.body
        match body:
            case ev.ToolRequested() if body.gated:
                call = self.view.calls.get(event.item_id or "")
                if call is not None and not call["decided"]:
                    await self._refresh_policies()
                    await self._gate.decide(event.item_id or "", body, event.turn_id)
            case ev.HarnessStarted():
                await self._driver.started(body)
            case ev.HarnessExited():
                await self._driver.exited(body)
            case ev.TurnCompleted() | ev.TurnFailed() | ev.TurnInterrupted() | ev.TurnPaused():
                await self._driver.told_of_its_end(body)
            case ev.MessageCompleted() | ev.ReasoningCompleted() | ev.ToolCompleted():
                self._texts.pop(event.item_id or "", None)
            case ev.QuestionAsked() if self.view.approvals == "deny":
                await self._gate.refuse_question(event.item_id or "")
            case _:
                pass

    async def reserve(self, epoch: int, call: ModelCall) -> None:
        """A gateway holds a model call and asks whether it may leave."""
        async with self._lock:
            if epoch == self._driver.epoch or not self._driver.epoch:
                await self._refresh_policies()
                await self._spending.reserve(call)

    async def _refresh_policies(self) -> None:
        """What was applied to wider scopes meanwhile holds from the next decision on."""
        draft = await self._policies.refreshed()
        if draft is not None:
            await self._append([draft])

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

    # The runner's comings and goings.

    async def synced(
        self, seen: list[str], held: list[str], questions: list[str], calls: list[str], ready: bool
    ) -> None:
        """A runner is (again) there and has told all it had: give it what it missed.

        `calls` are its model calls under way: of others that left, nobody will tell."""
        async with self._lock:
            await self._spending.lose(kept=calls)
            await self._driver.synced(seen, ready=ready)
            for item_id in held:
                await self._gate.settle_call(item_id)
            for question_id in questions:
                await self._gate.settle_question(question_id)
            self._gate.set_timer()
            await self._advance()

    async def gone(self, epoch: int) -> None:
        """The runner's process has ended and its last words are stored. Leave nothing running or open."""
        await asyncio.to_thread(processes.kill_carrying, f"{self.id}:{epoch}")
        async with self._lock:
            if epoch < self._driver.epoch:
                return  # a newer agent was started meanwhile, and that start told of this one's end
            await self._driver.gone()
            await self._spending.lose()
            await self._driver.end_lost()
            await self._house.log.drop_lease(self.id, epoch)
            if self.view.turn is not None:
                await self._driver.hand_over()
            await self._expire_now()  # a lease kept `recover` from it
            await self._advance()

    async def begin(self) -> None:
        """Give a new session's first prompt to its agent."""
        async with self._lock:
            await self._driver.hand_over()
            await self._advance()

    async def recover(self) -> None:
        """At the server's start: apply what expired meanwhile, end or begin what no runner has, go on.

        A turn without a lease was never given to a runner: the lease is written before, and dropped after
        the turn's end.
        """
        async with self._lock:
            await self._expire_now()
            if self.view.turn is None:
                await self._spending.lose()
                await self._driver.turn_ended()
            elif self._house.runners.state(self.id) == "none":
                await self._spending.lose()
                await self._driver.take_up()
            await self._advance()

    # Appending.

    async def _append(self, drafts: Sequence[Draft], record: CommandRecord | None = None) -> None:
        appended = await self._house.log.append(self.id, drafts, command=record)
        self._apply(appended.events)

    async def _append_within(self, drafts: Sequence[Draft], caps: Sequence[Cap]) -> None:
        """Raises `OverBudget` where the ledger has no room left under a cap."""
        appended = await self._house.log.append(self.id, drafts, caps=caps)
        self._apply(appended.events)

    def _apply(self, events: Sequence[Event]) -> None:
        self._house.trees.of(self.view.root_id).tell(events)
        had_turn = self.view.turn is not None
        for event in events:
            _PROJECTOR.fold(self.view, event, _no_item)
        if self.view.turn is not None:
            self.settled.clear()
        else:
            self.settled.set()
        if had_turn and self.view.turn is None:
            self._texts.clear()
            self.idle_since = asyncio.get_running_loop().time()
        self.feed.publish(event_frame(event) for event in events)

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

    # Time.

    def _spawn_expire(self) -> None:
        task = asyncio.get_running_loop().create_task(self._expire())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _expire(self) -> None:
        async with self._lock:
            await self._expire_now()
            await self._advance()

    async def _expire_now(self) -> None:
        """What ran out: approvals are denied, a quota that was reset lets the turn go on."""
        for asked in await self._gate.expire():
            if asked["call_id"].startswith("call_"):
                await self._spending.resolved(asked["call_id"])
            elif asked["call_id"].startswith("turn_"):
                await self._driver.payer_answered(False)
        reset = self._gate.quota_resets_at()
        over = reset is not None and reset <= self._house.clock()
        if over and not self.view.closed and not self.draining:
            await self._go_on()
        self._gate.set_timer()


def _no_item(item_id: str) -> JSON | None:
    return None
