"""HTTP with next to no cost of its own, so that what is timed is the server."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

JSON = dict[str, Any]
MARK = re.compile(rb"mark-(\d{6})")
_MARK_LENGTH = 11


def mark(number: int) -> str:
    """What a follower recognises in the stream."""
    return f"mark-{number:06d}"


def request_bytes(
    token: str,
    method: str,
    path: str,
    body: JSON | None = None,
    key: str | None = None,
    *,
    stream: bool = False,
) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: 127.0.0.1",
        f"authorization: Bearer {token}",
        f"accept: {'text/event-stream' if stream else 'application/json'}",
        f"content-length: {len(data)}",
    ]
    if data:
        lines.append("content-type: application/json")
    if key:
        lines.append(f"idempotency-key: {key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


class Connection:
    """One kept-open connection, blocking."""

    def __init__(self, port: int, token: str) -> None:
        self._token = token
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, method: str, path: str, body: JSON | None = None, key: str | None = None) -> JSON:
        """The JSON answer. Raises `RuntimeError` for an error status."""
        status, answer = self.exchange(request_bytes(self._token, method, path, body, key))
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500].decode()}")
        return json.loads(answer) if answer else {}

    def timed(self, method: str, path: str, body: JSON | None = None, key: str | None = None) -> float:
        """Milliseconds from the first byte written to the last one read."""
        request = request_bytes(self._token, method, path, body, key)
        began = time.perf_counter()
        status, answer = self.exchange(request)
        took = (time.perf_counter() - began) * 1000
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500].decode()}")
        return took

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        self._socket.sendall(request)
        data = b""
        while (answer := whole_answer(data)) is None:
            got = self._socket.recv(1 << 20)
            if not got:
                raise ConnectionError("the server closed the connection")
            data += got
        return answer

    def close(self) -> None:
        self._socket.close()


def whole_answer(data: bytes) -> tuple[int, bytes] | None:
    """(status, body) once all of it is there."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    found = re.search(rb"content-length: (\d+)", data[:end], re.IGNORECASE)
    length = int(found[1]) if found else 0
    if len(data) < end + 4 + length:
        return None
    return int(data[9:12]), data[end + 4 :]


class Caller(asyncio.Protocol):
    """One kept-open connection of many: sends its requests one after another."""

    def __init__(self) -> None:
        self._data = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if (answer := whole_answer(self._data)) is not None:
            self._data = b""
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))

    async def call(self, request: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        status, answer = await self._answer
        if status >= 400:
            raise RuntimeError(f"{status} {answer[:500].decode()}")
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Follower(asyncio.Protocol):
    """A reader of a stream: when each mark came, and whatever `look` wants to see."""

    def __init__(self, request: bytes, look: Callable[[bytes, float], None] | None = None) -> None:
        self.seen: dict[int, float] = {}
        self.ready = asyncio.get_running_loop().create_future()
        self._request = request
        self._look = look
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        at = time.perf_counter()
        if not self.ready.done() and b"event: hello" in data:
            self.ready.set_result(None)
        whole = self._rest + data
        for found in MARK.finditer(whole):
            self.seen.setdefault(int(found[1]), at)
        self._rest = whole[1 - _MARK_LENGTH :]
        if self._look is not None:
            self._look(data, at)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def dial(port: int) -> Caller:
    _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", port)
    return caller


async def follow(
    port: int, token: str, session_id: str, after: int, look: Callable[[bytes, float], None] | None = None
) -> Follower:
    """A follower of a session's events that has been greeted."""
    request = request_bytes(token, "GET", f"/v1/sessions/{session_id}/events?after={after}", stream=True)
    loop = asyncio.get_running_loop()
    _, follower = await loop.create_connection(lambda: Follower(request, look), "127.0.0.1", port)
    await asyncio.wait_for(follower.ready, 30)
    return follower
