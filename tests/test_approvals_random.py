"""Random interleavings of raising, answering, expiring, detaching and killing: no approval is lost, no call
runs twice, and none runs that nobody allowed.

The session, its log, its policies are real; the agent is played. It runs a call when, and only when, it is
told that it may, and proposes again what a message of the host's says was allowed while it was gone.
"""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from dialogue import ANN, BOB, Talk, begin_talk

from omnigent import events as ev
from omnigent.errors import Conflict, NotFound
from omnigent.events import JSON, Event

pytestmark = pytest.mark.anyio

STEPS = 24


class Agent:
    """What is on the other side of the link. Lives until it is killed; its server may be gone meanwhile."""

    def __init__(self, talk: Talk, rng: random.Random) -> None:
        self.talk = talk
        self.rng = rng
        self.held: dict[str, str] = {}
        """Calls that wait: item id → command."""
        self.ran: Counter[str] = Counter()
        self.allowed: Counter[str] = Counter()
        """Answers of people that allow, by command."""
        self.excused: set[str] = set()
        """Commands whose agent was killed after the allow and before it could run them."""
        self.seen: list[str] = []
        self.alive = False
        self.jobs = 0

    async def hear(self) -> None:
        """Do what was sent: begin a turn, run or drop a call."""
        if self.alive and self.talk.port.now == "live":
            for frame in self.talk.port.told():
                if frame["type"] == "command":
                    await self.obey(frame["key"], frame["command"])

    async def obey(self, key: str, command: JSON) -> None:
        if key in self.seen:
            return
        self.seen.append(key)
        match command["type"]:
            case "turn" if self.talk.turn_id() == command["turn_id"]:
                await self.talk.takes()
                text = command["content"][0]["text"]
                again = re.search(r"did not run: (deploy job-\d+)", text)
                if again and "now allowed" in text:
                    await self.propose(again[1])
            case "verdict":
                await self.judge(command)
            case "interrupt":
                self.held.clear()
                await self.talk.say(ev.TurnInterrupted())
            case "cut_short":
                self.held.clear()
                await self.talk.say(ev.TurnFailed(code=command["code"], detail=command["detail"]))
            case _:
                pass

    async def judge(self, verdict: JSON) -> None:
        command = self.held.pop(verdict["item_id"], None)
        if command is None:
            return
        if verdict["allow"]:
            self.ran[command] += 1
            await self.talk.say(ev.ToolStarted(), verdict["item_id"])
            done = ev.ToolCompleted(outcome="ok", exit_code=0)
        else:
            done = ev.ToolCompleted(outcome="denied", reason=verdict["reason"])
        await self.talk.say(done, verdict["item_id"])

    async def propose(self, command: str) -> None:
        item_id = self.talk.item("tc")
        self.held[item_id] = command
        await self.talk.calls(command, item_id)

    # What may happen.

    async def step(self) -> None:
        if self.rng.random() < 0.8:
            await self.hear()
        moves = (self.raises, self.raises, self.answers, self.answers, self.expires, self.dies, self.restarts,
                 self.prompts, self.interrupts, self.comes_up)  # fmt: skip
        await self.rng.choice(moves)()

    async def raises(self) -> None:
        if (
            self.alive
            and self.talk.port.now == "live"
            and self.talk.view.turn
            and self.talk.view.turn["delivered"]
        ):
            self.jobs += 1
            await self.propose(f"deploy job-{self.jobs}")

    async def answers(self) -> None:
        open_ = list(self.talk.view.approvals_open.items())
        if not open_:
            return
        approval_id, asked = self.rng.choice(open_)
        decision = self.rng.choice(("allow", "allow", "deny"))
        first = self.rng.choice((ANN, BOB))
        await self.talk.do("resolve", approval_id=approval_id, decision=decision, actor=first)
        if decision == "allow":
            self.allowed[asked["title"]] += 1
        with pytest.raises(Conflict, match=first.id):
            await self.talk.do("resolve", approval_id=approval_id, decision="allow", actor=BOB)

    async def expires(self) -> None:
        if self.rng.random() < 0.3:
            self.talk.clock.at += 61_000
            await self.talk.session._expire()  # pyright: ignore[reportPrivateUsage]

    async def dies(self) -> None:
        """The runner is killed, and its agent with it."""
        if self.talk.port.now == "none":
            return
        waited = set(self.held.values())
        self.excused |= {command for command in waited if self.allowed[command] > self.ran[command]}
        self.alive = False
        self.held.clear()
        await self.talk.vanishes()

    async def restarts(self) -> None:
        """The server is killed and starts again. A runner may have died meanwhile."""
        if self.talk.port.now == "starting":
            return
        survives = self.talk.port.now == "live" and self.rng.random() < 0.6
        if not survives and self.talk.port.now == "live":
            waited = set(self.held.values())
            self.excused |= {command for command in waited if self.allowed[command] > self.ran[command]}
            self.alive = False
            self.held.clear()
        leased = self.talk.port.now == "live"
        await self.talk.restarted("away" if leased else "none")
        if survives:
            await self.talk.synced(list(self.seen), list(self.held))
        elif leased:
            await self.talk.vanishes()

    async def prompts(self) -> None:
        if self.talk.view.turn is None and not self.talk.view.queue:
            await self.talk.prompt("go on")

    async def interrupts(self) -> None:
        if self.rng.random() < 0.3:
            await self.talk.do("interrupt")

    async def comes_up(self) -> None:
        """The agent that was started answers its handshake."""
        if self.talk.port.now == "starting":
            self.alive = True
            self.seen.clear()
            await self.talk.ready()

    async def settle(self) -> None:
        """No more trouble: everything is answered with yes and every agent does its work."""
        for _ in range(60):
            await self.comes_up()
            await self.hear()
            if self.talk.view.approvals_open:
                approval_id, asked = next(iter(self.talk.view.approvals_open.items()))
                try:
                    await self.talk.do("resolve", approval_id=approval_id, decision="allow")
                    self.allowed[asked["title"]] += 1
                except (Conflict, NotFound):
                    continue
            elif self.talk.view.turn and self.talk.view.turn["delivered"] and not self.held:
                await self.talk.completes()
            elif self.talk.view.turn is None and not self.talk.view.queue:
                return
        raise AssertionError(f"never settled: {self.talk.view}")


