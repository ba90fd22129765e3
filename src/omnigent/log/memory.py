"""The log as it is meant: plain lists in one process. Nothing is kept after it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omnigent.errors import Malformed
from omnigent.events import JSON, Draft, Event
from omnigent.ids import Clock, NewId, new_id
from omnigent.log.bell import Bell
from omnigent.log.contract import (
    Appended,
    CommandRecord,
    ItemRow,
    Lease,
    ListQuery,
    Projector,
    TreeProjector,
    UsageBy,
)
from omnigent.log.ledger import (
    NOBODY,
    SCOPES,
    Account,
    Amount,
    Entry,
    amount_of,
    call_of,
    day_of,
    enter,
    follow,
    grouped,
    inherited,
    place,
    places_of,
    refuse_over,
    reservations,
    total,
)
from omnigent.log.rules import (
    MAX_PAGE,
    Listed,
    answered,
    by_pos,
    by_view_seq,
    closed,
    copy_json,
    first_groups,
    is_waiting,
    no_session,
    page_limit,
    parse_cursor,
    refuse_append,
    refuse_cursor,
    refuse_fork,
    refuse_other_head,
    replay_of,
    taken,
    unseen,
)
from omnigent.log.seal import Numbers, check_imported, seal
from omnigent.metering import Cap, CapScope, Spend


@dataclass(slots=True)
class _Session:
    numbers: Numbers
    view: Any
    events: list[Event] = field(default_factory=list[Event])
    own_from: int = 1
    items: dict[str, ItemRow] = field(default_factory=dict[str, ItemRow])
    changed_here: set[str] = field(default_factory=set[str])
    """Items that own events created or changed."""
    producers: dict[str, int] = field(default_factory=dict[str, int])
    epoch: int = 0
    imported: bool = False
    deleted: bool = False
    foreign_until: int = 0
    """The last seq that an imported fork brought along as its prefix."""
    account: Account = NOBODY
    beginning: Account = NOBODY
    """The account before the session's own events."""


@dataclass(slots=True)
class _Tree:
    state: Any
    beginning: Any
    """The state before its first event, as JSON; None: empty."""


