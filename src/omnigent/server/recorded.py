"""All the recorded events that a session's decisions depend on, in the order in which policies fold them."""

from collections.abc import Sequence

from omnigent.errors import NotFound
from omnigent.events import Event, SessionForked
from omnigent.log import Log

PAGE = 1000


async def recorded_events(log: Log, session_id: str) -> list[Event]:
    """The whole tree of the session; before it, for a fork, the tree it comes from up to where it was cut.
    Raises `NotFound`."""
    newest = await log.read(session_id, newest=True, limit=1)
    root_id = newest[0].root_id if newest else session_id
    tree = await _tree(log, root_id, None)
    try:
        before = await _before(log, tree)
    except NotFound:  # what it comes from was deleted: its prefix itself is still read
        before = [event for event in await _whole(log, session_id) if event.root_id != root_id]
    return [*before, *tree]


async def _before(log: Log, tree: Sequence[Event]) -> list[Event]:
    """What a tree begins with, if its first session is a fork."""
    forked = tree[0].body if tree else None
    if not isinstance(forked, SessionForked):
        return []
    cut = (await log.read(tree[0].session_id, after=forked.at_seq - 1, limit=1))[0]
    above = await _tree(log, cut.root_id, cut.tree_pos)
    return [*await _before(log, above), *above]


async def _tree(log: Log, root_id: str, until: int | None) -> list[Event]:
    """A root's events, in `tree_pos` order, up to and with `until`."""
    events: list[Event] = []
    while page := await log.read_tree(root_id, after=events[-1].tree_pos if events else 0, limit=PAGE):
        events += page
        if until is not None and page[-1].tree_pos >= until:
            return [event for event in events if event.tree_pos <= until]
    return events


async def _whole(log: Log, session_id: str) -> list[Event]:
    events: list[Event] = []
    while page := await log.read(session_id, after=events[-1].seq if events else 0, limit=PAGE):
        events += page
    return events


def lineage(events: Sequence[Event], session_id: str) -> frozenset[str]:
    """The session, and those that its log begins with."""
    found = {session_id}
    for event in reversed(events):
        if event.session_id in found and isinstance(body := event.body, SessionForked):
            found.add(body.parent_id)
    return frozenset(found)
