"""Who waits for a session to grow: in-process, on one event loop. Shared by every log."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Watch:
    """One session's followers."""

    followers: int = 0
    head: int = 0
    gone: bool = False
    waiting: set[asyncio.Future[None]] = field(default_factory=set[asyncio.Future[None]])

    def wake(self) -> None:
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()


class Bell:
    """Rung after each commit. A follower registers no queue, only the wish to be woken."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}
        self._closed = False

    def watched(self, session_id: str) -> bool:
        return session_id in self._watches

    @contextmanager
    def watch(self, session_id: str) -> Generator[Watch]:
        """Keep the session's bell while following it."""
        watch = self._watches.setdefault(session_id, Watch())
        watch.followers += 1
        try:
            yield watch
        finally:
            watch.followers -= 1
            if not watch.followers and self._watches.get(session_id) is watch:
                del self._watches[session_id]

    async def wait(self, watch: Watch, cursor: int) -> bool:
        """Until the session's head is beyond `cursor`; False once it is deleted or the log closed.

        The caller reads first and waits then, without an await in between: nothing can be missed.
        """
        while not self._closed and not watch.gone:
            if watch.head > cursor:
                return True
            waiter = asyncio.get_running_loop().create_future()
            watch.waiting.add(waiter)
            try:
                await waiter
            finally:
                watch.waiting.discard(waiter)
        return False

    def ring(self, session_id: str, head: int) -> None:
        """The session's head is now committed."""
        watch = self._watches.get(session_id)
        if watch is not None and head > watch.head:
            watch.head = head
            watch.wake()

    def gone(self, session_id: str) -> None:
        watch = self._watches.pop(session_id, None)
        if watch is not None:
            watch.gone = True
            watch.wake()

    def close(self) -> None:
        self._closed = True
        for watch in self._watches.values():
            watch.wake()
