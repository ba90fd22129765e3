"""The gateway's server: who may call, what waits, what is handed on, what is counted."""

import asyncio
import hmac
import io
import json
import logging
import socket
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from omnigent.events import JSON
from omnigent.gateway.reading import open_reading
from omnigent.gateway.refusal import Refusal, denied, error, paused, understand
from omnigent.gateway.request import Asked, Unreadable, read_request
from omnigent.gateway.routes import Route, find_route
from omnigent.gateway.tally import Tally, open_tally
from omnigent.harnesses import Wire
from omnigent.ids import Clock, NewId, new_id, now
from omnigent.metering import Free, Grant, Meter
from omnigent.providers import Upstream

LARGEST_REQUEST = 64 * 1024 * 1024

_CREDENTIALS = frozenset({"authorization", "x-api-key", "api-key", "proxy-authorization"})
# RFC 9110 7.6.1, and what each of our two connections has of its own.
_HOP_BY_HOP = frozenset(
    {"connection", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
) | {"upgrade"}
# What aiohttp would add by itself to a request that lacks it.
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
# Of a body that was read whole, and unpacked in doing so.
_OF_THE_BODY = ("content-length", "content-encoding", "accept-encoding")
_CONNECT_SECONDS = 30.0
_SHUTDOWN_SECONDS = 0.5
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
_PAUSED = "Paused: a limit of this session is reached. Omnigent goes on when it is raised."
_DENIED = "This model call is not allowed by this session's policies."


class Gateway:
    """A server between `start` and `close`. `token` is the placeholder; `listen_socket` is bound and becomes
    the gateway's own. A call that generates is reserved with the `meter` before it leaves, then settled."""

    def __init__(
        self,
        upstream: Upstream,
        token: str,
        listen_socket: socket.socket,
        meter: Meter | None = None,
        *,
        clock: Clock = now,
        ids: NewId = new_id,
    ) -> None:
        self.in_flight = 0
        """Model calls that are held or unanswered."""
        self.last_activity = 0.0
        """The loop's time of the last byte of any call, 0 before the first."""
        self._upstream = upstream
        self._token = token
        self._socket = listen_socket
        self._meter: Meter = meter or Free()
        self._clock = clock
        self._new_id = ids
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._client: aiohttp.ClientSession | None = None
        self._runner: web.ServerRunner | None = None

    def url(self, wire: Wire) -> str:
        """The base URL to give to an agent, without a slash at its end. See `Launch.gateway_url`."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{host}:{port}/m/{wire}"

    async def start(self) -> None:
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_ADDED,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        )
        # With cancellation a client that leaves ends its call upstream. aiohttp's log would show paths.
        server = web.Server(self._serve, handler_cancellation=True, access_log=None, logger=_silent())
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def close(self) -> None:
        """End every call and let go of the socket."""
        self.refuse()
        if self._runner:
            await self._runner.cleanup()
        if self._client:
            await self._client.close()
        self._socket.close()

    def hold(self) -> None:
        """From now on new calls wait: the server is away, and nobody could stop or count them."""
        self._refusing = False
        self._open.clear()

    def release(self) -> None:
        """Let the waiting calls and all later ones through."""
        self._refusing = False
        self._open.set()

    def refuse(self) -> None:
        """Answer the waiting calls and all later ones with 503."""
        self._refusing = True
        self._open.set()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self._counted():
            wire = self._upstream.wire
            route = find_route(wire, request.rel_url.raw_path, request.path)
            if route is None:
                return error(
                    wire, 404, f"This session's gateway serves the model API at {self.url(wire)} only."
                )
            if not self._has_token(request):
                return error(wire, 401, "The key is not this session's placeholder.")
            if request.method != route.method:
                return error(wire, 405, f"This is for {route.method} only.")
            await self._open.wait()
            if self._refusing:
                return error(wire, 503, "The Omnigent server is away; model calls are refused.")
            if route.use == "generate":
                return await self._generate(request, route)
            return await self._hand_on(request, route)

    @asynccontextmanager
    async def _counted(self) -> AsyncGenerator[None]:
        self.in_flight += 1
        self._touch()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._touch()

    def _touch(self) -> None:
        self.last_activity = asyncio.get_running_loop().time()

    def _has_token(self, request: web.BaseRequest) -> bool:
        shown = [request.headers.get(name, "") for name in _CREDENTIALS]
        keys = [value.removeprefix("Bearer ").strip().encode() for value in shown]
        return any(hmac.compare_digest(key, self._token.encode()) for key in keys)

    async def _generate(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        wire = self._upstream.wire
        body = await _read(request)
        if body is None:
            return error(wire, 413, f"A request has {LARGEST_REQUEST} bytes at most.")
        try:
            asked = read_request(wire, body)
        except Unreadable as problem:
            return error(wire, 400, str(problem))
        call = asked.call(self._new_id("call"))
        tally = open_tally(wire, call)
        with self._settled(call.call_id, tally) as settlement:
            grant = await self._meter.reserve(call)
            if grant.outcome != "granted":
                settlement.due = False
                return _not_granted(wire, grant)
            tally.model = grant.model or call.model
            return await self._forward(request, route, asked, grant, tally)

    @contextmanager
    def _settled(self, call_id: str, tally: Tally) -> Generator["_Settlement"]:
        """Whatever happens: a reservation, even one whose asking was broken off, is settled once."""
        settlement = _Settlement()
        try:
            yield settlement
        finally:
            if settlement.due:
                self._meter.settle(call_id, tally.usage())

    async def _forward(
        self, request: web.BaseRequest, route: Route, asked: Asked, grant: Grant, tally: Tally
    ) -> web.StreamResponse:
        assert self._client is not None
        headers = self._headers(request)
        for name in _OF_THE_BODY:
            headers.popall(name, None)
        headers["accept-encoding"] = "identity"  # so that the answer can be read on its way
        response: web.StreamResponse | None = None
        tally.sent = True
        try:
            async with self._client.post(
                self._target(request, route.rest),
                headers=headers,
                data=io.BytesIO(asked.granted(grant)),
                allow_redirects=False,
            ) as answer:
                if not 200 <= answer.status < 300:
                    tally.refused = True
                    return await self._refusal(request, answer, tally)
                response = _begin(answer)
                await response.prepare(request)
                await self._relay(answer, response, asked, tally)
        except (aiohttp.ClientError, TimeoutError) as problem:
            tally.sent = not isinstance(problem, _NEVER_SENT)
            return self._broken(request, response, problem)
        finally:
            if tally.error is not None:
                self._note(tally, understand(200, {}, tally.error, self._clock()))
        return response

    async def _relay(
        self, answer: aiohttp.ClientResponse, response: web.StreamResponse, asked: Asked, tally: Tally
    ) -> None:
        """The answer, piece by piece as it comes."""
        kind, encoding = answer.headers.get("content-type", ""), answer.headers.get("content-encoding", "")
        reading = open_reading(tally, kind, encoding, asked.streams, hide_usage=not asked.tells_usage)
        async for piece in answer.content.iter_any():
            self._touch()
            if shown := reading.take(piece):
                await response.write(shown)
        if rest := reading.end():
            await response.write(rest)
        await response.write_eof()

    async def _refusal(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, tally: Tally
    ) -> web.StreamResponse:
        """The provider's own answer; but where it would be tried again in vain, the form that isn't."""
        body = await answer.read()
        refusal = understand(answer.status, answer.headers, _object(body), self._clock())
        self._note(tally, refusal)
        if refusal is not None and refusal.kind != "rate_limit":
            return paused(self._upstream.wire, refusal.detail or "The provider's quota is used up.")
        response = _begin(answer)
        await response.prepare(request)
        await response.write(body)
        await response.write_eof()
        return response

    def _note(self, tally: Tally, refusal: Refusal | None) -> None:
        if refusal is not None:
            self._meter.refused(tally.call_id, refusal.kind, refusal.until, refusal.detail)

    async def _hand_on(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        """A free request and its answer, without looking."""
        assert self._client is not None
        response: web.StreamResponse | None = None
        try:
            async with self._client.request(
                request.method,
                self._target(request, route.rest),
                headers=self._headers(request),
                data=request.content.iter_any() if request.body_exists else None,
                allow_redirects=False,
            ) as answer:
                response = _begin(answer)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    self._touch()
                    await response.write(piece)
                await response.write_eof()
        except (aiohttp.ClientError, TimeoutError) as problem:
            return self._broken(request, response, problem)
        return response

    def _broken(
        self, request: web.BaseRequest, response: web.StreamResponse | None, problem: Exception
    ) -> web.StreamResponse:
        if response is None or not response.prepared:
            return error(self._upstream.wire, 502, self._explain(problem))
        # The answer has begun: only a connection that breaks tells the client that it isn't whole.
        if request.transport:
            request.transport.abort()
        return response

    def _explain(self, problem: Exception) -> str:
        """Our own words: the error's could hold the URL with its query, where some providers want the key."""
        reason = type(problem).__name__
        if isinstance(problem, aiohttp.ClientOSError) and problem.strerror:
            reason = problem.strerror
        base = URL(self._upstream.base_url).with_user(None).with_query(None)
        return f"The provider at {base} can't be reached: {reason}."

    def _target(self, request: web.BaseRequest, rest: str) -> URL:
        base = self._upstream.base_url.rstrip("/")
        if base.endswith("/v1") and rest.startswith("/v1/"):
            rest = rest.removeprefix("/v1")  # some SDKs add it, some base URLs have it
        query = request.rel_url.raw_query_string
        url = URL(base + rest + (f"?{query}" if query else ""), encoded=True)
        if url.user is not None and "authorization" in self._upstream.headers:
            url = url.with_user(None)  # the key wins; aiohttp refuses both
        return url.update_query(self._upstream.query) if self._upstream.query else url

    def _headers(self, request: web.BaseRequest) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers)
        for name in _CREDENTIALS:
            headers.popall(name, None)
        for name, value in self._upstream.headers.items():
            headers[name] = value
        return headers


class _Settlement:
    """Whether a call still has to be settled when it is over: not one that was never granted."""

    due = True


async def _read(request: web.BaseRequest) -> bytes | None:
    """The whole body, unpacked; None if it is too large."""
    if (request.content_length or 0) > LARGEST_REQUEST:
        return None
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > LARGEST_REQUEST:
            return None
    return bytes(body)


def _not_granted(wire: Wire, grant: Grant) -> web.Response:
    if grant.outcome == "paused":
        return paused(wire, grant.reason or _PAUSED)
    return denied(wire, grant.reason or _DENIED)


def _begin(answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    response.headers.extend(_end_to_end(answer.headers))
    return response


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """All but the headers that are for one connection only."""
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    kept = [(n, v) for n, v in headers.items() if n.lower() not in _HOP_BY_HOP and n.lower() not in named]
    return CIMultiDict(kept)


def _object(body: bytes) -> JSON:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast(JSON, value) if isinstance(value, dict) else {}


def _silent() -> logging.Logger:
    logger = logging.Logger("omnigent.gateway")
    logger.disabled = True
    return logger
