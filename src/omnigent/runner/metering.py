"""The gateway's meter in a runner: asks the server over the link, tells it what was used as events.

A call that waits for the server's answer waits as long as it takes; after a reconnect the question is put
again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from omnigent.events import JSON, Body, NoticeRaised, TurnFailed, TurnPaused, UsageReported
from omnigent.metering import Grant, ModelCall, Refused, Usage

type Instead = TurnPaused | TurnFailed


@dataclass(slots=True)
class _Waiting:
    call: ModelCall
    answer: asyncio.Future[Grant]


class LinkMeter:
    def __init__(self, send: Callable[[JSON], None], emit: Callable[[Body], None]) -> None:
        """`send` a frame to the server, `emit` an event of the runner's own."""
        self._send = send
        self._emit = emit
        self._waiting: dict[str, _Waiting] = {}
        self._under_way: dict[str, None] = {}
        self.instead: Instead | None = None
        """How the open turn ends in place of what the agent will say: it was stopped at the gateway."""

    # The gateway's side.

    async def reserve(self, call: ModelCall) -> Grant:
        waiting = _Waiting(call, asyncio.get_running_loop().create_future())
        self._waiting[call.call_id] = waiting
        self._ask(call)
        try:
            grant = await waiting.answer
        finally:
            self._waiting.pop(call.call_id, None)
        if grant.outcome == "granted":
            self._under_way[call.call_id] = None
            self.instead = None
        return grant

    def settle(self, call_id: str, usage: Usage | None) -> None:
        self._under_way.pop(call_id, None)
        fields: dict[str, Any] = asdict(usage) if usage else {"outcome": "error", "cost_nanousd": 0}
        told = fields["cost_nanousd"] is not None
        body = UsageReported(
            call_id=call_id, source="gateway", scope="call", basis="provider" if told else "unknown", **fields
        )
        self._emit(body)

    def refused(self, call_id: str, kind: Refused, until: int | None, detail: str) -> None:
        match kind:
            case "quota":
                self.instead = TurnPaused(reason="quota", detail=detail, until=until)
                self._emit(NoticeRaised(code="quota", level="warning", detail=detail, until=until))
            case "billing":
                self.instead = TurnFailed(code="billing", detail=detail)
            case "rate_limit":
                self._emit(NoticeRaised(code="rate_limited", level="info", detail=detail, until=until))

    # The server's side.

    def answered(self, frame: JSON) -> None:
        """A `grant` frame. One for a call that nobody waits for any more is of no use."""
        waiting = self._waiting.get(frame["call_id"])
        if waiting is None or waiting.answer.done():
            return
        reason: str = frame.get("reason", "")
        if frame["outcome"] == "paused":
            self.instead = TurnPaused(reason=frame["cause"], rule_ids=tuple(frame["rule_ids"]), detail=reason)
        grant = Grant(frame["outcome"], reason, frame.get("model"), tuple(frame.get("strip", ())))
        waiting.answer.set_result(grant)

    def ask_again(self, call_id: str | None = None) -> None:
        """Put the open questions once more, or the one."""
        for known, waiting in self._waiting.items():
            if call_id in (None, known):
                self._ask(waiting.call)

    def _ask(self, call: ModelCall) -> None:
        self._send({"type": "reserve", "call": call.json()})

    def calls(self) -> list[str]:
        """Those that left and aren't over."""
        return list(self._under_way)
