"""What the wires agree on: the answer to write, a refusal, and a piece of a stream."""

import hashlib
import json
import secrets
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .conversation import Json
from .script import Fault


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as it goes out. `input` is text for a custom (freeform) tool."""

    id: str
    name: str
    input: Json | str
    namespace: str = ""
    kind: Literal["function", "custom", "local_shell", "tool_search"] = "function"

    @property
    def arguments(self) -> str:
        return self.input if isinstance(self.input, str) else json.dumps(self.input)


@dataclass(frozen=True, slots=True)
class Tokens:
    """`input` leaves the cached tokens out; `output` includes `reasoning`, `cache_write` includes
    `cache_write_1h`."""

    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int
    cache_write_1h: int = 0

    @property
    def input_with_cache(self) -> int:
        return self.input + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class Reply:
    model: str
    reasoning: str
    text: str
    calls: list[Call]
    tokens: Tokens
    stop: Literal["max_tokens", "refusal"] | None
    chunk: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One SSE event. `delta` marks content, after which the script may pause."""

    data: bytes
    delta: bool = False


class Refusal(Exception):
    """The request is answered with an error; each wire writes it in its vendor's form."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


def refuse(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, message, param=param)


def refusal_of(fault: Fault) -> Refusal:
    return Refusal(fault.status, fault.message, fault.code)


def event(name: str, data: Json) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def pieces(text: str, size: int) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def sign(text: str) -> str:
    """The provider-bound proof of a reasoning text. The real ones cannot be made by anybody else, so a
    history carried over from another provider is refused; this one lets a test see that."""
    return b64encode(hashlib.sha256(b"scripted-model:" + text.encode()).digest()).decode()


def estimate_tokens(value: Any) -> int:
    text = value if isinstance(value, str) else json.dumps(value)
    return max(1, len(text) // 4)
