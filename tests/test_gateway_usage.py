"""What a call used, read from recorded answers on their way, and what it cost, against sums done by hand."""

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from model_calls import BODIES, Answer, scene, until

from omnigent.gateway.reading import open_reading
from omnigent.gateway.tally import open_tally
from omnigent.harnesses import Wire
from omnigent.metering import ModelCall, Usage
from omnigent.prices import price

pytestmark = pytest.mark.anyio

RECORDED = Path(__file__).parent / "usage"
DAY = 1_795_000_000_000
"""When it is priced (UTC ms): list prices change."""
MESSAGES: Wire = "anthropic-messages"
RESPONSES: Wire = "openai-responses"
CHAT: Wire = "openai-chat"


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded answer, what must be read from it, and its price in nano-USD, done by hand from the vendor's
    price list: a dollar per million tokens is 1,000 nano-USD per token."""

    file: str
    wire: Wire
    usage: Usage | None
    nanousd: int | None


SONNET = "claude-sonnet-4-5"  # USD per Mtok: 3 in, 15 out, 0.30 read, 3.75 written, 6 written for an hour
GPT = "gpt-5.5"  # 5 in, 30 out, 0.50 cached
CASES = [
    Case(
        "messages-cache.sse",
        MESSAGES,
        Usage(SONNET, 25, 48211, 1200, 1000, 512, 0),
        25 * 3_000 + 48211 * 300 + 200 * 3_750 + 1000 * 6_000 + 512 * 15_000,
    ),
    Case(
        "messages-server-tool.sse",
        MESSAGES,
        Usage(SONNET, 10682, 0, 0, 0, 510, 0),
        10682 * 3_000 + 510 * 15_000,
    ),
    Case(
        "messages-whole.json",
        MESSAGES,
        Usage(SONNET, 2095, 2051, 2051, 0, 503, 380),
        2095 * 3_000 + 2051 * 300 + 2051 * 3_750 + 503 * 15_000,
    ),
    # Broken off: the input was told at the start, the output is what was seen. 38 bytes of thought ("天気"
    # has 6, the dash 3), 33 of text: 71, of which four make a token.
    Case(
        "messages-aborted.sse",
        MESSAGES,
        Usage(SONNET, 25, 48211, 1200, 1000, 18, 0, outcome="aborted"),
        25 * 3_000 + 48211 * 300 + 200 * 3_750 + 1000 * 6_000 + 18 * 15_000,
    ),
    Case(
        "messages-overloaded.sse",
        MESSAGES,
        Usage(SONNET, 25, 48211, 1200, 1000, 9, 0, outcome="error"),
        25 * 3_000 + 48211 * 300 + 200 * 3_750 + 1000 * 6_000 + 9 * 15_000,
    ),
    Case("messages-refused.sse", MESSAGES, None, None),
    Case(
        "responses-reasoning.sse",
        RESPONSES,
        Usage(GPT, 81421 - 76800, 76800, 0, 0, 1372, 1024),
        (81421 - 76800) * 5_000 + 76800 * 500 + 1372 * 30_000,
    ),
    Case(
        "responses-incomplete.sse",
        RESPONSES,
        Usage(GPT, 4200, 0, 0, 0, 2048, 2048),
        4200 * 5_000 + 2048 * 30_000,
    ),
    Case("responses-no-quota.sse", RESPONSES, None, None),
    # GPT-5.6: 4 in, 20 out, 0.40 cached, 5 written; above 272,000 tokens of input 8, 30, 0.80, 10.
    Case(
        "responses-whole.json",
        RESPONSES,
        Usage("gpt-5.6-sol", 300500 - 2000 - 500, 2000, 500, 0, 120, 0),
        (300500 - 2000 - 500) * 8_000 + 2000 * 800 + 500 * 10_000 + 120 * 30_000,
    ),
    Case(
        "chat-cached.sse",
        CHAT,
        Usage(GPT, 19000 - 16384, 16384, 0, 0, 910, 640),
        (19000 - 16384) * 5_000 + 16384 * 500 + 910 * 30_000,
    ),
    Case(
        "chat-whole.json",
        CHAT,
        Usage(GPT, 19000 - 16384, 16384, 0, 0, 910, 640),
        (19000 - 16384) * 5_000 + 16384 * 500 + 910 * 30_000,
    ),
    Case("chat-growing.sse", CHAT, Usage(GPT, 11, 0, 0, 0, 3, 0), 11 * 5_000 + 3 * 30_000),
    Case(
        "chat-router.sse",
        CHAT,
        Usage("a-model-no-table-knows", 94, 0, 100, 0, 2, 0, cost_nanousd=950_000),
        None,
    ),
]


def answer_of(case: Case, size: int = 0, eol: bytes = b"\n", zipped: bool = False) -> Answer:
    data = (RECORDED / case.file).read_bytes()
    kind = "application/json" if case.file.endswith(".json") else "text/event-stream; charset=utf-8"
    if kind.startswith("text"):
        data = data.replace(b"\n", eol)
    headers = {"content-type": kind}
    if zipped:
        data, headers = gzip.compress(data), {**headers, "content-encoding": "gzip"}
    size = size or len(data)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return Answer(pieces, headers=headers, then="break" if "aborted" in case.file else "end")


def body_of(case: Case) -> dict[str, object]:
    body: dict[str, object] = {**BODIES[case.wire], "model": case.usage.model if case.usage else SONNET}
    if case.file.endswith(".sse"):
        body["stream"] = True
        if case.wire == CHAT:
            body["stream_options"] = {"include_usage": True}
    return body


async def read_usage(case: Case, answer: Answer) -> tuple[bytes, Usage | None]:
    """What the client got, and what the meter was told."""
    async with scene(case.wire) as at:
        at.provider.answer = answer
        got = b""
        async with at.post(body_of(case)) as response:
            try:
                async for piece in response.content.iter_any():
                    got += piece
            except aiohttp.ClientPayloadError:
                assert answer.then == "break"
        await until(lambda: len(at.book.settled) == 1)
        return got, at.book.usage


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
async def test_a_recorded_answer_is_read_and_priced_as_by_hand(case: Case) -> None:
    answer = answer_of(case)
    got, usage = await read_usage(case, answer)
    assert got == b"".join(answer.pieces)
    assert usage == case.usage
    if usage is not None:
        cost = price(usage.model, case.wire, usage, at=DAY)
        if case.nanousd is None:
            assert cost is None
        else:
            assert cost is not None
            assert abs(cost - case.nanousd) <= case.nanousd / 100
            assert cost == case.nanousd  # it is even exact


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
@pytest.mark.parametrize(("size", "eol"), [(1, b"\n"), (7, b"\r\n"), (1, b"\r\n"), (5, b"\r"), (64, b"\n")])
def test_any_borders_and_line_ends(case: Case, size: int, eol: bytes) -> None:
    assert read_pieces(case, answer_of(case, size, eol)) == case.usage


@pytest.mark.parametrize("case", [c for c in CASES if "aborted" not in c.file], ids=lambda case: case.file)
def test_a_compressed_answer(case: Case) -> None:
    assert read_pieces(case, answer_of(case, 11, zipped=True)) == case.usage


def read_pieces(case: Case, answer: Answer) -> Usage | None:
    """The same without a network: fed piece by piece."""
    tally = open_tally(case.wire, ModelCall("call_1", case.usage.model if case.usage else SONNET, 1, None))
    tally.sent = True
    encoding = answer.headers.get("content-encoding", "")
    streams = case.file.endswith(".sse")
    reading = open_reading(tally, answer.headers["content-type"], encoding, streams, hide_usage=False)
    shown = b"".join(reading.take(piece) for piece in answer.pieces)
    if answer.then == "end":
        shown += reading.end()
    assert shown == b"".join(answer.pieces)
    return tally.usage()


@pytest.mark.parametrize(("wire", "file", "seen"), [
    # 23 bytes of summary, 22 of text, 23 of arguments: 68, so 17 tokens.
    (RESPONSES, "responses-aborted.sse", 17),
    # 3 + 10 of text, 16 of arguments: 29, so 8 tokens.
    (CHAT, "chat-aborted.sse", 8),
])  # fmt: skip
async def test_where_the_input_comes_last_a_broken_answer_is_estimated(
    wire: Wire, file: str, seen: int
) -> None:
    case = Case(file, wire, Usage(GPT), None)
    sent = len(json.dumps(body_of(case)))
    _, usage = await read_usage(case, answer_of(case))
    assert usage == Usage(GPT, input_tokens=-(-sent // 4), output_tokens=seen, outcome="aborted")


async def test_a_stream_that_fails_after_some_words_is_estimated_and_an_error() -> None:
    case = Case("responses-failed.sse", RESPONSES, Usage(GPT), None)
    _, usage = await read_usage(case, answer_of(case))
    assert usage is not None
    assert (usage.outcome, usage.output_tokens) == ("error", -(-(23 + 22) // 4))


@pytest.mark.parametrize("size", [1, 13, 100_000])
async def test_a_usage_chunk_that_the_client_did_not_ask_for_is_not_shown(size: int) -> None:
    case = next(case for case in CASES if case.file == "chat-cached.sse")
    whole = (RECORDED / case.file).read_bytes()
    async with scene(CHAT) as at:
        at.provider.answer = answer_of(case, size)
        body = b'{"model":"gpt-5.5",  "stream": true, "messages": []}'
        status, got = await at.call(body)
        ((_, left),) = at.provider.seen
        assert status == 200
        assert at.book.usage == case.usage
    assert left == b'{"stream_options":{"include_usage":true},' + body[1:]
    events = [event for event in whole.split(b"\n\n") if event]
    shown = [event for event in got.split(b"\n\n") if event]
    assert shown == [event for event in events if b'"choices":[]' not in event]
    assert len(shown) == len(events) - 1


async def test_an_answer_that_tells_no_usage_is_an_estimate() -> None:
    async with scene(CHAT) as at:
        at.provider.answer = Answer([b'{"choices": []}'])
        await at.call()
        usage = at.book.usage
    assert usage is not None
    assert (usage.outcome, usage.output_tokens) == ("aborted", 0)
    assert usage.input_tokens > 0


async def test_a_client_that_leaves_after_the_end_was_told_is_no_abort() -> None:
    case = next(case for case in CASES if case.file == "responses-reasoning.sse")
    async with scene(case.wire) as at:
        at.provider.answer = replace(answer_of(case), then="hang")
        answer = await at.post(body_of(case))
        await answer.content.readuntil(b"response.completed")
        answer.close()
        await until(lambda: len(at.book.settled) == 1)
        assert at.book.usage == case.usage


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    "lines",
    [
        [b'data: {"usage": {"prompt_tokens": 7},', b'data: "choices": []}'],
        [b"event: x", b'data: {"usage": {"prompt_tokens": 7},', b'data: "choices": []}', b"id: 3"],
        [b": a comment", b'data:{"usage": {"prompt_tokens": 7}, "choices": []}', b"retry: 5"],
        [b'data: {"usage": {"prompt_tokens": 7}, "choices": [], "x": "\\ndata:"}'],
    ],
)
def test_events_of_any_lines(lines: list[bytes], eol: bytes) -> None:
    tally = open_tally(CHAT, ModelCall("call_1", "m", 1, None))
    tally.sent = True
    reading = open_reading(tally, "text/event-stream", "", streams=True, hide_usage=True)
    assert reading.take(eol.join([b"data: [DONE]", b"", *lines, b"", b""])) == b"data: [DONE]" + eol * 2
    assert tally.usage() == Usage("m", input_tokens=7)
