"""What a model call costs, in integer nano-USD, from a table of list prices or a provider's own `prices`.

The table (genai-prices) takes half a second and 12 MB, so it is loaded with the first question: ask in a
thread. A model that no table knows costs None, never 0.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from omnigent.config import PriceSection
from omnigent.harnesses import Wire
from omnigent.metering import Usage

if TYPE_CHECKING:
    from genai_prices import types as table

ASSUMED_OUTPUT_TOKENS = 8_192
"""What is set aside for the answer of a call that names no bound; it may exceed it."""

type Overrides = Mapping[str, PriceSection]
"""The `prices` of a provider of config.yaml, by model."""

_NANO_PER_USD = 1_000_000_000
_NANO_PER_MTOK = _NANO_PER_USD // 1_000_000
# Whose models a wire means first; other vendors' gateways speak these wires too.
_VENDORS: dict[Wire, str] = {
    "anthropic-messages": "anthropic",
    "openai-responses": "openai",
    "openai-chat": "openai",
}


def price(
    model: str, api: Wire, usage: Usage, overrides: Overrides | None = None, at: int | None = None
) -> int | None:
    """The list price of what a call used (`at`: UTC ms, when prices change; now if left out).

    What the provider itself tells (`usage.cost_nanousd`) is not looked at.
    """
    nanousd = _price(model, api, usage, overrides or {}, at)
    return None if nanousd is None else int(nanousd.to_integral_value(ROUND_HALF_EVEN))


def estimate(
    model: str,
    api: Wire,
    input_tokens: int,
    max_output_tokens: int | None,
    overrides: Overrides | None = None,
    at: int | None = None,
) -> tuple[int | None, bool]:
    """The most a call may cost, and whether that is a bound: nothing from the cache, all of it written there.

    Without a bound on its answer, so many tokens as `ASSUMED_OUTPUT_TOKENS` are reckoned with.
    """
    bounded = max_output_tokens is not None
    output = max_output_tokens if max_output_tokens is not None else ASSUMED_OUTPUT_TOKENS
    plain = Usage(model, input_tokens=input_tokens, output_tokens=output)
    written = Usage(model, cache_write_tokens=input_tokens, output_tokens=output)
    kept = Usage(
        model, cache_write_tokens=input_tokens, cache_write_1h_tokens=input_tokens, output_tokens=output
    )
    prices = [_price(model, api, usage, overrides or {}, at) for usage in (plain, written, kept)]
    known = [nanousd for nanousd in prices if nanousd is not None]
    if not known:
        return None, False
    return int(max(known).to_integral_value(ROUND_CEILING)), bounded


def _price(model: str, api: Wire, usage: Usage, overrides: Overrides, at: int | None) -> Decimal | None:
    if (section := overrides.get(model)) is not None:
        return _by_section(section, usage)
    if (found := _find(model, api)) is None:
        return None
    vendor, row = found
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at / 1000, UTC)
    total = row.calc_price(_as_table_usage(usage), vendor, genai_request_timestamp=moment).total_price
    return total * _NANO_PER_USD


def _by_section(section: PriceSection, usage: Usage) -> Decimal:
    """A class of tokens without a price of its own costs what input does."""

    def rate(name: str) -> Decimal:
        named = name if name in section.model_fields_set else "input"
        return Decimal(str(getattr(section, named))) * _NANO_PER_MTOK

    return (
        rate("input") * usage.input_tokens
        + rate("cache_read") * usage.cache_read_tokens
        + rate("cache_write") * usage.cache_write_tokens
        + rate("output") * usage.output_tokens
    )


def _as_table_usage(usage: Usage) -> "table.Usage":
    """The table's input includes what was read from and written to the cache."""
    whole = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return _table().Usage(
        input_tokens=whole,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )


@lru_cache(maxsize=1024)
def _find(model: str, api: Wire) -> "tuple[table.Provider, table.ModelInfo] | None":
    """The vendor and row of a model: of the wire's own vendor, a router's, or whoever has that name."""
    vendors = (_VENDORS[api], "openrouter" if "/" in model else None, None)
    for vendor in dict.fromkeys(vendors):
        try:
            return _snapshot().find_provider_model(model, None, vendor, None)
        except LookupError:
            continue
    return None


@cache
def _table() -> Any:
    return import_module("genai_prices.types")


@cache
def _snapshot() -> Any:
    return cast(Any, import_module("genai_prices.data_snapshot")).get_snapshot()
