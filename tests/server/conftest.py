"""A real server of a fresh home on a free port, in this process, and a client of it."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn

from omnigent.config import parse_config
from omnigent.ids import new_id, now
from omnigent.server import build_app
from omnigent.server.devices import Devices
from omnigent.sessions import Sessions

DEADLINE = 30.0

CONFIG = {
    "providers": {
        "lab": {"api": "anthropic-messages", "base_url": "http://127.0.0.1:9", "key": {"env": "K"}}
    },
    "defaults": {"harness": "scripted", "scripted": {"provider": "lab", "model": "m-1"}},
}


@dataclass
class Served:
    """A running server. `stopped` holds what its `stop` was told."""

    sessions: Sessions
    devices: Devices
    app: Any
    url: str
    token: str
    home: Path
    workspace: Path
    client: aiohttp.ClientSession
    stopped: list[bool]

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON). A header name's underscores are hyphens."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Authorization": f"Bearer {self.token}"} | given
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        stream = None if data is None else io.BytesIO(data)
        async with self.client.request(method, self.url + path, data=stream, headers=sent) as response:
            text = await response.read()
            return response.status, json.loads(text) if text.startswith((b"{", b"[")) else text

    async def session(self, **fields: Any) -> dict[str, Any]:
        """A new session without a turn."""
        body = {"workspace": str(self.workspace), **fields}
        status, session = await self.ask("POST", "/v1/sessions", body, Idempotency_Key=new_id("cmd"))
        assert status == 201, session
        return session

    @asynccontextmanager
    async def stream(self, path: str, **headers: str) -> AsyncGenerator["Messages"]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"} | given
        async with self.client.get(self.url + path, headers=sent) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield Messages(response.content)


class Messages:
    """The messages of a stream, one at a time, each awaited for at most ten seconds."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    async def next(self) -> tuple[str, Any, str | None]:
        """(event, data, id); `closed` when the server closed it."""
        event, data, number = "", None, None
        while True:
            line = (await asyncio.wait_for(self._content.readline(), 10)).decode()
            if not line:
                return "closed", None, None
            if line == "\n":
                return event, data, number
            name, _, value = line.rstrip("\n").partition(": ")
            if not name and value:
                event = "comment"
            elif name == "event":
                event = value
            elif name == "data":
                data = json.loads(value)
            elif name == "id":
                number = value

    async def until(self, event: str) -> list[tuple[str, Any, str | None]]:
        """Messages up to and with the first of this kind."""
        found = [await self.next()]
        while found[-1][0] not in (event, "closed"):
            found.append(await self.next())
        assert found[-1][0] == event, found
        return found


@asynccontextmanager
async def serving(
    home: Path, workspace: Path, config: dict[str, Any] | None = None
) -> AsyncGenerator[Served]:
    parsed = parse_config(config or dict(CONFIG))
    sessions = await Sessions.open(home, parsed, {"K": "key"}, now, new_id)
    devices = Devices(home, now, new_id)
    stopped: list[bool] = []
    app = build_app(sessions, devices, stopped.append)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = uvicorn.Config(
        app, ws="none", lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(settings)
    running = asyncio.get_running_loop().create_task(server.serve([listener]))
    try:
        async with aiohttp.ClientSession() as client:
            token = (home / "token").read_text().strip()
            yield Served(sessions, devices, app, url, token, home, workspace, client, stopped)
    finally:
        app.state.room.streams.end("shutdown")
        server.should_exit = True
        await running
        listener.close()
        await sessions.drain()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    home, workspace = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    workspace.mkdir()
    async with serving(home, workspace) as server:
        yield server


def server_command(home: Path, *more: str) -> list[str]:
    return [sys.executable, "-P", "-m", "omnigent.server", "--home", str(home), *more]


@contextmanager
def server_process(
    home: Path, *more: str, **environ: str
) -> Generator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server that answers, and what it wrote about itself."""
    process = subprocess.Popen(
        server_command(home, *more), stderr=subprocess.PIPE, text=True, env=dict(os.environ) | environ
    )
    try:
        yield process, _record(home, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _record(home: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    path = home / "server.json"
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads(path.read_bytes())
