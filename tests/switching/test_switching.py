"""Switching harness and forking, on the real agents: what the next agent's first request holds."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
from support import House, body_of, fresh_home, wait_for

from omnigent.events import ItemUpdated, ToolCompleted
from omnigent.testing.scripted_model import RecordedRequest, history_of

AGENTS = ["claude-code", "codex", "pi"]
BIG = 300_000
SCRIPT = {
    "turns": [
        {
            "match": "FIRST",
            "steps": [
                {
                    "reasoning": "SECRET-THOUGHT about it",
                    "text": "I run two commands.",
                    "tools": [
                        {"tool": "$shell", "input": {"command": "echo one"}},
                        {"tool": "$shell", "input": {"command": "echo two"}},
                    ],
                },
                {"text": "ANSWER-ONE"},
            ],
        },
        {
            "match": "BIG",
            "steps": [
                {
                    "tools": [
                        {"tool": "$shell", "input": {"command": f"head -c {BIG} /dev/zero | tr '\\0' b"}}
                    ]
                },
                {"text": "ANSWER-BIG"},
            ],
        },
        {"match": "BREAK", "steps": [{"text": "half " * 400, "chunk": 5, "chunk_delay_ms": 30}]},
        {"match": "PICTURE", "steps": [{"text": "ANSWER-PICTURE"}]},
        {"match": "SECOND", "steps": [{"text": "ANSWER-TWO"}]},
        {"match": "THIRD", "steps": [{"text": "ANSWER-THREE"}]},
    ]
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
by_pair = pytest.mark.parametrize(("source", "target"), list(permutations(AGENTS, 2)))


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    house = House(fresh_home("switching"), SCRIPT)
    try:
        yield house
    finally:
        house.close()


@pytest.fixture
def house(shared: House) -> House:
    shared.begin(SCRIPT)
    return shared


def turn(house: House, session_id: str, text: str, **more: Any) -> RecordedRequest:
    """Send a prompt, wait for its end; the first model request it led to."""
    before = len(house.model.requests)
    house.prompt(session_id, text, **more)
    settled = house.settled(session_id, 60)
    assert settled["last_turn"]["outcome"] == "completed", settled["last_turn"]
    return next(request for request in house.model.requests[before:] if text in request.prompt)


def switch(house: House, session_id: str, target: str) -> dict[str, Any]:
    """Switch and return the body of the event that says what was carried."""
    count = house.kinds(session_id).count("harness.changed")
    house.client().command(session_id, "switch", harness=target)
    return json.loads(house.await_kind(session_id, "harness.changed", 60, count + 1).body_text)


def told(request: RecordedRequest) -> list[tuple[str, str, str]]:
    """(role, kind, text or call id) of what the request held, system texts left out."""
    return [
        (item.role, item.kind, item.call_id if item.kind in ("call", "result") else _words(item.text))
        for item in history_of(request)
        if item.role != "system"
    ]


def _words(text: str) -> str:
    return text.replace("[image]", "").strip()


def texts(request: RecordedRequest, role: str) -> list[str]:
    return [text for said, kind, text in told(request) if said == role and kind == "text"]


def results(request: RecordedRequest) -> list[str]:
    return [item.text for item in history_of(request) if item.kind == "result"]


def paired_once(request: RecordedRequest) -> int:
    """The number of calls; each has one result after it, and no id comes twice."""
    calls = [what for _, kind, what in told(request) if kind == "call"]
    answered = [what for _, kind, what in told(request) if kind == "result"]
    assert Counter(calls) == Counter(answered)
    assert all(count == 1 for count in Counter(calls).values())
    return len(calls)


def half_said(house: House, session_id: str) -> bool:
    """A durable piece of the text that is being streamed."""
    bodies = [event.body for event in house.events(session_id)]
    return any(isinstance(body, ItemUpdated) and body.stream == "text" for body in bodies)


@by_pair
def test_there_and_back(house: House, source: str, target: str) -> None:
    """Turn 1 arrives as native roles, once; after A→B→A it is there once, and B's turn too."""
    session_id = house.create(source, "FIRST please", approvals="yes")
    house.settled(session_id, 60)
    changed = switch(house, session_id, target)
    assert changed["carried"]["how"] == "seeded"
    assert (changed["from"], changed["to"]) == (source, target)
    assert changed["carried"]["tool_calls"] == 2
    assert changed["carried"]["dropped"] == []
    there = turn(house, session_id, "SECOND please")
    assert texts(there, "user") == ["FIRST please", "SECOND please"]
    assert texts(there, "assistant")[0] == "I run two commands."
    assert "ANSWER-ONE" in texts(there, "assistant")
    assert paired_once(there) == 2
    assert sorted(text.split()[-1] for text in results(there)) == ["one", "two"]
    assert "SECRET-THOUGHT" not in json.dumps(there.body)
    switch(house, session_id, source)
    back = turn(house, session_id, "THIRD please")
    assert texts(back, "user") == ["FIRST please", "SECOND please", "THIRD please"]
    assert "ANSWER-TWO" in texts(back, "assistant")
    assert paired_once(back) == 2
    assert house.session(session_id)["harness"] == source


