"""Model calls: let out of the gateway if the policies and the ledger agree, priced when they are over.

Under the session's lock, like the gate. A call is set aside in the ledger (`usage.reserved`) before it
leaves; the caps it must keep to are checked again in that transaction, where calls of other sessions of its
family can't come in between.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from omnigent import events as ev
from omnigent import prices
from omnigent.actions import Model
from omnigent.deciding import Judge
from omnigent.errors import OverBudget
from omnigent.events import JSON, Draft
from omnigent.gate import Gate
from omnigent.house import House
from omnigent.metering import Cap, ModelCall, Usage
from omnigent.policies.contract import Call, Verdict
from omnigent.providers import WIRES
from omnigent.views import SessionView

TRIES = 3
"""How often a call that lost a race for the last money is decided anew."""


class Spending:
    def __init__(
        self,
        house: House,
        view: SessionView,
        judge: Judge,
        gate: Gate,
        append: Callable[[Sequence[Draft], Sequence[Cap]], Awaitable[None]],
        answer: Callable[[JSON], None],
    ) -> None:
        """`append(drafts, caps)` raises `OverBudget`; `answer` sends a frame to the runner."""
        self._house = house
        self._view = view
        self._judge = judge
        self._gate = gate
        self._append = append
        self._answer = answer
        self._stopped: Model | None = None
        """The call that was last not let out."""

    async def reserve(self, call: ModelCall) -> None:
        """Answer a gateway that holds a call, now or once a person has."""
        known = self._view.model_calls.get(call.call_id)
        if call.call_id in self._view.reserved:
            self._grant(call.call_id)  # told before, to a runner that didn't hear it
        elif known is None:
            await self._decide(call)
        elif known["status"] == "allowed":
            await self._decide(call, asked=True)
        elif known["status"] == "denied":
            self._refuse(call.call_id, "denied", known["reason"])

    async def _decide(self, call: ModelCall, *, asked: bool = False) -> None:
        """`asked`: a person has allowed this very call; what denies or pauses still holds."""
        action = await asyncio.to_thread(self._action, call)
        wanted = Call(call.call_id, (action,), tool="model")
        for _ in range(TRIES):
            spend = await self._house.log.spend(self._view.session_id, self._house.clock())
            verdict = await self._judge.verdict(wanted, spend)
            if verdict.decision == "ask" and not asked:
                await self._ask(call, action, verdict)
                return
            if verdict.decision in ("deny", "pause"):
                break
            try:
                await self._let_out(call, action, verdict)
            except OverBudget:
                continue
            return
        else:
            reason = "Other calls of this session's family took what was left of the budget."
            verdict = Verdict("pause", ("budget",), reason, money=True)
        await self._stop(call, action, verdict)

    def _action(self, call: ModelCall) -> Model:
        view = self._view
        provider = self._house.config.providers.get(view.provider or "")
        wire = provider.api if provider else "anthropic-messages"
        overrides = provider.prices if provider else {}
        cost, bounded = prices.estimate(
            call.model, wire, call.input_tokens, call.max_output_tokens, overrides
        )
        return Model(
            wire=wire if wire in WIRES else "",
            provider=view.provider or "",
            model=call.model,
            input_tokens=call.input_tokens,
            max_output_tokens=call.max_output_tokens,
            estimate_nanousd=cost,
            bounded=bounded,
            hosted=call.hosted,
        )

    async def _let_out(self, call: ModelCall, action: Model, verdict: Verdict) -> None:
        reserved = ev.UsageReserved(
            call_id=call.call_id,
            model=verdict.model or call.model,
            provider=action.provider,
            input_tokens=call.input_tokens,
            max_output_tokens=call.max_output_tokens,
            estimate_nanousd=action.estimate_nanousd,
            bounded=action.bounded,
        )
        drafts = [self._draft(reserved)]
        if verdict.grant_ids or verdict.model or verdict.strip:
            drafts.append(self._draft(_decided(verdict, action), call.call_id))
        await self._append(drafts, verdict.caps)
        self._grant(call.call_id, verdict)

    async def _ask(self, call: ModelCall, action: Model, verdict: Verdict) -> None:
        turn = self._view.turn
        asked = self._gate.asked(
            call.call_id, (action,), f"A call of {call.model}", verdict, turn["id"] if turn else None
        )
        await self._append([self._draft(_decided(verdict, action), call.call_id), asked], ())
        self._gate.set_timer()

    async def _stop(self, call: ModelCall, action: Model, verdict: Verdict) -> None:
        self._stopped = action
        await self._append([self._draft(_decided(verdict, action), call.call_id)], ())
        if verdict.decision == "deny":
            self._refuse(call.call_id, "denied", verdict.reason)
            return
        cause = "budget" if verdict.money else "policy"
        self._refuse(call.call_id, "paused", verdict.reason, cause=cause, rule_ids=list(verdict.rule_ids))

    async def still_stopped(self) -> str | None:
        """Why the call that was stopped (after a restart: even the cheapest) wouldn't be let out now; None if
        it would."""
        view = self._view
        action = self._stopped or Model(
            wire="", provider=view.provider or "", model=view.model or "", estimate_nanousd=0, bounded=True
        )
        spend = await self._house.log.spend(view.session_id, self._house.clock())
        verdict = await self._judge.verdict(Call("call_probe", (action,), tool="model"), spend)
        return verdict.reason if verdict.decision in ("pause", "deny") else None

    async def resolved(self, call_id: str) -> None:
        """A person answered for a call that the gateway holds: it asks again, and is told."""
        self._answer({"type": "ask_again", "call_id": call_id})

    def _grant(self, call_id: str, verdict: Verdict | None = None) -> None:
        frame: JSON = {"type": "grant", "call_id": call_id, "outcome": "granted"}
        if verdict is not None:
            frame |= {"model": verdict.model, "strip": list(verdict.strip)}
        self._answer(frame)

    def _refuse(self, call_id: str, outcome: str, reason: str, **more: object) -> None:
        self._answer({"type": "grant", "call_id": call_id, "outcome": outcome, "reason": reason, **more})

    def _draft(self, body: ev.Body, item_id: str | None = None) -> Draft:
        turn = self._view.turn
        return Draft(body, item_id, turn_id=turn["id"] if turn else None)

    # When calls are over.

    async def priced(self, drafts: Sequence[Draft]) -> list[Draft]:
        """What a runner tells, with the cost of its model calls: the price table is the server's."""
        if not any(isinstance(draft.body, ev.UsageReported) for draft in drafts):
            return list(drafts)
        return await asyncio.to_thread(lambda: [self._priced(draft) for draft in drafts])

    def _priced(self, draft: Draft) -> Draft:
        body = draft.body
        if not isinstance(body, ev.UsageReported) or body.source != "gateway":
            return draft
        body = body.model_copy(update=self._payer())
        if body.cost_nanousd is None and body.basis == "unknown":
            cost = self._cost(body)
            counted = "table" if body.outcome in ("ok", "error") else "estimate"
            known = {"cost_nanousd": cost, "basis": "unknown" if cost is None else counted}
            body = body.model_copy(update=known)
        return Draft(
            body, draft.item_id, draft.parent_item_id, draft.turn_id, draft.actor, draft.cause, draft.run,
            draft.observed_at,
        )  # fmt: skip

    def _payer(self) -> JSON:
        view = self._view
        return {
            "provider": view.provider,
            "credential": view.credential,
            "harness": view.harness,
            "billing": view.billing,
        }

    def _cost(self, body: ev.UsageReported) -> int | None:
        provider = self._house.config.providers.get(self._view.provider or "")
        wire = provider.api if provider else "anthropic-messages"
        usage = Usage(
            model=body.model or "",
            input_tokens=body.input_tokens,
            cache_read_tokens=body.cache_read_tokens,
            cache_write_tokens=body.cache_write_tokens,
            cache_write_1h_tokens=body.cache_write_1h_tokens,
            output_tokens=body.output_tokens,
            reasoning_tokens=body.reasoning_tokens,
        )
        return prices.price(usage.model, wire, usage, provider.prices if provider else {})

    async def lose(self, kept: Sequence[str] = ()) -> None:
        """Calls that left and of which nobody will tell any more: their input was used, of the rest nothing
        is known. `kept` are still under way."""
        gone = [call for call_id, call in self._view.reserved.items() if call_id not in kept]
        if gone:
            drafts = [self._lost(call) for call in gone]
            await self._append(await self.priced(drafts), ())

    def _lost(self, reserved: JSON) -> Draft:
        body = ev.UsageReported(
            call_id=reserved["call_id"],
            source="gateway",
            scope="call",
            model=reserved["model"],
            input_tokens=reserved["input_tokens"],
            outcome="lost",
        )
        return Draft(body)


def _decided(verdict: Verdict, action: Model) -> ev.PolicyDecided:
    return ev.PolicyDecided(
        verdict=verdict.decision,
        rule_ids=verdict.rule_ids,
        reason=verdict.reason,
        grant_ids=verdict.grant_ids,
        action=action,
    )
