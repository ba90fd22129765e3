"""New ids and the clock, both injectable.

Ids are a two-to-four letter prefix and a ULID (https://github.com/ulid/spec): 26 Crockford base-32
characters, 48 bits of milliseconds then 80 of randomness, so that they sort by time.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

Prefix = Literal[
    "ses", "evt", "cmd", "msg", "rsn", "tc", "ap", "q", "turn", "run", "dev", "ntc", "call", "gr"
]

NewId = Callable[[Prefix], str]
"""Makes a fresh id of the given prefix."""

Clock = Callable[[], int]
"""The time as UTC milliseconds since 1970."""

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def now() -> int:
    """The system clock (a `Clock`)."""
    return time.time_ns() // 1_000_000


def new_id(prefix: Prefix) -> str:
    """A fresh id from the system clock and the system's randomness (a `NewId`)."""
    number = (now() << 80) | int.from_bytes(os.urandom(10))
    digits = [_ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5)]
    return f"{prefix}_{''.join(digits)}"


def as_text(at: int) -> str:
    """UTC milliseconds as RFC 3339 with three decimals: `2026-11-22T09:30:00.000Z`."""
    moment = datetime.fromtimestamp(at // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at % 1000:03d}Z"
