"""Server-sent events: a session's log, or its items, from the past into live, until somebody ends it.

Frames come from the session's feed already encoded; a follower here is a cursor, a task and one write per
batch. A follower that doesn't read costs its own socket buffer and nobody else anything.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Literal
from weakref import WeakKeyDictionary

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from omnigent.errors import Draining, NotFound
from omnigent.events import JSON
from omnigent.feed import Frame
from omnigent.log import Log
from omnigent.server.answers import encode
from omnigent.session import Session
from omnigent.sessions import item_json

logger = logging.getLogger(__name__)

End = Literal["revoked", "deleted", "shutdown", "lagging"]

PING_SECONDS = 15.0
STALL_SECONDS = 60.0
"""A client that takes no byte for this long is let go; it comes back with its cursor."""
PAGE = 500

Chunks = AsyncIterator[tuple[bytes, int]]
"""(bytes to write, the cursor to resume from once they are written)."""

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Streams:
    """Every open stream of the server, so that each can be ended for its reason."""

    def __init__(self) -> None:
        self._open: set[Stream] = set()
        self.items = ItemFeed()
        self.closing = False

    def add(self, stream: "Stream") -> None:
        self._open.add(stream)
        if self.closing:
            stream.end("shutdown")

    def discard(self, stream: "Stream") -> None:
        self._open.discard(stream)

    def end(self, reason: End, *, session_id: str | None = None, device_id: str | None = None) -> None:
        """End those of a session, of a device, or all."""
        if session_id is None and device_id is None:
            self.closing = True
        for stream in list(self._open):
            if session_id in (None, stream.session_id) and device_id in (None, stream.device_id):
                stream.end(reason)

    def __len__(self) -> int:
        return len(self._open)


class Stream(Response):
    """One follower. Writes `chunks` as they come, a comment every 15 s, and `end` before it closes."""

    def __init__(
        self, streams: Streams, session_id: str, device_id: str, chunks: Chunks, cursor: int
    ) -> None:
        self.session_id = session_id
        self.device_id = device_id
        self.status_code = 200
        self.background = None
        self._streams = streams
        self._chunks = chunks
        self._cursor = cursor
        self._over: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._writing_since: float | None = None

    def end(self, reason: End) -> None:
        if not self._over.done():
            self._over.set_result(reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        pump = loop.create_task(self._pump(send, loop.time))
        left = loop.create_task(_left(receive))
        self._streams.add(self)
        try:
            while not await _any({pump, left, self._over}, PING_SECONDS):
                await self._ping(send, loop.time())
        finally:
            self._streams.discard(self)
            await _cancel(pump, left)
        if not left.done() or left.cancelled():
            await self._finish(send, _reason(self._over, pump))

    async def _pump(self, send: Send, now: Callable[[], float]) -> None:
        async for chunk, cursor in self._chunks:
            if chunk:
                self._writing_since = now()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._writing_since = None
            self._cursor = cursor

    async def _ping(self, send: Send, now: float) -> None:
        if self._writing_since is None:
            await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        elif now - self._writing_since > STALL_SECONDS:
            self.end("lagging")

    async def _finish(self, send: Send, reason: End) -> None:
        text = json.dumps({"reason": reason, "cursor": self._cursor})
        last: Message = {"type": "http.response.body", "body": f"event: end\ndata: {text}\n\n".encode()}
        with suppress(TimeoutError):  # a client that doesn't read doesn't get to hear it
            await asyncio.wait_for(send(last), 1)


def _reason(over: asyncio.Future[End], pump: asyncio.Task[None]) -> End:
    """Why it ends: as told, or as the log's refusal says. Raises what is a defect."""
    if over.done():
        return over.result()
    error = None if pump.cancelled() else pump.exception()
    match error:
        case NotFound():
            return "deleted"
        case None | Draining():
            return "shutdown"
        case _:
            raise error


async def _any(futures: set[asyncio.Future[Any]], seconds: float) -> bool:
    done, _ = await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


async def _left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _sse(event: str, data: bytes, seq: int | None = None) -> bytes:
    number = b"" if seq is None else b"id: %d\n" % seq
    return b"%sevent: %s\ndata: %s\n\n" % (number, event.encode(), data)


def _hello(session: Session) -> bytes:
    return _sse("hello", encode({"head_seq": session.feed.head, "session_id": session.id}))


async def event_chunks(session: Session, after: int, kinds: frozenset[str] | None) -> Chunks:
    """Events after a seq, then live with deltas. With `kinds`, only those (`delta` names the deltas)."""
    yield _hello(session), after
    async for frames in session.follow(after):
        wanted = frames if kinds is None else [frame for frame in frames if _kind(frame) in kinds]
        for frame in reversed(frames):
            if frame.event is not None:
                after = frame.event.seq
                break
        yield b"".join([frame.sse for frame in wanted]), after


def _kind(frame: Frame) -> str:
    return frame.event.kind if frame.event is not None else "delta"


Summary = Callable[[], JSON]


class ItemFeed:
    """Changed items of a session, read and encoded once for all who follow at the same place."""

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[Session, tuple[int, int, bytes, int]] = WeakKeyDictionary()

    async def chunks(self, log: Log, session: Session, after: int, summary: Summary) -> Chunks:
        """Items changed after a `view_seq`, then live: `item` upserts, deltas, and the `session` itself."""
        yield _hello(session), after
        shown = b""
        head = session.feed.head
        changed, after = await self._changed(log, session, after, head)
        if (now := _sse("session", encode(summary()))) != shown:
            shown = now
        yield changed + shown, after
        async for frames in session.follow(head):
            parts: list[bytes] = []
            if any(frame.event is not None for frame in frames):
                changed, after = await self._changed(log, session, after, session.feed.head)
                parts.append(changed)
                if (now := _sse("session", encode(summary()))) != shown:
                    shown = now
                    parts.append(now)
            parts += [frame.sse for frame in frames if frame.delta is not None]
            yield b"".join(parts), after

    async def _changed(self, log: Log, session: Session, after: int, head: int) -> tuple[bytes, int]:
        known = self._last.get(session)
        if known is not None and known[:2] == (after, head):
            return known[2], known[3]
        start, parts = after, list[bytes]()
        while after < head and (rows := await log.items(session.id, changed_after=after, limit=PAGE)):
            after = rows[-1].view_seq
            parts += [_sse("item", encode(item_json(row)), row.view_seq) for row in rows]
        after = max(after, head)
        self._last[session] = (start, head, b"".join(parts), after)
        return self._last[session][2:]
