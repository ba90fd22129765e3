"""What stands between a message and the agent's first word, over the agent alone.

Alone: its adapter over `open_agent` in this process, pointed straight at the scripted model, without server,
runner or gateway. Ours: from the first byte of the POST of the prompt to the first text delta on a stream.
"""

import asyncio
import os
import secrets
import time
from dataclasses import replace
from pathlib import Path

from http_calls import JSON, Caller, Follower, dial, follow, request_bytes
from measure import Figure, added
from servers import HARNESSES, KEY, MODELS, Model, OurServer, make_workspace, scratch

from omnigent import processes
from omnigent.events import TextPart, TurnCompleted, TurnFailed
from omnigent.harnesses import Emit, Gone, HarnessSession, Launch, Ready, Refuse, Say, StartTurn
from omnigent.harnesses._wire import open_agent
from omnigent.ids import new_id
from omnigent.registry import harness as find_harness

AGENTS = ("claude-code", "codex", "pi")
SCRIPT: JSON = {
    "turns": [{"steps": [{"text": "A few words that an agent streams to whoever listens. " * 4}]}]
}
PATIENCE = 60.0


def measure_tokens(quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    for name in ("scripted", "codex") if quick else ("scripted", *AGENTS):
        if name in AGENTS and not (HARNESSES / name).is_dir():
            figures.append(Figure(f"{name}: first token", "", "", "", "not installed: ./dev setup", False))
            continue
        with scratch() as place:
            figures += _agent(name, place, 3 if quick else 7, 6 if quick else 20)
    return figures


def _agent(name: str, place: Path, colds: int, warms: int) -> list[Figure]:
    model = Model(place, SCRIPT)
    server = OurServer(place / "ours", model.url)
    server.start()
    try:
        return asyncio.run(_compare(name, place, model.url, server, colds, warms))
    finally:
        server.stop()
        model.close()


async def _compare(
    name: str, place: Path, model_url: str, server: OurServer, colds: int, warms: int
) -> list[Figure]:
    cold: tuple[list[float], list[float]] = ([], [])
    warm: tuple[list[float], list[float]] = ([], [])
    for number in range(colds + 1):
        alone = Alone(name, place / f"alone-{number}", model_url)
        through = await Through.open(name, server)
        times = [await alone.open_and_ask(), await through.ask()]
        if number:  # the first fills the page cache
            for samples, took in zip(cold, times, strict=True):
                samples.append(took)
        if number == colds:
            for turn in range(warms + 2):
                times = [await alone.ask(), await through.ask()]
                if turn > 1:
                    for samples, took in zip(warm, times, strict=True):
                        samples.append(took)
        await alone.close()
        await through.close()
    return [added(f"{name}: warm first token", *warm, 15), added(f"{name}: cold first token", *cold, 300)]


class Alone:
    """The agent as its adapter drives it, and nothing else of ours."""

    def __init__(self, name: str, place: Path, model_url: str) -> None:
        self._harness = find_harness(name)
        wire = {"messages": "anthropic-messages", "responses": "openai-responses"}[MODELS[name][0]]
        assert wire == "anthropic-messages" or wire == "openai-responses"
        for folder in ("private", "home", "tmp"):
            (place / folder).mkdir(parents=True, mode=0o700)
        home = place / "omnigent"
        home.mkdir()
        (home / "harnesses").symlink_to(HARNESSES)
        self._launch = Launch(
            session_id=new_id("ses"),
            run=new_id("run"),
            workspace=make_workspace(place / "workspace"),
            private=place / "private",
            binary=self._harness.locate(home),
            model=MODELS[name][1],
            wire=wire,
            gateway_url=model_url if wire == "anthropic-messages" else f"{model_url}/v1",
            placeholder=KEY,
            environment={
                "PATH": os.environ["PATH"],
                "HOME": str(place / "home"),
                "TMPDIR": str(place / "tmp"),
                "LANG": "C.UTF-8",
            },
        )
        marker = f"{self._launch.session_id}:1"
        self._launch = replace(
            self._launch, environment={**self._launch.environment, processes.MARKER: marker}
        )
        self._session: HarnessSession | None = None
        self._listener: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._first: asyncio.Future[float] | None = None
        self._ended = asyncio.Event()

    async def open_and_ask(self) -> float:
        """Milliseconds from nothing to the first word."""
        began = time.perf_counter()
        spec = await asyncio.to_thread(self._harness.prepare, self._launch)
        self._session = await open_agent(spec, self._harness.translator(self._launch, new_id))
        self._listener = asyncio.create_task(self._listen(self._session))
        await asyncio.wait_for(self._ready.wait(), PATIENCE)
        return await self._ask(began)

    async def ask(self) -> float:
        """The same from an agent that runs."""
        return await self._ask(time.perf_counter())

    async def _ask(self, began: float) -> float:
        assert self._session is not None
        self._ended.clear()
        self._first = asyncio.get_running_loop().create_future()
        await self._session.send(StartTurn(new_id("turn"), new_id("msg"), (TextPart(text="Say something."),)))
        at = await asyncio.wait_for(self._first, PATIENCE)
        await asyncio.wait_for(self._ended.wait(), PATIENCE)
        return (at - began) * 1000

    async def _listen(self, session: HarnessSession) -> None:
        async for output in session.outputs():
            match output:
                case Ready():
                    self._ready.set()
                case Say(_, "text", _) if self._first is not None and not self._first.done():
                    self._first.set_result(time.perf_counter())
                case Emit(body=TurnCompleted()):
                    self._ended.set()
                case Emit(body=TurnFailed() as failed):
                    self._fail(RuntimeError(f"the turn failed: {failed.detail}"))
                case Refuse(_, detail):
                    self._fail(RuntimeError(detail))
                case Gone(_, tail):
                    self._fail(RuntimeError(f"the agent ended: {tail[-500:]}"))
                case _:
                    pass

    def _fail(self, error: Exception) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)

    async def close(self) -> None:
        if self._session is not None and self._listener is not None:
            await self._session.close()
            await self._listener


