"""The fold of session trees in SQLite: one row per root, and snapshots on the way. Runs in the log's thread.

The row lags behind by at most `ROW_EVERY` events, since a state is larger than most of what changes it: what
it lacks is folded from the events when it is read again.
"""

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omnigent.events import Event
from omnigent.log.contract import TreeProjector
from omnigent.log.rows import Layer, all_layers, is_known, read_events, read_tree

SNAPSHOT_EVERY = 64
"""Events between two kept states: the most that a fork in the past has to fold."""

ROW_EVERY = 32
"""Events between two writings of a root's row."""

REMEMBERED = 256
"""Roots whose state is kept in memory; others are read again."""

_PAGE = 500


@dataclass(slots=True)
class _Tree:
    root_id: str
    state: Any
    pos: int
    """`tree_pos` of the last event in `state`."""
    snapshot_pos: int
    row_pos: int = -1
    """`tree_pos` that its row has; -1 where there is none."""


class Trees:
    """What it remembers is true as long as nothing it folded is rolled back (`forget`)."""

    def __init__(self, db: sqlite3.Connection, projector: TreeProjector) -> None:
        self._db = db
        self._projector = projector
        self._trees: OrderedDict[str, _Tree] = OrderedDict()
        self._grown: dict[str, None] = {}
        """Roots whose row is to be written, in order."""

    def forget(self) -> None:
        self._trees.clear()

    def fold(self, root_id: str, events: Sequence[Event]) -> None:
        """Fold the root's next events, which are not in the table yet."""
        tree = self._take(root_id)
        self._step(tree, events)
        self._keep(tree)

    def refresh(self, root_id: str) -> str:
        """The state at the root's end, as JSON text; its row will be right again."""
        tree = self._take(root_id)
        self._keep(tree)
        return _dump(tree.state)

    def rebuild(self, root_id: str) -> None:
        """Fold the tree anew from its events."""
        self._trees.pop(root_id, None)
        self._db.execute("DELETE FROM tree WHERE root_id = ?", (root_id,))
        self._db.execute("DELETE FROM tree_snapshot WHERE root_id = ?", (root_id,))
        self._keep(self._take(root_id))

    def flush(self) -> None:
        """Write the rows of what has grown, before the commit."""
        while self._grown:
            root_id, _ = self._grown.popitem()
            try:
                self._write(root_id)
            except sqlite3.Error:
                raise
            except Exception:  # noqa: BLE001 - the boundary: its row lags behind, and who asks for it is told
                self._trees.pop(root_id, None)
        while len(self._trees) > REMEMBERED:
            self._trees.popitem(last=False)

    def _write(self, root_id: str) -> None:
        tree = self._take(root_id)
        if tree.pos == 0 and not is_known(self._db, root_id):
            return  # what made it was rolled back
        self._trees[root_id] = tree
        if tree.row_pos >= 0 and tree.pos - tree.row_pos < ROW_EVERY:
            return
        tree.row_pos = tree.pos
        self._db.execute(
            "INSERT OR REPLACE INTO tree VALUES (?, ?, ?, ?)",
            (root_id, tree.pos, self._projector.version, _dump(tree.state)),
        )

    def _take(self, root_id: str) -> _Tree:
        """The tree at its end. Out of memory until it is kept: a failing fold leaves a torn state."""
        tree = self._trees.pop(root_id, None)
        if tree is None:
            tree = self._load(root_id)
            while events := read_tree(self._db, root_id, tree.pos, _PAGE):
                self._step(tree, events)
        return tree

    def _keep(self, tree: _Tree) -> None:
        self._trees[tree.root_id] = tree
        self._grown[tree.root_id] = None

    def _load(self, root_id: str) -> _Tree:
        """As the row has it, else as the tree began."""
        version = self._projector.version
        row = self._db.execute(
            "SELECT state, tree_pos FROM tree WHERE root_id = ? AND version = ?", (root_id, version)
        ).fetchone()
        if row is None:
            return _Tree(root_id, self._beginning(root_id), 0, 0)
        (snapshot_pos,) = self._db.execute(
            "SELECT coalesce(max(tree_pos), 0) FROM tree_snapshot WHERE root_id = ? AND version = ?",
            (root_id, version),
        ).fetchone()
        return _Tree(root_id, self._projector.load(json.loads(row[0])), row[1], snapshot_pos, row[1])

    def _step(self, tree: _Tree, events: Iterable[Event]) -> None:
        for event in events:
            self._projector.fold(tree.state, event)
            tree.pos = event.tree_pos
            if tree.pos - tree.snapshot_pos >= SNAPSHOT_EVERY:
                tree.snapshot_pos = tree.pos
                self._snapshot(tree.root_id, tree.pos, tree.state)

    def _snapshot(self, root_id: str, pos: int, state: Any) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO tree_snapshot VALUES (?, ?, ?, ?)",
            (root_id, pos, self._projector.version, _dump(state)),
        )

    # The past

    def _beginning(self, root_id: str) -> Any:
        """Before the root's first event of its own: for a fork its parent's tree, where it was cut."""
        kept = self._nearest(root_id, 0)
        if kept is not None:
            return kept[0]
        *prefix, own = all_layers(self._db, root_id)
        if prefix:
            state = self._cut(prefix)
        else:
            state = self._foreign(own)
            if state is None:
                return self._projector.empty()
        self._snapshot(root_id, 0, state)
        return state

    def _cut(self, layers: Sequence[Layer]) -> Any:
        """The state of the tree that the last event of `layers` is of, as of that event."""
        source, _, last = layers[-1]
        (event,) = read_events(self._db, layers, after=last - 1, before=last + 1, limit=1)
        if event.session_id != source:
            return self._foreign(layers[-1])
        return self._as_of(event.root_id, event.tree_pos)

    def _foreign(self, layer: Layer) -> Any:
        """The state after the prefix that an imported fork brought along: of its tree there is nothing else.

        None if there is no such prefix.
        """
        state, after = None, 0
        while events := read_events(self._db, [layer], after=after, before=layer.last + 1, limit=_PAGE):
            for event in events:
                if event.session_id == layer.source:
                    return state
                if state is None:
                    state = self._projector.empty()
                self._projector.fold(state, event)
            after = events[-1].seq
        return state

    def _as_of(self, root_id: str, pos: int) -> Any:
        # The tree itself first: it writes the snapshots of this version if there are none.
        self._keep(self._take(root_id))
        nearest = self._nearest(root_id, pos)
        state, after = nearest or (self._beginning(root_id), 0)
        while after < pos and (events := read_tree(self._db, root_id, after, min(_PAGE, pos - after))):
            for event in events:
                if event.tree_pos <= pos:
                    self._projector.fold(state, event)
            after = events[-1].tree_pos
        return state

    def _nearest(self, root_id: str, pos: int) -> tuple[Any, int] | None:
        row = self._db.execute(
            "SELECT state, tree_pos FROM tree_snapshot WHERE root_id = ? AND tree_pos <= ? AND version = ?"
            " ORDER BY tree_pos DESC LIMIT 1",
            (root_id, pos, self._projector.version),
        ).fetchone()
        return row and (self._projector.load(json.loads(row[0])), row[1])


def _dump(state: Any) -> str:
    return json.dumps(state.dump(), ensure_ascii=False, separators=(",", ":"))
