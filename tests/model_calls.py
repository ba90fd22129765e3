"""A model provider that answers as told, a gateway before it, and a meter that keeps what it hears."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from omnigent.gateway import Gateway
from omnigent.harnesses import Wire
from omnigent.metering import Grant, ModelCall, Refused, Usage
from omnigent.providers import Upstream

TOKEN = "placeholder-1"
NOW = 1_760_000_000_000
PATHS: dict[Wire, str] = {
    "anthropic-messages": "/v1/messages",
    "openai-responses": "/responses",
    "openai-chat": "/chat/completions",
}
BODIES: dict[Wire, dict[str, Any]] = {
    "anthropic-messages": {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": []},
    "openai-responses": {"model": "gpt-5.5", "input": "hello"},
    "openai-chat": {"model": "gpt-5.5", "messages": []},
}


@dataclass(slots=True)
class Answer:
    """What a provider answers: `pieces` one by one, then an end, a break, or nothing more."""

    pieces: list[bytes] = field(default_factory=lambda: [b"{}"])
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    then: str = "end"


class Provider:
    """Answers everything with `answer`; `seen` is what left the gateway."""

    def __init__(self) -> None:
        self.url = ""
        self.answer = Answer()
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.left = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((headers, await request.read()))
        answer = self.answer
        if answer.then == "drop":
            assert request.transport
            request.transport.abort()
            raise asyncio.CancelledError
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        for piece in answer.pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        if answer.then == "break":
            assert request.transport
            request.transport.abort()
        elif answer.then == "hang":
            try:
                await asyncio.Future[None]()
            finally:
                self.left.set()
        return response


class Book:
    """A meter that grants `grant` and writes everything down."""

    def __init__(self) -> None:
        self.grant = Grant("granted")
        self.open = asyncio.Event()
        self.open.set()
        self.calls: list[ModelCall] = []
        self.settled: list[tuple[str, Usage | None]] = []
        self.refusals: list[tuple[str, Refused, int | None, str]] = []

    async def reserve(self, call: ModelCall) -> Grant:
        self.calls.append(call)
        await self.open.wait()
        return self.grant

    def settle(self, call_id: str, usage: Usage | None) -> None:
        self.settled.append((call_id, usage))

    def refused(self, call_id: str, kind: Refused, until: int | None, detail: str) -> None:
        self.refusals.append((call_id, kind, until, detail))

    @property
    def usage(self) -> Usage | None:
        """Of the only call, which was settled once, under its own id."""
        ((call_id, usage),) = self.settled
        assert [call.call_id for call in self.calls] == [call_id]
        return usage


@dataclass(slots=True)
class Scene:
    wire: Wire
    provider: Provider
    book: Book
    gateway: Gateway
    client: aiohttp.ClientSession

    def post(self, body: object = None, **headers: str) -> Any:
        """A call that generates, to be awaited or entered."""
        sent = body if isinstance(body, bytes) else json.dumps(body or BODIES[self.wire]).encode()
        url = self.gateway.url(self.wire) + PATHS[self.wire]
        return self.client.post(
            url, data=io.BytesIO(sent), headers={"authorization": f"Bearer {TOKEN}", **headers}
        )

    async def call(self, body: object = None, **headers: str) -> tuple[int, bytes]:
        async with self.post(body, **headers) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def scene(wire: Wire) -> AsyncGenerator[Scene]:
    provider, book = Provider(), Book()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", provider.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    upstream = Upstream(wire, provider.url, {"authorization": "Bearer real"})
    listener = socket.create_server(("127.0.0.1", 0))
    gateway = Gateway(upstream, TOKEN, listener, book, clock=lambda: NOW)
    await gateway.start()
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as client:
            yield Scene(wire, provider, book, gateway, client)
    finally:
        await gateway.close()
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is another connection
            await asyncio.sleep(0.005)
