"""Prices in nano-USD: tables, tiers, cache classes, the provider's own, and what nobody knows."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigent.config import PriceSection
from omnigent.harnesses import Wire
from omnigent.metering import Usage
from omnigent.prices import ASSUMED_OUTPUT_TOKENS, estimate, price

DAY = 1_795_000_000_000
SONNET = "claude-sonnet-4-5"
MESSAGES: Wire = "anthropic-messages"
RESPONSES: Wire = "openai-responses"
CHAT: Wire = "openai-chat"


@pytest.mark.parametrize(
    ("model", "api", "usage", "nanousd"),
    [
        (SONNET, MESSAGES, Usage("", input_tokens=1), 3_000),
        ("claude-sonnet-4-5-20250929", MESSAGES, Usage("", cache_read_tokens=1), 300),
        (SONNET, MESSAGES, Usage("", cache_write_tokens=1), 3_750),
        (SONNET, MESSAGES, Usage("", cache_write_tokens=1, cache_write_1h_tokens=1), 6_000),
        # Thinking is output, and not paid twice.
        (SONNET, MESSAGES, Usage("", output_tokens=2, reasoning_tokens=1), 30_000),
        # All of a call above 200,000 tokens of input costs more, its output too.
        (SONNET, MESSAGES, Usage("", input_tokens=200_000, output_tokens=1), 600_015_000),
        (SONNET, MESSAGES, Usage("", input_tokens=1, cache_read_tokens=200_000), 6_000 + 200_000 * 600),
        # A class the vendor has no price for costs what input does.
        ("gpt-5.5", RESPONSES, Usage("", cache_write_tokens=7), 35_000),
        ("gpt-5.5", CHAT, Usage("", input_tokens=1), 5_000),
        # Another vendor's model over this wire, and a router's name for it.
        (SONNET, CHAT, Usage("", input_tokens=1), 3_000),
        ("anthropic/claude-sonnet-4.5", CHAT, Usage("", input_tokens=1), 3_000),
        ("no-such-model", CHAT, Usage("", input_tokens=1), None),
        ("", MESSAGES, Usage("", input_tokens=1), None),
        (SONNET, MESSAGES, Usage(""), 0),
    ],
)
def test_list_prices(model: str, api: Wire, usage: Usage, nanousd: int | None) -> None:
    found = price(model, api, usage, at=DAY)
    assert found == nanousd
    assert found is None or type(found) is int


def test_the_provider_s_own_prices_win() -> None:
    own = {"mine": PriceSection(input=0.1, output=0.7), SONNET: PriceSection(input=0, output=0)}
    usage = Usage("", input_tokens=3, cache_read_tokens=5, cache_write_tokens=7, output_tokens=11)
    assert price("mine", CHAT, usage, own) == (3 + 5 + 7) * 100 + 11 * 700
    assert price(SONNET, MESSAGES, usage, own) == 0
    whole = {"mine": PriceSection(input=1, output=2, cache_read=0, cache_write=1.25)}
    assert price("mine", CHAT, usage, whole) == 3 * 1000 + 7 * 1250 + 11 * 2000
    assert price("other", CHAT, usage, own) is None


def test_an_estimate_is_the_dearest_way() -> None:
    assert estimate(SONNET, MESSAGES, 1000, 10, at=DAY) == (1000 * 6_000 + 10 * 15_000, True)
    assert estimate("gpt-5.5", RESPONSES, 1000, 10, at=DAY) == (1000 * 5_000 + 10 * 30_000, True)
    unbounded = 1000 * 5_000 + ASSUMED_OUTPUT_TOKENS * 30_000
    assert estimate("gpt-5.5", RESPONSES, 1000, None, at=DAY) == (unbounded, False)
    assert estimate("no-such-model", CHAT, 1000, 10, at=DAY) == (None, False)
    own = {"mine": PriceSection(input=1, output=1, cache_write=3)}
    assert estimate("mine", CHAT, 10, 1, own) == (31_000, True)


TOKENS = st.integers(0, 400_000)


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from([(SONNET, MESSAGES), ("gpt-5.5", RESPONSES), ("gpt-5.6-sol", CHAT)]),
    parts=st.tuples(TOKENS, TOKENS, TOKENS, TOKENS),
    output=TOKENS,
)
def test_no_call_costs_more_than_its_estimate(
    model: tuple[str, Wire], parts: tuple[int, int, int, int], output: int
) -> None:
    plain, read, written, kept = parts
    usage = Usage("", plain, read, written + kept, kept, output)
    most, bounded = estimate(*model, sum(parts), output, at=DAY)
    cost = price(*model, usage, at=DAY)
    assert bounded
    assert most is not None
    assert cost is not None
    assert cost <= most


def test_the_table_is_not_loaded_before_it_is_asked() -> None:
    look = (
        "import sys, omnigent.prices; sys.exit(any(name.startswith('genai_prices') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0
