"""How an interrupted piece of work goes on: a message of the host's own starts the next turn.

It is a message like any other (so that delivery, crashes and switches are the same), said by the host and not
by a person. No message of a person is ever sent twice.
"""

from omnigent import events as ev
from omnigent.events import Actor, Draft
from omnigent.house import House
from omnigent.views import SessionView

HOST = Actor(kind="system", id="continuation", via="runner")
"""Who says it."""

PAUSED = (
    "You were paused in the middle of your work and may go on now. Everything you did before still holds: "
    "continue where you stopped, without repeating what is done."
)


def answered(title: str, denied: str) -> str:
    """For an agent that was gone when a person answered. `denied` is the reason, "" for an allow."""
    before = f"Before you were interrupted you proposed this call, which did not run: {title}"
    if denied:
        return f"{before}\nA person has denied it: {denied}\nDon't propose it again; continue without it."
    return f"{before}\nA person has now allowed it. Propose exactly the same call again, then continue."


def drafts(house: House, view: SessionView, text: str) -> tuple[list[Draft], bool]:
    """What to append, and whether a turn begins by it; else the message waits behind the open turn."""
    message_id, turn_id = house.new_id("msg"), house.new_id("turn")
    said = ev.MessageSubmitted(content=(ev.TextPart(text=text),))
    found = [Draft(said, message_id, actor=HOST)]
    if view.paused is not None:
        found.insert(0, Draft(ev.TurnResumed(), turn_id=view.paused["turn_id"]))
    if view.turn is not None:
        return [*found, Draft(ev.MessageQueued(), message_id)], False
    return [*found, Draft(ev.TurnStarted(trigger="resume", message_id=message_id), turn_id=turn_id)], True
