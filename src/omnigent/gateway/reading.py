"""Reading an answer on its way: server-sent events across any chunk borders, or one whole body.

What is handed on is what came, byte by byte and at once; only where the gateway itself asked for a usage
chunk are events passed one by one, without that chunk.
"""

import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, cast

from omnigent.events import JSON
from omnigent.gateway.tally import Tally

LARGEST = 64 * 1024 * 1024
"""Of an event or body longer than this nothing is read; it is handed on all the same."""

_LINE = re.compile(rb"\r\n|\n|\r")
# An event ends with an empty line. The LF of a last CRLF may still be on its way: it then opens the next
# event as an empty line, which means nothing. Atomic, or else one CRLF would be two line ends.
_BORDER = re.compile(rb"(?>\r\n|\n|\r){2}")
_LONGEST_BORDER = 4


class Reading(Protocol):
    def take(self, piece: bytes) -> bytes:
        """A piece of the answer as it came → what to hand on of it, now."""
        ...

    def end(self) -> bytes:
        """The answer is whole → what is left to hand on."""
        ...


def open_reading(tally: Tally, kind: str, encoding: str, streams: bool, hide_usage: bool) -> Reading:
    """`kind` and `encoding` are the answer's headers; `streams` is whether a stream was asked for."""
    whole = not streams or "json" in kind
    if encoding in ("", "identity"):
        return BodyReading(tally) if whole else EventReading(tally, hide_usage)
    inner = BodyReading(tally) if whole else EventReading(tally, hide_usage=False)
    return PackedReading(inner, encoding)


class EventReading:
    """A stream of server-sent events."""

    def __init__(self, tally: Tally, hide_usage: bool) -> None:
        self._tally = tally
        self._hide_usage = hide_usage
        self._held = bytearray()
        self._searched = 0
        self._blind = False

    def take(self, piece: bytes) -> bytes:
        if self._blind:
            return piece
        shown = bytearray()
        for raw in self._events(piece):
            if self._understand(raw):
                shown += raw
        if len(self._held) > LARGEST:
            self._blind = True
            shown += self._held
            self._held.clear()
        return bytes(shown) if self._hide_usage else piece

    def end(self) -> bytes:
        rest = bytes(self._held)
        shown = self._understand(rest)
        return rest if self._hide_usage and shown else b""

    def _events(self, piece: bytes) -> Iterator[bytes]:
        """The events that the piece completes, with the empty line they end with."""
        self._held += piece
        start = 0
        for end in _borders(self._held, self._searched):
            yield bytes(self._held[start:end])
            start = end
        del self._held[:start]
        self._searched = max(0, len(self._held) - _LONGEST_BORDER)

    def _understand(self, raw: bytes) -> bool:
        """Counts an event; false for one that is not to be shown."""
        event = _parse(_data_of(raw))
        if event is None:
            return True
        self._tally.event(event)
        return not (self._hide_usage and event.get("choices") == [] and isinstance(event.get("usage"), dict))


class BodyReading:
    """One JSON body."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._held = bytearray()

    def take(self, piece: bytes) -> bytes:
        if len(self._held) <= LARGEST:
            self._held += piece
        return piece

    def end(self) -> bytes:
        if (body := _parse(bytes(self._held))) is not None:
            self._tally.body(body)
        return b""


class PackedReading:
    """A compressed answer, of which a copy is unpacked. What can't be unpacked isn't read."""

    def __init__(self, inner: Reading, encoding: str) -> None:
        self._inner = inner
        known = encoding.strip().lower() in ("gzip", "x-gzip", "deflate")
        self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if known else None

    def take(self, piece: bytes) -> bytes:
        if self._unpack is not None:
            try:
                self._inner.take(self._unpack.decompress(piece))
            except zlib.error:
                self._unpack = None
        return piece

    def end(self) -> bytes:
        self._inner.end()
        return b""


def _borders(held: bytearray, start: int) -> Iterator[int]:
    """Where events end. Nearly all streams have bare LFs, which are found ten times as fast."""
    if b"\r" in held:
        for border in _BORDER.finditer(held, start):
            yield border.end()
        return
    while (at := held.find(b"\n\n", start)) >= 0:
        start = at + 2
        yield start


def _data_of(raw: bytes) -> bytes:
    # Nearly all events have one line of data, their last.
    at = raw.find(b"\ndata:")
    if raw.startswith(b"data:") != (at >= 0):
        data = raw[at + 6 :].strip()
        if b"\n" not in data and b"\r" not in data:
            return data
    lines = (line for line in _LINE.split(raw) if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)


def _parse(data: bytes) -> JSON | None:
    """The object it holds; None for anything else, such as `[DONE]`."""
    if b"{" not in data:
        return None
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast(JSON, value) if isinstance(value, dict) else None
