"""What policies remember of each session tree, folded along while its sessions run.

The log keeps the same fold in its own transaction (`Log.tree`); here it is kept in reach of a decision, so
that a decision costs the same at any length of the log. It is only a copy: what is missing is read from it.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from omnigent.events import Event
from omnigent.log import Log
from omnigent.policies.folding import TreeProjector
from omnigent.policies.state import TreeState

REMEMBERED = 2000
"""Events kept for a tree nobody asks about; beyond, they are read from the log when somebody does."""


class Tree:
    def __init__(self, log: Log, projector: TreeProjector, root_id: str) -> None:
        self._log = log
        self._projector = projector
        self._root_id = root_id
        self._state: TreeState | None = None
        self._news: dict[int, Event] = {}
        self._lock = asyncio.Lock()

    def tell(self, events: Sequence[Event]) -> None:
        """Events just stored, of any of its sessions."""
        if len(self._news) + len(events) > REMEMBERED:
            self._news.clear()
        self._news.update((event.tree_pos, event) for event in events)

    @asynccontextmanager
    async def at(self, session_id: str, pos: int) -> AsyncGenerator[TreeState]:
        """The state after `pos` or later. It doesn't change while it is held: don't change it either."""
        async with self._lock:
            state = self._state or await self._log.tree(session_id)
            self._state = state
            while (event := self._news.pop(state.pos + 1, None)) is not None:
                self._projector.fold(state, event)
            while state.pos < pos:
                for event in await self._log.read_tree(self._root_id, after=state.pos, limit=1000):
                    self._projector.fold(state, event)
            self._news = {at: event for at, event in self._news.items() if at > state.pos}
            yield state


class Trees:
    """One `Tree` per root that a live session belongs to."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._projector = TreeProjector()
        self._by_root: dict[str, Tree] = {}

    def of(self, root_id: str) -> Tree:
        tree = self._by_root.get(root_id)
        if tree is None:
            tree = self._by_root[root_id] = Tree(self._log, self._projector, root_id)
        return tree

    def forget(self, root_id: str) -> None:
        """Nobody of this tree is live any more."""
        self._by_root.pop(root_id, None)
