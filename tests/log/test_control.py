"""Trees and the ledger in the SQLite log: what only a file can do."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from omnigent.errors import Unprocessable
from omnigent.events import Event
from omnigent.log import Log, MemoryLog, SqliteLog, open_log
from omnigent.log.schema import MIGRATIONS
from omnigent.testing.control_suite import (
    DOLLAR,
    check_tree,
    read_whole_tree,
    reported,
    reserved,
    started,
)
from omnigent.testing.log_rig import (
    Hands,
    SuiteMemory,
    SuiteProjector,
    SuiteTrees,
    busy_session,
    created,
    forked,
    raw_event,
    read_all,
    said,
)

pytestmark = pytest.mark.anyio

OLD_TABLES = ("session", "event", "producer", "segment", "item", "snapshot", "command", "lease")
DERIVED = ("tree_snapshot", "account", "ledger", "spend")


def open_here(home: Path, trees: SuiteTrees | None = None) -> Log:
    return open_log(home, SuiteProjector(), Hands(), trees=trees or SuiteTrees())


def rows_of(home: Path, *tables: str) -> dict[str, list[Any]]:
    with sqlite3.connect(home / "omnigent.db") as db:
        found = {table: sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
    db.close()
    return found


async def fill(log: Log) -> None:
    """A tree of two, a fork of it that spends too, a fork and a child of the fork, an import."""
    await busy_session(log, "ses_a", 150)
    await log.append("ses_a", [started(metering="gateway"), reported("call_1", DOLLAR), reserved("call_2")])
    await log.create("ses_child", [created(), reported("call_1", 5)], root_id="ses_a")
    for session_id, fork_id, at in (("ses_a", "ses_f", 100), ("ses_f", "ses_g", 102)):
        events = await read_all(log, session_id)
        await log.fork(session_id, at, fork_id, [forked(session_id, events[at - 1])])
        await log.append(fork_id, [said(f"{number}") for number in range(70)])
        await log.append(fork_id, [reported("call_9", 7), reported("call_10", None)])
    await log.create("ses_near", [created()], root_id="ses_f")
    await log.delete("ses_child")
    await log.import_events([raw_event("ses_far", 1, "0" * 64, created().body)])


async def tree_events(log: Log) -> dict[str, list[Event]]:
    """What each tree of `fill` remembers."""
    a, f, g = [await read_whole_tree(log, root) for root in ("ses_a", "ses_f", "ses_g")]
    return {"ses_a": a, "ses_f": a[:100] + f, "ses_g": a[:100] + f[:2] + g}


async def check_all(log: Log) -> None:
    for session_id, events in (await tree_events(log)).items():
        await check_tree(log, session_id, events)


async def test_it_is_there_after_reopening(tmp_path: Path) -> None:
    log = open_here(tmp_path)
    await fill(log)
    spend, usage = await log.spend("ses_g", Hands()()), await log.usage("session")
    await log.close()
    log = open_here(tmp_path)
    await check_all(log)
    assert (await log.spend("ses_g", Hands()()), await log.usage("session")) == (spend, usage)
    assert spend["family"].nanousd == 2 * DOLLAR + 5 + 14
    await log.append("ses_a", [said("on"), reported("call_2", 1)])
    await check_all(log)
    assert (await log.spend("ses_g", Hands()()))["family"].nanousd == DOLLAR + 5 + 14 + 1
    await log.close()


async def test_stored_rows_are_the_same_after_a_rebuild(tmp_path: Path) -> None:
    log = open_here(tmp_path)
    await fill(log)
    live = rows_of(tmp_path, *DERIVED)
    assert all(live.values())
    for session_id in ("ses_g", "ses_f", "ses_a", "ses_far"):
        await log.rebuild(session_id)
    assert rows_of(tmp_path, *DERIVED) == live
    await check_all(log)
    await log.close()


async def test_the_sums_are_those_of_the_rows(tmp_path: Path) -> None:
    log = open_here(tmp_path)
    await fill(log)
    await log.close()
    with sqlite3.connect(tmp_path / "omnigent.db") as db:
        for scope, key in (
            ("session", "session_id"),
            ("family", "family"),
            ("user_day", "day_utc || ' ' || owner"),
            ("project_month", "substr(day_utc, 1, 7) || ' ' || project"),
        ):
            summed = db.execute(
                f"SELECT {key}, sum(iif(state = 'settled', coalesce(nano_usd, 0), 0)),"
                " sum(iif(state = 'reserved', coalesce(nano_usd, 0), 0)),"
                f" sum(nano_usd IS NULL) FROM ledger GROUP BY {key} ORDER BY {key}"
            ).fetchall()
            kept = db.execute(
                "SELECT key, settled, reserved, unknown FROM spend WHERE scope = ? ORDER BY key", (scope,)
            ).fetchall()
            assert kept == summed
    db.close()


# Versions.


def make_first_schema(home: Path, old: Path) -> None:
    """The database of `home` as the first schema had it: the tables it knew, with what they hold."""
    with sqlite3.connect(old / "omnigent.db") as db:
        MIGRATIONS[0](db)
        db.execute("CREATE TABLE schema (number INTEGER PRIMARY KEY)")
        db.execute("INSERT INTO schema VALUES (1)")
        db.commit()
        db.execute("ATTACH ? AS new", (str(home / "omnigent.db"),))
        for table in OLD_TABLES:
            order = (
                "" if table in ("producer", "segment", "snapshot", "command", "lease") else "ORDER BY rowid"
            )
            db.execute(f"INSERT INTO {table} SELECT * FROM new.{table} {order}")
    db.close()


async def test_a_database_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    home, old = tmp_path / "home", tmp_path / "old"
    home.mkdir()
    old.mkdir()
    log = open_here(home)
    await fill(log)
    usage = await log.usage("session")
    await log.close()
    make_first_schema(home, old)
    log = open_here(old)
    assert await log.usage("session") == usage
    for session_id in ("ses_a", "ses_f", "ses_g", "ses_near"):
        assert await log.family(session_id) == "ses_a"
    assert await log.family("ses_far") == "ses_far"
    await check_all(log)
    await log.append("ses_g", [said("on")])
    await check_all(log)
    await log.rebuild("ses_f")
    await log.tree("ses_far")
    await log.close()
    for table in ("account", "ledger", "spend"):
        assert rows_of(old, table) == rows_of(home, table)


async def test_a_first_schemas_fork_counts_in_its_family_at_once(tmp_path: Path) -> None:
    home, old = tmp_path / "home", tmp_path / "old"
    home.mkdir()
    old.mkdir()
    log = open_here(home)
    await log.create("ses_a", [created(), reported("call_1", DOLLAR)])
    await log.fork("ses_a", 1, "ses_f", [])
    await log.close()
    make_first_schema(home, old)
    log = open_here(old)
    await log.append("ses_f", [reported("call_1", 3)])
    assert (await log.spend("ses_f", Hands()()))["project_month"].nanousd == DOLLAR + 3
    await log.close()


class SecondTrees(SuiteTrees):
    """A later version of the fold: it remembers other things."""

    version = 2

    def fold(self, state: SuiteMemory, event: Event) -> None:
        state.kinds[f"second {event.kind}"] = state.kinds.get(f"second {event.kind}", 0) + 1


async def test_another_version_remembers_anew(tmp_path: Path) -> None:
    log = open_here(tmp_path)
    await fill(log)
    await log.close()
    log = open_here(tmp_path, SecondTrees())
    memory = await log.tree("ses_g")
    assert memory.digest == ""
    assert sum(memory.kinds.values()) == 102 + 73
    await log.append("ses_a", [said("on")])
    assert sum((await log.tree("ses_a")).kinds.values()) == len(await read_whole_tree(log, "ses_a"))
    await log.fork("ses_a", 77, "ses_h", [])
    assert sum((await log.tree("ses_h")).kinds.values()) == 77
    await log.close()
    log = open_here(tmp_path)
    await check_all(log)
    await log.close()


async def test_what_was_written_without_a_projector_is_caught_up(tmp_path: Path) -> None:
    log = open_here(tmp_path)
    await log.create("ses_a", [created()])
    await log.close()
    log = open_log(tmp_path, SuiteProjector(), Hands())
    await log.append("ses_a", [said(f"{number}") for number in range(100)])
    with pytest.raises(LookupError, match="without a tree projector"):
        await log.tree("ses_a")
    await log.close()
    log = open_here(tmp_path)
    await check_tree(log, "ses_a", await read_all(log, "ses_a"))
    await log.fork("ses_a", 70, "ses_f", [])
    await check_tree(log, "ses_f", (await read_all(log, "ses_a"))[:70])
    await log.close()
    with pytest.raises(LookupError):
        await MemoryLog(SuiteProjector(), Hands()).tree("ses_a")


# Faults.


class Choking(SuiteTrees):
    """Fails on some texts, half way through."""

    def fold(self, state: SuiteMemory, event: Event) -> None:
        super().fold(state, event)
        if "poison" in event.body_text:
            raise RuntimeError("a bug in the fold")
        if "venom" in event.body_text:
            raise Unprocessable("a fold that refuses")


class Unwritable(SuiteTrees):
    """Makes a state that is no JSON."""

    def fold(self, state: SuiteMemory, event: Event) -> None:
        super().fold(state, event)
        if "poison" in event.body_text:
            state.kinds["poison"] = object()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("text", "error"), [("poison", RuntimeError), ("venom", Unprocessable)])
async def test_a_fold_that_fails_refuses_its_append_alone(
    tmp_path: Path, text: str, error: type[Exception]
) -> None:
    log = open_here(tmp_path, Choking())
    await log.create("ses_a", [created()])
    await log.append("ses_a", [said("one")])
    with pytest.raises(error):
        await log.append("ses_a", [said("two"), said(text), reported("call_1")])
    await log.append("ses_a", [said("three")])
    events = await read_all(log, "ses_a")
    assert len(events) == 3
    await check_tree(log, "ses_a", events)
    assert await log.usage("model") == []
    await log.close()


async def test_a_state_that_can_not_be_written_costs_no_event(tmp_path: Path) -> None:
    log = open_here(tmp_path, Unwritable())
    await log.create("ses_a", [created()])
    await log.create("ses_b", [created()])
    await log.append("ses_a", [said("poison")])
    await log.append("ses_a", [said("after")])
    await log.append("ses_b", [said("x")])
    assert len(await read_all(log, "ses_a")) == 3
    await check_tree(log, "ses_b", await read_all(log, "ses_b"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        await log.tree("ses_a")
    await log.close()
    log = open_here(tmp_path)
    await check_tree(log, "ses_a", await read_all(log, "ses_a"))
    await log.close()


# Lengths.


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_long_tree_costs_what_a_short_one_does(tmp_path: Path) -> None:
    log = open_here(tmp_path)
    times: dict[int, float] = {}
    for size in (100, 50_000):
        root = f"ses_{size}"
        await log.create(root, [created()])
        for start in range(0, size, 100):
            await log.append(root, [said("x")] * 95 + [reported(f"call_{start}_{n}", 3) for n in range(5)])
        samples: list[float] = []
        for number in range(20):
            began = time.perf_counter()
            await log.tree(root)
            await log.spend(root, Hands()())
            await log.fork(root, size - 37, f"{root}_{number}", [])
            samples.append(time.perf_counter() - began)
        times[size] = sorted(samples)[5]
        assert (await log.spend(root, Hands()()))["session"].nanousd == size // 20 * 3
    assert times[50_000] < 3 * times[100] + 0.002
    await log.close()


async def test_both_files_may_be_in_one_home(tmp_path: Path) -> None:
    one = SqliteLog(tmp_path / "omnigent.db", SuiteProjector(), Hands())
    other = SqliteLog(tmp_path / "audit.db", SuiteProjector(), Hands())
    assert {path.name for path in tmp_path.glob("*.lock")} == {"omnigent.lock", "audit.lock"}
    await one.close()
    await other.close()
