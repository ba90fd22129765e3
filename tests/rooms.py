"""A real runner process on a real link: session, log and hub in the test's process, the agent below it."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from omnigent import commands, processes
from omnigent import events as ev
from omnigent.audit import Audit
from omnigent.blobs import Blobs
from omnigent.config import Config, ConfigFile, HarnessDefaults, Key, Provider, RunnerSettings
from omnigent.events import JSON, Actor, Approvals, Draft, Event
from omnigent.house import House
from omnigent.ids import new_id, now
from omnigent.link import RunnerHub
from omnigent.log import MemoryLog
from omnigent.policies.folding import TreeProjector
from omnigent.rulebook import Rulebook
from omnigent.session import Session
from omnigent.testing.scripted_model import ScriptedModel
from omnigent.trees import Trees
from omnigent.views import SessionProjector

ANN = Actor(kind="person", id="ann", via="cli")
KEY = "real-key-0123456789"
SESSION = f"ses_room{os.getpid()}"
"""Its own in each worker: what carries the marker of a session that ended is killed, wherever it runs."""
DEADLINE = 15.0


async def eventually(look: Callable[[], Any], what: str) -> None:
    """Until `look` answers true. Fails after the deadline."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + DEADLINE
    while not look():
        assert loop.time() < limit, f"{what}: not within {DEADLINE} s"
        await asyncio.sleep(0.02)


class Room:
    """One session with its runner. `leave` and `come_back` are a server's end and next start."""

    def __init__(self, home: Path, model: ScriptedModel, runner: RunnerSettings) -> None:
        lab = Provider(api="anthropic-messages", base_url=model.url, key=Key(secret="lab"))
        self.home, self.model = home, model
        self.config = Config(
            providers={"lab": lab}, runner=runner, harnesses={"scripted": HarnessDefaults(model="m1")}
        )
        self.log = MemoryLog(SessionProjector(), now, trees=TreeProjector())
        self.blobs = Blobs(home)
        self.deltas: list[str] = []
        self.hub: RunnerHub
        self.session: Session
        self.keys = 0

    async def open(self, approvals: Approvals) -> None:
        (self.home / "secrets").mkdir(parents=True)
        (self.home / "secrets" / "lab").write_text(KEY)
        (self.home / "work").mkdir()
        body = ev.SessionCreated(
            title="",
            harness="scripted",
            model="m1",
            provider="lab",
            workspace=str(self.home / "work"),
            approvals=approvals,
            owner="local",
        )
        await self.log.create(SESSION, [Draft(body)])
        await self.come_back()

    async def come_back(self) -> None:
        environ = dict(os.environ)
        self.hub = RunnerHub(self.home, self.log, self.blobs, environ, self._listen)
        house = House(
            self.home,
            ConfigFile(self.home, self.config),
            self.log,
            self.blobs,
            self.hub,
            now,
            new_id,
            environ,
            trees=Trees(self.log),
            audit=Audit(self.home, self.log, now),
            rulebook=Rulebook(MemoryLog(SessionProjector(), now)),
        )
        self.session = Session(house, await self.log.view(SESSION))
        await self.hub.start()

    async def leave(self) -> None:
        await self.hub.close()

    async def _listen(self, session_id: str) -> Session:
        await self.log.head(session_id)  # `NotFound` once it is deleted
        return self.session

    async def do(self, type_: str, **fields: Any) -> JSON:
        self.keys += 1
        raw = {"type": type_, "idempotency_key": f"k{self.keys}", **fields}
        answer, _ = await self.session.submit(commands.COMMAND.validate_python(raw), ANN)
        return answer

    async def until(self, kind: str, count: int = 1) -> Event:
        """The `count`-th event of a kind, once it is there. Keeps what deltas came meanwhile."""
        found: list[Event] = []
        async with asyncio.timeout(DEADLINE):
            async with aclosing(cast(Any, self.session.follow(0))) as follower:
                async for frames in follower:
                    self.deltas += [frame.delta.text for frame in frames if frame.delta]
                    found += [frame.event for frame in frames if frame.event and frame.event.kind == kind]
                    if len(found) >= count:
                        return found[count - 1]
        raise AssertionError("the follower ended")

    async def events(self) -> list[Event]:
        events = await self.log.read(SESSION, limit=1000)
        assert ev.verify(events) is None
        return events

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.events()]

    async def runner(self) -> processes.Process:
        (lease,) = await self.log.leases()
        return lease.pid, lease.pid_started

    @property
    def spawner(self) -> int:
        """What runners are forked from. Fails if there is none."""
        pid = self.hub._spawner.pid  # pyright: ignore[reportPrivateUsage] - who else would know
        assert pid is not None
        return pid

    async def agent(self) -> list[processes.Process]:
        """What carries the session's marker."""
        (lease,) = await self.log.leases()
        return processes.carrying(f"{SESSION}:{lease.epoch}")

    async def close(self) -> None:
        for lease in await self.log.leases():
            processes.kill_tree(lease.pid)
        if self.hub.live():
            await asyncio.wait_for(self.hub.nobody(), DEADLINE)
        await self.hub.close()
        await self.log.close()


@asynccontextmanager
async def open_room(
    home: Path, script: JSON, approvals: Approvals = "yes", **runner: float
) -> AsyncGenerator[Room]:
    async with ScriptedModel(script, require_key=KEY) as model:
        room = Room(home, model, RunnerSettings.model_validate(runner))
        await room.open(approvals)
        try:
            yield room
        finally:
            await room.close()


def plays(*steps: JSON) -> JSON:
    """A script that plays these steps for every prompt."""
    return {"default": list(steps)}


def runs(command: str) -> JSON:
    """A step that runs a shell command."""
    return {"tools": [{"tool": "bash", "input": {"command": command}}]}
