"""A decision over the link: a runner tells of a tool call, the server stores it, decides and answers.

The bench is the runner: it comes to the hub's socket as one that was leased before. Fifty rules, a session of
ten thousand events, SQLite on disk. The floor is the same frame echoed over a Unix socket.
"""

import asyncio
import hashlib
import os
import tempfile
import time
from pathlib import Path

import uvloop
from decisions import LONG, RULES, RULES_TEXT
from measure import Figure, Spread

from omnigent import events as ev
from omnigent import frames, processes
from omnigent.audit import Audit
from omnigent.blobs import Blobs
from omnigent.config import Config, ConfigFile
from omnigent.events import JSON, Draft
from omnigent.house import House
from omnigent.ids import new_id, now
from omnigent.link import RunnerHub, socket_path
from omnigent.log import Lease, SqliteLog
from omnigent.policies.folding import TreeProjector
from omnigent.policies.language import parse
from omnigent.rulebook import Rulebook
from omnigent.session import Session
from omnigent.shell import understand
from omnigent.trees import Trees
from omnigent.views import SessionProjector

P50_MS = 3.0
SESSION, RUN, TOKEN = "ses_bench", "run_bench", "bench"


def measure_gate(quick: bool) -> list[Figure]:
    samples = 60 if quick else 400
    with tempfile.TemporaryDirectory() as place:
        floor, ours = asyncio.run(_measure(Path(place), samples), loop_factory=uvloop.new_event_loop)
    spread = Spread.of(ours)
    return [
        Figure(
            f"a decision over the link, {RULES} rules, {LONG} events",
            Spread.of(floor).text("ms"),
            spread.text("ms"),
            f"{spread.median / Spread.of(floor).median:.1f}×",
            f"< {P50_MS:g} ms",
            spread.median < P50_MS,
            blocks=True,
        )
    ]


async def _measure(home: Path, samples: int) -> tuple[list[float], list[float]]:
    (home / "run").mkdir()
    log = SqliteLog(home / "omnigent.db", SessionProjector(), now, trees=TreeProjector())
    number = await _prepare(log, home)
    audit = Audit(home, log, now)
    house = House(
        home, ConfigFile(home, Config()), log, Blobs(home), _Nobody(), now, new_id, {},
        trees=Trees(log), audit=audit, rulebook=Rulebook(audit.log),
    )  # fmt: skip
    session: Session | None = None

    async def listen(session_id: str) -> Session:
        assert session is not None
        return session

    hub = RunnerHub(home, log, house.blobs, {}, listen)
    house.runners = hub
    session = Session(house, await log.view(SESSION))
    await hub.start()
    runner = await _Runner.connect(home, number)
    floor, ours = await _echoes(home, samples), [await runner.ask() for _ in range(samples)]
    runner.close()
    await hub.close()
    await log.close()
    await audit.close()
    return floor, ours


class _Nobody:
    """Until the hub is there."""

    async def launch(self, session_id: str, frame: JSON) -> None:
        raise NotImplementedError

    def send(self, session_id: str, frame: JSON) -> None:
        pass

    def state(self, session_id: str) -> str:
        return "none"


async def _prepare(log: SqliteLog, home: Path) -> int:
    """A session with a past; how many events its runner has told."""
    created = ev.SessionCreated(
        title="",
        harness="scripted",
        model=None,
        provider=None,
        workspace=str(home),
        approvals="ask",
        owner="o",
    )
    rules = ev.PolicyChanged(policies=parse(RULES_TEXT, "bench", "session"))
    started = ev.TurnStarted(trigger="prompt")
    await log.create(SESSION, [Draft(created), Draft(rules), Draft(started, turn_id="turn_1")])
    told = 0
    while told < LONG:
        batch = [draft for n in range(told, told + 200, 2) for draft in (_call(home, n), _done(n))]
        await log.append(SESSION, batch, producer=RUN)
        told += len(batch)
    epoch = await log.take_epoch(SESSION)
    started_at = processes.start_time(os.getpid()) or 0
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    await log.put_lease(Lease(SESSION, epoch, RUN, os.getpid(), started_at, digest))
    return told


def _call(home: Path, n: int) -> Draft:
    actions, parsed = understand(f"ls -la part{n % 1000}", home, home)
    body = ev.ToolRequested(
        tool="bash", title="ls", actions=tuple(actions), parsed=parsed, raw="{}", native_id=str(n)
    )
    return Draft(body, f"tc_{n}", turn_id="turn_1")


def _done(n: int) -> Draft:
    return Draft(ev.ToolCompleted(outcome="ok", exit_code=0), f"tc_{n}", turn_id="turn_1")


class _Runner:
    def __init__(
        self, home: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self._home = home
        self._reader = reader
        self._writer = writer
        self._number = number

    @classmethod
    async def connect(cls, home: Path, number: int) -> "_Runner":
        reader, writer = await asyncio.open_unix_connection(socket_path(home))
        runner = cls(home, reader, writer, number)
        hello = {"type": "hello", "token": TOKEN, "pid": os.getpid(), "session_id": SESSION, "run": RUN}
        writer.write(frames.pack(hello | {"epoch": 1, "harness": "scripted"}))
        await runner._until("resume")
        synced: JSON = {"type": "synced", "seen": [], "held": [], "questions": [], "calls": [], "ready": True}
        writer.write(frames.pack(synced))
        return runner

    async def ask(self) -> float:
        """Milliseconds until the verdict on one more call."""
        n = self._number
        call = _call(self._home, n)
        began = time.perf_counter()
        self._tell(call)
        await self._until("command")
        took = (time.perf_counter() - began) * 1000
        await self._until("ack")
        self._tell(_done(n))
        await self._until("ack")
        return took

    def _tell(self, draft: Draft) -> None:
        self._number += 1
        raw = frames.pack_draft(draft, agent=True)
        self._writer.write(
            frames.pack({"type": "events", "first": self._number, "drafts": [raw], "blobs": {}})
        )

    async def _until(self, type_: str) -> None:
        while (frame := await frames.read_frame(self._reader)) is not None:
            if frame["type"] == type_:
                return
        raise AssertionError("the hub closed the link")

    def close(self) -> None:
        self._writer.close()


async def _echoes(home: Path, samples: int) -> list[float]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (frame := await frames.read_frame(reader)) is not None:
            writer.write(frames.pack(frame))
        writer.close()

    server = await asyncio.start_unix_server(echo, home / "echo.sock")
    reader, writer = await asyncio.open_unix_connection(home / "echo.sock")
    raw = frames.pack_draft(_call(home, 0), agent=True)
    frame = frames.pack({"type": "events", "first": 1, "drafts": [raw], "blobs": {}})
    found: list[float] = []
    for _ in range(samples):
        began = time.perf_counter()
        writer.write(frame)
        await frames.read_frame(reader)
        found.append((time.perf_counter() - began) * 1000)
    writer.close()
    server.close()
    return found
