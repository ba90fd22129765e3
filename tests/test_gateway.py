"""The model gateway: what goes through, what doesn't, and who sees which key."""

import asyncio
import gzip
import io
import json
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from omnigent.gateway import Gateway
from omnigent.harnesses import Wire
from omnigent.providers import Upstream

pytestmark = pytest.mark.anyio

KEY = "real-key-of-the-person"
TOKEN = "placeholder-1"
ANTHROPIC = {"x-api-key": TOKEN}
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Provider:
    """A tiny upstream that keeps what it got and answers as told."""

    def __init__(self) -> None:
        self.url = ""
        self.act = ""
        """How it answers."""
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.path_qs, headers, await request.read()))
        match self.act:
            case "stream":
                return await self.stream(request)
            case "break":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"half")
                assert request.transport
                request.transport.abort()
                return response
            case "zipped":
                return web.Response(body=gzip.compress(b"plain"), headers={"content-encoding": "gzip"})
            case "moved":
                return web.Response(status=307, headers={"location": "http://127.0.0.1:1/elsewhere"})
            case _:
                return web.Response(
                    status=429, text='{"mine": 1}', headers={"retry-after": "7", "x-own": "a"}
                )

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        await response.write(b"data: 2\n\n")
        return response


@asynccontextmanager
async def provider() -> AsyncGenerator[Provider]:
    it = Provider()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", it.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield it
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway(upstream: Upstream) -> AsyncGenerator[tuple[Gateway, aiohttp.ClientSession]]:
    it = Gateway(upstream, TOKEN, socket.create_server(("127.0.0.1", 0)))
    await it.start()
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as client:
            yield it, client
    finally:
        await it.close()


def to(it: Provider, wire: Wire = "anthropic-messages", path: str = "", **query: str) -> Upstream:
    headers = {"x-api-key": KEY} if wire == "anthropic-messages" else {"authorization": f"Bearer {KEY}"}
    return Upstream(wire, it.url + path, headers, query)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is another connection
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("shown", [ANTHROPIC, BEARER])
async def test_bytes_go_through_untouched_and_the_key_is_exchanged(shown: dict[str, str]) -> None:
    body = b'{"a":  1.50, "\xc3\xa4": "\\u00e4"}' + b" " * 3_000_000
    async with provider() as up, gateway(to(up)) as (it, client):
        url = it.url("anthropic-messages") + "/v1/messages?beta=true&x=%2F"
        headers = {**shown, "anthropic-version": "2023-06-01", "connection": "x-hop", "x-hop": "1"}
        async with client.post(URL(url, encoded=True), data=io.BytesIO(body), headers=headers) as answer:
            assert (answer.status, await answer.read()) == (429, b'{"mine": 1}')
            assert (answer.headers["retry-after"], answer.headers["x-own"]) == ("7", "a")
        ((method, path, seen, got),) = up.seen
    assert (method, path, got) == ("POST", "/v1/messages?beta=true&x=%2F", body)
    assert seen["x-api-key"] == KEY
    assert seen["anthropic-version"] == "2023-06-01"
    assert seen["content-length"] == str(len(body))
    assert "authorization" not in seen
    assert "x-hop" not in seen
    assert TOKEN not in json.dumps(seen)


@pytest.mark.parametrize(
    ("base", "rest", "reaches"),
    [
        ("/v1", "/responses", "/v1/responses?api=2"),
        ("/v1", "/v1/responses", "/v1/responses?api=2"),
        ("/serving/endpoints", "/chat/completions?a=1", "/serving/endpoints/chat/completions?a=1&api=2"),
    ],
)
async def test_base_urls_and_queries_are_joined(base: str, rest: str, reaches: str) -> None:
    wire: Wire = "openai-chat" if "chat" in rest else "openai-responses"
    async with provider() as up, gateway(to(up, wire, base, api="2")) as (it, client):
        async with client.post(it.url(wire) + rest, data=b"{}", headers=BEARER):
            pass
        assert up.seen[0][1] == reaches
        assert up.seen[0][2]["authorization"] == f"Bearer {KEY}"


