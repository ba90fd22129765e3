"""The model gateway: the agent's only way to its model. Placeholder key in, real key out, bytes untouched.

One gateway per session, on a loopback socket it is given. The agent is told `url(wire)` as its base URL and
the placeholder as its key; the gateway checks the placeholder, puts the provider's headers in its place and
streams both ways without looking. The real key is in no answer, error or repr.
"""

import asyncio
import hmac
import json
import logging
import re
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from omnigent.harnesses import Wire
from omnigent.providers import Upstream

_CREDENTIALS = frozenset({"authorization", "x-api-key", "api-key", "proxy-authorization"})
# RFC 9110 7.6.1, and what each of our two connections has of its own.
_HOP_BY_HOP = frozenset(
    {"connection", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
) | {"upgrade"}
# What aiohttp would add by itself to a request that lacks it.
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_ROUTE = re.compile(r"/m/([^/?]+)(/[^?]*)?")
_CONNECT_SECONDS = 30.0
_SHUTDOWN_SECONDS = 0.5


class Gateway:
    """A server between `start` and `close`. `token` is the placeholder; `listen_socket` is bound and becomes
    the gateway's own."""

    def __init__(self, upstream: Upstream, token: str, listen_socket: socket.socket) -> None:
        self.in_flight = 0
        """Model calls that are held or unanswered."""
        self.last_activity = 0.0
        """The loop's time of the last byte of any call, 0 before the first."""
        self._upstream = upstream
        self._token = token
        self._socket = listen_socket
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
            route = _ROUTE.fullmatch(request.rel_url.raw_path)
            if route is None or route[1] != wire or ".." in request.path.split("/"):
                return _error(wire, 404, f"This session's gateway serves {self.url(wire)} only.")
            if not self._has_token(request):
                return _error(wire, 401, "The key is not this session's placeholder.")
            await self._open.wait()
            if self._refusing:
                return _error(wire, 503, "The Omnigent server is away; model calls are refused.")
            return await self._forward(request, route[2] or "")

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

    async def _forward(self, request: web.BaseRequest, rest: str) -> web.StreamResponse:
        assert self._client is not None
        response: web.StreamResponse | None = None
        try:
            async with self._client.request(
                request.method,
                self._target(request, rest),
                headers=self._headers(request),
                data=request.content.iter_any() if request.body_exists else None,
                allow_redirects=False,
            ) as answer:
                response = web.StreamResponse(status=answer.status, reason=answer.reason)
                response.headers.extend(_end_to_end(answer.headers))
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    self._touch()
                    await response.write(piece)
                await response.write_eof()
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._broken(request, response, error)
        return response

    def _broken(
        self, request: web.BaseRequest, response: web.StreamResponse | None, error: Exception
    ) -> web.StreamResponse:
        if response is None or not response.prepared:
            return _error(self._upstream.wire, 502, self._explain(error))
        # The answer has begun: only a connection that breaks tells the client that it isn't whole.
        if request.transport:
            request.transport.abort()
        return response

    def _explain(self, error: Exception) -> str:
        """Our own words: the error's could hold the URL with its query, where some providers want the key."""
        reason = type(error).__name__
        if isinstance(error, aiohttp.ClientOSError) and error.strerror:
            reason = error.strerror
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


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """All but the headers that are for one connection only."""
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    kept = [(n, v) for n, v in headers.items() if n.lower() not in _HOP_BY_HOP and n.lower() not in named]
    return CIMultiDict(kept)


_TYPES = {401: "authentication_error", 404: "not_found_error", 502: "api_error", 503: "overloaded_error"}


def _error(wire: Wire, status: int, message: str) -> web.Response:
    """An error in the form the wire's vendor uses, so that every SDK shows its message."""
    if wire == "anthropic-messages":
        body: object = {"type": "error", "error": {"type": _TYPES[status], "message": message}}
    else:
        code = "invalid_api_key" if status == 401 else None
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json")


def _silent() -> logging.Logger:
    logger = logging.Logger("omnigent.gateway")
    logger.disabled = True
    return logger
