"""The fold of sessions in SQLite: views, items and snapshots on the way. Runs in the log's own thread."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from omnigent.events import JSON, Event
from omnigent.log.contract import Projector
from omnigent.log.ledger import NOBODY, Account
from omnigent.log.rows import Layer, read_events, read_item, read_item_text
from omnigent.log.rules import is_waiting
from omnigent.log.seal import Numbers

SNAPSHOT_EVERY = 64
"""Events between two kept views: the most (about) that a fork in the past has to fold."""

_INSERT_ITEM = "INSERT INTO item VALUES (?, ?, ?, ?, NULL, ?, ?)"
_SUPERSEDE_ITEM = "UPDATE item SET until = ?, open = 0 WHERE session_id = ? AND item_id = ? AND view_seq = ?"


@dataclass(slots=True)
class State:
    """A session as of its last committed event (and those of the batch being written)."""

    numbers: Numbers
    layers: list[Layer]
    view: Any
    epoch: int = 0
    imported: bool = False
    snapshot_seq: int = 0
    deleted: bool = False
    account: Account = NOBODY
    producers: dict[str, int] = field(default_factory=dict[str, int])


class _Version(NamedTuple):
    """One version of an item; `text` is its data as stored."""

    pos: int
    view_seq: int
    text: str
    is_own: bool


@dataclass(slots=True)
class Folded:
    """What folding some events came to, not yet written."""

    latest: dict[str, _Version] = field(default_factory=dict[str, _Version])
    """Items read or changed, as they stand now."""
    superseded: list[tuple[int, str, str, int]] = field(default_factory=list[tuple[int, str, str, int]])
    """(until, session, item, view_seq) of versions that are no longer the newest."""
    inserted: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    snapshots: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


def dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Views:
    """Nothing is remembered here: a fold that fails leaves no trace but in the state it was given."""

    def __init__(self, db: sqlite3.Connection, projector: Projector) -> None:
        self._db = db
        self._projector = projector

    def fold(self, state: State, events: Sequence[Event]) -> Folded:
        """Fold into the state's view; what changed is written by `write`."""
        folded = Folded()
        session_id, first_own = state.numbers.session_id, state.layers[-1].first

        def version(item_id: str) -> _Version | None:
            known = folded.latest.get(item_id)
            if known is None:
                row = read_item_text(self._db, state.layers, item_id)
                if row is not None:
                    known = folded.latest[item_id] = _Version(*row, row[1] >= first_own)
            return known

        def item(item_id: str) -> JSON | None:
            known = version(item_id)
            return known and json.loads(known.text)

        for event in events:
            for item_id, data in self._projector.fold(state.view, event, item).items():
                before = version(item_id)
                if before is not None and before.is_own:
                    folded.superseded.append((event.seq, session_id, item_id, before.view_seq))
                now = _Version(before.pos if before else event.seq, event.seq, dump_json(data), True)
                folded.latest[item_id] = now
                folded.inserted.append((session_id, item_id, now.pos, event.seq, is_waiting(data), now.text))
            if event.seq - state.snapshot_seq >= SNAPSHOT_EVERY:
                state.snapshot_seq = event.seq
                folded.snapshots.append((event.seq, dump_json(state.view.dump())))
        return folded

    def write(self, session_id: str, folded: Folded) -> None:
        # Versions superseded within the same fold are inserted first, so that they are found.
        self._db.executemany(_INSERT_ITEM, folded.inserted)
        if folded.superseded:
            self._db.executemany(_SUPERSEDE_ITEM, folded.superseded)
        self.keep(session_id, folded.snapshots)

    def keep(self, session_id: str, snapshots: Sequence[tuple[int, str]]) -> None:
        """Snapshots, by seq: a fork in the past begins at the nearest."""
        version = self._projector.version
        for seq, view in snapshots:
            self._db.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?)", (session_id, seq, version, view)
            )

    def as_of(self, layers: Sequence[Layer], seq: int) -> Any:
        """The view as of `seq`, the end of the last layer: folded on from the nearest kept one."""
        found = self._nearest_view(layers)
        view, after = (self._projector.empty(), 0) if found is None else found
        projector: Projector = self._projector
        while after < seq:
            for event in read_events(self._db, layers, after=after, before=seq + 1, limit=500):
                projector.fold(view, event, self._items_as_of(layers, event.seq - 1))
                after = event.seq
        return view

    def _items_as_of(self, layers: Sequence[Layer], seq: int) -> Callable[[str], JSON | None]:
        def item(item_id: str) -> JSON | None:
            row = read_item(self._db, layers, item_id, seq)
            return row and row.data

        return item

    def _nearest_view(self, layers: Sequence[Layer]) -> tuple[Any, int] | None:
        version = self._projector.version
        for layer in reversed(layers):
            row = (
                self._db.execute(
                    "SELECT view, head FROM session WHERE id = ? AND head = ? AND version = ?",
                    (layer.source, layer.last, version),
                ).fetchone()
                or self._db.execute(
                    "SELECT view, seq FROM snapshot WHERE session_id = ? AND seq <= ? AND version = ?"
                    " ORDER BY seq DESC LIMIT 1",
                    (layer.source, layer.last, version),
                ).fetchone()
            )
            if row is not None:
                return self._projector.load(json.loads(row[0])), row[1]
        return None
