"""SIGKILL at random moments of a turn's life: its start, streaming, a held question, a tool, and after it.

The moments are spread evenly over the life of a turn as it was measured on this machine, in random order.
What must hold after each: the log verifies, the status is true within 15 s, nothing runs that shouldn't, what
was done was done once, and the next prompt goes on.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from support import EVERY_COMMAND_ASKS, House, body_of, fresh_home, submitted_text, wait_for

from omnigent import processes
from omnigent.errors import Conflict
from omnigent.events import Event, MessageFailed
from omnigent.testing.scripted_model import history_of

MOMENTS = int(os.environ.get("OMNIGENT_KILLS", "30"))
SEED = int(os.environ.get("OMNIGENT_SEED", "20261122"))
HOLD_SECONDS = 0.3
"""How long a person thinks about a question."""
SETTLE_SECONDS = 15
VICTIMS = ("server", "runner", "both", "agent")
SCRIPT = {
    "turns": [
        {
            "match": "LIFE",
            "steps": [
                {
                    "text": "word " * 8,
                    "chunk": 5,
                    "chunk_delay_ms": 40,
                    "tools": [{"tool": "$shell", "input": {"command": "sleep 0.3; printf x >> done.txt"}}],
                },
                {"text": "word " * 8, "chunk": 5, "chunk_delay_ms": 40},
            ],
        },
        {"match": "AGAIN", "steps": [{"text": "I go on."}]},
    ]
}
pytestmark = pytest.mark.slow


@pytest.fixture
def house() -> Iterator[House]:
    house = House(fresh_home("random"), SCRIPT, grace_seconds=60)
    try:
        house.start()
        yield house
    finally:
        house.close()


class Life:
    """One session with one turn, whose question a person answers, and perhaps one kill."""

    def __init__(self, house: House, harness: str, name: str) -> None:
        self.house = house
        self.client = house.client()
        self.workspace = house.workspace / name
        self.workspace.mkdir()
        self.prompt = f"LIFE {name}"
        self.began = time.monotonic()
        self.id = house.create(
            harness, self.prompt, workspace=str(self.workspace), policies=EVERY_COMMAND_ASKS
        )
        self.struck_at: float | None = None
        self.phase = ""
        """What it was doing when it was struck."""
        self._asked_at: float | None = None
        self._stricken: list[processes.Process] = []
        """What ran when it was struck and must not run any more."""

    def live(self, victim: str | None = None, moment: float = 0) -> float:
        """To the end of its turn, and of the victim if there is one. Seconds that took after the kill."""
        while victim is not None or self.client.session(self.id)["status"] != "idle":
            now = time.monotonic()
            if victim is not None and now - self.began >= moment and self._strike(victim):
                victim = None
            # Where the server alone was killed, its turn goes on.
            seconds = 60 if victim is not None or not self._stricken else SETTLE_SECONDS
            assert now - (self.struck_at or self.began) < seconds + moment, self.client.session(self.id)
            self._answer()
            time.sleep(0.01)  # a person's eyes
        return time.monotonic() - (self.struck_at or self.began)

    def _answer(self) -> None:
        inbox = self.client.inbox()
        items = [row["item"] for row in inbox if row["session_id"] == self.id]
        if any(item.get("detached") for item in items):  # its agent is gone: given up
            self.client.command(self.id, "interrupt")
            return
        asked = [item["id"] for item in items]
        if not asked:
            self._asked_at = None
            return
        self._asked_at = self._asked_at or time.monotonic()
        if time.monotonic() - self._asked_at >= HOLD_SECONDS:
            with contextlib.suppress(Conflict):  # a kill was faster
                self.client.command(self.id, "resolve", approval_id=asked[0], decision="allow")

    def _strike(self, victim: str) -> bool:
        """Whether there was a victim."""
        house = self.house
        pid, _ = house.leases().get(self.id, (0, 0))
        if victim != "server" and (not pid or processes.start_time(pid) is None):
            return False
        running = house.agent_processes(self.id)
        agent = _agent_of(running)
        if victim == "agent" and agent is None:
            return False
        self.phase = _phase(Counter(house.kinds(self.id)))
        if victim in ("server", "both"):
            house.kill()
        if victim in ("runner", "both"):
            os.kill(pid, signal.SIGKILL)
        if victim == "agent":
            assert agent is not None
            os.kill(agent, signal.SIGKILL)
        self.struck_at = time.monotonic()
        self._stricken = [] if victim == "server" else running
        if victim in ("server", "both"):
            house.restart()
        return True

    def judge(self, victim: str) -> str:
        """All that must hold. The turn's outcome."""
        wait_for(lambda: not any(processes.alive(*one) for one in self._stricken), 5, "the stricken gone")
        events = self.house.events(self.id)
        kinds = Counter(event.kind for event in events)
        outcome = self._outcome()
        ends = kinds["turn.completed"] + kinds["turn.failed"] + kinds["turn.interrupted"]
        assert (kinds["turn.started"], ends) == (1, 1), kinds
        assert kinds["message.delivered"] + kinds["message.failed"] == 1, kinds
        done = self.workspace / "done.txt"
        times = len(done.read_text()) if done.exists() else 0
        assert times == 1 if outcome == "completed" else times <= 1, (outcome, times)
        if victim == "server" and kinds["harness.started"]:
            assert (outcome, kinds["harness.started"], kinds["harness.exited"]) == ("completed", 1, 0), kinds
        elif victim == "server":  # the launch was lost with it, before there was an agent
            assert outcome == "failed", kinds
        self._goes_on(events)
        assert len(done.read_text() if done.exists() else "") == times, "done again"
        self.client.command(self.id, "stop")
        self.house.nothing_runs(self.id, 10)
        wait_for(lambda: self.id not in self.house.leases(), 10, "the runner gone")
        self.house.events(self.id)
        return outcome

    def _outcome(self) -> str:
        last = self.client.session(self.id).get("last_turn")
        assert last
        return last["outcome"]

    def _goes_on(self, events: list[Event]) -> None:
        """The next prompt runs on the same context: the first message is there, once, if it got there."""
        before = len(self.house.model.requests)
        self.client.command(self.id, "prompt", text="AGAIN please")
        wait_for(lambda: self.client.session(self.id)["status"] == "idle", 60, "the next turn's end")
        assert self._outcome() == "completed", self.client.session(self.id).get("last_turn")
        request = next(r for r in self.house.model.requests[before:] if "AGAIN" in r.prompt)
        said = [i.text for i in history_of(request) if i.role == "user" and i.kind == "text"]
        count = sum(self.prompt in text for text in said)
        failed = [body_of(event, MessageFailed).code for event in events if event.kind == "message.failed"]
        assert count <= 1 if failed else count == 1, (failed, said)
        texts = [submitted_text(event) for event in events if event.kind == "message.submitted"]
        assert texts == [self.prompt]


