"""What the SQLite log writes, one call inside one savepoint. Runs in the log's own thread."""

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from omnigent.errors import Conflict, Malformed
from omnigent.events import JSON, Draft, Event
from omnigent.ids import Clock, NewId
from omnigent.log import books
from omnigent.log.contract import Appended, CommandRecord, Lease, Projector, TreeProjector
from omnigent.log.folding import State, Views, dump_json
from omnigent.log.ledger import Account, inherited
from omnigent.log.rows import END, Layer, all_layers, cut, insert_events, is_known, read_events
from omnigent.log.rules import (
    answered,
    no_session,
    refuse_append,
    refuse_fork,
    refuse_other_head,
    replay_of,
    taken,
    unseen,
)
from omnigent.log.seal import Numbers, check_imported, seal
from omnigent.log.trees import Trees
from omnigent.metering import Cap

REMEMBERED = 256
"""Sessions whose state the writer keeps; others are read again."""

_UPSERT_SESSION = """
    INSERT INTO session (id, root_id, head, hash, tree_pos, at, epoch, imported, snapshot_seq, version,
                         archived, updated_at, columns, view)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        head = excluded.head, hash = excluded.hash, tree_pos = excluded.tree_pos, at = excluded.at,
        epoch = excluded.epoch, snapshot_seq = excluded.snapshot_seq, version = excluded.version,
        archived = excluded.archived, updated_at = excluded.updated_at, columns = excluded.columns,
        view = excluded.view
"""


