"""The core loop of one session: command in → append → runner; event in → append → gate → follow.

Only this appends to a session's log. All state is a fold of that log (`view`); what lives beside it (which
runner answers, which text is streaming) can be lost and found again. Every entry point takes the session's
lock, so that facts are decided one after another.

Read `submit` (what people want), `_advance` (what runs next), `ingest` (what the agent does), and then how a
runner comes back (`synced`) or doesn't (`gone`, `recover`).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnigent import commands, content, continuing, delivery, processes, switching
from omnigent import events as ev
from omnigent.deciding import Judge
from omnigent.errors import BadCursor, Conflict, Draining, KeyReused, OmnigentError
from omnigent.events import JSON, Actor, Body, Delta, Draft, Event
from omnigent.feed import Feed, Frame, delta_frame, event_frame
from omnigent.gate import Gate
from omnigent.house import House
from omnigent.launching import launch_frame
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
        """The runner is to close once the open turn has ended."""
        self._closing: str | None = None
        """Why the runner was told to close; it is told again until it is gone."""
        self._interrupting = False
        """The open turn is to be interrupted; told again to a runner that was away."""
        self._judge = Judge(house, view)
        self._gate = Gate(
            house, view, self._judge, self._append, self._command, self._cut_short, self._spawn_expire
        )
        self._spending = Spending(house, view, self._judge, self._gate, self._append_within, self._answer)
        self._policies = SessionPolicies(house, view)
        self._payer: tuple[str, str] | None = None
        """The billing class and credential that a person agreed to, for the next start."""
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
                return _Plan(self._gate.cancelled("interrupted"), then=self._interrupt)
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
                return _Plan(self._given_up(), then=self._stop)
            case commands.Close():
                return _Plan([*self._given_up(), Draft(ev.SessionClosed())], then=self._stop)

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
            return _Plan(drafts, then=lambda: self._payer_answered(command.decision == "allow"))
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
        return _Plan([*drafts, *more], then=self._hand_over if begins else None)

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
            await self._hand_over()

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
            return _Plan(drafts, more | {"turn_id": turn_id}, self._hand_over)
        if command.when == "steer" and view.turn is not None and self._can("steers"):
            return _Plan(drafts, more, lambda: self._steer(message_id))
        drafts.append(Draft(ev.MessageQueued(), message_id))
        more["state"] = "queued"
        if command.when == "now" and view.turn is not None:
            return _Plan([*drafts, *self._gate.cancelled("interrupted")], more, self._interrupt)
        return _Plan(drafts, more)

    def _change_later(self, command: commands.Switch | commands.SetModel, command_id: str) -> _Plan:
        arguments = switching.decided(self._house, self.view, command)
        drafts = [Draft(ev.CommandQueued(arguments=arguments), command_id)]
        waits = self.view.turn is not None or bool(self.view.queue)
        more = {"state": "queued"} if waits else {}
        if command.now and self.view.turn is not None:
            return _Plan([*drafts, *self._gate.cancelled("switched")], more, self._interrupt)
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

    def _can(self, capability: str) -> bool:
        run = self.view.run
        return bool(run and run["capabilities"].get(capability))

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
        if not view.queue or view.turn is not None or self._change is not None:
            return False
        if view.paused is not None and view.queue[0]["type"] == "message":
            return False  # it waits behind the turn that is to go on
        return not (view.closed or self.draining or self._stopping or self._closing)

    async def _begin(self, entry: JSON) -> None:
        if entry["type"] != "message":
            await self._begin_change(entry)
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

    async def _begin_change(self, entry: JSON) -> None:
        """The queue's head is a change: end the old agent, then start the new."""
        arguments = entry["arguments"]
        state = self._house.runners.state(self.id)
        if state != "none":
            if not self._ready and self.view.run is None and state != "away":
                return  # an agent is starting: its start, or its end, comes back here
            if self._ready and self._settable(entry):
                model = {"type": "set_model", "model": arguments["model"], "effort": arguments["effort"]}
                self._command(entry["id"], model)
                await self._append(switching.model_changed(entry))
            else:
                self._close_runner("switched")
        elif entry["type"] == "set_model":
            await self._append(switching.model_changed(entry))
        else:
            self._change = entry
            await self._launch(arguments["harness"], arguments["provider"], arguments["model"])

    def _settable(self, entry: JSON) -> bool:
        """Whether the running agent can take it without a restart."""
        same = entry["arguments"]["provider"] == self.view.provider
        return entry["type"] == "set_model" and same and self._can("sets_model")

    async def _change_failed(self, entry: JSON, detail: str) -> None:
        self._change = None
        await self._append(switching.failed(entry, self.view, detail))

    async def _launch(self, harness: str, provider: str | None, model: str | None) -> None:
        if self.view.run is not None:  # its runner is gone, but `gone` hasn't said so yet
            await self._append([Draft(ev.HarnessExited(reason="runner_lost"))])
        self._launched_for = self.view.turn["id"] if self.view.turn else None
        try:
            frame = await launch_frame(self._house, self.view, harness, provider, model)
            if await self._asks_who_pays(frame):
                return
            self._ready, self._handed, self._epoch = False, False, frame["epoch"]
            await self._house.runners.launch(self.id, frame)
        except OmnigentError as error:
            await self._start_failed(f"{error.detail} {error.hint}".strip())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            await self._start_failed(f"The runner can't be started: {reason}.")

    async def _asks_who_pays(self, frame: JSON) -> bool:
        """Whether a person must agree first: since the last start somebody else would be billed."""
        view, wanted = self.view, (frame["billing"], frame["credential"])
        known = (view.billing, view.credential)
        if self._change is not None or view.turn is None or known == wanted or not view.credential:
            return False  # a change that a person asked for said so when it was asked
        if self._payer == wanted:
            return False
        self._launched_for = None
        turn_id = view.turn["id"]
        if not any(asked["call_id"] == turn_id for asked in view.approvals_open.values()):
            await self._append([switching.who_pays(self._house, view, frame, known)])
            self._gate.set_timer()
        return True

    async def _payer_answered(self, agreed: bool) -> None:
        if agreed:
            frame = await launch_frame(
                self._house, self.view, self.view.harness, self.view.provider, self.view.model
            )
            self._payer = (frame["billing"], frame["credential"])
            await self._hand_over()
        elif self.view.turn is not None:
            detail = "A person refused the change of who is billed."
            await self._end_turn(ev.TurnFailed(code="billing_refused", detail=detail), delivered=False)

    async def _start_failed(self, detail: str) -> None:
        if self._change is not None:
            await self._change_failed(self._change, detail)
        else:
            await self._end_turn(ev.TurnFailed(code="start_failed", detail=detail), delivered=False)

    # What the agent is told.

    async def _send_turn(self) -> None:
        turn = self.view.turn
        if turn is None or turn["delivered"]:
            return
        message_id = turn["message_id"]
        said = await self._content(message_id)
        self._handed = self._house.runners.state(self.id) == "live"  # else `synced` tells
        self._command(turn["id"], {"type": "turn", "turn_id": turn["id"], "message_id": message_id, **said})

    async def _steer(self, message_id: str) -> None:
        """Nothing before the agent is ready: its start hands over what waits."""
        if self._ready:
            said = await self._content(message_id)
            self._command(message_id, {"type": "steer", "message_id": message_id, **said})

    async def _content(self, message_id: str) -> JSON:
        row = await self._house.log.item(self.id, message_id)
        return content.fields(row.data if row else None, self._house.blobs)

    def _command(self, key: str, command: JSON) -> None:
        self._house.runners.send(self.id, {"type": "command", "key": key, "command": command})

    def _answer(self, frame: JSON) -> None:
        self._house.runners.send(self.id, frame)

    async def _cut_short(self, code: str, detail: str) -> None:
        """End the open turn for a reason of ours: told as that reason, not as an interrupt."""
        if self.view.turn is not None:
            self._command(self._house.new_id("cmd"), {"type": "cut_short", "code": code, "detail": detail})

    async def _interrupt(self) -> None:
        turn = self.view.turn
        if turn is None:
            await self._give_up_paused()
            return
        if self._house.runners.state(self.id) == "none":  # nobody is left to interrupt it
            await self._end_turn(ev.TurnInterrupted(how="kill"), delivered=await self._was_delivered(turn))
        elif self._handed or turn["delivered"]:
            self._interrupting = True
            self._command(self._house.new_id("cmd"), {"type": "interrupt"})
        else:  # the agent hasn't heard of it
            await self._end_turn(ev.TurnInterrupted(), delivered=False)

    async def _give_up_paused(self) -> None:
        if self.view.paused is not None:
            await self._append([Draft(ev.TurnInterrupted(), turn_id=self.view.paused["turn_id"])])

    # Stopping.

    async def _stop(self) -> None:
        if self._house.runners.state(self.id) == "none":
            await self._interrupt()
            return
        self._stopping = True
        self._change = None  # its entry was cancelled with the queue
        if self.view.turn is None:
            await self._give_up_paused()
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
            waits = view.turn or (view.queue and not view.paused) or view.questions_open
            held = any(not asked["detached"] for asked in view.approvals_open.values())
            if self._ready and not waits and not held:
                self._close_runner("idle")

    async def let_go(self) -> None:
        """End an agent that has long been waiting for a person and for nothing else: the answer starts it
        again."""
        async with self._lock:
            view, turn = self.view, self.view.turn
            held = {asked["call_id"]: asked for asked in view.approvals_open.values()}
            if not self._ready or turn is None or not held or set(view.calls) - set(held):
                return
            since = max(asked["asked_at"] for asked in held.values())
            seconds = self._house.settings.start.approvals.detach_seconds
            if view.questions_open or self._house.clock() - since < seconds * 1000:
                return
            detail = "The agent was let go while it waited for a person; the answer starts it again."
            body = ev.TurnFailed(code="detached", detail=detail)
            await self._append([*self._gate.detached(), Draft(body, turn_id=turn["id"])])
            await self._turn_ended()
            self._close_runner("idle")

    # How a turn ends.

    async def _end_turn(self, body: ev.TurnFailed | ev.TurnInterrupted, *, delivered: bool | None) -> None:
        """End the open turn in the agent's stead. `delivered` None: nobody knows."""
        turn = self.view.turn
        if turn is None:
            return
        interrupted = isinstance(body, ev.TurnInterrupted)
        drafts = self._gate.cancelled("interrupted") if interrupted else self._gate.detached()
        if not turn["delivered"]:
            drafts.append(delivery.fate(turn, body, delivered))
        drafts.append(Draft(body, turn_id=turn["id"]))
        await self._append(drafts)
        await self._turn_ended()

    async def _turn_ended(self) -> None:
        """What the end of a turn leaves: steers the agent never took, approvals nobody needs any more."""
        self._handed, self._interrupting = False, False
        self._texts.clear()
        drafts = [Draft(ev.MessageQueued(), message_id) for message_id in self.view.steers]
        drafts += self._gate.cancelled("superseded")
        if drafts:
            await self._append(drafts)
        if self._stopping:
            self._close_runner("closed")
        self._gate.set_timer()  # a quota's reset, if that is what paused it
        self.idle_since = asyncio.get_running_loop().time()

    async def _was_delivered(self, turn: JSON) -> bool | None:
        """Whether the agent got the turn's message. None: nobody knows."""
        if turn["delivered"]:
            return True
        return await delivery.found(self._house, self.view, turn) if self._handed else False

    def _untold(self, turn: JSON) -> bool:
        """No agent was started for this turn or has heard of it: the next one can take it."""
        return not (self._handed or turn["delivered"] or self._launched_for == turn["id"])

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
                await self._tell_fate(turn, appended.events)
            for event in appended.events:
                await self._react(event)
            await self._advance()
            return appended.acked

    async def _tell_fate(self, turn: JSON, events: Sequence[Event]) -> None:
        """A turn that its agent ended without ever saying that it got the message."""
        if not delivery.told(turn, events):
            ends = (ev.TurnCompleted, ev.TurnPaused)
            completed = any(isinstance(event.body, ends) for event in events)
            delivered = True if completed else await self._was_delivered(turn)
            await self._append([delivery.fate(turn, None, delivered)])

    async def _react(self, event: Event) -> None:
        body = event.body
        match body:
            case ev.ToolRequested() if body.gated:
                call = self.view.calls.get(event.item_id or "")
                if call is not None and not call["decided"]:
                    await self._refresh_policies()
                    await self._gate.decide(event.item_id or "", body, event.turn_id)
            case ev.HarnessStarted():
                await self._started(body)
            case ev.HarnessExited():
                self._ready = False
                await self._exited(body)
            case ev.TurnCompleted() | ev.TurnFailed() | ev.TurnInterrupted() | ev.TurnPaused():
                if _by_its_exit(body):
                    self._ready = False  # its `harness.exited` follows: hand nothing more to it
                    if drafts := self._gate.detached():
                        await self._append(drafts)
                if self.view.turn is None:
                    await self._turn_ended()
            case ev.MessageCompleted() | ev.ReasoningCompleted() | ev.ToolCompleted():
                self._texts.pop(event.item_id or "", None)
            case ev.QuestionAsked() if self.view.approvals == "deny":
                await self._gate.refuse_question(event.item_id or "")
            case _:
                pass

    async def _started(self, body: ev.HarnessStarted) -> None:
        self._ready = True
        if self._change is not None:
            entry, self._change = self._change, None
            await self._append(switching.harness_changed(entry, self.view, body))
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

    async def reserve(self, epoch: int, call: ModelCall) -> None:
        """A gateway holds a model call and asks whether it may leave."""
        async with self._lock:
            if epoch == self._epoch or not self._epoch:
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
            self._ready = ready and self.view.run is not None
            if self._closing:
                self._close_runner(self._closing)
            turn = self.view.turn
            if turn is not None and turn["message_id"] and not turn["delivered"]:
                self._handed = turn["id"] in seen
                if self._ready and not self._handed and not self._interrupting:
                    await self._send_turn()
            for message_id in self.view.steers:
                if message_id not in seen:
                    await self._steer(message_id)
            if self._interrupting:
                await self._interrupt()
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
            if epoch < self._epoch:
                return  # a newer agent was started meanwhile, and that start told of this one's end
            self._ready, self._stopping, self._closing = False, False, None
            if self.view.run is not None:
                await self._append([Draft(ev.HarnessExited(reason="runner_lost"))])
            if self._change is not None:
                await self._change_failed(self._change, "Its runner ended.")
            await self._spending.lose()
            await self._end_lost()
            await self._house.log.drop_lease(self.id, epoch)
            if self.view.turn is not None:
                await self._hand_over()
            await self._expire_now()  # a lease kept `recover` from it
            await self._advance()

    async def _end_lost(self) -> None:
        """End what the runner that is gone had: not a turn that it never heard of."""
        turn = self.view.turn
        if turn is None:
            if drafts := self._gate.detached():
                await self._append(drafts)
        elif not self._untold(turn):
            body = ev.TurnFailed(code="runner_lost", detail="The agent's runner ended unexpectedly.")
            await self._end_turn(body, delivered=await self._was_delivered(turn))

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
            await self._expire_now()
            turn = self.view.turn
            if turn is None:
                await self._spending.lose()
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
            await self._spending.lose()
            await self._end_lost()
        else:
            await self._hand_over()

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
        for event in events:
            _PROJECTOR.fold(self.view, event, _no_item)
        if self.view.turn is None:
            self.settled.set()
        else:
            self.settled.clear()
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
                await self._payer_answered(False)
        reset = self._gate.quota_resets_at()
        over = reset is not None and reset <= self._house.clock()
        if over and not self.view.closed and not self.draining:
            await self._go_on()
        self._gate.set_timer()


def _by_its_exit(body: ev.TurnCompleted | ev.TurnFailed | ev.TurnInterrupted | ev.TurnPaused) -> bool:
    """Whether the turn ended because the agent's process did."""
    match body:
        case ev.TurnFailed(code="agent_exited") | ev.TurnInterrupted(how="kill"):
            return True
        case _:
            return False


def _no_item(item_id: str) -> JSON | None:
    return None