class MemoryLog:
    """The reference: every other log must answer as this one does (`LogSuite`)."""

    def __init__(
        self,
        projector: Projector,
        clock: Clock,
        new_id: NewId = new_id,
        *,
        trees: TreeProjector | None = None,
    ) -> None:
        self._projector = projector
        self._tree_projector = trees
        self._clock = clock
        self._new_id = new_id
        self._sessions: dict[str, _Session] = {}
        self._trees: dict[str, list[Event]] = {}
        self._states: dict[str, _Tree] = {}
        self._ledger: dict[tuple[str, str], Entry] = {}
        self._commands: dict[tuple[str, str], CommandRecord] = {}
        self._leases: dict[str, Lease] = {}
        self._bell = Bell()
        self._closed = False

    async def create(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        root_id: str | None = None,
        command: CommandRecord | None = None,
    ) -> Appended:
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        self._refuse_taken(session_id)
        root_id = root_id or session_id
        if root_id != session_id and self._session(root_id).numbers.root_id != root_id:
            raise Malformed(f"{root_id} is not the top of its tree", hint="name the top, not a child")
        session = _Session(Numbers(session_id, root_id), self._projector.empty())
        top = self._sessions.get(root_id)
        session.account = session.beginning = Account(top.account.family if top else session_id)
        appended = self._store(session, drafts, "session", 1, None, command)
        self._sessions[session_id] = session
        return appended

    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        producer: str = "session",
        first: int | None = None,
        epoch: int | None = None,
        command: CommandRecord | None = None,
        expect_head: int | None = None,
        caps: Sequence[Cap] = (),
    ) -> Appended:
        session = self._session(session_id)
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        refuse_append(session_id, session.imported, session.numbers.seq, session.epoch, epoch, expect_head)
        last = session.producers.get(producer, 0)
        drafts = unseen(drafts, first, last)
        self._refuse_over(session, drafts, caps)
        return self._store(session, drafts, producer, last + 1, epoch, command)

    async def fork(
        self,
        parent_id: str,
        at_seq: int,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        command: CommandRecord | None = None,
    ) -> Appended:
        parent = self._session(parent_id)
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        refuse_fork(parent_id, at_seq, parent.numbers.seq)
        self._refuse_taken(session_id)
        last = parent.events[at_seq - 1]
        session = _Session(
            Numbers(session_id, session_id, at_seq, 0, last.at, last.hash), self._projector.empty()
        )
        session.events = parent.events[:at_seq]
        session.own_from = at_seq + 1
        for event in session.events:
            self._fold(session, event)
        session.changed_here.clear()
        session.account = session.beginning = inherited(parent.account)
        session.foreign_until = min(parent.foreign_until, at_seq)
        if self._tree_projector is not None:
            beginning = self._tree_as_of(parent, at_seq)
            self._states[session_id] = _Tree(self._tree_projector.load(copy_json(beginning)), beginning)
        appended = self._store(session, drafts, "session", 1, None, command)
        self._sessions[session_id] = session
        return appended

    async def command(self, scope: str, key: str) -> CommandRecord | None:
        return self._commands.get((scope, key))

    async def head(self, session_id: str) -> int:
        return self._session(session_id).numbers.seq

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 200,
        kinds: Sequence[str] | None = None,
        newest: bool = False,
    ) -> list[Event]:
        events = self._session(session_id).events
        within = events[max(after, 0) : len(events) if before is None else max(before - 1, 0)]
        found = [event for event in within if kinds is None or event.kind in kinds]
        limit = page_limit(limit)
        return found[-limit:] if newest else found[:limit]

    async def read_tree(self, root_id: str, *, after: int = 0, limit: int = 200) -> list[Event]:
        tree = self._trees.get(root_id)
        if tree is None:
            raise no_session(root_id)
        found = sorted((event for event in tree if event.tree_pos > after), key=lambda event: event.tree_pos)
        return found[: page_limit(limit)]

    async def follow(self, session_id: str, after: int = 0) -> AsyncIterator[list[Event]]:
        session = self._session(session_id)
        refuse_cursor(session_id, after, session.numbers.seq)
        with self._bell.watch(session_id) as watch:
            while not self._closed:
                batch = session.events[after : after + MAX_PAGE]
                if batch:
                    after = batch[-1].seq
                    yield batch
                elif not await self._bell.wait(watch, after):
                    return

    async def view(self, session_id: str) -> Any:
        return self._projector.load(copy_json(self._session(session_id).view.dump()))

    async def tree(self, session_id: str) -> Any:
        if self._tree_projector is None:
            raise LookupError("this log was opened without a tree projector")
        tree = self._tree(self._session(session_id).numbers.root_id)
        return self._tree_projector.load(copy_json(tree.state.dump()))

    async def family(self, session_id: str) -> str:
        return self._session(session_id).account.family

    async def spend(self, session_id: str, at: int) -> dict[CapScope, Spend]:
        session = self._session(session_id)
        return {scope: self._amount(session, scope, at).spend() for scope in SCOPES}

    async def reserved(self, session_id: str) -> Sequence[str]:
        self._session(session_id)
        found = [entry for entry in self._ledger.values() if entry.session_id == session_id]
        found.sort(key=lambda entry: (entry.at, entry.call_id))
        return [entry.call_id for entry in found if entry.state == "reserved"]

    async def usage(
        self, by: UsageBy, since: int | None = None, until: int | None = None, session_id: str | None = None
    ) -> Sequence[JSON]:
        if self._closed:
            raise closed()
        if session_id is not None:
            self._session(session_id)
        return grouped(
            (
                entry
                for entry in self._ledger.values()
                if entry.state == "settled"
                and (since is None or since <= entry.at)
                and (until is None or entry.at < until)
                and session_id in (None, entry.session_id)
            ),
            by,
        )

    async def item(self, session_id: str, item_id: str) -> ItemRow | None:
        row = self._session(session_id).items.get(item_id)
        return row and _copy_item(row)

    async def items(
        self, session_id: str, *, before: int | None = None, limit: int = 50, changed_after: int | None = None
    ) -> list[ItemRow]:
        rows = self._session(session_id).items.values()
        if changed_after is not None:
            changed = [row for row in rows if row.view_seq > changed_after]
            changed.sort(key=lambda row: (row.view_seq, row.item_id))
            return [_copy_item(row) for row in first_groups(changed, page_limit(limit), by_view_seq)]
        below = [row for row in rows if before is None or row.pos < before]
        below.sort(key=lambda row: (row.pos, row.item_id), reverse=True)
        return [_copy_item(row) for row in first_groups(below, page_limit(limit), by_pos)]

    async def open_items(self) -> list[tuple[str, ItemRow]]:
        return [
            (session_id, _copy_item(session.items[item_id]))
            for session_id, session in sorted(self._sessions.items())
            if not session.deleted and not session.imported
            for item_id in sorted(session.changed_here, key=lambda item_id: session.items[item_id].pos)
            if is_waiting(session.items[item_id].data)
        ]

    async def take_epoch(self, session_id: str) -> int:
        session = self._session(session_id)
        refuse_append(session_id, session.imported, session.numbers.seq, session.epoch, None, None)
        session.epoch += 1
        return session.epoch

    async def put_lease(self, lease: Lease) -> None:
        session = self._session(lease.session_id)
        refuse_append(lease.session_id, session.imported, 0, session.epoch, lease.epoch, None)
        self._leases[lease.session_id] = lease

    async def drop_lease(self, session_id: str, epoch: int) -> None:
        lease = self._leases.get(session_id)
        if lease is not None and lease.epoch == epoch:
            del self._leases[session_id]

    async def leases(self) -> list[Lease]:
        return [self._leases[session_id] for session_id in sorted(self._leases)]

    async def rebuild(self, session_id: str) -> None:
        session = self._session(session_id)
        session.view = self._projector.empty()
        session.items.clear()
        session.changed_here.clear()
        for event in session.events[: session.own_from - 1]:
            self._fold(session, event)
        session.changed_here.clear()
        for event in session.events[session.own_from - 1 :]:
            self._fold(session, event)
        self._enter_anew(session)
        self._refold_tree(session.numbers.root_id)

    async def import_events(self, events: Sequence[Event], *, command: CommandRecord | None = None) -> str:
        check_imported(events)
        last = events[-1]
        replayed = self._replay(command)
        known = self._sessions.get(last.session_id)
        if replayed is not None:
            return last.session_id
        if known is not None:
            refuse_other_head(last, known.numbers.seq, known.numbers.hash)
            known.deleted = False
        else:
            session = _Session(
                Numbers(last.session_id, last.root_id, last.seq, last.tree_pos, last.at, last.hash),
                self._projector.empty(),
                imported=True,
            )
            for event in events:
                session.events.append(event)
                self._fold(session, event)
            own = [event for event in events if event.session_id == last.session_id]
            session.foreign_until = len(events) - len(own)
            session.beginning = Account(last.session_id)
            self._trees.setdefault(last.root_id, []).extend(own)
            self._sessions[last.session_id] = session
            self._enter_anew(session)
            self._import_tree(session)
        self._record(command, last.session_id, last.seq)
        return last.session_id

    async def delete(self, session_id: str) -> None:
        self._session(session_id).deleted = True
        self._leases.pop(session_id, None)
        self._bell.gone(session_id)

    async def close(self) -> None:
        self._closed = True
        self._bell.close()

    def _session(self, session_id: str) -> _Session:
        if self._closed:
            raise closed()
        session = self._sessions.get(session_id)
        if session is None or session.deleted:
            raise no_session(session_id)
        return session

    def _refuse_taken(self, session_id: str) -> None:
        if session_id in self._sessions:
            raise taken(session_id)

    def _replay(self, command: CommandRecord | None) -> Appended | None:
        if self._closed:
            raise closed()
        return command and replay_of(command, self._commands.get((command.scope, command.key)))

    def _record(self, command: CommandRecord | None, session_id: str, seq: int) -> None:
        if command is not None:
            self._commands[command.scope, command.key] = answered(command, session_id, seq)

    def _store(
        self,
        session: _Session,
        drafts: Sequence[Draft],
        producer: str,
        first: int,
        epoch: int | None,
        command: CommandRecord | None,
    ) -> Appended:
        numbers = replace(session.numbers)
        tree = self._trees.setdefault(numbers.root_id, [])
        numbers.tree_pos = tree[-1].tree_pos if tree else 0
        events = seal(
            drafts,
            numbers,
            now=self._clock(),
            new_id=self._new_id,
            producer=producer,
            first=first,
            epoch=epoch,
        )
        session.numbers = numbers
        for event in events:
            session.events.append(event)
            self._fold(session, event)
            self._enter(session, event)
            if self._tree_projector is not None:
                self._tree_projector.fold(self._tree(numbers.root_id).state, event)
        tree.extend(events)
        session.producers[producer] = first + len(events) - 1
        self._record(command, numbers.session_id, numbers.seq)
        self._bell.ring(numbers.session_id, numbers.seq)
        return Appended(events, numbers.seq, session.producers[producer])

    def _fold(self, session: _Session, event: Event) -> None:
        def item(item_id: str) -> JSON | None:
            row = session.items.get(item_id)
            return row and copy_json(row.data)

        for item_id, data in self._projector.fold(session.view, event, item).items():
            before = session.items.get(item_id)
            pos = before.pos if before is not None else event.seq
            session.items[item_id] = ItemRow(item_id, pos, event.seq, copy_json(data))
            session.changed_here.add(item_id)

    # The ledger

    def _enter(self, session: _Session, event: Event) -> None:
        session.account = follow(session.account, event)
        call_id = call_of(event)
        if call_id is not None and event.session_id == session.numbers.session_id:
            key = event.session_id, call_id
            entry = enter(session.account, event, self._ledger.get(key))
            if entry is not None:
                self._ledger[key] = entry

    def _enter_anew(self, session: _Session) -> None:
        session_id = session.numbers.session_id
        self._ledger = {key: entry for key, entry in self._ledger.items() if key[0] != session_id}
        session.account = session.beginning
        for event in session.events[session.own_from - 1 :]:
            self._enter(session, event)

    def _amount(self, session: _Session, scope: CapScope, at: int) -> Amount:
        where = scope, place(scope, session.numbers.session_id, session.account, day_of(at))
        return total(amount_of(entry) for entry in self._ledger.values() if where in places_of(entry))

    def _refuse_over(self, session: _Session, drafts: Sequence[Draft], caps: Sequence[Cap]) -> None:
        session_id, at = session.numbers.session_id, max(self._clock(), session.numbers.at)
        fresh = {body.call_id: body for body in reversed(reservations(drafts))}
        asked = [body for call_id, body in fresh.items() if (session_id, call_id) not in self._ledger]
        refuse_over(caps, asked, session.account.billing, lambda scope: self._amount(session, scope, at))

    # Trees

    def _tree(self, root_id: str) -> _Tree:
        assert self._tree_projector is not None
        return self._states.setdefault(root_id, _Tree(self._tree_projector.empty(), None))

    def _refold_tree(self, root_id: str) -> None:
        if self._tree_projector is not None:
            tree = self._tree(root_id)
            tree.state = self._as_of(root_id, None)

    def _import_tree(self, session: _Session) -> None:
        """What can be folded: the prefix a fork brings along, and the events of its root that are here."""
        if self._tree_projector is None:
            return
        root_id = session.numbers.root_id
        tree = self._tree(root_id)
        if session.foreign_until:
            prefix = self._tree_projector.empty()
            for event in session.events[: session.foreign_until]:
                self._tree_projector.fold(prefix, event)
            tree.beginning = copy_json(prefix.dump())
        tree.state = self._as_of(root_id, None)

    def _as_of(self, root_id: str, pos: int | None) -> Any:
        assert self._tree_projector is not None
        beginning = self._tree(root_id).beginning
        state = (
            self._tree_projector.empty()
            if beginning is None
            else self._tree_projector.load(copy_json(beginning))
        )
        for event in sorted(self._trees.get(root_id, []), key=lambda event: event.tree_pos):
            if pos is None or event.tree_pos <= pos:
                self._tree_projector.fold(state, event)
        return state

    def _tree_as_of(self, session: _Session, seq: int) -> JSON:
        """The state of the tree that a session's event is of, as of that event."""
        assert self._tree_projector is not None
        event = session.events[seq - 1]
        if seq > session.foreign_until:
            return copy_json(self._as_of(event.root_id, event.tree_pos).dump())
        state = self._tree_projector.empty()
        for event in session.events[:seq]:
            self._tree_projector.fold(state, event)
        return copy_json(state.dump())

    # The last, for its name hides the builtin from the annotations that follow.
    async def list(self, query: ListQuery) -> tuple[list[JSON], str | None]:
        before = parse_cursor(query.cursor)
        limit = page_limit(query.limit)
        listed = [
            Listed(session_id, copy_json(session.view.columns()))
            for session_id, session in self._sessions.items()
            if not session.deleted
        ]
        listed.sort(key=lambda row: row.place, reverse=True)
        found = [row for row in listed if (before is None or row.place < before) and row.matches(query)]
        page = found[:limit]
        return [row.json() for row in page], page[-1].cursor() if len(found) > limit else None


def _copy_item(row: ItemRow) -> ItemRow:
    return replace(row, data=copy_json(row.data))