def _phase(kinds: Counter[str]) -> str:
    if kinds["turn.completed"]:
        return "after the turn"
    if kinds["approval.requested"] > kinds["approval.resolved"]:
        return "held question"
    if kinds["tool.requested"] > kinds["tool.completed"]:
        return "tool"
    return "text" if kinds["harness.started"] else "start"


def _agent_of(running: list[processes.Process]) -> int | None:
    """The agent itself: the reaper's first child."""
    reapers = [pid for pid, _ in running if b"reaper.py" in _command(pid)]
    below = [one for pid in reapers for one in processes.descendants(pid)]
    return min(below, key=lambda one: one[1])[0] if below else None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def endure(house: House, harness: str, moments: int, seed: int) -> None:
    """So many lives with a kill each; prints what happened."""
    dice = random.Random(seed)
    warm = Life(house, harness, "first")
    warm.live()
    warm.judge("nobody")
    measured = Life(house, harness, "measured")
    span = measured.live() * 1.15  # a bit of the time after the turn too
    measured.judge("nobody")
    when = [(n + dice.random()) / moments * span for n in range(moments)]
    dice.shuffle(when)
    outcomes: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    longest = 0.0
    for number, (moment, victim) in enumerate(zip(when, islice(cycle(VICTIMS), moments), strict=True)):
        life = Life(house, harness, f"m{number:03d}")
        try:
            longest = max(longest, life.live(victim, moment))
            outcomes[f"{victim}: {life.judge(victim)}"] += 1
        except (AssertionError, StopIteration) as error:
            error.add_note(
                f"moment {number}: {victim} killed at {moment:.2f} s, in: {life.phase}; seed {seed}"
            )
            raise
        phases[life.phase] += 1
    print(f"\n{harness}: {moments} kills over {span:.2f} s of life, settled within {longest:.1f} s")
    for name, table in (("outcomes", outcomes), ("killed in", phases)):
        print(f"  {name}: " + ", ".join(f"{key} {count}" for key, count in sorted(table.items())))
    assert len(phases) >= min(3, moments), "the moments were not spread"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("half", [0, 1])
def test_thirty_random_moments(house: House, half: int) -> None:
    endure(house, "scripted", 15, SEED + half)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("harness", ["scripted", "claude-code", "codex", "pi"])
def test_endurance(house: House, harness: str) -> None:
    """`./dev kills`: outside CI."""
    endure(house, harness, MOMENTS, SEED)
