"""Whether an agent got a turn's message: what it said, else what its own transcript shows, else unknown."""

import asyncio
from collections.abc import Sequence

from omnigent import content
from omnigent import events as ev
from omnigent.events import JSON, Body, Draft, Event
from omnigent.house import House
from omnigent.registry import harness as find_harness
from omnigent.views import SessionView


async def found(house: House, view: SessionView, turn: JSON) -> bool | None:
    """True if the agent's own transcript holds the turn's message, else None: nobody knows."""
    native = view.native.get(view.harness)
    if native is None or not native["ref"] or not turn["message_id"]:
        return None
    row = await house.log.item(view.session_id, turn["message_id"])
    text = content.text(row.data if row else None)
    private = house.private(view.session_id, view.harness)
    holds = find_harness(view.harness).holds
    held = await asyncio.to_thread(holds, native["ref"], private, turn["message_id"], text)
    return True if held else None


def fate(turn: JSON, end: ev.TurnFailed | ev.TurnInterrupted | None, delivered: bool | None) -> Draft:
    """What becomes of the message of a turn that ended so. `delivered` None: nobody knows."""
    body: Body
    if delivered:
        body = ev.MessageDelivered(as_="turn")
    elif delivered is None:
        detail = "The agent ended before it said whether it got this. It is not sent again by itself."
        body = ev.MessageFailed(code="delivery_unknown", detail=detail)
    elif isinstance(end, ev.TurnInterrupted):
        body = ev.MessageCancelled()
    else:
        body = ev.MessageFailed(code="not_delivered", detail=end.detail if end else "")
    return Draft(body, turn["message_id"], turn_id=turn["id"])


def told(turn: JSON, events: Sequence[Event]) -> bool:
    """Whether it is known what became of the turn's message, from before or from these events."""
    settled = (ev.MessageDelivered, ev.MessageFailed, ev.MessageCancelled)
    return turn["delivered"] or any(
        isinstance(event.body, settled) and event.item_id == turn["message_id"] for event in events
    )
