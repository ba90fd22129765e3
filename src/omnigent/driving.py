"""The agent of one session: started, told, interrupted, ended, and what its turn's end leaves behind.

All of it runs under the session's lock and appends through it. What is kept here beside the log (which runner
is there, what it was told) can be lost: `synced` finds it again.
"""

from collections.abc import Awaitable, Callable, Sequence

from omnigent import content, delivery, switching
from omnigent import events as ev
from omnigent.errors import OmnigentError
from omnigent.events import JSON, Body, Draft, Event
from omnigent.gate import Gate
from omnigent.house import House
from omnigent.launching import launch_frame
from omnigent.views import SessionView


class Line:
    """What goes to the session's runner; nothing where none is connected."""

    def __init__(self, house: House, view: SessionView) -> None:
        self._house = house
        self._view = view

    def send(self, frame: JSON) -> None:
        self._house.runners.send(self._view.session_id, frame)

    def command(self, key: str, command: JSON) -> None:
        """For the agent. The runner carries out each `key` once."""
        self.send({"type": "command", "key": key, "command": command})

    async def cut_short(self, code: str, detail: str) -> None:
        """End the open turn for a reason of ours: told as that reason, not as an interrupt."""
        if self._view.turn is not None:
            self.command(self._house.new_id("cmd"), {"type": "cut_short", "code": code, "detail": detail})


