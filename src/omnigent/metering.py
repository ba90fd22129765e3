"""The words of a model call's way through the gateway: asked for, granted, counted.

The gateway asks a `Meter` before a call leaves and tells it what became of it. In a runner the meter is the
link to the server, where the policies decide and the ledger counts; tests and the suite use `Free`.
"""

from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from omnigent.events import JSON

Outcome = Literal["ok", "aborted", "error"]
Refused = Literal["quota", "rate_limit", "billing"]
"""How a provider refuses: until its reset, for a moment, until somebody pays."""
CapScope = Literal["session", "family", "user_day", "project_month"]
"""What is added up: a session, its family, its owner's day, its workspace's month (both UTC)."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit on the ledger that the append transaction checks again: settled + reserved + the call's own
    estimate stay within it. Exactly one of the two limits is set. `rule_id` names the rule it comes from."""

    scope: CapScope
    rule_id: str
    nanousd: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Spend:
    """What the ledger says of one scope: settled and reserved together."""

    nanousd: int = 0
    tokens: int = 0
    unknown: int = 0
    """Calls whose price is unknown: `nanousd` is a lower bound then."""
    notional: int = 0
    """What calls paid by a subscription would have cost, in nano-USD; not part of `nanousd`."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request that generates, as the gateway read it before it left."""

    call_id: str
    model: str
    input_tokens: int
    """An estimate, from above: a quarter of the body's bytes, images by their price."""
    max_output_tokens: int | None
    hosted: tuple[str, ...] = ()
    """Names of the tools in it that run at the provider."""

    def json(self) -> JSON:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer. Not granted: the request never leaves, and `reason` is told in the form after which no
    harness tries again (`paused`), or as a refusal (`denied`)."""

    outcome: Literal["granted", "paused", "denied"]
    reason: str = ""
    model: str | None = None
    """Another model to ask instead (downgrade); None: the one that was named."""
    strip: tuple[str, ...] = ()
    """Hosted tools to cut out of the request."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used. `input_tokens` excludes cache; `output_tokens` includes reasoning."""

    model: str
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """All of them, those kept for an hour included."""
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int | None = None
    """Where the provider itself tells it."""
    outcome: Outcome = "ok"

    def json(self) -> JSON:
        return asdict(self)


class Meter(Protocol):
    async def reserve(self, call: ModelCall) -> Grant:
        """May it leave? Waits as long as it takes: for the server, for a person."""
        ...

    def settle(self, call_id: str, usage: Usage | None) -> None:
        """It is over. None: the provider refused it, nothing was used."""
        ...

    def refused(self, call_id: str, kind: Refused, until: int | None, detail: str) -> None:
        """The provider refused it. `until` (UTC ms) where it says when to come back."""
        ...


class Free:
    """Grants everything and forgets it."""

    async def reserve(self, call: ModelCall) -> Grant:
        return Grant("granted")

    def settle(self, call_id: str, usage: Usage | None) -> None:
        pass

    def refused(self, call_id: str, kind: Refused, until: int | None, detail: str) -> None:
        pass
