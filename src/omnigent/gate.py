"""The gate: what an agent waits for. Calls held for a verdict, approvals and questions held for a person.

Everything here runs under the lock of its session, which alone appends: the gate is given that as a function.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, cast

from omnigent import commands, policies
from omnigent import events as ev
from omnigent.errors import Conflict, NotFound, OmnigentError
from omnigent.events import JSON, Draft
from omnigent.house import House
from omnigent.views import SessionView

CancelledBy = Literal["interrupted", "switched", "closed", "superseded", "lost"]
LONGEST_WAIT_SECONDS = 3600
"""A loop's timer goes by another clock than an expiry does; this often the two are compared."""


class Gate:
    def __init__(
        self,
        house: House,
        view: SessionView,
        append: Callable[[list[Draft]], Awaitable[None]],
        tell: Callable[[str, JSON], None],
        on_due: Callable[[], None],
    ) -> None:
        """`tell(key, command)` speaks to the agent; `on_due` must lead to `expire` under the lock."""
        self._house = house
        self._view = view
        self._append = append
        self._tell = tell
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None

    # Calls.

    async def decide(self, item_id: str, call: ev.ToolRequested, turn_id: str | None) -> None:
        """The one place where a tool call is allowed, asked or denied."""
        state = policies.State(cast(ev.Approvals, self._view.approvals), self._view.grants)
        verdict = policies.decide(call, state)
        if verdict.decision == "allow":
            self._send_verdict(item_id, allow=True, reason="")
            return
        decided = ev.PolicyDecided(verdict=verdict.decision, rule_ids=verdict.rule_ids, reason=verdict.reason)
        drafts = [Draft(decided, item_id, turn_id=turn_id)]
        if verdict.decision == "ask":
            drafts.append(self._asked(item_id, call, verdict, turn_id))
        await self._append(drafts)
        if verdict.decision == "deny":
            self._send_verdict(item_id, allow=False, reason=verdict.reason)
        self.set_timer()

    def _asked(
        self, item_id: str, call: ev.ToolRequested, verdict: policies.Verdict, turn_id: str | None
    ) -> Draft:
        body = ev.ApprovalRequested(
            call_id=item_id,
            actions=call.actions,
            action_sha256=policies.digest(call.actions),
            title=call.title,
            reason=verdict.reason,
            rule_ids=verdict.rule_ids,
            expires_at=self._house.clock() + self._house.settings.start.approvals.expire_seconds * 1000,
        )
        return Draft(body, self._house.new_id("ap"), turn_id=turn_id)

    async def pass_verdict(self, item_id: str) -> None:
        """Tell the agent what was decided of a call, if it was and the call is still open."""
        call = self._view.calls.get(item_id)
        if call is not None and call["decided"]:
            self._send_verdict(item_id, allow=call.get("deny") is None, reason=call.get("deny") or "")

    def _send_verdict(self, item_id: str, *, allow: bool, reason: str) -> None:
        verdict = {"type": "verdict", "item_id": item_id, "allow": allow, "reason": reason}
        self._tell(f"verdict:{item_id}", verdict)

    async def settle_call(self, item_id: str) -> None:
        """A runner that came back holds this call: tell it what was decided, or decide now."""
        call = self._view.calls.get(item_id)
        asked = any(a["call_id"] == item_id for a in self._view.approvals_open.values())
        if call is None:
            self._send_verdict(item_id, allow=False, reason="The call is no longer open.")
        elif call["decided"]:
            await self.pass_verdict(item_id)
        elif not asked:
            row = await self._house.log.item(self._view.session_id, item_id)
            if row is None:
                raise NotFound(f"The call {item_id} has no item.")
            names = ("tool", "title", "actions", "parsed", "raw", "background")
            fields = {name: row.data[name] for name in names}
            requested = ev.ToolRequested.model_validate(fields | {"native_id": ""})
            await self.decide(item_id, requested, row.data["turn_id"])

    # Answers of people.

    async def resolve(self, command: commands.Resolve) -> tuple[Draft, str]:
        """The answer and the call that waits for it. Raises `NotFound`, or `Conflict` with who was first."""
        asked = self._view.approvals_open.get(command.approval_id)
        if asked is not None and asked["expires_at"] <= self._house.clock():
            await self.expire()
            asked = None
        if asked is None:
            raise await self._late(command.approval_id, "approval")
        allowed = command.decision == "allow"
        body = ev.ApprovalResolved(
            outcome="allowed" if allowed else "denied",
            grant=command.grant,
            reason=command.reason or ("" if allowed else "A person denied this call."),
        )
        return Draft(body, command.approval_id), asked["call_id"]

    async def answer(self, command: commands.Answer) -> Draft:
        """Raises `NotFound`, or `Conflict` with who was first."""
        if command.question_id not in self._view.questions_open:
            raise await self._late(command.question_id, "question")
        return Draft(ev.QuestionAnswered(outcome="answered", values=command.values), command.question_id)

    async def pass_answer(
        self, question_id: str, values: list[list[str]], *, cancelled: bool = False
    ) -> None:
        answer = {"type": "answer", "question_id": question_id, "values": values, "cancelled": cancelled}
        self._tell(f"answer:{question_id}", answer)

    async def settle_question(self, question_id: str) -> None:
        """A runner that came back holds this question: tell it the answer, if there is one."""
        row = await self._house.log.item(self._view.session_id, question_id)
        if row is not None and row.data["status"] != "open":
            cancelled = row.data["status"] != "answered"
            await self.pass_answer(question_id, row.data.get("values") or [], cancelled=cancelled)

    async def _late(self, item_id: str, what: str) -> OmnigentError:
        """The error for one who answers what isn't open: who or what ended it."""
        row = await self._house.log.item(self._view.session_id, item_id)
        if row is None or row.data["type"] != what:
            return NotFound(f"There is no {what} {item_id} in this session.")
        status: str = row.data["status"]
        by: JSON = row.data.get("by") or {"id": "omnigent"}
        return Conflict(f"This {what} was already {status} by {by['id']}.", current=status, by=by)

    # Ends without an answer.

    def cancelled(self, by: CancelledBy) -> list[Draft]:
        """Open approvals and questions end before what cancels them acts."""
        approval, question = ev.ApprovalResolved(outcome="cancelled", cancelled_by=by), _UNANSWERED
        return [
            *(Draft(approval, item_id) for item_id in self._view.approvals_open),
            *(Draft(question, item_id) for item_id in self._view.questions_open),
        ]

    async def refuse_question(self, question_id: str) -> None:
        """Nobody can be asked in this session."""
        await self._append([Draft(_UNANSWERED, question_id)])
        await self.pass_answer(question_id, [], cancelled=True)

    async def expire(self) -> None:
        """Deny what ran out of time. Nothing to do is no error: timers may come early."""
        self._timer = None
        at = self._house.clock()
        over = {k: v for k, v in self._view.approvals_open.items() if v["expires_at"] <= at}
        if over:
            body = ev.ApprovalResolved(outcome="expired", reason="Nobody answered in time.")
            await self._append([Draft(body, item_id) for item_id in over])
            for asked in over.values():
                await self.pass_verdict(asked["call_id"])
        self.set_timer()

    def set_timer(self) -> None:
        """For the approval that expires first."""
        if self._timer is None and self._view.approvals_open:
            soonest = min(asked["expires_at"] for asked in self._view.approvals_open.values())
            seconds = max(0.05, (soonest - self._house.clock()) / 1000)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(seconds, LONGEST_WAIT_SECONDS), self._on_due)


_UNANSWERED = ev.QuestionAnswered(outcome="cancelled")
