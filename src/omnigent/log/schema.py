"""The tables, as numbered migrations: each runs once, in order, in one transaction with its number."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from omnigent.errors import NewerHome

Migration = Callable[[sqlite3.Connection], None]


def _first(db: sqlite3.Connection) -> None:
    for statement in (
        # One row per session: the chain's end, what lists show, and the view at the head. The view is
        # last, so that a list never reads its overflow pages.
        """CREATE TABLE session (
            id TEXT PRIMARY KEY, root_id TEXT NOT NULL, head INTEGER NOT NULL, hash TEXT NOT NULL,
            tree_pos INTEGER NOT NULL, at INTEGER NOT NULL, epoch INTEGER NOT NULL, imported INTEGER NOT NULL,
            deleted_at INTEGER, snapshot_seq INTEGER NOT NULL, version INTEGER NOT NULL,
            archived INTEGER NOT NULL, updated_at INTEGER NOT NULL, columns TEXT NOT NULL, view TEXT NOT NULL
        )""",
        """CREATE INDEX session_by_time ON session (archived, updated_at DESC, id DESC)
            WHERE deleted_at IS NULL""",
        # `session_id` is the log the row belongs to; `origin_id` the envelope's session where that is another
        # (the prefix of an imported fork). The others are the envelope; the body is the text that was hashed.
        """CREATE TABLE event (
            session_id TEXT NOT NULL, origin_id TEXT, v INTEGER NOT NULL, id TEXT NOT NULL,
            seq INTEGER NOT NULL, root_id TEXT NOT NULL, tree_pos INTEGER NOT NULL,
            at INTEGER NOT NULL, observed_at INTEGER NOT NULL,
            turn_id TEXT, item_id TEXT, parent_item_id TEXT, actor TEXT NOT NULL, cause TEXT, run TEXT,
            producer TEXT NOT NULL, producer_seq INTEGER NOT NULL, epoch INTEGER, kind TEXT NOT NULL,
            body TEXT NOT NULL, body_sha256 TEXT NOT NULL, hash TEXT NOT NULL
        )""",
        "CREATE UNIQUE INDEX event_by_seq ON event (session_id, seq)",
        "CREATE UNIQUE INDEX event_by_tree ON event (root_id, tree_pos) WHERE origin_id IS NULL",
        "CREATE INDEX event_by_kind ON event (session_id, kind, seq)",
        """CREATE TABLE producer (
            session_id TEXT NOT NULL, producer TEXT NOT NULL, last INTEGER NOT NULL,
            PRIMARY KEY (session_id, producer)
        ) WITHOUT ROWID""",
        # A fork's prefix, flattened: events from_seq..to_seq are those of source_id.
        """CREATE TABLE segment (
            session_id TEXT NOT NULL, ordinal INTEGER NOT NULL, source_id TEXT NOT NULL,
            from_seq INTEGER NOT NULL, to_seq INTEGER NOT NULL, PRIMARY KEY (session_id, ordinal)
        ) WITHOUT ROWID""",
        # Every version of an item: a fork reads that of its prefix. `until` is the seq that superseded it.
        """CREATE TABLE item (
            session_id TEXT NOT NULL, item_id TEXT NOT NULL, pos INTEGER NOT NULL,
            view_seq INTEGER NOT NULL, until INTEGER, open INTEGER NOT NULL, data TEXT NOT NULL
        )""",
        "CREATE UNIQUE INDEX item_by_id ON item (session_id, item_id, view_seq)",
        "CREATE INDEX item_by_pos ON item (session_id, pos, item_id, view_seq, until)",
        "CREATE INDEX item_by_change ON item (session_id, view_seq, item_id, until)",
        "CREATE INDEX item_open ON item (session_id, pos) WHERE open = 1",
        """CREATE TABLE snapshot (
            session_id TEXT NOT NULL, seq INTEGER NOT NULL, version INTEGER NOT NULL, view TEXT NOT NULL,
            PRIMARY KEY (session_id, seq)
        ) WITHOUT ROWID""",
        """CREATE TABLE command (
            scope TEXT NOT NULL, key TEXT NOT NULL, request_sha256 TEXT NOT NULL, answer TEXT NOT NULL,
            PRIMARY KEY (scope, key)
        ) WITHOUT ROWID""",
        """CREATE TABLE lease (
            session_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL, run TEXT NOT NULL, pid INTEGER NOT NULL,
            pid_started INTEGER NOT NULL, token_sha256 TEXT NOT NULL
        ) WITHOUT ROWID""",
    ):
        db.execute(statement)


def _second(db: sqlite3.Connection) -> None:
    for statement in (
        # What a tree's policies remember: at its end, and now and then on the way there.
        """CREATE TABLE tree (
            root_id TEXT PRIMARY KEY, tree_pos INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE tree_snapshot (
            root_id TEXT NOT NULL, tree_pos INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL,
            PRIMARY KEY (root_id, tree_pos)
        ) WITHOUT ROWID""",
        # Whose a session's next model call is. `version` is that of its entries; 0: still to be made.
        """CREATE TABLE account (
            session_id TEXT PRIMARY KEY, version INTEGER NOT NULL, family TEXT NOT NULL, owner TEXT NOT NULL,
            project TEXT NOT NULL, harness TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
            credential TEXT NOT NULL, billing TEXT NOT NULL, metering TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE ledger (
            session_id TEXT NOT NULL, call_id TEXT NOT NULL, root_id TEXT NOT NULL, family TEXT NOT NULL,
            owner TEXT NOT NULL, project TEXT NOT NULL, provider TEXT NOT NULL, credential TEXT NOT NULL,
            model TEXT NOT NULL, harness TEXT NOT NULL, at INTEGER NOT NULL, day_utc TEXT NOT NULL,
            billing TEXT NOT NULL, source TEXT NOT NULL, input_tokens INTEGER NOT NULL,
            cache_read_tokens INTEGER NOT NULL, cache_write_tokens INTEGER NOT NULL,
            cache_write_1h_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
            reasoning_tokens INTEGER NOT NULL, nano_usd INTEGER, basis TEXT NOT NULL, outcome TEXT NOT NULL,
            state TEXT NOT NULL, PRIMARY KEY (session_id, call_id)
        ) WITHOUT ROWID""",
        "CREATE INDEX ledger_by_time ON ledger (at)",
        "CREATE INDEX ledger_open ON ledger (session_id, at) WHERE state = 'reserved'",
        # The ledger added up by what caps are on, so that a check costs the same however long it is.
        """CREATE TABLE spend (
            scope TEXT NOT NULL, key TEXT NOT NULL, settled INTEGER NOT NULL, reserved INTEGER NOT NULL,
            settled_tokens INTEGER NOT NULL, reserved_tokens INTEGER NOT NULL, unknown INTEGER NOT NULL,
            notional INTEGER NOT NULL, PRIMARY KEY (scope, key)
        ) WITHOUT ROWID""",
    ):
        db.execute(statement)
    families: dict[str, str] = {}
    # In the order they were made in: a root before its children, a parent before its forks.
    rows: list[tuple[str, str]] = db.execute(
        "SELECT id, iif(imported, id, coalesce(source_id, root_id)) FROM session"
        " LEFT JOIN segment ON session_id = id AND ordinal = 0 ORDER BY session.rowid"
    ).fetchall()
    for session_id, above in rows:
        families[session_id] = families.get(above, above)
    db.executemany("INSERT INTO account VALUES (?, 0, ?, '', '', '', '', '', '', '', '')", families.items())


MIGRATIONS: Sequence[Migration] = [_first, _second]
"""Append only: a released migration is never edited."""


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the database up to date. `NewerHome` if a newer program has been there."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("CREATE TABLE IF NOT EXISTS schema (number INTEGER PRIMARY KEY)")
        (number,) = db.execute("SELECT coalesce(max(number), 0) FROM schema").fetchone()
        if number > len(MIGRATIONS):
            raise NewerHome(
                f"{path} was written by a newer Omnigent (schema {number}; this one knows {len(MIGRATIONS)})",
                hint="upgrade Omnigent, or point OMNIGENT_HOME at another directory",
            )
        for done, migration in enumerate(MIGRATIONS[number:], start=number + 1):
            migration(db)
            db.execute("INSERT INTO schema (number) VALUES (?)", (done,))
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