async def test_a_stream_is_not_buffered_and_encodings_stay() -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        url = it.url("anthropic-messages") + "/v1/messages"
        up.act = "stream"
        async with client.post(url, data=b"{}", headers=ANTHROPIC) as answer:
            assert await answer.content.readline() == b"data: 1\n"
            assert it.in_flight == 1
            up.go_on.set()
            assert b"data: 2" in await answer.read()
        await until(lambda: it.in_flight == 0)
        assert it.last_activity > 0
        up.act = "zipped"
        async with client.post(url, data=b"{}", headers=ANTHROPIC) as answer:
            assert answer.headers["content-encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == b"plain"


async def test_a_client_that_leaves_ends_the_call() -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        up.act = "stream"
        url = it.url("anthropic-messages") + "/v1/messages"
        answer = await client.post(url, data=b"{}", headers=ANTHROPIC)
        await answer.content.readline()
        answer.close()
        await asyncio.wait_for(up.left.wait(), 5)
        await until(lambda: it.in_flight == 0)


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", b"{}"), ("/v1/models", None)])
async def test_an_answer_that_breaks_is_seen_to_break(path: str, body: bytes | None) -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        up.act = "break"
        url = it.url("anthropic-messages") + path
        async with client.request(
            "GET" if "models" in path else "POST", url, data=body, headers=ANTHROPIC
        ) as answer:
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
        await until(lambda: it.in_flight == 0)


async def test_the_key_does_not_follow_a_redirect() -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        up.act = "moved"
        base = it.url("anthropic-messages")
        async with client.get(f"{base}/v1/models", headers=ANTHROPIC, allow_redirects=False) as answer:
            assert (answer.status, len(up.seen)) == (307, 1)
        url = f"{base}/v1/messages"
        async with client.post(url, data=b"{}", headers=ANTHROPIC, allow_redirects=False) as answer:
            assert (answer.status, len(up.seen)) == (307, 2)


@pytest.mark.parametrize("shown", [{}, {"x-api-key": KEY}, {"authorization": "Bearer other"}])
async def test_another_key_is_refused_in_the_vendors_form(shown: dict[str, str]) -> None:
    async with provider() as up:
        async with gateway(to(up)) as (it, client):
            async with client.post(it.url("anthropic-messages") + "/v1/messages", headers=shown) as answer:
                assert answer.status == 401
                error = await answer.json()
            assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")
        async with (
            gateway(to(up, "openai-chat", "/v1")) as (it, client),
            client.post(it.url("openai-chat") + "/chat/completions", headers=shown) as answer,
        ):
            assert answer.status == 401
            assert (await answer.json())["error"]["code"] == "invalid_api_key"
        assert up.seen == []


@pytest.mark.parametrize(
    "path", ["/m/openai-chat/chat/completions", "/", "/m/anthropic-messages/%2e%2e/x", "/m"]
)
async def test_other_paths_are_not_found(path: str) -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        base = it.url("anthropic-messages").removesuffix("/m/anthropic-messages")
        async with client.get(URL(base + path, encoded=True), headers=ANTHROPIC) as answer:
            assert answer.status == 404
        assert up.seen == []


async def test_an_unreachable_provider_is_named_without_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    base_url = f"http://me:pw@127.0.0.1:{port}/v1"
    upstream = Upstream("openai-responses", base_url, {"authorization": f"Bearer {KEY}"})
    assert KEY not in repr(upstream)
    async with gateway(upstream) as (it, client):
        async with client.post(
            it.url("openai-responses") + "/responses", data=b"{}", headers=BEARER
        ) as answer:
            text = await answer.text()
        assert answer.status == 502
        assert f"http://127.0.0.1:{port}/v1" in json.loads(text)["error"]["message"]
        assert KEY not in text + repr(it) + repr(vars(it))
        assert "pw" not in text


async def test_while_held_calls_wait_and_then_go_or_are_refused() -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        url = it.url("anthropic-messages") + "/v1/messages"

        async def call() -> int:
            async with client.post(url, data=b"{}", headers=ANTHROPIC) as answer:
                return answer.status

        it.hold()
        first = asyncio.create_task(call())
        await until(lambda: it.in_flight == 1)
        assert up.seen == []
        it.release()
        assert await first == 429
        it.hold()
        second = asyncio.create_task(call())
        await until(lambda: it.in_flight == 1)
        it.refuse()
        assert await second == 503
        assert await call() == 503
        assert len(up.seen) == 1


async def test_closing_ends_what_is_open() -> None:
    async with provider() as up, gateway(to(up)) as (it, client):
        up.act = "stream"
        url = it.url("anthropic-messages") + "/v1/messages"
        answer = await client.post(url, data=b"{}", headers=ANTHROPIC)
        await answer.content.readline()
        await asyncio.wait_for(it.close(), 5)
        await asyncio.wait_for(up.left.wait(), 5)
