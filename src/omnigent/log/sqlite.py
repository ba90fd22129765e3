"""The default log: one SQLite file, one writing thread, commits shared by all who wait.

Appends queue up; the thread takes all that wait, applies each in its own savepoint and commits once (WAL,
synchronous=FULL: durable before anyone is answered). Results return to the event loop in one call per commit.
Reads are small pages on the loop's own connection, which sees only what is committed.
"""

import asyncio
import heapq
import json
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnigent.errors import OmnigentError
from omnigent.events import JSON, Draft, Event
from omnigent.ids import Clock, NewId, new_id
from omnigent.log import books
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
from omnigent.log.file import open_database, take_lock, unusable
from omnigent.log.rows import (
    END,
    Layer,
    items_by_change,
    items_by_pos,
    layers_of,
    read_events,
    read_item,
    read_tree,
    tree_end,
)
from omnigent.log.rules import (
    MAX_PAGE,
    Listed,
    closed,
    no_session,
    page_limit,
    parse_cursor,
    refuse_cursor,
)
from omnigent.log.schema import migrate
from omnigent.log.writer import Writer, read_command
from omnigent.metering import Cap, CapScope, Spend

MAX_BATCH = 256
"""Jobs of one commit: bounds how long the first of them waits."""

MAX_TAIL = 1024
"""Events kept in memory for the followers of a session."""

MAX_SCAN = 2000
"""Sessions one page of a filtered list looks at."""


@dataclass(slots=True)
class _Job:
    """A write, and who waits for it. `run` None ends the thread."""

    run: Callable[[Writer], Any] | None
    future: asyncio.Future[Any] | None


@dataclass(slots=True)
class _Done:
    future: asyncio.Future[Any] | None
    result: Any = None
    error: BaseException | None = None


