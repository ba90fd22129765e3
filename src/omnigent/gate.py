"""The gate: what an agent waits for. Calls held for a verdict, approvals and questions held for a person.

Everything here runs under the lock of its session, which alone appends: the gate is given that as a function.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from omnigent import commands
from omnigent import events as ev
from omnigent.actions import Action, Exec
from omnigent.deciding import Judge
from omnigent.errors import Conflict, NotFound, OmnigentError, Unprocessable
from omnigent.events import JSON, Draft
from omnigent.house import House
from omnigent.policies import engine
from omnigent.policies.contract import Call, Verdict
from omnigent.shell import understand
from omnigent.views import SessionView

CancelledBy = Literal["interrupted", "switched", "closed", "superseded", "lost"]
LONGEST_WAIT_SECONDS = 3600
"""A loop's timer goes by another clock than an expiry does; this often the two are compared."""
SHORTEST_PAUSE_MS = 5000
"""A provider's clock isn't ours, and some name a reset that is over: it is asked no more often than this."""
REPEATED = 3
"""So many denials of the same call end the turn: the model isn't going to take the hint."""
SECOND_CHANCE_MS = 3_600_000
"""How long an allow waits for the agent that was gone to propose its call again."""


class Gate:
    def __init__(
        self,
        house: House,
        view: SessionView,
        judge: Judge,
        append: Callable[[list[Draft]], Awaitable[None]],
        tell: Callable[[str, JSON], None],
        cut_short: Callable[[str, str], Awaitable[None]],
        on_due: Callable[[], None],
    ) -> None:
        """`tell(key, command)` speaks to the agent; `cut_short(code, detail)` ends the open turn with that
        reason; `on_due` must lead to `expire` under the lock."""
        self._house = house
        self._view = view
        self._judge = judge
        self._append = append
        self._tell = tell
        self._cut_short = cut_short
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None

    # Calls.

    async def decide(self, item_id: str, call: ev.ToolRequested, turn_id: str | None) -> None:
        """The one place where a tool call is allowed, asked, paused or denied."""
        verdict = await self._judge.verdict(self._call(item_id, call.actions, call.parsed, call.tool))
        if verdict.command is not None and not self._can_rewrite():
            verdict = Verdict(
                "deny", verdict.rule_ids, f"{verdict.reason} Run this instead: {verdict.command}".strip()
            )
        drafts = self._decided(item_id, call, verdict, turn_id)
        if drafts:
            await self._append(drafts)
        if verdict.decision in ("allow", "deny"):
            await self._pass(item_id, verdict.decision == "allow", verdict.reason, verdict.command)
        self.set_timer()

    def _call(self, item_id: str, actions: Sequence[Action], parsed: ev.Parsed, tool: str) -> Call:
        pos = self._view.calls.get(item_id, {}).get("pos")
        return Call(item_id, tuple(actions), parsed, tool, pos)

    def _decided(
        self, item_id: str, call: ev.ToolRequested, verdict: Verdict, turn_id: str | None
    ) -> list[Draft]:
        """What the log says of a verdict; of a plain allow nothing."""
        plain = not verdict.grant_ids and verdict.command is None
        if verdict.decision == "allow" and plain:
            return []
        decided = ev.PolicyDecided(
            verdict=verdict.decision,
            rule_ids=verdict.rule_ids,
            reason=verdict.reason,
            grant_ids=verdict.grant_ids,
        )
        drafts = [Draft(decided, item_id, turn_id=turn_id)]
        if verdict.decision in ("ask", "pause"):
            edit = self._editable(call)
            drafts.append(self.asked(item_id, call.actions, call.title, verdict, turn_id, edit))
        return drafts

    def asked(
        self,
        call_id: str,
        actions: tuple[Action, ...],
        title: str,
        verdict: Verdict,
        turn_id: str | None,
        edit: str = "",
    ) -> Draft:
        """The approval that a call waits for."""
        places = tuple(asked.action for asked in verdict.asked)
        seconds = verdict.expires_seconds or self._house.settings.start.approvals.expire_seconds
        body = ev.ApprovalRequested(
            call_id=call_id,
            actions=actions,
            action_sha256=engine.digest(actions),
            title=title,
            reason=verdict.reason,
            rule_ids=verdict.rule_ids,
            may_answer=verdict.may_answer,
            expires_at=self._house.clock() + seconds * 1000,
            hold="pause" if verdict.decision == "pause" else "ask",
            asked=places,
            command=verdict.command,
            patterns=self._patterns(actions, places),
            edit=edit,
        )
        return Draft(body, self._house.new_id("ap"), turn_id=turn_id)

    def _editable(self, call: ev.ToolRequested) -> str:
        """The command that a person may write anew, if the agent can be made to run another."""
        if not self._can_rewrite() or not any(isinstance(action, Exec) for action in call.actions):
            return ""
        given: Any = json.loads(call.raw) if call.raw.startswith("{") else {}
        command = given.get("command")
        return command if isinstance(command, str) else ""

    def _can_rewrite(self) -> bool:
        run = self._view.run
        return bool(run and run["capabilities"].get("rewrites"))

    async def pass_verdict(self, item_id: str) -> None:
        """Tell the agent what was decided of a call, if it was and the call is still open."""
        call = self._view.calls.get(item_id)
        if call is not None and call["decided"]:
            reason = call.get("deny")
            await self._pass(item_id, reason is None, reason or "", call.get("command"))

    async def _pass(self, item_id: str, allow: bool, reason: str, command: str | None = None) -> None:
        verdict = {"type": "verdict", "item_id": item_id, "allow": allow, "reason": reason}
        self._tell(f"verdict:{item_id}", verdict | {"command": command})
        call = self._view.calls.get(item_id)
        if allow or call is None:
            return
        if self._view.denials.get(call["sha256"], 0) >= REPEATED:
            detail = f"The same call was denied {REPEATED} times: {reason}"
            await self._cut_short("denied_repeatedly", detail)

    async def settle_call(self, item_id: str) -> None:
        """A runner that came back holds this call: tell it what was decided, or decide now."""
        call = self._view.calls.get(item_id)
        waits = any(asked["call_id"] == item_id for asked in self._view.approvals_open.values())
        if call is None:
            await self._pass(item_id, False, "The call is no longer open.")
        elif call["decided"]:
            await self.pass_verdict(item_id)
        elif not waits:
            requested, turn_id = await self._requested(item_id)
            await self.decide(item_id, requested, turn_id)

    async def _requested(self, item_id: str) -> tuple[ev.ToolRequested, str | None]:
        row = await self._house.log.item(self._view.session_id, item_id)
        if row is None:
            raise NotFound(f"The call {item_id} has no item.")
        names = ("tool", "title", "actions", "parsed", "raw", "background")
        fields = {name: row.data[name] for name in names}
        return ev.ToolRequested.model_validate(fields | {"native_id": ""}), row.data["turn_id"]

    # Answers of people.

    async def resolve(self, command: commands.Resolve) -> tuple[list[Draft], JSON]:
        """The answer, and the approval it ends.

        Raises `NotFound`, `Unprocessable`, or `Conflict` with who was first.
        """
        asked = self._view.approvals_open.get(command.approval_id)
        if asked is None:
            raise await self._late(command.approval_id, "approval")
        allowed = command.decision == "allow"
        drafts = await self._grants(command, asked) if allowed else []
        body = ev.ApprovalResolved(
            outcome="allowed" if allowed else "denied",
            grant=command.grant if allowed else ev.Grant(),
            edited=command.edited if allowed else None,
            reason=command.reason or ("" if allowed else "A person denied this call."),
        )
        return [Draft(body, command.approval_id), *drafts], asked

    async def _grants(self, command: commands.Resolve, asked: JSON) -> list[Draft]:
        """What an allow leaves for later calls."""
        row = await self._house.log.item(self._view.session_id, command.approval_id)
        data: JSON = row.data if row else {}
        requested = ev.ApprovalRequested.model_validate(
            {name: data[name] for name in ev.ApprovalRequested.model_fields if name in data}
        )
        if command.edited is not None and asked["detached"]:
            raise Unprocessable(
                "The agent of this call is gone: it can't be given another command.",
                hint="Deny it with the command as the reason: the agent reads it.",
            )
        if command.edited is not None:
            await self._check_edit(command.edited, requested)
        grant = command.grant
        if grant.scope == "pattern":
            self._check_pattern(grant.pattern, requested)
        if grant.scope == "once" and not asked["detached"]:
            return []
        body = ev.GrantAdded(
            scope=grant.scope,
            rule_ids=requested.rule_ids,
            digests=tuple(engine.action_digest(action) for action in _those_asked(requested))
            if grant.scope == "session"
            else (),
            call_sha256=requested.action_sha256 if grant.scope == "once" else "",
            pattern=grant.pattern if grant.scope == "pattern" else "",
            title=requested.title,
            uses=1 if grant.scope == "once" else None,
            until=self._house.clock() + SECOND_CHANCE_MS if grant.scope == "once" else grant.until,
        )
        return [Draft(body, self._house.new_id("gr"))]

    def _patterns(self, actions: Sequence[Action], places: Sequence[int]) -> tuple[str, ...]:
        """Patterns that cover all that is asked; none where no one pattern does."""
        asked = [actions[place] for place in places if place < len(actions)]
        offered = engine.patterns(asked[0]) if asked else ()
        return tuple(pattern for pattern in offered if self._covers(pattern, asked))

    def _covers(self, pattern: str, actions: Sequence[Action]) -> bool:
        workspace = self._view.workspace
        return bool(pattern) and all(engine.pattern_matches(pattern, each, workspace) for each in actions)

    def _check_pattern(self, pattern: str, requested: ev.ApprovalRequested) -> None:
        """Raises `Unprocessable` for a pattern that doesn't even cover the call it is an answer to."""
        if not self._covers(pattern, _those_asked(requested)):
            offered = "; ".join(requested.patterns) or "none, allow it for the session instead"
            raise Unprocessable(
                f"The pattern {pattern!r} doesn't cover this call.",
                hint=f"Offered: {offered}.",
                allowed=list(requested.patterns),
            )

    async def _check_edit(self, edited: str, requested: ev.ApprovalRequested) -> None:
        """Who writes the command allows it, but what the rules deny or pause stays so. `Unprocessable`."""
        if not requested.edit:
            raise Unprocessable("This call can't be edited.", hint="Deny it with a reason for the agent.")
        cwd = next((action.cwd for action in requested.actions if isinstance(action, Exec)), "")
        workspace = Path(self._view.workspace)
        actions, parsed = understand(edited, Path(cwd) if cwd else workspace, workspace)
        verdict = await self._judge.verdict(Call(requested.call_id, tuple(actions), parsed, "edited"))
        if verdict.decision in ("deny", "pause"):
            raise Unprocessable(
                f"The edited command is not allowed: {verdict.reason}",
                hint="Write another, or deny the call.",
                rule_ids=list(verdict.rule_ids),
            )

    def revoke(self, grant_id: str) -> Draft:
        """Raises `NotFound`."""
        if not any(grant["grant_id"] == grant_id for grant in self._view.grants):
            raise NotFound(f"No grant {grant_id} is in force here.", hint="It may be revoked already.")
        return Draft(ev.GrantRevoked(), grant_id)

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
        cause: str | None = row.data.get("cancelled_by")
        why = f" ({cause})" if cause else ""
        return Conflict(
            f"This {what} was already {status} by {by['id']}{why}.",
            current=status,
            by=by,
            **({"cancelled_by": cause} if cause else {}),
        )

    # What a rule paused.

    def paused(self) -> list[str]:
        """Approvals that hold a call because a rule paused it."""
        return [item_id for item_id, asked in self._view.approvals_open.items() if asked["hold"] == "pause"]

    async def reconsider(self) -> None:
        """The budget or the policies changed: decide anew what was paused."""
        for item_id in self.paused():
            call_id: str = self._view.approvals_open[item_id]["call_id"]
            if call_id not in self._view.calls:
                continue
            requested, _ = await self._requested(call_id)
            call = self._call(call_id, requested.actions, requested.parsed, requested.tool)
            verdict = await self._judge.verdict(call)
            if verdict.decision in ("allow", "deny"):
                outcome = "allowed" if verdict.decision == "allow" else "denied"
                body = ev.ApprovalResolved(outcome=outcome, reason=verdict.reason)
                await self._append([Draft(body, item_id)])
                await self.pass_verdict(call_id)

    # Ends without an answer.

    def cancelled(self, by: CancelledBy) -> list[Draft]:
        """Open approvals and questions end before what cancels them acts. One whose agent is gone outlives
        a turn: only a person, or its time, ends it."""
        approval, question = ev.ApprovalResolved(outcome="cancelled", cancelled_by=by), _UNANSWERED
        stays = by in ("superseded", "lost")
        return [
            *(
                Draft(approval, item_id)
                for item_id, asked in self._view.approvals_open.items()
                if not (stays and asked["detached"])
            ),
            *(Draft(question, item_id) for item_id in self._view.questions_open),
        ]

    def detached(self) -> list[Draft]:
        """The agent is gone: what a person was asked about its tool calls stays open, all else ends."""
        view, drafts = self._view, list[Draft]()
        for item_id, asked in view.approvals_open.items():
            call_id = asked["call_id"]
            if asked["detached"]:
                continue
            if call_id in view.calls:
                drafts += [Draft(ev.ApprovalDetached(), item_id), Draft(_DID_NOT_RUN, call_id)]
            else:
                drafts.append(Draft(ev.ApprovalResolved(outcome="cancelled", cancelled_by="lost"), item_id))
        return [*drafts, *(Draft(_UNANSWERED, item_id) for item_id in view.questions_open)]

    async def refuse_question(self, question_id: str) -> None:
        """Nobody can be asked in this session."""
        await self._append([Draft(_UNANSWERED, question_id)])
        await self.pass_answer(question_id, [], cancelled=True)

    async def expire(self) -> list[JSON]:
        """Deny what ran out of time; the approvals that did. None is no error: timers may come early."""
        self._timer = None
        at = self._house.clock()
        over = {k: v for k, v in self._view.approvals_open.items() if v["expires_at"] <= at}
        if over:
            body = ev.ApprovalResolved(outcome="expired", reason="Nobody answered in time.")
            await self._append([Draft(body, item_id) for item_id in over])
            for asked in over.values():
                await self.pass_verdict(asked["call_id"])
        self.set_timer()
        return list(over.values())

    def quota_resets_at(self) -> int | None:
        """When a paused turn goes on by itself (UTC ms); None: not without a person."""
        view = self._view
        if view.paused is None or view.paused["until"] is None:
            return None
        return max(view.paused["until"], view.status_since + SHORTEST_PAUSE_MS)

    def set_timer(self) -> None:
        """For what runs out first: an approval's time, or the pause until a quota's reset."""
        ends = [asked["expires_at"] for asked in self._view.approvals_open.values()]
        if (reset := self.quota_resets_at()) is not None:
            ends.append(reset)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if ends:
            seconds = max(0.05, (min(ends) - self._house.clock()) / 1000)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(seconds, LONGEST_WAIT_SECONDS), self._on_due)


def _those_asked(requested: ev.ApprovalRequested) -> list[Action]:
    return [requested.actions[place] for place in requested.asked if place < len(requested.actions)]


_UNANSWERED = ev.QuestionAnswered(outcome="cancelled")
_DID_NOT_RUN = ev.ToolCompleted(
    outcome="cancelled", reason="It did not run: the agent ended while the call was held."
)
