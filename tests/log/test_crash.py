"""The writing process is killed at random moments: what it acknowledged is there, and all of it is sound."""

import asyncio
import random
import sys
from pathlib import Path

import anyio
import pytest

from omnigent.ids import now
from omnigent.log import ListQuery, Log, open_log
from omnigent.testing.log_suite import SuiteProjector, check_dense, check_folded, read_all

pytestmark = pytest.mark.anyio

WRITER = Path(__file__).with_name("crash_writer.py")


async def write_and_kill(home: Path, run: int, lines: int) -> list[str]:
    """Run a writer until it has said so many lines, kill it, and give all it said."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, str(WRITER), str(home), str(run), stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    said: list[str] = []
    try:
        with anyio.fail_after(30):
            while len(said) < lines and (line := await writer.stdout.readline()):
                said.append(line.decode().strip())
    finally:
        writer.kill()
    said += (await writer.stdout.read()).decode().splitlines()
    assert await writer.wait() == -9
    return [line for line in said if line != "ready"]


async def check(log: Log, acknowledged: list[str]) -> int:
    """Everything acknowledged is stored under the seq it was told; every session is whole."""
    rows, cursor = await log.list(ListQuery(limit=1000))
    assert cursor is None
    stored: dict[tuple[str, str, int], int] = {}
    for row in rows:
        session_id = row["id"]
        events = await read_all(log, session_id)
        check_dense(events)
        await check_folded(log, session_id)
        for event in events:
            if event.session_id == session_id:
                stored[session_id, event.producer, event.producer_seq] = event.seq
    for line in acknowledged:
        session_id, producer, producer_seq, seq = line.split()
        assert stored[session_id, producer, int(producer_seq)] == int(seq)
    return len(stored)


async def crash(home: Path, rounds: int, lines: int) -> None:
    dice = random.Random()
    stored = 0
    for number in range(rounds):
        acknowledged = await write_and_kill(home, number, dice.randrange(1, lines))
        log = open_log(home, SuiteProjector(), now)
        grown = await check(log, acknowledged)
        await log.close()
        assert grown >= stored + len(acknowledged)
        stored = grown


async def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    await crash(tmp_path, rounds=5, lines=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_often_killed_writers_lose_nothing(tmp_path: Path) -> None:
    for number in range(2):  # a home that grows costs a check of the whole each round: several small ones
        home = tmp_path / str(number)
        home.mkdir()
        await crash(home, rounds=5, lines=150)
