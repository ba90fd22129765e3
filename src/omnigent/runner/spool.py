"""What the server has not yet stored, and long outputs made small enough to be stored."""

import asyncio
import base64
import hashlib
import json
from collections import deque
from dataclasses import dataclass, field

from omnigent.events import JSON, Output

INLINE_BYTES = 32 * 1024
"""A longer tool output goes to a blob; the event keeps its head and tail."""
HEAD, TAIL = 8 * 1024, 4 * 1024
"""Code points of a long output kept in the event."""
SPOOL_BYTES = 64 * 1024 * 1024
"""Unacknowledged events beyond this stop the reading of the agent's output."""


@dataclass(slots=True)
class Entry:
    number: int
    draft: JSON
    blobs: dict[str, str]
    size: int

    def frame(self) -> JSON:
        return {"type": "events", "first": self.number, "drafts": [self.draft], "blobs": self.blobs}


@dataclass(slots=True)
class Spool:
    """Events not yet acknowledged, numbered from 1, in order."""

    last: int = 0
    entries: deque[Entry] = field(default_factory=deque[Entry])
    size: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it isn't full."""

    def __post_init__(self) -> None:
        self.room.set()

    def add(self, draft: JSON, blobs: dict[str, str]) -> Entry:
        self.last += 1
        size = len(json.dumps(draft)) + sum(map(len, blobs.values()))
        entry = Entry(self.last, draft, blobs, size)
        self.entries.append(entry)
        self.size += size
        if self.size >= SPOOL_BYTES:
            self.room.clear()
        return entry

    def acknowledge(self, number: int) -> None:
        while self.entries and self.entries[0].number <= number:
            self.size -= self.entries.popleft().size
        if self.size < SPOOL_BYTES:
            self.room.set()


def to_blob(output: Output) -> tuple[Output, dict[str, str]]:
    """A long output cut to head and tail, and its whole as a blob to store first."""
    data = output.text.encode(errors="replace")
    if len(data) <= INLINE_BYTES:
        return output.model_copy(update={"size": len(data)}), {}
    name = hashlib.sha256(data).hexdigest()
    short = {
        "text": output.text[:HEAD],
        "tail": output.text[-TAIL:],
        "size": len(data),
        "truncated": True,
        "blob": name,
    }
    return output.model_copy(update=short), {name: base64.b64encode(data).decode()}