class Writer:
    """The only one that writes. What it remembers is true as long as nothing it wrote is rolled back."""

    def __init__(
        self,
        db: sqlite3.Connection,
        projector: Projector,
        trees: TreeProjector | None,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._db = db
        self._projector = projector
        self._views = Views(db, projector)
        self._trees = None if trees is None else Trees(db, trees)
        self._clock = clock
        self._new_id = new_id
        self._states: OrderedDict[str, State] = OrderedDict()
        self._news: list[tuple[str, int, list[Event]]] = []
        self._gone: list[str] = []

    def take_news(self) -> tuple[list[tuple[str, int, list[Event]]], list[str]]:
        """(session, head, events) stored, and sessions deleted, since the last call."""
        news, gone = self._news, self._gone
        self._news, self._gone = [], []
        return news, gone

    def forget(self) -> None:
        """Drop every remembered state: a rollback has made some of it untrue."""
        self._states.clear()
        if self._trees is not None:
            self._trees.forget()

    def flush(self) -> None:
        """Write what is written once per commit. To be called before it."""
        if self._trees is not None:
            self._trees.flush()

    # Names are those of `Log`; each runs inside a savepoint.

    def create(
        self, session_id: str, drafts: Sequence[Draft], root_id: str | None, command: CommandRecord | None
    ) -> Appended:
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        self._refuse_taken(session_id)
        root_id = root_id or session_id
        if root_id != session_id and self._state(root_id).numbers.root_id != root_id:
            raise Malformed(f"{root_id} is not the top of its tree", hint="name the top, not a child")
        family = session_id if root_id == session_id else self._state(root_id).account.family
        state = State(
            Numbers(session_id, root_id),
            [Layer(session_id, 1, END)],
            self._projector.empty(),
            account=Account(family),
        )
        books.write_account(self._db, session_id, state.account)
        return self._store(state, drafts, "session", 1, None, command)

    def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        producer: str,
        first: int | None,
        epoch: int | None,
        command: CommandRecord | None,
        expect_head: int | None,
        caps: Sequence[Cap],
    ) -> Appended:
        state = self._state(session_id)
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        refuse_append(session_id, state.imported, state.numbers.seq, state.epoch, epoch, expect_head)
        last = self._last_of(state, producer)
        drafts = unseen(drafts, first, last)
        if not drafts and command is None:
            return Appended([], state.numbers.seq, last)
        if caps:
            at = max(self._clock(), state.numbers.at)
            books.check_caps(self._db, session_id, state.account, at, drafts, caps)
        return self._store(state, drafts, producer, last + 1, epoch, command)

    def fork(
        self,
        parent_id: str,
        at_seq: int,
        session_id: str,
        drafts: Sequence[Draft],
        command: CommandRecord | None,
    ) -> Appended:
        parent = self._state(parent_id)
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        refuse_fork(parent_id, at_seq, parent.numbers.seq)
        self._refuse_taken(session_id)
        prefix = cut(parent.layers, at_seq)
        self._db.executemany(
            "INSERT INTO segment VALUES (?, ?, ?, ?, ?)",
            [(session_id, ordinal, *layer) for ordinal, layer in enumerate(prefix)],
        )
        last = read_events(self._db, prefix, after=at_seq - 1, before=at_seq + 1, limit=1)[0]
        state = State(
            Numbers(session_id, session_id, at_seq, 0, last.at, last.hash),
            [*prefix, Layer(session_id, at_seq + 1, END)],
            self._views.as_of(prefix, at_seq),
            snapshot_seq=at_seq,
            account=inherited(parent.account),
        )
        books.write_account(self._db, session_id, state.account)
        self._views.keep(session_id, [(at_seq, dump_json(state.view.dump()))])
        return self._store(state, drafts, "session", 1, None, command)

    def take_epoch(self, session_id: str) -> int:
        state = self._state(session_id)
        refuse_append(session_id, state.imported, state.numbers.seq, state.epoch, None, None)
        state.epoch += 1
        self._db.execute("UPDATE session SET epoch = ? WHERE id = ?", (state.epoch, session_id))
        return state.epoch

    def put_lease(self, lease: Lease) -> None:
        state = self._state(lease.session_id)
        refuse_append(lease.session_id, state.imported, state.numbers.seq, state.epoch, lease.epoch, None)
        self._db.execute(
            "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?)",
            (lease.session_id, lease.epoch, lease.run, lease.pid, lease.pid_started, lease.token_sha256),
        )

    def drop_lease(self, session_id: str, epoch: int) -> None:
        self._db.execute("DELETE FROM lease WHERE session_id = ? AND epoch = ?", (session_id, epoch))

    def rebuild(self, session_id: str) -> None:
        self.refold(session_id)
        state = self._state(session_id, hidden=True)
        state.account = books.rebuild(self._db, session_id, state.layers, state.imported)
        if self._trees is not None:
            self._trees.rebuild(state.numbers.root_id)

    def refold(self, session_id: str) -> None:
        """Make the session's view and items anew."""
        state = self._load_unfolded(session_id)
        own = state.layers[-1]
        self._db.execute("DELETE FROM item WHERE session_id = ?", (session_id,))
        self._db.execute("DELETE FROM snapshot WHERE session_id = ?", (session_id,))
        state.snapshot_seq = own.first - 1
        if own.first > 1:
            state.view = self._views.as_of(state.layers[:-1], own.first - 1)
            self._views.keep(session_id, [(own.first - 1, dump_json(state.view.dump()))])
        self._refold(state, own.first - 1)
        self._write_session(state)
        self._remember(state)

    def enter_anew(self, session_id: str) -> None:
        """Make the session's entries in the ledger anew."""
        state = self._load_unfolded(session_id)
        books.rebuild(self._db, session_id, state.layers, state.imported)
        self._states.pop(session_id, None)

    def tree(self, root_id: str) -> str:
        """The tree's state at the root's end, as JSON text."""
        assert self._trees is not None
        return self._trees.refresh(root_id)

    def import_events(self, events: Sequence[Event], command: CommandRecord | None) -> str:
        check_imported(events)
        last = events[-1]
        session_id = last.session_id
        if self._replay(command) is not None:
            return session_id
        known = self._db.execute("SELECT head, hash FROM session WHERE id = ?", (session_id,)).fetchone()
        if known is not None:
            refuse_other_head(last, *known)
            self._db.execute("UPDATE session SET deleted_at = NULL WHERE id = ?", (session_id,))
            self._states.pop(session_id, None)
        else:
            self._import_new(session_id, events)
        self._record(command, session_id, last.seq)
        return session_id

    def delete(self, session_id: str) -> None:
        state = self._state(session_id)
        self._db.execute("UPDATE session SET deleted_at = ? WHERE id = ?", (self._clock(), session_id))
        self._db.execute("DELETE FROM lease WHERE session_id = ?", (session_id,))
        state.deleted = True
        self._gone.append(session_id)

    def stale(self) -> list[str]:
        """Sessions whose views are another projector version's, sources before their forks."""
        rows = self._db.execute(
            "SELECT id FROM session WHERE version <> ? ORDER BY rowid", (self._projector.version,)
        )
        return [session_id for (session_id,) in rows.fetchall()]

    def uncounted(self) -> list[str]:
        """Sessions whose entries in the ledger are another version's, sources before their forks."""
        return books.stale_accounts(self._db)

    def _import_new(self, session_id: str, events: Sequence[Event]) -> None:
        last = events[-1]
        try:
            insert_events(self._db, session_id, events)
        except sqlite3.IntegrityError as error:
            raise Conflict(
                f"the tree of {session_id} holds other events here", hint="import it into an empty home"
            ) from error
        state = State(
            Numbers(session_id, last.root_id, last.seq, last.tree_pos, last.at, last.hash),
            [Layer(session_id, 1, END)],
            self._projector.empty(),
            imported=True,
        )
        self._refold(state, 0)
        self._write_session(state)
        state.account = books.rebuild(self._db, session_id, state.layers, imported=True)
        if self._trees is not None:
            self._trees.rebuild(last.root_id)
        self._remember(state)

    # State

    def _state(self, session_id: str, *, hidden: bool = False) -> State:
        state = self._states.get(session_id) or self._load(session_id)
        if state.deleted and not hidden:
            raise no_session(session_id)
        self._remember(state)
        return state

    def _remember(self, state: State) -> None:
        self._states[state.numbers.session_id] = state
        self._states.move_to_end(state.numbers.session_id)
        if len(self._states) > REMEMBERED:
            self._states.popitem(last=False)

    def _load(self, session_id: str) -> State:
        row = self._db.execute("SELECT version, view FROM session WHERE id = ?", (session_id,)).fetchone()
        if row is None:
            raise no_session(session_id)
        version, view = row
        if version != self._projector.version:
            self.refold(session_id)
            return self._states[session_id]
        state = self._load_unfolded(session_id)
        state.view = self._projector.load(json.loads(view))
        return state

    def _load_unfolded(self, session_id: str) -> State:
        """All but the view."""
        row = self._db.execute(
            "SELECT root_id, head, tree_pos, at, hash, epoch, imported, snapshot_seq, deleted_at"
            " FROM session WHERE id = ?",
            (session_id,),
        ).fetchone()
        if row is None:
            raise no_session(session_id)
        return State(
            Numbers(session_id, *row[:5]),
            all_layers(self._db, session_id),
            self._projector.empty(),
            epoch=row[5],
            imported=bool(row[6]),
            snapshot_seq=row[7],
            deleted=row[8] is not None,
            account=books.read_account(self._db, session_id),
        )

    def _refuse_taken(self, session_id: str) -> None:
        if is_known(self._db, session_id):
            raise taken(session_id)

    def _last_of(self, state: State, producer: str) -> int:
        last = state.producers.get(producer)
        if last is None:
            row = self._db.execute(
                "SELECT last FROM producer WHERE session_id = ? AND producer = ?",
                (state.numbers.session_id, producer),
            ).fetchone()
            last = state.producers[producer] = row[0] if row else 0
        return last

    # Commands

    def _replay(self, command: CommandRecord | None) -> Appended | None:
        return command and replay_of(command, read_command(self._db, command.scope, command.key))

    def _record(self, command: CommandRecord | None, session_id: str, seq: int) -> None:
        if command is not None:
            record = answered(command, session_id, seq)
            self._db.execute(
                "INSERT INTO command VALUES (?, ?, ?, ?)",
                (record.scope, record.key, record.request_sha256, dump_json(record.answer)),
            )

    # Storing and folding

    def _store(
        self,
        state: State,
        drafts: Sequence[Draft],
        producer: str,
        first: int,
        epoch: int | None,
        command: CommandRecord | None,
    ) -> Appended:
        numbers = replace(state.numbers)
        session_id = numbers.session_id
        root = state if numbers.root_id == session_id else self._state(numbers.root_id, hidden=True)
        numbers.tree_pos = root.numbers.tree_pos
        events = seal(
            drafts,
            numbers,
            now=self._clock(),
            new_id=self._new_id,
            producer=producer,
            first=first,
            epoch=epoch,
        )
        self._states.pop(session_id, None)  # until it is written: a failing fold leaves a torn view
        state.numbers = numbers
        folded = self._views.fold(state, events)
        if self._trees is not None:
            self._trees.fold(numbers.root_id, events)
        insert_events(self._db, session_id, events)
        self._views.write(session_id, folded)
        self._enter(state, events)
        self._write_session(state)
        if root is not state:
            root.numbers.tree_pos = numbers.tree_pos
            self._db.execute(
                "UPDATE session SET tree_pos = ? WHERE id = ?", (numbers.tree_pos, numbers.root_id)
            )
        last = state.producers[producer] = first + len(events) - 1
        self._db.execute("INSERT OR REPLACE INTO producer VALUES (?, ?, ?)", (session_id, producer, last))
        self._record(command, session_id, numbers.seq)
        self._remember(state)
        # Last, for what fails after it would have been told.
        self._news.append((session_id, numbers.seq, events))
        return Appended(events, numbers.seq, last)

    def _enter(self, state: State, events: Sequence[Event]) -> None:
        """Into the ledger."""
        session_id = state.numbers.session_id
        account = books.enter_events(self._db, session_id, state.account, events)
        if account is not state.account:
            books.write_account(self._db, session_id, account)
        state.account = account

    def _refold(self, state: State, after: int) -> None:
        """Fold the session's own events beyond `after` into its (empty) rows."""
        own = state.layers[-1]
        while True:
            events = read_events(self._db, [own], after=after, before=END, limit=500)
            if not events:
                return
            self._views.write(own.source, self._views.fold(state, events))
            after = events[-1].seq

    def _write_session(self, state: State) -> None:
        numbers = state.numbers
        columns = cast(JSON, state.view.columns())
        self._db.execute(
            _UPSERT_SESSION,
            (
                numbers.session_id,
                numbers.root_id,
                numbers.seq,
                numbers.hash,
                numbers.tree_pos,
                numbers.at,
                state.epoch,
                state.imported,
                state.snapshot_seq,
                self._projector.version,
                bool(columns.get("archived")),
                int(columns.get("updated_at", 0)),
                dump_json(columns),
                dump_json(state.view.dump()),
            ),
        )


def read_command(db: sqlite3.Connection, scope: str, key: str) -> CommandRecord | None:
    row = db.execute(
        "SELECT request_sha256, answer FROM command WHERE scope = ? AND key = ?", (scope, key)
    ).fetchone()
    return row and CommandRecord(scope, key, row[0], json.loads(row[1]))
