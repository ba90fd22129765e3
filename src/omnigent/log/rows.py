"""Reading the tables of the SQLite log: events and items through a session's layers.

A *layer* is a stretch of the log: (source session, first seq, last seq). A session has those it was forked
from, flattened, and its own as the last, which has no end. Functions take the connection: the writer's inside
its transaction, or the readers'.
"""

import heapq
import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from omnigent.events import Actor, Event
from omnigent.log.contract import ItemRow
from omnigent.log.rules import by_pos, by_view_seq, no_session

END = 2**62
"""Beyond every seq."""

_ENVELOPE = (
    "v, id, coalesce(origin_id, session_id), seq, root_id, tree_pos, at, observed_at, turn_id, item_id, "
    "parent_item_id, actor, cause, run, producer, producer_seq, epoch, kind, body, body_sha256, hash"
)

_INSERT_EVENT = f"INSERT INTO event VALUES ({', '.join('?' * 22)})"


class Layer(NamedTuple):
    source: str
    first: int
    last: int


def layers_of(db: sqlite3.Connection, session_id: str) -> list[Layer]:
    """The layers, oldest first; `NotFound` for an unknown or deleted session."""
    known = db.execute("SELECT 1 FROM session WHERE id = ? AND deleted_at IS NULL", (session_id,)).fetchone()
    if known is None:
        raise no_session(session_id)
    return all_layers(db, session_id)


def is_known(db: sqlite3.Connection, session_id: str) -> bool:
    """Whether the session is or was here."""
    return db.execute("SELECT 1 FROM session WHERE id = ?", (session_id,)).fetchone() is not None


def all_layers(db: sqlite3.Connection, session_id: str) -> list[Layer]:
    rows = db.execute(
        "SELECT source_id, from_seq, to_seq FROM segment WHERE session_id = ? ORDER BY ordinal", (session_id,)
    )
    inherited = [Layer(*row) for row in rows.fetchall()]
    return [*inherited, Layer(session_id, inherited[-1].last + 1 if inherited else 1, END)]


def cut(layers: Sequence[Layer], last: int) -> list[Layer]:
    """The layers of the prefix that ends with `last`."""
    return [layer._replace(last=min(layer.last, last)) for layer in layers if layer.first <= last]


@lru_cache(maxsize=1024)
def _actor(text: str) -> Actor:
    return Actor.model_validate_json(text)


def _actor_text(actor: Actor) -> str:
    return _actor_json(actor.kind, actor.id, actor.via)


@lru_cache(maxsize=1024)
def _actor_json(kind: str, actor_id: str, via: str) -> str:
    return json.dumps({"kind": kind, "id": actor_id, "via": via}, ensure_ascii=False)


def _event(row: tuple[Any, ...]) -> Event:
    values = list(row)
    values[11] = _actor(row[11])
    return Event(*values)


def insert_events(db: sqlite3.Connection, session_id: str, events: Sequence[Event]) -> None:
    db.executemany(_INSERT_EVENT, [_event_row(session_id, event) for event in events])


def _event_row(session_id: str, event: Event) -> tuple[Any, ...]:
    return (
        session_id,
        event.session_id if event.session_id != session_id else None,
        event.v,
        event.id,
        event.seq,
        event.root_id,
        event.tree_pos,
        event.at,
        event.observed_at,
        event.turn_id,
        event.item_id,
        event.parent_item_id,
        _actor_text(event.actor),
        event.cause,
        event.run,
        event.producer,
        event.producer_seq,
        event.epoch,
        event.kind,
        event.body_text,
        event.body_sha256,
        event.hash,
    )


def read_events(
    db: sqlite3.Connection,
    layers: Sequence[Layer],
    *,
    after: int,
    before: int,
    limit: int,
    kinds: Sequence[str] | None = None,
    newest: bool = False,
) -> list[Event]:
    """Ascending, after < seq < before: the first `limit`, or the last with `newest`."""
    found: list[Event] = []
    for layer in reversed(layers) if newest else layers:
        low, high = max(after, layer.first - 1), min(before, layer.last + 1)
        if high - low > 1 and len(found) < limit:
            found += _layer_events(db, layer.source, low, high, limit - len(found), kinds, newest)
    return found[::-1] if newest else found


def _layer_events(
    db: sqlite3.Connection,
    source: str,
    after: int,
    before: int,
    limit: int,
    kinds: Sequence[str] | None,
    newest: bool,
) -> list[Event]:
    order = "DESC" if newest else "ASC"
    within = "session_id = ? AND seq > ? AND seq < ?"
    page = f"ORDER BY seq {order} LIMIT ?"
    if kinds is None:
        rows = db.execute(
            f"SELECT {_ENVELOPE} FROM event WHERE {within} {page}", (source, after, before, limit)
        )
        return [_event(row) for row in rows.fetchall()]
    # One index range per kind, merged: an IN would fetch and sort all matches before the limit.
    parts = [
        db.execute(
            f"SELECT {_ENVELOPE} FROM event WHERE kind = ? AND {within} {page}",
            (kind, source, after, before, limit),
        ).fetchall()
        for kind in dict.fromkeys(kinds)
    ]
    merged = sorted((row for part in parts for row in part), key=lambda row: row[3], reverse=newest)
    return [_event(row) for row in merged[:limit]]