class Through:
    """A session of the server, a follower on it, and the words in between."""

    def __init__(self, server: OurServer, session: str, caller: Caller) -> None:
        self._server = server
        self._session = session
        self._caller = caller
        self._follower: Follower | None = None
        self._first: asyncio.Future[float] | None = None
        self._ended = asyncio.Event()
        self._rest = b""

    @classmethod
    async def open(cls, name: str, server: OurServer) -> "Through":
        """A session that has no agent yet, on a server that is ready to start one."""
        caller = await dial(server.port)
        connection = server.connect()
        body = {
            "harness": name,
            "workspace": str(server.workspace),
            "title": "first token",
            "approvals": "ask",
        }
        session: str = connection.call("POST", "/v1/sessions", body, secrets.token_hex(8))["id"]
        connection.close()
        through = cls(server, session, caller)
        through._follower = await follow(server.port, server.token, session, 1, through._look)
        await asyncio.to_thread(server.warm)
        return through

    def _look(self, data: bytes, at: float) -> None:
        whole = self._rest + data
        if b'"stream":"text"' in whole and self._first is not None and not self._first.done():
            self._first.set_result(at)
        if b'"kind":"turn.completed"' in whole:
            self._ended.set()
        if b'"kind":"turn.failed"' in whole and self._first is not None and not self._first.done():
            self._first.set_exception(RuntimeError(f"the turn failed: {data[-1000:].decode()}"))
        self._rest = data[-25:]

    async def ask(self) -> float:
        """Milliseconds from the prompt's POST to the first delta."""
        self._rest = b""
        self._ended.clear()
        self._first = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await self._command({"type": "prompt", "text": "Say something."})
        at = await asyncio.wait_for(self._first, PATIENCE)
        await asyncio.wait_for(self._ended.wait(), PATIENCE)
        return (at - began) * 1000

    async def _command(self, body: JSON) -> None:
        path = f"/v1/sessions/{self._session}/commands"
        body = {**body, "idempotency_key": secrets.token_hex(8)}
        await self._caller.call(request_bytes(self._server.token, "POST", path, body))

    async def close(self) -> None:
        await self._command({"type": "close"})
        if self._follower is not None:
            self._follower.close()
        self._caller.close()
