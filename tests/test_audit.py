"""The audit log: everything noted is there, chained; noting it costs nobody anything."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omnigent import events as ev
from omnigent.audit import HOUSE, Audit
from omnigent.errors import NotFound
from omnigent.events import Draft
from omnigent.log import Log, SqliteLog
from omnigent.testing.log_rig import (
    Hands,
    SuiteProjector,
    created,
    forked,
    read_all,
    said,
    too_large_a_number,
)

pytestmark = pytest.mark.anyio


def decided(call_id: str) -> Draft:
    return Draft(ev.AuditDecided(call_id=call_id, actions=(), verdict="allow", facts=("no rule spoke",)))


def refused() -> Draft:
    return Draft(ev.AccessRefused(what="POST /v1/policies", reason="asked from inside an agent", pid=7))


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    log = SqliteLog(tmp_path / "omnigent.db", SuiteProjector(), Hands())
    yield log
    await log.close()


@pytest.fixture
async def audit(tmp_path: Path, log: Log) -> AsyncIterator[Audit]:
    audit = Audit(tmp_path, log, Hands())
    yield audit
    await audit.close()


def edit(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute(statement).rowcount == 1
    db.close()


async def notes(home: Path, session_id: str) -> list[ev.Event]:
    """What a closed audit log holds."""
    lines = await exported(home, session_id)
    return [ev.parse_event(json.dumps(line["event"])) for line in lines if line["log"] == "audit"]


async def exported(home: Path, session_id: str) -> list[ev.JSON]:
    log = SqliteLog(home / "omnigent.db", SuiteProjector(), Hands())
    audit = Audit(home, log, Hands())
    try:
        return [json.loads(line) for line in (await audit.export(session_id)).splitlines()]
    finally:
        await audit.close()
        await log.close()


async def test_nothing_noted_opens_nothing(tmp_path: Path, log: Log) -> None:
    audit = Audit(tmp_path, log, Hands())
    await log.create("ses_a", [created()])
    chain = {"events": 1, "broken_at": None}
    assert await audit.verify("ses_a") == {"ok": True, "session": chain, "audit": None}
    await audit.close()
    assert not (tmp_path / "audit.db").exists()


async def test_what_is_noted_is_chained_per_session(audit: Audit, log: Log) -> None:
    await log.create("ses_a", [created(), said("x")])
    await asyncio.gather(
        *(audit.note("ses_a", [decided(f"call_{number}"), decided("again")]) for number in range(50)),
        *(audit.note("ses_b", [decided(f"call_{number}")]) for number in range(50)),
        audit.note(HOUSE, [refused()]),
    )
    sound = {"events": 100, "broken_at": None}
    assert await audit.verify("ses_a") == {
        "ok": True,
        "session": {"events": 2, "broken_at": None},
        "audit": sound,
    }
    assert (await audit.verify("ses_b"))["audit"] == {"events": 50, "broken_at": None}
    assert await audit.verify(HOUSE) == {
        "ok": True,
        "session": None,
        "audit": {"events": 1, "broken_at": None},
    }
    with pytest.raises(NotFound):
        await audit.verify("ses_c")
    with pytest.raises(NotFound):
        await audit.export("ses_c")


async def test_noting_waits_for_nothing(audit: Audit, tmp_path: Path) -> None:
    """Not for the disk, not even for the file to be made."""
    for number in range(100):
        noting = audit.note("ses_a", [decided(f"call_{number}")])
        with pytest.raises(StopIteration):
            noting.send(None)  # a coroutine that never waited
    assert not (tmp_path / "audit.db").exists()
    await audit.flush()
    assert (await audit.verify("ses_a"))["audit"]["events"] == 100


async def test_an_export_is_both_logs_and_verifies_by_itself(audit: Audit, log: Log) -> None:
    await log.create("ses_a", [created()])
    await log.append("ses_a", [said("héllo \u2028 🎈")])
    (first, *_) = await read_all(log, "ses_a")
    await log.fork("ses_a", 2, "ses_f", [forked("ses_a", first)])
    await audit.note("ses_f", [decided("call_1"), refused()])
    lines = (await audit.export("ses_f")).decode().split("\n")[:-1]
    found: dict[str, list[ev.Event]] = {"session": [], "audit": []}
    for line in lines:
        name, text = line.removeprefix('{"log":"').split('","event":', 1)
        found[name].append(ev.parse_event(text[:-1]))
    assert found["session"] == await read_all(log, "ses_f")
    assert [event.kind for event in found["audit"]] == ["audit.decided", "access.refused"]
    assert isinstance(found["audit"][0].body, ev.AuditDecided)
    assert ev.verify(found["session"]) is None
    assert ev.verify(found["audit"]) is None


@pytest.mark.parametrize(
    ("file", "statement", "broken"),
    [
        ("omnigent.db", "UPDATE event SET body = replace(body, 'text 3', 'text 4') WHERE seq = 4", "session"),
        (
            "omnigent.db",
            "UPDATE event SET actor = replace(actor, 'system', 'agent') WHERE seq = 4",
            "session",
        ),
        ("audit.db", "UPDATE event SET body = replace(body, 'allow', 'deny') WHERE seq = 4", "audit"),
        ("audit.db", "DELETE FROM event WHERE seq = 4", "audit"),
        ("audit.db", "DELETE FROM event WHERE seq = 6", "audit"),
    ],
)
async def test_a_change_is_found(
    audit: Audit, log: Log, tmp_path: Path, file: str, statement: str, broken: str
) -> None:
    await log.create("ses_a", [created(), *(said(f"text {number}") for number in range(1, 6))])
    await audit.note("ses_a", [decided(f"call_{number}") for number in range(6)])
    assert (await audit.verify("ses_a"))["ok"]
    edit(tmp_path / file, statement)
    found = await audit.verify("ses_a")
    seq = 6 if "seq = 6" in statement else 4
    assert (found["ok"], found[broken]["broken_at"]) == (False, seq)
    assert found["audit" if broken == "session" else "session"]["broken_at"] is None


async def test_a_close_writes_what_waits_and_it_goes_on(tmp_path: Path, log: Log) -> None:
    for start in (0, 40):
        audit = Audit(tmp_path, log, Hands())
        for number in range(start, start + 40):
            await audit.note("ses_a", [decided(f"call_{number}")])
        await audit.close()
    await log.close()
    found = await notes(tmp_path, "ses_a")
    assert [event.body.call_id for event in found if isinstance(event.body, ev.AuditDecided)] == [
        f"call_{number}" for number in range(80)
    ]
    assert ev.verify(found) is None


async def test_what_does_not_fit_is_counted(tmp_path: Path, log: Log) -> None:
    audit = Audit(tmp_path, log, Hands(), max_waiting=10)
    for number in range(25):
        await audit.note("ses_a", [decided(f"call_{number}"), decided("again")])
    await audit.flush()
    await audit.note("ses_a", [decided("later")])
    await audit.close()
    await log.close()
    found = await notes(tmp_path, "ses_a")
    assert [event.kind for event in found] == ["audit.decided"] * 10 + ["audit.dropped", "audit.decided"]
    assert found[10].body == ev.AuditDropped(events=40)


async def test_what_can_not_be_stored_costs_only_itself(tmp_path: Path, log: Log) -> None:
    audit = Audit(tmp_path, log, Hands())
    await audit.note("ses_a", [decided("call_1"), too_large_a_number(), decided("call_2")])
    await audit.close()
    await log.close()
    kinds = [event.kind for event in await notes(tmp_path, "ses_a")]
    assert kinds == ["audit.decided", "audit.decided", "audit.dropped"]


async def test_a_file_that_can_not_be_opened_stops_nobody(tmp_path: Path, log: Log) -> None:
    (tmp_path / "audit.db").mkdir()
    audit = Audit(tmp_path, log, Hands())
    await audit.note("ses_a", [decided("call_1")])
    await audit.flush()
    await audit.note("ses_a", [decided("call_2"), decided("call_3")])
    await audit.flush()
    (tmp_path / "audit.db").rmdir()
    await audit.note("ses_a", [decided("call_4")])
    await audit.close()
    await log.close()
    found = await notes(tmp_path, "ses_a")
    assert [event.kind for event in found] == ["audit.decided", "audit.dropped"]
    assert found[1].body == ev.AuditDropped(events=3)
    assert ev.verify(found) is None
