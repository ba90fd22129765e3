"""The SQLite log: the suite, and what only a file can do."""

import asyncio
import os
import resource
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from omnigent.errors import Draining, HomeUnusable, NewerHome, Unprocessable
from omnigent.events import JSON, Event
from omnigent.log import (
    Appended,
    CommandRecord,
    Lease,
    ListQuery,
    Log,
    Projector,
    SqliteLog,
    TreeProjector,
    open_log,
)
from omnigent.testing.log_suite import (
    DEADLINE,
    Hands,
    LogSuite,
    SuiteProjector,
    SuiteView,
    asked,
    busy_session,
    check_dense,
    check_folded,
    created,
    forked,
    read_all,
    said,
)


class TestSqliteLog(LogSuite):
    @pytest.fixture
    async def log(
        self, tmp_path: Path, projector: Projector, trees: TreeProjector, clock: Hands
    ) -> AsyncIterator[Log]:
        log = SqliteLog(tmp_path / "omnigent.db", projector, clock, trees=trees)
        yield log
        await log.close()


pytestmark = pytest.mark.anyio


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await busy_session(log, "ses_a", 150)
    events = await read_all(log, "ses_a")
    await log.fork("ses_a", 100, "ses_f", [forked("ses_a", events[99]), said("own", "msg_0")])
    epoch = await log.take_epoch("ses_a")
    lease = Lease("ses_a", epoch, "run_1", 7, 8, "ab")
    await log.put_lease(lease)
    command = CommandRecord("ses_a", "key", "sha", {})
    await log.append("ses_a", [said("1"), said("2")], producer="run_1", first=1, epoch=epoch, command=command)
    before = [await read_all(log, "ses_a"), await read_all(log, "ses_f")]
    inbox = await log.open_items()
    await log.close()

    log = open_log(tmp_path, SuiteProjector(), Hands())
    assert [await read_all(log, "ses_a"), await read_all(log, "ses_f")] == before
    assert await log.leases() == [lease]
    assert await log.open_items() == inbox
    again = await log.append("ses_a", [said("1"), said("2")], producer="run_1", first=1, command=command)
    assert again.replay is not None
    again = await log.append("ses_a", [said("2"), said("3")], producer="run_1", first=2, epoch=epoch)
    assert [event.producer_seq for event in again.events] == [3]
    for session_id in ("ses_a", "ses_f"):
        check_dense(await read_all(log, session_id))
        await check_folded(log, session_id)
    await log.close()