async def play(home: Path, seed: int) -> None:
    rng = random.Random(seed)
    talk = await begin_talk(home)
    agent = Agent(talk, rng)
    await talk.prompt("first")
    await agent.comes_up()
    for _ in range(STEPS):
        await agent.step()
    await agent.settle()
    await check(agent)


async def check(agent: Agent) -> None:
    talk = agent.talk
    events = await talk.events()
    asked = {event.item_id: event.body for event in events if isinstance(event.body, ev.ApprovalRequested)}
    ends = Counter(event.item_id for event in events if isinstance(event.body, ev.ApprovalResolved))
    assert set(ends) == set(asked), "an approval was lost"
    assert set(ends.values()) <= {1}, "an approval ended twice"
    for command, times in agent.ran.items():
        assert times == 1, f"{command} ran {times} times"
        assert agent.allowed[command], f"{command} ran and nobody allowed it"
    interrupted = any(isinstance(event.body, ev.TurnInterrupted) for event in events)
    missed = {c for c in agent.allowed if agent.ran[c] == 0} - agent.excused - visibly_failed(events)
    assert not missed or interrupted, f"allowed and never run: {missed}"
    await talk.check()


def visibly_failed(events: list[Event]) -> set[str]:
    """Commands whose news of the allow failed with its agent before it said whether it had got them: like any
    message, that isn't sent again by itself."""
    failed = {event.item_id for event in events if isinstance(event.body, ev.MessageFailed)}
    said = [event.body for event in events if event.item_id in failed]
    texts = [ev.text_of(body.content) for body in said if isinstance(body, ev.MessageSubmitted)]
    return {found[1] for text in texts if (found := re.search(r"did not run: (deploy job-\d+)", text))}


@pytest.mark.parametrize("part", range(4))
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_thousand_interleavings(tmp_path: Path, part: int) -> None:
    for seed in range(part * 250, part * 250 + 250):
        home = tmp_path / str(seed)
        home.mkdir()
        try:
            await play(home, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


async def test_a_few_interleavings(tmp_path: Path) -> None:
    for seed in range(5000, 5006):
        home = tmp_path / str(seed)
        home.mkdir()
        await play(home, seed)
