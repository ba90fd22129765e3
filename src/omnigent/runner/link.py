"""The runner's end of the link."""

import asyncio
import contextlib
from collections.abc import Callable

from omnigent import frames
from omnigent.events import JSON

RETRY_SECONDS = 0.1
"""How often a server that is away, or refuses us at once, is looked for."""


class Link:
    """Connects, sends what is due, and connects again until it is cancelled."""

    def __init__(self, path: str, hello: Callable[[], JSON], on_frame: Callable[[JSON], None]) -> None:
        self._path = path
        self._hello = hello
        self._on_frame = on_frame
        self._writer: asyncio.StreamWriter | None = None
        self.away_since: float | None = asyncio.get_running_loop().time()
        """Loop time since when no server is there; None while one is."""

    def send(self, frame: JSON) -> None:
        """Nothing if the server is away: what must not be lost is spooled by the caller."""
        if self._writer is not None:
            self._writer.write(frames.pack(frame))

    async def drain(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def run(self, on_lost: Callable[[], None]) -> None:
        """Until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._writer, self.away_since = writer, None
            self.send(self._hello())
            while (frame := await frames.read_frame(reader)) is not None:
                self._on_frame(frame)
            self._writer, self.away_since = None, asyncio.get_running_loop().time()
            writer.close()
            on_lost()
            await asyncio.sleep(RETRY_SECONDS)
