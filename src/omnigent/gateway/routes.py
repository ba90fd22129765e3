"""Which requests a gateway takes: the paths of each wire, and what it does with them."""

import re
from dataclasses import dataclass
from typing import Literal

from omnigent.harnesses import Wire

type Use = Literal["generate", "count", "list"]
"""`generate` costs and is metered; `count` and `list` are free and only handed on."""

_METHODS: dict[Use, str] = {"generate": "POST", "count": "POST", "list": "GET"}
# Base URLs end with /v1 or don't, and SDKs add it or don't.
_PATHS: dict[Wire, tuple[tuple[re.Pattern[str], Use], ...]] = {
    "anthropic-messages": (
        (re.compile(r"(/v1)?/messages"), "generate"),
        (re.compile(r"(/v1)?/messages/count_tokens"), "count"),
        (re.compile(r"(/v1)?/models(/[^?]+)?"), "list"),
    ),
    "openai-responses": (
        (re.compile(r"(/v1)?/responses(/compact)?"), "generate"),
        (re.compile(r"(/v1)?/responses/input_tokens"), "count"),
        (re.compile(r"(/v1)?/models(/[^?]+)?"), "list"),
    ),
    "openai-chat": (
        (re.compile(r"(/v1)?/chat/completions"), "generate"),
        (re.compile(r"(/v1)?/models(/[^?]+)?"), "list"),
    ),
}
_OURS = re.compile(r"/m/([^/?]+)(/[^?]*)")


@dataclass(frozen=True, slots=True)
class Route:
    """`rest` is the path below the provider's base URL, as it was written."""

    use: Use
    rest: str

    @property
    def method(self) -> str:
        return _METHODS[self.use]


def find_route(wire: Wire, raw_path: str, path: str) -> Route | None:
    """The route of a request's path (as sent, and decoded), None if this gateway doesn't have it."""
    ours = _OURS.fullmatch(raw_path)
    if ours is None or ours[1] != wire or ".." in path.split("/"):
        return None
    rest = ours[2]
    return next((Route(use, rest) for pattern, use in _PATHS[wire] if pattern.fullmatch(rest)), None)
