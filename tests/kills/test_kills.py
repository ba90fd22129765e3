"""SIGKILL of the server, the runner, both, or the agent, at named moments of a turn, on each real agent.

What must hold after every one: nothing committed is lost, nothing happens twice, nothing sticks, no process
is left behind, and the next prompt goes on with the same context.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import EVERY_COMMAND_ASKS, House, body_of, fresh_home, submitted_text, wait_for

from omnigent import processes
from omnigent.events import MessageFailed
from omnigent.testing.scripted_model import history_of

HARNESSES = ["scripted", "claude-code", "codex", "pi"]
SECONDS_OF_COMMAND = 20
SLOW_PROGRAM = f"""
import os, time
open("begun.txt", "a").write("x")
end = time.monotonic() + {SECONDS_OF_COMMAND}
while time.monotonic() < end and not os.path.exists("end.txt"):
    time.sleep(0.05)
open("late.txt", "a").write("x")
"""
SLOW = "python3 slow.py"
HIDDEN = "nohup setsid python3 slow.py >/dev/null 2>&1 & until [ -e begun.txt ]; do true; done"
"""The same in a session of its own, with no parent."""
SCRIPT = {
    "turns": [
        {
            "match": "SLOW",
            "steps": [
                {"text": "One moment.", "tools": [{"tool": "$shell", "input": {"command": SLOW}}]},
                {"text": "The command has ended."},
            ],
        },
        {
            "match": "HELD",
            "steps": [
                {"tools": [{"tool": "$shell", "input": {"command": "echo x >> held.txt"}}]},
                {"text": "Held no more."},
            ],
        },
        {
            "match": "STREAM",
            "steps": [{"text": "word " * 200, "chunk": 5, "chunk_delay_ms": 20}],
        },
        {"match": "WAIT", "steps": [{"text": "At last.", "delay_ms": 3000}]},
        {"match": "HELLO", "steps": [{"text": "Hello."}]},
        {"match": "AGAIN", "steps": [{"text": "I remember {{n_users}} messages."}]},
    ]
}


def _open_house(name: str, grace_seconds: float) -> Iterator[House]:
    house = House(fresh_home(name), SCRIPT, grace_seconds=grace_seconds)
    try:
        yield house
    finally:
        house.close()


@pytest.fixture(scope="module")
def patient_house() -> Iterator[House]:
    yield from _open_house("kills", 60)


@pytest.fixture(scope="module")
def hasty_house() -> Iterator[House]:
    yield from _open_house("grace", 2)


def _begin(house: House) -> House:
    house.begin(SCRIPT)
    (house.workspace / "slow.py").write_text(SLOW_PROGRAM)
    return house


@pytest.fixture
def house(patient_house: House) -> House:
    return _begin(patient_house)


@pytest.fixture
def hasty(hasty_house: House) -> House:
    """A house whose runners wait 2 s for their server."""
    return _begin(hasty_house)


def begun(house: House) -> bool:
    return (house.workspace / "begun.txt").exists()


def lines(house: House, name: str) -> int:
    path: Path = house.workspace / name
    return len(path.read_text().replace("\n", "")) if path.exists() else 0


# Moments: each starts a turn and returns the session at the moment of the kill.


def running_command(house: House, harness: str) -> str:
    session_id = house.create(harness, "SLOW please", approvals="yes")
    wait_for(lambda: begun(house), 30, "the command's start")
    return session_id


def held_question(house: House, harness: str) -> str:
    session_id = house.create(harness, "HELD please", policies=EVERY_COMMAND_ASKS)
    house.await_kind(session_id, "approval.requested")
    return session_id


def streaming_text(house: House, harness: str) -> str:
    session_id = house.create(harness, "STREAM please")
    house.await_kind(session_id, "message.started")
    return session_id


def waiting_for_model(house: House, harness: str) -> str:
    session_id = house.create(harness, "WAIT please")
    wait_for(lambda: house.model_calls("WAIT"), 30, "the model call")
    return session_id


def just_submitted(house: House, harness: str) -> str:
    """A warm agent, and a prompt that has only just been accepted."""
    session_id = house.create(harness, "HELLO please")
    house.settled(session_id)
    house.prompt(session_id, "WAIT please")
    return session_id


MOMENTS: list[Callable[[House, str], str]] = [
    running_command,
    held_question,
    streaming_text,
    waiting_for_model,
    just_submitted,
]
by_harness = pytest.mark.parametrize("harness", HARNESSES)
by_moment = pytest.mark.parametrize("moment", MOMENTS)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def goes_on(house: House, session_id: str) -> None:
    """The next prompt runs on the same context: the first message is there, once."""
    first = submitted_text(next(e for e in house.events(session_id) if e.kind == "message.submitted"))
    before = len(house.model.requests)
    house.prompt(session_id, "AGAIN please")
    settled = house.settled(session_id)
    assert settled["last_turn"]["outcome"] == "completed", settled["last_turn"]
    request = next(r for r in house.model.requests[before:] if "AGAIN" in r.prompt)
    said = [item.text for item in history_of(request) if item.role == "user" and item.kind == "text"]
    failed = [event for event in house.events(session_id) if event.kind == "message.failed"]
    known = [body_of(event, MessageFailed).code for event in failed]
    assert sum(first in text for text in said) == (0 if "not_delivered" in known else 1), said


@by_harness
@by_moment
def test_server_killed_and_back(house: House, harness: str, moment: Callable[[House, str], str]) -> None:
    """The same agent process finishes the same turn, and all it did is in the log, once."""
    session_id = moment(house, harness)
    agents = set(house.agent_processes(session_id))
    turn = house.session(session_id)["turn"]
    assert turn is not None
    house.kill()
    time.sleep(0.5)  # the outage itself
    house.restart()
    if moment is held_question:
        house.approve(session_id)
    (house.workspace / "end.txt").touch()
    settled = house.settled(session_id, 60)
    assert settled["last_turn"] == {"id": turn["id"], "outcome": "completed"}
    if agents:
        still = set(house.agent_processes(session_id))
        assert agents & still, "another process finished the turn"
    kinds = house.kinds(session_id)
    assert kinds.count("harness.started") == 1
    assert kinds.count("turn.failed") == 0
    if moment is running_command:  # Codex lets a long command run on after the turn
        wait_for(lambda: lines(house, "late.txt") == 1, SECONDS_OF_COMMAND + 10, "the command's end")
        assert kinds.count("tool.completed") == 1
    if moment is held_question:
        assert lines(house, "held.txt") == 1
        assert kinds.count("approval.requested") == 1
    goes_on(house, session_id)


@by_harness
@pytest.mark.parametrize("moment", [running_command, held_question])
def test_server_killed_for_good(hasty: House, harness: str, moment: Callable[[House, str], str]) -> None:
    """After the grace no process of the tree lives, and the model is called no more."""
    house = hasty
    session_id = moment(house, harness)
    house.kill()
    calls = len(house.model.requests)
    house.nothing_runs(session_id, 10)
    assert len(house.model.requests) == calls
    assert lines(house, "late.txt") == 0
    assert lines(house, "held.txt") == 0
    house.restart()
    house.at_rest(session_id, 15)
    goes_on(house, session_id)


@by_harness
def test_server_killed_for_good_with_hidden_command(hasty: House, harness: str) -> None:
    """A command in a session of its own, without a parent, ends too."""
    house = hasty
    script = {
        "turns": [
            {
                "match": "HIDE",
                "steps": [
                    {"tools": [{"tool": "$shell", "input": {"command": HIDDEN}}]},
                    {"text": "word " * 400, "chunk": 5, "chunk_delay_ms": 50},
                ],
            }
        ]
    }
    house.model.set_script(script)
    session_id = house.create(harness, "HIDE please", approvals="yes")
    wait_for(lambda: begun(house), 30, "the hidden command's start")
    house.kill()
    house.nothing_runs(session_id, 10)
    assert lines(house, "late.txt") == 0


@by_harness
@by_moment
def test_runner_killed(house: House, harness: str, moment: Callable[[House, str], str]) -> None:
    """Its tree is gone within 2 s, the status is true, the next prompt goes on."""
    session_id = moment(house, harness)
    pid, _ = house.leases()[session_id]
    os.kill(pid, signal.SIGKILL)
    house.nothing_runs(session_id, 2)
    settled = house.at_rest(session_id, 15)
    assert settled["last_turn"]["outcome"] == "failed"
    assert lines(house, "late.txt") == 0
    assert lines(house, "held.txt") == 0
    assert not house.client().inbox()
    goes_on(house, session_id)


@by_harness
@by_moment
def test_server_and_runner_killed(house: House, harness: str, moment: Callable[[House, str], str]) -> None:
    session_id = moment(house, harness)
    pid, _ = house.leases()[session_id]
    house.kill()
    os.kill(pid, signal.SIGKILL)
    house.nothing_runs(session_id, 2)
    house.restart()
    settled = house.at_rest(session_id, 15)
    assert settled["last_turn"]["outcome"] == "failed"
    assert lines(house, "late.txt") == 0
    assert lines(house, "held.txt") == 0
    goes_on(house, session_id)


@by_harness
@by_moment
def test_agent_killed(house: House, harness: str, moment: Callable[[House, str], str]) -> None:
    """A visible failed turn; the next prompt revives it."""
    session_id = moment(house, harness)
    for pid, start in wait_for(lambda: house.agent_processes(session_id), 5, "an agent"):
        if b"reaper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes() and processes.alive(pid, start):
            os.kill(pid, signal.SIGKILL)
            break
    settled = house.at_rest(session_id, 15)
    assert settled["last_turn"]["outcome"] == "failed", settled["last_turn"]
    house.nothing_runs(session_id, 5)
    assert lines(house, "late.txt") == 0
    goes_on(house, session_id)