def read_tree(db: sqlite3.Connection, root_id: str, after: int, limit: int) -> list[Event]:
    rows = db.execute(
        f"SELECT {_ENVELOPE} FROM event WHERE root_id = ? AND tree_pos > ? AND origin_id IS NULL"
        " ORDER BY tree_pos LIMIT ?",
        (root_id, after, limit),
    )
    return [_event(row) for row in rows.fetchall()]


def tree_end(db: sqlite3.Connection, root_id: str) -> int:
    """The last `tree_pos` of a root; 0 before there is one."""
    (end,) = db.execute(
        "SELECT coalesce(max(tree_pos), 0) FROM event WHERE root_id = ? AND origin_id IS NULL", (root_id,)
    ).fetchone()
    return end


def read_item(
    db: sqlite3.Connection, layers: Sequence[Layer], item_id: str, bound: int = END
) -> ItemRow | None:
    """The item as of `bound`: its newest version there, in the newest layer that has one."""
    found = read_item_text(db, layers, item_id, bound)
    return found and ItemRow(item_id, found[0], found[1], json.loads(found[2]))


def read_item_text(
    db: sqlite3.Connection, layers: Sequence[Layer], item_id: str, bound: int = END
) -> tuple[int, int, str] | None:
    """(pos, view_seq, data) of `read_item`, undecoded."""
    for layer in reversed(layers):
        if layer.first <= bound:
            row = db.execute(
                "SELECT pos, view_seq, data FROM item WHERE session_id = ? AND item_id = ? AND view_seq <= ?"
                " ORDER BY view_seq DESC LIMIT 1",
                (layer.source, item_id, min(layer.last, bound)),
            ).fetchone()
            if row is not None:
                return row
    return None


def items_by_pos(db: sqlite3.Connection, layers: Sequence[Layer], before: int, limit: int) -> list[ItemRow]:
    """Newest first below `before`."""
    sources = [
        _versions(
            db,
            layer,
            "pos < ? AND view_seq <= ?",
            (before, layer.last),
            "ORDER BY pos DESC, item_id DESC",
            depth,
        )
        for depth, layer in enumerate(layers)
    ]
    merged = heapq.merge(*sources, key=lambda found: (found[1].pos, found[1].item_id), reverse=True)
    rows = (row for depth, row in merged if not _is_shadowed(db, layers[depth + 1 :], row.item_id))
    return _take(rows, limit, by_pos)


def items_by_change(db: sqlite3.Connection, layers: Sequence[Layer], after: int, limit: int) -> list[ItemRow]:
    """Oldest change first, beyond `after`."""
    # Changes of a layer all come before those of the next: no merge is needed.
    rows = (
        row
        for depth, layer in enumerate(layers)
        if layer.last > after
        for _, row in _versions(
            db,
            layer,
            "view_seq > ? AND view_seq <= ?",
            (after, layer.last),
            "ORDER BY view_seq, item_id",
            depth,
        )
        if not _is_shadowed(db, layers[depth + 1 :], row.item_id)
    )
    return _take(rows, limit, by_view_seq)


def _versions(
    db: sqlite3.Connection, layer: Layer, where: str, bounds: tuple[int, int], order: str, depth: int
) -> Iterator[tuple[int, ItemRow]]:
    """A layer's items as of its end, read as they are asked for."""
    rows = db.execute(
        f"SELECT item_id, pos, view_seq, data FROM item WHERE session_id = ? AND {where}"
        f" AND (until IS NULL OR until > ?) {order}",
        (layer.source, *bounds, layer.last),
    )
    try:
        for item_id, pos, view_seq, data in rows:
            yield depth, ItemRow(item_id, pos, view_seq, json.loads(data))
    finally:
        # An open cursor would hold the WAL's end where it is.
        rows.close()


def _is_shadowed(db: sqlite3.Connection, later: Sequence[Layer], item_id: str) -> bool:
    return any(
        db.execute(
            "SELECT 1 FROM item WHERE session_id = ? AND item_id = ? AND view_seq <= ? LIMIT 1",
            (layer.source, item_id, layer.last),
        ).fetchone()
        for layer in later
    )


def _take(rows: Iterator[ItemRow], limit: int, key: Any) -> list[ItemRow]:
    """The first `limit` rows and those that share the last one's key."""
    page: list[ItemRow] = []
    for row in rows:
        if len(page) >= limit and key(row) != key(page[-1]):
            break
        page.append(row)
    return page
