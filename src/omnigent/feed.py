"""The live end of a session: one ring of frames that all its followers read at their own pace.

A frame is encoded once. A follower holds an index into the ring and nothing else, so a slow one costs nobody
anything; one that falls off the ring reads the log again.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from omnigent.events import Delta, Event

RING_FRAMES = 4096
RING_BYTES = 4 * 1024 * 1024
"""What a ring holds at most, or one larger frame."""
PAGE = 500


@dataclass(frozen=True, slots=True)
class Frame:
    """An event or a delta, with its server-sent-event bytes."""

    event: Event | None
    delta: Delta | None
    sse: bytes


def event_frame(event: Event) -> Frame:
    sse = f"id: {event.seq}\nevent: event\ndata: {event.json_text()}\n\n".encode()
    return Frame(event, None, sse)


def delta_frame(delta: Delta) -> Frame:
    text = json.dumps(delta.json(), ensure_ascii=False, separators=(",", ":"))
    return Frame(None, delta, f"event: delta\ndata: {text}\n\n".encode())


Read = Callable[[int, int], Awaitable[list[Event]]]
"""(after, limit) → events of the log."""


class Feed:
    def __init__(self, head: int) -> None:
        self.head = head
        """The seq of the newest event."""
        self._ring: deque[Frame] = deque()
        self._bytes = 0
        self._start = 0
        """Index of the ring's first frame."""
        self._first_seq = head + 1
        """The oldest seq from which the ring has every event."""
        self._news = asyncio.Event()
        self.followers = 0

    def publish(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._ring.append(frame)
            self._bytes += len(frame.sse)
            while len(self._ring) > RING_FRAMES or (self._bytes > RING_BYTES and len(self._ring) > 1):
                self._drop()
            if frame.event is not None:
                self.head = frame.event.seq
        self._news.set()
        self._news = asyncio.Event()

    def _drop(self) -> None:
        """Forget the oldest frame."""
        frame = self._ring.popleft()
        self._bytes -= len(frame.sse)
        self._start += 1
        if frame.event is not None:
            self._first_seq = frame.event.seq + 1

    async def follow(
        self, after: int, read: Read, snapshot: Callable[[], list[Delta]]
    ) -> AsyncIterator[list[Frame]]:
        """From the past into live: events after `after`, then one delta per open item, then what comes."""
        self.followers += 1
        try:
            cursor = after
            while True:
                async for frames in self._past(cursor, read):
                    cursor = _last_seq(frames, cursor)
                    yield frames
                rest = [f for f in self._ring if f.event is not None and f.event.seq > cursor]
                index = self._start + len(self._ring)
                # A page of the log may hold events that are stored and not yet published here.
                cursor = max(cursor, self.head)
                yield [*rest, *(delta_frame(delta) for delta in snapshot())]
                async for frames in self._live(index):
                    fresh = [f for f in frames if f.event is None or f.event.seq > cursor]
                    cursor = _last_seq(fresh, cursor)
                    yield fresh
        finally:
            self.followers -= 1

    async def _past(self, cursor: int, read: Read) -> AsyncIterator[list[Frame]]:
        while cursor + 1 < self._first_seq:
            events = await read(cursor, PAGE)
            if not events:
                return
            cursor = events[-1].seq
            yield [event_frame(event) for event in events]

    async def _live(self, index: int) -> AsyncIterator[list[Frame]]:
        """Ends when the follower fell off the ring."""
        while index >= self._start:
            news = self._news
            offset = index - self._start
            if offset < len(self._ring):
                # By index, which is quick near the ends; an iterator would walk past all that was read.
                frames = [self._ring[i] for i in range(offset, len(self._ring))]
                index += len(frames)
                yield frames
            else:
                await news.wait()


def _last_seq(frames: list[Frame], cursor: int) -> int:
    return next((f.event.seq for f in reversed(frames) if f.event is not None), cursor)