async def test_those_who_wait_share_a_commit(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await log.create("ses_a", [created()])
    follower = cast(Any, log.follow("ses_a"))
    await anext(follower)
    async with asyncio.TaskGroup() as tasks:
        for number in range(400):
            tasks.create_task(log.append("ses_a", [said(f"{number}")]))
        batches: list[int] = []
        with anyio.fail_after(DEADLINE):
            while sum(batches) < 400:
                batches.append(len(await anext(follower)))
    # A follower wakes once per commit.
    assert len(batches) < 40
    await log.close()


async def test_a_closed_log_says_so(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await log.create("ses_a", [created()])
    last = asyncio.create_task(log.append("ses_a", [said("queued before the end")]))
    await asyncio.gather(log.head("ses_a"), last)
    await log.close()
    await log.close()
    for call in (log.head("ses_a"), log.append("ses_a", [said("x")]), log.read("ses_a")):
        with pytest.raises(Draining):
            await call


# The home.


async def test_a_home_has_one_process(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    with pytest.raises(HomeUnusable, match=f"{tmp_path} is in use by process {os.getpid()}"):
        open_log(tmp_path, SuiteProjector(), Hands())
    other = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys, pathlib; from omnigent.log import open_log\n"
        "from omnigent.testing.log_suite import SuiteProjector, Hands\n"
        "open_log(pathlib.Path(sys.argv[1]), SuiteProjector(), Hands())",
        str(tmp_path),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await other.communicate()
    assert f"in use by process {os.getpid()}" in stderr.decode()
    await log.close()
    await open_log(tmp_path, SuiteProjector(), Hands()).close()


async def test_an_unusable_home_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(HomeUnusable, match=str(missing)) as caught:
        open_log(missing, SuiteProjector(), Hands())
    assert f"mkdir -p {missing}" in caught.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeUnusable, match="Not a directory"):
        open_log(tmp_path / "file", SuiteProjector(), Hands())
    (tmp_path / "omnigent.db").mkdir()
    with pytest.raises(HomeUnusable, match="Is a directory"):
        open_log(tmp_path, SuiteProjector(), Hands())


async def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "omnigent.db").write_bytes(b"not a database" * 1000)
    for _ in range(2):  # the lock was let go
        with pytest.raises(HomeUnusable, match=r"omnigent\.db: file is not a database"):
            open_log(tmp_path, SuiteProjector(), Hands())


async def test_a_newer_home_is_refused_unchanged(tmp_path: Path) -> None:
    await open_log(tmp_path, SuiteProjector(), Hands()).close()
    with sqlite3.connect(tmp_path / "omnigent.db") as db:
        db.execute("INSERT INTO schema VALUES (99)")
    db.close()
    for _ in range(2):
        with pytest.raises(NewerHome, match="schema 99"):
            open_log(tmp_path, SuiteProjector(), Hands())


async def test_the_home_is_private(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        log = open_log(tmp_path, SuiteProjector(), Hands())
        await log.create("ses_a", [created()])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        await log.close()
    finally:
        os.umask(umask)
    assert set(modes) == {"omnigent.db", "omnigent.db-wal", "omnigent.db-shm", "omnigent.lock"}
    assert set(modes.values()) == {0o600}


# Faults.


@contextmanager
def files_of_at_most(size: int) -> Generator[None]:
    """Writes beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_fails_those_who_wait_and_nothing_is_half_there(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await log.create("ses_a", [created()])
    follower = cast(Any, log.follow("ses_a"))
    seen: list[Event] = list(await anext(follower))
    stored: list[Event] = list(seen)
    failed = 0
    wal = (tmp_path / "omnigent.db-wal").stat().st_size
    with files_of_at_most(wal + 200_000):
        while not failed:
            results = await asyncio.gather(
                *(log.append("ses_a", [said("x" * 5000, f"msg_{number}")]) for number in range(5)),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    assert isinstance(result, HomeUnusable)
                    assert str(tmp_path / "omnigent.db") in result.detail
                    failed += 1
                else:
                    stored += result.events
    assert await read_all(log, "ses_a") == stored
    stored += (await log.append("ses_a", [said("there is room again", "msg_0")])).events
    with anyio.fail_after(DEADLINE):
        while len(seen) < len(stored):
            seen += await anext(follower)
    assert seen == stored
    check_dense(stored)
    await check_folded(log, "ses_a")
    await log.close()


class Fragile(SuiteProjector):
    """Chokes on some texts, after it has changed the view."""

    def fold(self, view: SuiteView, event: Event, item: Callable[[str], JSON | None]) -> dict[str, JSON]:
        changed = super().fold(view, event, item)
        if "poison" in event.body_text:
            raise RuntimeError("a bug in the fold")
        if "venom" in event.body_text:
            raise Unprocessable("a fold that refuses")
        return changed


@pytest.mark.parametrize(("text", "error"), [("poison", RuntimeError), ("venom", Unprocessable)])
async def test_a_fold_that_fails_spoils_no_other(tmp_path: Path, text: str, error: type[Exception]) -> None:
    log = open_log(tmp_path, Fragile(), Hands())
    await log.create("ses_a", [created()])
    results = await asyncio.gather(
        log.append("ses_a", [said("one")]),
        log.append("ses_a", [said("two"), said(text)]),
        log.append("ses_a", [said("three")]),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [Appended, error, Appended]
    assert await log.head("ses_a") == 3
    check_dense(await read_all(log, "ses_a"))
    await check_folded(log, "ses_a")
    await log.close()


class Second(SuiteProjector):
    """A later version of the fold: its views have another title."""

    version = 2

    def fold(self, view: SuiteView, event: Event, item: Callable[[str], JSON | None]) -> dict[str, JSON]:
        changed = super().fold(view, event, item)
        view.title = f"second {event.seq}"
        return changed


async def test_rows_of_another_fold_are_made_anew(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await busy_session(log, "ses_a", 150)
    events = await read_all(log, "ses_a")
    await log.fork("ses_a", 100, "ses_f", [forked("ses_a", events[99]), said("own", "msg_0")])
    await log.fork("ses_f", 101, "ses_g", [asked("ap_g")])
    await log.close()

    log = open_log(tmp_path, Second(), Hands())
    assert (await log.view("ses_f")).title == "second 102"
    rows, _ = await log.list(ListQuery())
    assert {row["id"]: row["title"] for row in rows} == {
        "ses_a": "second 150",
        "ses_f": "second 102",
        "ses_g": "second 102",
    }
    await log.append("ses_a", [said("on", "msg_0")])
    await log.fork("ses_a", 77, "ses_h", [])
    assert (await log.view("ses_h")).title == "second 77"
    await log.close()


async def test_stored_rows_are_the_same_after_a_rebuild(tmp_path: Path) -> None:
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await busy_session(log, "ses_a", 300)
    events = await read_all(log, "ses_a")
    await log.fork("ses_a", 200, "ses_f", [forked("ses_a", events[199])])
    for number in range(100):
        await log.append("ses_f", [said(f"{number}", f"msg_{number % 9}"), asked(f"ap_f{number}")])

    def rows() -> list[list[Any]]:
        db = sqlite3.connect(tmp_path / "omnigent.db")
        found = [
            sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for table in ("session", "item", "event", "producer", "segment")
        ]
        db.close()
        return found

    live = rows()
    for session_id in ("ses_f", "ses_a"):
        await log.rebuild(session_id)
    assert rows() == live
    assert all(len(table) for table in live)
    await log.close()
