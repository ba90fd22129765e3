"""Items that are being streamed: deltas at once, and now and then an event that keeps what was said."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from omnigent.events import JSON, Body, ItemUpdated, Stream
from omnigent.harnesses import Say
from omnigent.runner.spool import INLINE_BYTES

CHECKPOINT_CHARS, CHECKPOINT_SECONDS = 8 * 1024, 2.0
DELTA_SECONDS = 0.02


@dataclass(slots=True)
class _Item:
    """Its text so far and how much of it is durable."""

    stream: Stream
    text: str = ""
    held: str = ""
    """The end of what came, kept back while it may be the beginning of a secret."""
    durable: int = 0
    durable_at: float = 0.0

    def may_checkpoint(self) -> bool:
        """Whether more of it goes into the log before it ends. A long output is a blob in the end, and each
        checkpoint writes its item anew."""
        return self.stream != "output" or self.durable < INLINE_BYTES


class Streams:
    def __init__(
        self,
        split: Callable[[str], tuple[str, str]],
        send: Callable[[list[JSON]], None],
        emit: Callable[[Body, str], None],
    ) -> None:
        """`split` is the redactor's, `send` passes deltas on, `emit` an event (and calls `flush` first)."""
        self._split = split
        self._send = send
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._items: dict[str, _Item] = {}
        self._deltas: list[JSON] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0

    def begin(self, item_id: str) -> None:
        self._items.setdefault(item_id, _Item("text"))

    def end(self, item_id: str) -> None:
        self._items.pop(item_id, None)

    def clear(self) -> None:
        self._items.clear()

    def whole(self) -> list[JSON]:
        """One delta per open item, from its beginning."""
        return [
            {"item_id": item_id, "stream": item.stream, "offset": 0, "text": item.text}
            for item_id, item in self._items.items()
        ]

    def say(self, say: Say) -> None:
        item = self._items.setdefault(say.item_id, _Item(say.stream))
        if not item.text:
            item.durable_at = self._loop.time()
        text, item.held = self._split(item.held + say.text)
        if not text:
            return
        self._deltas.append(
            {"item_id": say.item_id, "stream": say.stream, "offset": len(item.text), "text": text}
        )
        item.text += text
        if len(item.text) - item.durable >= CHECKPOINT_CHARS and item.may_checkpoint():
            self._checkpoint(say.item_id, item)
        wait = self._sent_at + DELTA_SECONDS - self._loop.time()
        if wait <= 0:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(wait, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deltas:
            self._send(_joined(self._deltas))
            self._deltas = []
            self._sent_at = self._loop.time()

    def checkpoint_old(self) -> None:
        """Keep what has been said and not kept for `CHECKPOINT_SECONDS`."""
        at = self._loop.time()
        for item_id, item in list(self._items.items()):
            late = at - item.durable_at >= CHECKPOINT_SECONDS
            if late and len(item.text) > item.durable and item.may_checkpoint():
                self._checkpoint(item_id, item)

    def _checkpoint(self, item_id: str, item: _Item) -> None:
        end = INLINE_BYTES if item.stream == "output" else len(item.text)
        body = ItemUpdated(stream=item.stream, offset=item.durable, text=item.text[item.durable : end])
        item.durable, item.durable_at = len(item.text), self._loop.time()
        self._emit(body, item_id)


def _joined(deltas: list[JSON]) -> list[JSON]:
    """Neighbouring deltas of one stream as one."""
    joined: list[JSON] = []
    for delta in deltas:
        last = joined[-1] if joined else None
        if last and (last["item_id"], last["stream"]) == (delta["item_id"], delta["stream"]):
            last["text"] += delta["text"]
        else:
            joined.append(dict(delta))
    return joined