@by_pair
def test_interrupted_image_and_big_output(house: House, source: str, target: str) -> None:
    session_id = house.create(source, "BIG please", approvals="yes")
    house.settled(session_id, 60)
    picture = {"type": "image", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    house.prompt(session_id, None, content=[{"type": "text", "text": "PICTURE please"}, picture])
    house.settled(session_id, 60)
    house.prompt(session_id, "BREAK please")
    wait_for(lambda: half_said(house, session_id), 30, "some of the text to break")
    house.client().command(session_id, "interrupt")
    assert house.settled(session_id, 20)["last_turn"]["outcome"] == "interrupted"
    changed = switch(house, session_id, target)
    assert changed["carried"]["images"] == 1
    there = turn(house, session_id, "SECOND please")
    users = texts(there, "user")
    assert [text for text in users if "please" in text] == [
        "BIG please",
        "PICTURE please",
        "BREAK please",
        "SECOND please",
    ]
    assert there.images == 1
    assert any(text.startswith("half half") for text in texts(there, "assistant"))
    assert paired_once(there) == 1
    carried = max(len(text) for text in results(there))
    ended = next(e for e in house.events(session_id) if e.kind == "tool.completed")
    known = body_of(ended, ToolCompleted).output
    assert known.blob is not None or known.size < 32 * 1024
    assert carried >= min(known.size, BIG) * 0.9


def test_more_than_the_target_holds(house: House) -> None:
    """What doesn't fit is left out, oldest first, and the event lists it."""
    config = json.loads((house.home / "config.yaml").read_text())
    config["providers"]["responses"]["context_tokens"] = 12_000
    (house.home / "config.yaml").write_text(json.dumps(config))
    house.close_server()
    house.start()
    session_id = house.create("scripted", "BIG please", approvals="yes")
    house.settled(session_id)
    for number in range(8):
        turn(house, session_id, f"SECOND {number} " + "x" * 8000)
    changed = switch(house, session_id, "codex")
    assert changed["carried"]["dropped"]
    there = turn(house, session_id, "THIRD please")
    users = texts(there, "user")
    assert users[-1] == "THIRD please"
    assert any(text.startswith("SECOND 7") for text in users)
    assert not any(text.startswith("BIG") for text in users)


@pytest.mark.parametrize("source", AGENTS)
def test_target_that_fails_to_start(house: House, source: str) -> None:
    """The session stays where it was, says why, and goes on."""
    session_id = house.create(source, "FIRST please", approvals="yes")
    house.settled(session_id, 60)
    target = "pi" if source != "pi" else "codex"
    (house.home / "run" / session_id).joinpath(target).write_text("in the way")
    house.client().command(session_id, "switch", harness=target)
    house.await_kind(session_id, "command.ended", 60)
    assert house.session(session_id)["harness"] == source
    assert "harness.changed" not in house.kinds(session_id)
    after = turn(house, session_id, "SECOND please")
    assert [text for text in texts(after, "user") if "please" in text] == ["FIRST please", "SECOND please"]


@pytest.mark.parametrize("harness", ["scripted", *AGENTS])
def test_fork_anywhere(house: House, harness: str) -> None:
    """The source is untouched, the fork has the context up to the cut and a work tree of its own."""
    session_id = house.create(harness, "FIRST please", approvals="yes")
    house.settled(session_id, 60)
    turn(house, session_id, "SECOND please")
    wait_for(lambda: house.session(session_id)["status"] == "idle", 5, "idle")
    before = house.events(session_id)
    ends = [event.seq for event in before if event.kind == "turn.completed"]
    middle = next(event.seq for event in before if event.kind == "tool.started")
    for cut, expected in ((ends[0], ["FIRST please"]), (ends[1], ["FIRST please", "SECOND please"])):
        fork = house.client().fork(session_id, {"at_seq": cut})
        assert fork["workspace"] != str(house.workspace)
        request = turn(house, fork["id"], "THIRD please")
        assert texts(request, "user") == [*expected, "THIRD please"]
        paired_once(request)
    torn = house.client().fork(session_id, {"at_seq": middle})
    request = turn(house, torn["id"], "THIRD please")
    paired_once(request)
    assert house.events(session_id) == before


def png() -> bytes:
    """A red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = (8).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = b"".join(b"\0" + b"\xff\0\0" * 8 for _ in range(8))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