class Driver:
    def __init__(
        self,
        house: House,
        view: SessionView,
        line: Line,
        gate: Gate,
        append: Callable[[list[Draft]], Awaitable[None]],
    ) -> None:
        self.ready = False
        """The agent has answered its handshake and takes commands."""
        self.epoch = 0
        """That of the last start by this server."""
        self._house = house
        self._view = view
        self._line = line
        self._gate = gate
        self._append = append
        self._handed = view.turn is not None
        """A runner may have the open turn's message. What an earlier server did is unknown until `synced`."""
        self._launched_for: str | None = None
        """The turn that was open when an agent was last started."""
        self._change: JSON | None = None
        """The switch whose new agent is being started: its entry in the queue."""
        self._stopping = False
        """The runner is to close once the open turn has ended."""
        self._closing: str | None = None
        """Why the runner was told to close; it is told again until it is gone."""
        self._interrupting = False
        """The open turn is to be interrupted; told again to a runner that was away."""
        self._payer: tuple[str, str] | None = None
        """The billing class and credential that a person agreed to, for the next start."""

    @property
    def busy(self) -> bool:
        """Whether an agent is being changed or ended: nothing else begins meanwhile."""
        return self._change is not None or self._stopping or self._closing is not None

    def can(self, capability: str) -> bool:
        """Whether the running agent has it."""
        run = self._view.run
        return bool(run and run["capabilities"].get(capability))

    # Starting.

    async def hand_over(self) -> None:
        """Give the open turn's message to the agent, starting one if none runs."""
        if self.ready:
            await self._send_turn()
        elif self._house.runners.state(self._view.session_id) == "none":
            await self._launch(self._view.harness, self._view.provider, self._view.model)

    async def begin_change(self, entry: JSON) -> None:
        """The queue's head is a change: end the old agent, then start the new."""
        arguments = entry["arguments"]
        state = self._house.runners.state(self._view.session_id)
        if state != "none":
            if not self.ready and self._view.run is None and state != "away":
                return  # an agent is starting: its start, or its end, comes back here
            if self.ready and self._settable(entry):
                model = {"type": "set_model", "model": arguments["model"], "effort": arguments["effort"]}
                self._line.command(entry["id"], model)
                await self._append(switching.model_changed(entry))
            else:
                self._close("switched")
        elif entry["type"] == "set_model":
            await self._append(switching.model_changed(entry))
        else:
            self._change = entry
            await self._launch(arguments["harness"], arguments["provider"], arguments["model"])

    def _settable(self, entry: JSON) -> bool:
        """Whether the running agent can take it without a restart."""
        same = entry["arguments"]["provider"] == self._view.provider
        return entry["type"] == "set_model" and same and self.can("sets_model")

    async def _change_failed(self, entry: JSON, detail: str) -> None:
        self._change = None
        await self._append(switching.failed(entry, self._view, detail))

    async def _launch(self, harness: str, provider: str | None, model: str | None) -> None:
        view = self._view
        # The runner before is gone, if `gone` hasn't said so yet: what it was told isn't for this one.
        self._stopping, self._closing = False, None
        if view.run is not None:
            await self._append([Draft(ev.HarnessExited(reason="runner_lost"))])
        self._launched_for = view.turn["id"] if view.turn else None
        try:
            frame = await launch_frame(self._house, view, harness, provider, model)
            if await self._asks_who_pays(frame):
                return
            self.ready, self._handed, self.epoch = False, False, frame["epoch"]
            await self._house.runners.launch(view.session_id, frame)
        except OmnigentError as error:
            await self._start_failed(f"{error.detail} {error.hint}".strip())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            await self._start_failed(f"The runner can't be started: {reason}.")

    async def _asks_who_pays(self, frame: JSON) -> bool:
        """Whether a person must agree first: since the last start somebody else would be billed."""
        view, wanted = self._view, (frame["billing"], frame["credential"])
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

    async def payer_answered(self, agreed: bool) -> None:
        view = self._view
        if agreed:
            frame = await launch_frame(self._house, view, view.harness, view.provider, view.model)
            self._payer = (frame["billing"], frame["credential"])
            await self.hand_over()
        elif view.turn is not None:
            detail = "A person refused the change of who is billed."
            await self._end_turn(ev.TurnFailed(code="billing_refused", detail=detail), delivered=False)

    async def _start_failed(self, detail: str) -> None:
        if self._change is not None:
            await self._change_failed(self._change, detail)
        else:
            await self._end_turn(ev.TurnFailed(code="start_failed", detail=detail), delivered=False)

    async def started(self, body: ev.HarnessStarted) -> None:
        self.ready = True
        if self._change is not None:
            entry, self._change = self._change, None
            await self._append(switching.harness_changed(entry, self._view, body))
        if self._closing:  # told while it couldn't hear
            self._close(self._closing)
            return
        await self._send_turn()
        for message_id in self._view.steers:
            await self.steer(message_id)

    # Telling.

    async def _send_turn(self) -> None:
        turn = self._view.turn
        if turn is None or turn["delivered"]:
            return
        message_id = turn["message_id"]
        said = await self._content(message_id)
        live = self._house.runners.state(self._view.session_id) == "live"
        self._handed = live  # else `synced` tells
        command = {"type": "turn", "turn_id": turn["id"], "message_id": message_id, **said}
        self._line.command(turn["id"], command)

    async def steer(self, message_id: str) -> None:
        """Nothing before the agent is ready: its start hands over what waits."""
        if self.ready:
            said = await self._content(message_id)
            self._line.command(message_id, {"type": "steer", "message_id": message_id, **said})

    async def _content(self, message_id: str) -> JSON:
        row = await self._house.log.item(self._view.session_id, message_id)
        return content.fields(row.data if row else None, self._house.blobs)

    async def interrupt(self) -> None:
        turn = self._view.turn
        if turn is None:
            await self._give_up_paused()
        elif self._house.runners.state(self._view.session_id) == "none":  # nobody is left to interrupt it
            delivered = await self._was_delivered(turn)
            await self._end_turn(ev.TurnInterrupted(how="kill"), delivered=delivered)
        elif self._handed or turn["delivered"]:
            self._interrupting = True
            self._line.command(self._house.new_id("cmd"), {"type": "interrupt"})
        else:  # the agent hasn't heard of it
            await self._end_turn(ev.TurnInterrupted(), delivered=False)

    async def _give_up_paused(self) -> None:
        if self._view.paused is not None:
            await self._append([Draft(ev.TurnInterrupted(), turn_id=self._view.paused["turn_id"])])

    async def stop(self) -> None:
        """End the turn, then the agent."""
        if self._house.runners.state(self._view.session_id) == "none":
            await self.interrupt()
            return
        self._stopping = True
        self._change = None  # its entry was cancelled with the queue
        if self._view.turn is None:
            await self._give_up_paused()
            self._close("closed")
        else:
            await self.interrupt()

    def _close(self, reason: str) -> None:
        self.ready, self._closing = False, reason
        self._line.send({"type": "close", "reason": reason})

    def close_idle(self) -> None:
        """End an agent with nothing to do; the next prompt starts it again."""
        view = self._view
        waits = view.turn or (view.queue and not view.paused) or view.questions_open
        held = any(not asked["detached"] for asked in view.approvals_open.values())
        if self.ready and not waits and not held:
            self._close("idle")

    async def let_go(self) -> None:
        """End an agent that has long been waiting for a person and for nothing else: the answer starts it
        again."""
        view, turn = self._view, self._view.turn
        held = {asked["call_id"]: asked for asked in view.approvals_open.values()}
        if not self.ready or turn is None or not held or set(view.calls) - set(held):
            return
        since = max(asked["asked_at"] for asked in held.values())
        seconds = self._house.settings.start.approvals.detach_seconds
        if view.questions_open or self._house.clock() - since < seconds * 1000:
            return
        detail = "The agent was let go while it waited for a person; the answer starts it again."
        body = ev.TurnFailed(code="detached", detail=detail)
        await self._append([*self._gate.detached(), Draft(body, turn_id=turn["id"])])
        await self.turn_ended()
        self._close("idle")

    # How a turn ends.

    async def _end_turn(self, body: ev.TurnFailed | ev.TurnInterrupted, *, delivered: bool | None) -> None:
        """End the open turn in the agent's stead. `delivered` None: nobody knows."""
        turn = self._view.turn
        if turn is None:
            return
        interrupted = isinstance(body, ev.TurnInterrupted)
        drafts = self._gate.cancelled("interrupted") if interrupted else self._gate.detached()
        if not turn["delivered"]:
            drafts.append(delivery.fate(turn, body, delivered))
        drafts.append(Draft(body, turn_id=turn["id"]))
        await self._append(drafts)
        await self.turn_ended()

    async def turn_ended(self) -> None:
        """What the end of a turn leaves: steers the agent never took, approvals nobody needs any more."""
        self._handed, self._interrupting = False, False
        drafts = [Draft(ev.MessageQueued(), message_id) for message_id in self._view.steers]
        drafts += self._gate.cancelled("superseded")
        if drafts:
            await self._append(drafts)
        if self._stopping:
            self._close("closed")
        self._gate.set_timer()  # a quota's reset, if that is what paused it

    async def told_of_its_end(self, body: Body) -> None:
        """The agent told that a turn has ended."""
        if _by_its_exit(body):
            self.ready = False  # its `harness.exited` follows: hand nothing more to it
            if drafts := self._gate.detached():
                await self._append(drafts)
        if self._view.turn is None:
            await self.turn_ended()

    async def tell_fate(self, turn: JSON, events: Sequence[Event]) -> None:
        """A turn that its agent ended without ever saying that it got the message."""
        if not delivery.told(turn, events):
            ends = (ev.TurnCompleted, ev.TurnPaused)
            completed = any(isinstance(event.body, ends) for event in events)
            delivered = True if completed else await self._was_delivered(turn)
            await self._append([delivery.fate(turn, None, delivered)])

    async def _was_delivered(self, turn: JSON) -> bool | None:
        """Whether the agent got the turn's message. None: nobody knows."""
        if turn["delivered"]:
            return True
        return await delivery.found(self._house, self._view, turn) if self._handed else False

    def _untold(self, turn: JSON) -> bool:
        """No agent was started for this turn or has heard of it: the next one can take it."""
        return not (self._handed or turn["delivered"] or self._launched_for == turn["id"])

    # The runner's comings and goings.

    async def exited(self, body: ev.HarnessExited) -> None:
        self.ready = False
        detail = body.stderr_tail.strip() or "The agent ended."
        turn = self._view.turn
        if self._change is not None and body.reason == "failed_to_start":
            await self._change_failed(self._change, detail)
        elif turn is not None and not self._untold(turn):
            code = "start_failed" if body.reason == "failed_to_start" else "agent_exited"
            delivered = await self._was_delivered(turn)
            await self._end_turn(ev.TurnFailed(code=code, detail=detail), delivered=delivered)

    async def synced(self, seen: Sequence[str], *, ready: bool) -> None:
        """A runner is (again) there, and has carried out the commands whose keys it has `seen`."""
        self.ready = ready and self._view.run is not None
        if self._closing:
            self._close(self._closing)
        turn = self._view.turn
        if turn is not None and turn["message_id"] and not turn["delivered"]:
            self._handed = turn["id"] in seen
            if self.ready and not self._handed and not self._interrupting:
                await self._send_turn()
        for message_id in self._view.steers:
            if message_id not in seen:
                await self.steer(message_id)
        if self._interrupting:
            await self.interrupt()

    async def gone(self) -> None:
        """The runner's process has ended: leave nothing running or open."""
        self.ready, self._stopping, self._closing = False, False, None
        if self._view.run is not None:
            await self._append([Draft(ev.HarnessExited(reason="runner_lost"))])
        if self._change is not None:
            await self._change_failed(self._change, "Its runner ended.")

    async def end_lost(self) -> None:
        """End what the runner that is gone had: not a turn that it never heard of."""
        turn = self._view.turn
        if turn is None:
            if drafts := self._gate.detached():
                await self._append(drafts)
        elif not self._untold(turn):
            body = ev.TurnFailed(code="runner_lost", detail="The agent's runner ended unexpectedly.")
            await self._end_turn(body, delivered=await self._was_delivered(turn))

    async def take_up(self) -> None:
        """A turn that was open when the server ended, and that no runner has."""
        self._handed = False
        turn = self._view.turn
        if turn is None:
            return
        if self._view.closed:
            await self._end_turn(ev.TurnInterrupted(how="kill"), delivered=False)
        elif turn["delivered"]:
            await self.end_lost()
        else:
            await self.hand_over()


def _by_its_exit(body: Body) -> bool:
    """Whether the turn ended because the agent's process did."""
    match body:
        case ev.TurnFailed(code="agent_exited") | ev.TurnInterrupted(how="kill"):
            return True
        case _:
            return False
