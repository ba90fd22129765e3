"""The log as it is meant: plain lists in one process. Nothing is kept after it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omnigent.errors import Malformed
from omnigent.events import JSON, Draft, Event
from omnigent.ids import Clock, NewId, new_id
from omnigent.log.bell import Bell
from omnigent.log.contract import Appended, CommandRecord, ItemRow, Lease, ListQuery, Projector
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


class MemoryLog:
    """The reference: every other log must answer as this one does (`LogSuite`)."""

    def __init__(self, projector: Projector, clock: Clock, new_id: NewId = new_id) -> None:
        self._projector = projector
        self._clock = clock
        self._new_id = new_id
        self._sessions: dict[str, _Session] = {}
        self._trees: dict[str, list[Event]] = {}
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
    ) -> Appended:
        session = self._session(session_id)
        replayed = self._replay(command)
        if replayed is not None:
            return replayed
        refuse_append(session_id, session.imported, session.numbers.seq, session.epoch, epoch, expect_head)
        last = session.producers.get(producer, 0)
        drafts = unseen(drafts, first, last)
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
            self._trees.setdefault(last.root_id, []).extend(own)
            self._sessions[last.session_id] = session
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
