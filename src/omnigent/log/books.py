"""The ledger in SQLite: a row per call, and the sums that caps are checked against. `ledger` has the rules.

Functions take the connection: the writer's inside its transaction, or the readers'.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from omnigent.events import JSON, Draft, Event
from omnigent.log.contract import UsageBy
from omnigent.log.ledger import (
    COLUMN_OF,
    KINDS,
    SCOPES,
    TOKENS,
    VERSION,
    Account,
    Amount,
    Entry,
    amount_of,
    call_of,
    day_of,
    enter,
    follow,
    inherited,
    less,
    place,
    places_of,
    refuse_over,
    reservations,
    usage_row,
)
from omnigent.log.rows import END, Layer, read_events
from omnigent.log.rules import no_session
from omnigent.metering import Cap, CapScope, Spend

_PAGE = 500
_ENTRY = ", ".join(Entry._fields)
_PUT_ENTRY = f"INSERT OR REPLACE INTO ledger ({_ENTRY}) VALUES ({', '.join('?' * len(Entry._fields))})"
_ACCOUNT = "family, owner, project, harness, provider, model, credential, billing, metering"
_PUT_ACCOUNT = (
    f"INSERT OR REPLACE INTO account (session_id, version, {_ACCOUNT}) VALUES ({', '.join('?' * 11)})"
)
_SUMS = ", ".join(Amount._fields)
_ADD = (
    f"INSERT INTO spend (scope, key, {_SUMS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in Amount._fields)
)


def read_account(db: sqlite3.Connection, session_id: str) -> Account:
    """`NotFound` for a session that never was; a deleted one has its account still."""
    row = db.execute(f"SELECT {_ACCOUNT} FROM account WHERE session_id = ?", (session_id,)).fetchone()
    if row is None:
        raise no_session(session_id)
    return Account(*row)


def write_account(db: sqlite3.Connection, session_id: str, account: Account) -> None:
    db.execute(_PUT_ACCOUNT, (session_id, VERSION, *astuple(account)))


def enter_events(
    db: sqlite3.Connection, session_id: str, account: Account, events: Sequence[Event]
) -> Account:
    """Write what the events say of the ledger; the account after them (not written)."""
    for event in events:
        if event.kind not in KINDS:
            continue
        account = follow(account, event)
        call_id = call_of(event)
        # An imported fork's prefix is another session's: its calls aren't this one's.
        if call_id is not None and event.session_id == session_id:
            known = _read_entry(db, session_id, call_id)
            entry = enter(account, event, known)
            if entry is not None:
                _put(db, entry, known)
    return account


def rebuild(db: sqlite3.Connection, session_id: str, layers: Sequence[Layer], imported: bool) -> Account:
    """Make a session's entries and account anew from its events."""
    _remove(db, session_id)
    if len(layers) > 1:
        account = inherited(read_account(db, layers[0].source))
    else:
        account = Account(session_id if imported else read_account(db, session_id).family)
    own, after = layers[-1], layers[-1].first - 1
    while events := read_events(db, [own], after=after, before=END, limit=_PAGE, kinds=KINDS):
        account = enter_events(db, session_id, account, events)
        after = events[-1].seq
    write_account(db, session_id, account)
    return account


def stale_accounts(db: sqlite3.Connection) -> list[str]:
    """Sessions whose entries are of another version, sources before their forks."""
    rows = db.execute(
        "SELECT id FROM session JOIN account ON session_id = id WHERE account.version <> ?"
        " ORDER BY session.rowid",
        (VERSION,),
    )
    return [session_id for (session_id,) in rows.fetchall()]


def check_caps(
    db: sqlite3.Connection,
    session_id: str,
    account: Account,
    at: int,
    drafts: Sequence[Draft],
    caps: Sequence[Cap],
) -> None:
    """`OverBudget` if the reservations among the drafts don't fit."""
    day = day_of(at)

    def amount(scope: CapScope) -> Amount:
        return _amount(db, scope, place(scope, session_id, account, day))

    fresh = {body.call_id: body for body in reversed(reservations(drafts))}
    asked = [body for body in fresh.values() if _read_entry(db, session_id, body.call_id) is None]
    refuse_over(caps, asked, account.billing, amount)


def read_spend(db: sqlite3.Connection, session_id: str, at: int) -> dict[CapScope, Spend]:
    account, day = read_account(db, session_id), day_of(at)
    return {scope: _amount(db, scope, place(scope, session_id, account, day)).spend() for scope in SCOPES}


def read_reserved(db: sqlite3.Connection, session_id: str) -> list[str]:
    rows = db.execute(
        "SELECT call_id FROM ledger WHERE session_id = ? AND state = 'reserved' ORDER BY at, call_id",
        (session_id,),
    )
    return [call_id for (call_id,) in rows.fetchall()]


def read_usage(
    db: sqlite3.Connection, by: UsageBy, since: int | None, until: int | None, session_id: str | None
) -> list[JSON]:
    column = COLUMN_OF[by]
    metered = "billing <> 'subscription'"
    missing = f"{metered} AND nano_usd IS NULL AND basis <> 'harness' AND " + " + ".join(
        name for name in TOKENS if name not in ("cache_write_1h_tokens", "reasoning_tokens")
    )
    sums = [
        "count(*)",
        *(f"sum({name})" for name in TOKENS),
        f"sum(CASE WHEN {metered} THEN coalesce(nano_usd, 0) ELSE 0 END)",
        f"sum({metered} AND nano_usd IS NOT NULL)",
        f"sum({missing} > 0)",
        f"sum(CASE WHEN {metered} THEN 0 ELSE coalesce(nano_usd, 0) END)",
    ]
    where, bounds = ["state = 'settled'"], list[Any]()
    for condition, value in (("at >= ?", since), ("at < ?", until), ("session_id = ?", session_id)):
        if value is not None:
            where.append(condition)
            bounds.append(value)
    rows = db.execute(
        f"SELECT {column}, {', '.join(sums)} FROM ledger WHERE {' AND '.join(where)}"
        f" GROUP BY {column} ORDER BY {column}",
        bounds,
    )
    return [usage_row(key, calls, counts[:6], *counts[6:]) for key, calls, *counts in rows.fetchall()]


def _read_entry(db: sqlite3.Connection, session_id: str, call_id: str) -> Entry | None:
    row = db.execute(
        f"SELECT {_ENTRY} FROM ledger WHERE session_id = ? AND call_id = ?", (session_id, call_id)
    ).fetchone()
    return row and Entry(*row)


def _put(db: sqlite3.Connection, entry: Entry, known: Entry | None) -> None:
    db.execute(_PUT_ENTRY, entry)
    if known is not None:
        _add(db, known, less(Amount(), amount_of(known)))
    _add(db, entry, amount_of(entry))


def _remove(db: sqlite3.Connection, session_id: str) -> None:
    rows = db.execute(f"SELECT {_ENTRY} FROM ledger WHERE session_id = ?", (session_id,)).fetchall()
    for row in rows:
        entry = Entry(*row)
        _add(db, entry, less(Amount(), amount_of(entry)))
    db.execute("DELETE FROM ledger WHERE session_id = ?", (session_id,))


def _add(db: sqlite3.Connection, entry: Entry, amount: Amount) -> None:
    db.executemany(_ADD, [(scope, key, *amount) for scope, key in places_of(entry)])


def _amount(db: sqlite3.Connection, scope: CapScope, key: str) -> Amount:
    row = db.execute(f"SELECT {_SUMS} FROM spend WHERE scope = ? AND key = ?", (scope, key)).fetchone()
    return Amount(*row) if row else Amount()
