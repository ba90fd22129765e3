"""The client's pure parts: frames, errors, backoff. Its behaviour on a wire is in test_cli_e2e.py."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigent.client import LARGEST_WAIT, Client, Frame, FrameParser, new_key, pause_before, problem
from omnigent.errors import (
    BadCursor,
    Draining,
    Malformed,
    NotFound,
    OmnigentError,
    ProviderMissing,
    ServerUnreachable,
)

STREAM = (
    'event: hello\ndata: {"head_seq": 3}\n\n'
    ": still here\n\n"
    'event: event\nid: 4\ndata: {"seq":4,"text":"grüße 🙂"}\n\n'
    "data: one\ndata: two\n\n"
).encode()

FRAMES = [
    Frame("hello", '{"head_seq": 3}'),
    Frame("comment", "still here"),
    Frame("event", '{"seq":4,"text":"grüße 🙂"}', "4"),
    Frame("message", "one\ntwo"),
]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_frames_are_the_same_wherever_the_network_cuts(cuts: list[int]) -> None:
    parser = FrameParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    got = [frame for start, end in pairwise(edges) for frame in parser.feed(STREAM[start:end])]
    assert got == FRAMES


def test_carriage_returns_are_line_ends() -> None:
    assert FrameParser().feed(STREAM.replace(b"\n", b"\r\n")) == FRAMES


@pytest.mark.parametrize(
    "kind", [Malformed, BadCursor, NotFound, Draining, ProviderMissing], ids=lambda kind: kind.code
)
def test_a_problem_is_raised_as_the_error_it_was(kind: type[OmnigentError]) -> None:
    sent = kind("It broke.", hint="Mend it.", allowed=["a"])
    body = sent.problem()
    got = problem(kind.status, _json(body), "http://x")
    assert type(got) is kind
    assert (got.detail, got.hint, got.facts, got.exit_code) == (
        "It broke.", "Mend it.", {"allowed": ["a"]}, kind.exit_code,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code"), [(400, 2), (401, 4), (403, 4), (404, 3), (409, 5), (422, 2), (500, 1)]
)
def test_an_unknown_code_falls_back_to_its_status(status: int, code: int) -> None:
    got = problem(status, b'{"code": "from_the_future", "detail": "New.", "status": 1}', "http://x")
    assert (got.exit_code, got.detail) == (code, "New.")


def test_an_answer_that_is_no_problem_is_another_program() -> None:
    got = problem(404, b"<html>nginx</html>", "http://x:1")
    assert isinstance(got, ServerUnreachable)
    assert "Something other than Omnigent answers at http://x:1" in got.detail


@given(st.integers(0, 10_000))
def test_backoff_is_bounded_and_positive(attempt: int) -> None:
    assert 0 < pause_before(attempt) <= LARGEST_WAIT + 0.01


def test_keys_are_never_the_same() -> None:
    assert len({new_key() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("url", ["localhost:6767", "ftp://x", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Malformed):
        Client(url, "token")


def test_a_closed_port_is_unreachable_at_once_without_patience() -> None:
    client = Client("http://127.0.0.1:1", "token", patience=0)
    with pytest.raises(ServerUnreachable) as caught:
        client.health()
    assert "http://127.0.0.1:1" in caught.value.detail
    assert caught.value.exit_code == 9


def _json(body: dict[str, object]) -> bytes:
    return json.dumps(body).encode()