class SqliteLog:
    """One process per file: a second one is refused with `HomeUnusable` naming the first."""

    def __init__(
        self,
        path: Path,
        projector: Projector,
        clock: Clock,
        new_id: NewId = new_id,
        *,
        trees: TreeProjector | None = None,
    ) -> None:
        self._path = path
        self._projector = projector
        self._trees = trees
        self._lock = take_lock(path)
        try:
            self._db, self._reader = open_database(path), open_database(path)
            migrate(self._db, path)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise unusable(path, error) from error
        except BaseException:
            os.close(self._lock)
            raise
        self._writer = Writer(self._db, projector, trees, clock, new_id)
        self._overdue = [_refold(session_id) for session_id in self._writer.stale()]
        self._overdue += [_enter_anew(session_id) for session_id in self._writer.uncounted()]
        self._bell = Bell()
        self._tails: dict[str, list[Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._closing: asyncio.Future[Any] | None = None
        self._thread = threading.Thread(target=self._work, name="omnigent-log", daemon=True)
        self._thread.start()

    async def create(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        root_id: str | None = None,
        command: CommandRecord | None = None,
    ) -> Appended:
        return await self._submit(lambda writer: writer.create(session_id, drafts, root_id, command))

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
        return await self._submit(
            lambda writer: writer.append(
                session_id, drafts, producer, first, epoch, command, expect_head, caps
            )
        )

    async def fork(
        self,
        parent_id: str,
        at_seq: int,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        command: CommandRecord | None = None,
    ) -> Appended:
        return await self._submit(lambda writer: writer.fork(parent_id, at_seq, session_id, drafts, command))

    async def command(self, scope: str, key: str) -> CommandRecord | None:
        return read_command(self._reading(), scope, key)

    async def head(self, session_id: str) -> int:
        return self._head(session_id)

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
        db = self._reading()
        before = END if before is None else before
        return read_events(
            db,
            layers_of(db, session_id),
            after=after,
            before=before,
            limit=page_limit(limit),
            kinds=kinds,
            newest=newest,
        )

    async def read_tree(self, root_id: str, *, after: int = 0, limit: int = 200) -> list[Event]:
        db = self._reading()
        if not db.execute("SELECT 1 FROM event WHERE root_id = ? LIMIT 1", (root_id,)).fetchone():
            raise no_session(root_id)
        return read_tree(db, root_id, after, page_limit(limit))

    async def follow(self, session_id: str, after: int = 0) -> AsyncIterator[list[Event]]:
        layers = layers_of(self._reading(), session_id)
        refuse_cursor(session_id, after, self._head(session_id))
        try:
            with self._bell.watch(session_id) as watch:
                while self._closing is None:
                    batch = self._after(session_id, layers, after)
                    if batch:
                        after = batch[-1].seq
                        yield batch
                    elif not await self._bell.wait(watch, after):
                        return
        finally:
            if not self._bell.watched(session_id):
                self._tails.pop(session_id, None)

    async def view(self, session_id: str) -> Any:
        await self._fresh()
        text, version = self._view_row(session_id)
        if version != self._projector.version:
            # The rebuild at the start failed: do it again, for its error.
            await self._submit(_refold(session_id))
            text, _ = self._view_row(session_id)
        return self._projector.load(json.loads(text))

    async def tree(self, session_id: str) -> Any:
        if self._trees is None:
            raise LookupError("this log was opened without a tree projector")
        db = self._reading()
        row = db.execute(
            "SELECT root_id, tree.version, tree.tree_pos, state FROM session LEFT JOIN tree USING (root_id)"
            " WHERE id = ? AND deleted_at IS NULL",
            (session_id,),
        ).fetchone()
        if row is None:
            raise no_session(session_id)
        root_id, version, pos, text = row
        if version != self._trees.version or pos != tree_end(db, root_id):
            text = await self._submit(lambda writer: writer.tree(root_id))
        return self._trees.load(json.loads(text))

    async def family(self, session_id: str) -> str:
        self._head(session_id)
        return books.read_account(self._reading(), session_id).family

    async def spend(self, session_id: str, at: int) -> dict[CapScope, Spend]:
        await self._fresh()
        self._head(session_id)
        return books.read_spend(self._reading(), session_id, at)

    async def reserved(self, session_id: str) -> Sequence[str]:
        await self._fresh()
        self._head(session_id)
        return books.read_reserved(self._reading(), session_id)

    async def usage(
        self, by: UsageBy, since: int | None = None, until: int | None = None, session_id: str | None = None
    ) -> Sequence[JSON]:
        await self._fresh()
        if session_id is not None:
            self._head(session_id)
        return books.read_usage(self._reading(), by, since, until, session_id)

    async def item(self, session_id: str, item_id: str) -> ItemRow | None:
        await self._fresh()
        db = self._reading()
        return read_item(db, layers_of(db, session_id), item_id)

    async def items(
        self, session_id: str, *, before: int | None = None, limit: int = 50, changed_after: int | None = None
    ) -> list[ItemRow]:
        await self._fresh()
        db = self._reading()
        layers = layers_of(db, session_id)
        if changed_after is not None:
            return items_by_change(db, layers, changed_after, page_limit(limit))
        return items_by_pos(db, layers, END if before is None else before, page_limit(limit))

    async def open_items(self) -> list[tuple[str, ItemRow]]:
        await self._fresh()
        rows = self._reading().execute(
            "SELECT item.session_id, item_id, pos, view_seq, data"
            " FROM item JOIN session ON session.id = session_id"
            " WHERE open = 1 AND deleted_at IS NULL AND imported = 0 ORDER BY item.session_id, pos"
        )
        return [(row[0], ItemRow(row[1], row[2], row[3], json.loads(row[4]))) for row in rows.fetchall()]

    async def take_epoch(self, session_id: str) -> int:
        return await self._submit(lambda writer: writer.take_epoch(session_id))

    async def put_lease(self, lease: Lease) -> None:
        await self._submit(lambda writer: writer.put_lease(lease))

    async def drop_lease(self, session_id: str, epoch: int) -> None:
        await self._submit(lambda writer: writer.drop_lease(session_id, epoch))

    async def leases(self) -> list[Lease]:
        rows = self._reading().execute("SELECT * FROM lease ORDER BY session_id")
        return [Lease(*row) for row in rows.fetchall()]

    async def rebuild(self, session_id: str) -> None:
        layers_of(self._reading(), session_id)
        await self._submit(lambda writer: writer.rebuild(session_id))

    async def import_events(self, events: Sequence[Event], *, command: CommandRecord | None = None) -> str:
        return await self._submit(lambda writer: writer.import_events(events, command))

    async def delete(self, session_id: str) -> None:
        await self._submit(lambda writer: writer.delete(session_id))

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            self._loop = self._closing.get_loop()
            self._bell.close()
            self._jobs.put(_Job(None, self._closing))
        await asyncio.shield(self._closing)
        self._thread.join()
        self._reader.close()

    # On the event loop

    def _reading(self) -> sqlite3.Connection:
        if self._closing is not None:
            raise closed()
        return self._reader

    def _head(self, session_id: str) -> int:
        row = (
            self._reading()
            .execute("SELECT head FROM session WHERE id = ? AND deleted_at IS NULL", (session_id,))
            .fetchone()
        )
        if row is None:
            raise no_session(session_id)
        return row[0]

    def _view_row(self, session_id: str) -> tuple[str, int]:
        row = (
            self._reading()
            .execute("SELECT view, version FROM session WHERE id = ? AND deleted_at IS NULL", (session_id,))
            .fetchone()
        )
        if row is None:
            raise no_session(session_id)
        return row

    async def _submit[T](self, run: Callable[[Writer], T]) -> T:
        if self._closing is not None:
            raise closed()
        self._loop = self._loop or asyncio.get_running_loop()
        future = self._loop.create_future()
        self._jobs.put(_Job(run, future))
        return await future

    async def _fresh(self) -> None:
        """Wait until rows of older versions are made anew: the thread does that first."""
        if self._overdue:
            await self._submit(lambda _: None)
            self._overdue = []

    def _after(self, session_id: str, layers: Sequence[Layer], after: int) -> list[Event]:
        """The next page of a follower: from memory if it is near the head."""
        tail = self._tails.get(session_id)
        if tail and tail[0].seq <= after + 1:
            start = after + 1 - tail[0].seq
            return tail[start : start + MAX_PAGE]
        return read_events(self._reader, layers, after=after, before=END, limit=200)

    def _listed(self, archived: bool, before: tuple[int, str] | None) -> Iterator[Listed]:
        rows = self._reading().execute(
            "SELECT id, columns FROM session WHERE deleted_at IS NULL AND archived = ?"
            " AND (updated_at, id) < (?, ?) ORDER BY updated_at DESC, id DESC",
            (archived, *(before or (END, ""))),
        )
        try:
            for session_id, columns in rows:
                yield Listed(session_id, json.loads(columns))
        finally:
            rows.close()

    def _deliver(
        self, done: Sequence[_Done], news: Sequence[tuple[str, int, list[Event]]], gone: Sequence[str]
    ) -> None:
        """Answer those who waited for a commit, then wake the followers."""
        for item in done:
            if item.future is None or item.future.done():
                continue
            if item.error is not None:
                item.future.set_exception(item.error)
            else:
                item.future.set_result(item.result)
        for session_id, head, events in news:
            if self._bell.watched(session_id):
                self._remember(session_id, events)
                self._bell.ring(session_id, head)
        for session_id in gone:
            self._bell.gone(session_id)

    def _remember(self, session_id: str, events: list[Event]) -> None:
        tail = self._tails.setdefault(session_id, [])
        tail += events
        if len(tail) > 2 * MAX_TAIL:
            del tail[:-MAX_TAIL]

    # In the writing thread

    def _work(self) -> None:
        for run in self._overdue:
            self._commit([_Job(run, None)])
        while True:
            jobs = [self._jobs.get()]
            with suppress(queue.Empty):
                while len(jobs) < MAX_BATCH:
                    jobs.append(self._jobs.get_nowait())
            ends = [job for job in jobs if job.run is None]
            self._commit([job for job in jobs if job.run is not None])
            if ends:
                self._finish(ends[0].future)
                return

    def _commit(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        done: list[_Done] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                done.append(self._apply(job))
            self._writer.flush()
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            done = [_Done(job.future, error=unusable(self._path, error)) for job in jobs]
        news, gone = self._writer.take_news()
        self._call(self._deliver, done, news, gone)

    def _apply(self, job: _Job) -> _Done:
        """Run one job in its savepoint. A failure is its own, unless the disk's: then the batch fails."""
        assert job.run is not None
        self._db.execute("SAVEPOINT job")
        try:
            result = job.run(self._writer)
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is belongs to who asked
            self._db.execute("ROLLBACK TO job")
            self._db.execute("RELEASE job")
            if not isinstance(error, OmnigentError):
                self._writer.forget()
            return _Done(job.future, error=error)
        self._db.execute("RELEASE job")
        return _Done(job.future, result)

    def _undo(self) -> None:
        self._writer.forget()
        self._writer.take_news()
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _finish(self, future: asyncio.Future[Any] | None) -> None:
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._db.close()
        os.close(self._lock)
        # Jobs put after the end are answered, not left waiting.
        late: list[_Done] = []
        with suppress(queue.Empty):
            while True:
                late.append(_Done(self._jobs.get_nowait().future, error=closed()))
        self._call(self._deliver, [*late, _Done(future)], [], [])

    def _call(self, call: Callable[..., None], *args: Any) -> None:
        if self._loop is not None:
            # A loop that is gone has nobody waiting on it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *args)

    # The last, for its name hides the builtin from the annotations that follow.
    async def list(self, query: ListQuery) -> tuple[list[JSON], str | None]:
        before = parse_cursor(query.cursor)
        limit = page_limit(query.limit)
        archived = (False, True) if query.archived is None else (query.archived,)
        sources = [self._listed(flag, before) for flag in archived]
        found: list[JSON] = []
        last: Listed | None = None
        for scanned, row in enumerate(heapq.merge(*sources, key=lambda row: row.place, reverse=True)):
            if len(found) == limit or scanned == MAX_SCAN:
                return found, last and last.cursor()
            last = row
            if row.matches(query):
                found.append(row.json())
        return found, None


def _refold(session_id: str) -> Callable[[Writer], None]:
    return lambda writer: writer.refold(session_id)


def _enter_anew(session_id: str) -> Callable[[Writer], None]:
    return lambda writer: writer.enter_anew(session_id)
