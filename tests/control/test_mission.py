"""The two rules of the mission, on every harness: pause at three dollars; ask before a push after an install.

The agents are the real ones, git pushes to a real repository; `npm` and `pnpm` are programs of the test's
that succeed or fail as they are told.
"""

import subprocess
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import JSON, MODELS, House, body_of, fresh_home, wait_for

from omnigent import events as ev
from omnigent.testing.scripted_model import history_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HARNESSES = ("scripted", "claude-code", "codex", "pi")
EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
AFTER_INSTALL = (EXAMPLES / "push-after-install.yaml").read_text()
THREE_DOLLARS = (EXAMPLES / "three-dollars.yaml").read_text()

RULE = "session.push-after-install"
INSTALL, PUSH = "npm install left-pad", "git push origin HEAD"
FAILS = "npm install no-such-package"


@dataclass(frozen=True, slots=True)
class Scenario:
    """`turns` holds per turn the steps, per step the commands of one message. `asks`: whether the last is
    asked about. `background`: the first command runs in the background."""

    name: str
    turns: tuple[tuple[tuple[str, ...], ...], ...]
    asks: bool
    background: bool = False
    between: tuple[str, ...] = field(default=())
    """What happens before the last turn: `restart`, `fork`, `switch`."""


def one(*steps: str | tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    return (tuple((step,) if isinstance(step, str) else step for step in steps),)


def later(first: str, *between: str, last: str = PUSH) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The install in the first turn, the push in the last."""
    return (*one(first), *(((command,),) for command in between), *one(last))


SCENARIOS = (
    Scenario("direct", one(INSTALL, PUSH), True),
    Scenario("compound", one(f"{INSTALL} && {PUSH}"), True),
    Scenario("other-order", one(PUSH, INSTALL), False),
    Scenario("push-alone", one(PUSH), False),
    Scenario("known-to-have-failed", one(FAILS, PUSH), False),
    Scenario("failed-in-a-pipeline", one(f"{FAILS} | cat", PUSH), True),
    Scenario("turn-1-and-turn-5", later(INSTALL, "true", "true", "true"), True),
    Scenario("two-parallel-calls", one((INSTALL, PUSH)), True),
    Scenario("in-the-background", one(INSTALL, PUSH), True, background=True),
    Scenario("in-the-shells-background", one(f"{INSTALL} &", PUSH), True),
    Scenario("npm-ci", one("npm ci", PUSH), True),
    Scenario("pnpm-add", one("pnpm add left-pad", PUSH), True),
    Scenario("git-C", one(INSTALL, "git -C . push origin HEAD"), True),
    Scenario("git-no-pager", one(INSTALL, "git --no-pager push origin HEAD"), True),
    Scenario("sh-c", one(INSTALL, f"sh -c '{PUSH}'"), True),
    Scenario("env", one(INSTALL, f"env X=1 {PUSH}"), True),
    Scenario("after-a-restart", later(INSTALL), True, between=("restart",)),
    Scenario("after-a-fork", later(INSTALL), True, between=("fork",)),
    Scenario("after-a-switch", later(INSTALL), True, between=("switch",)),
)


def script_of(scenario: Scenario) -> list[JSON]:
    turns: list[JSON] = []
    for number, steps in enumerate(scenario.turns):
        played: list[JSON] = []
        for place, commands in enumerate(steps):
            background = {"background": True} if scenario.background and place == 0 else {}
            uses = [{"tool": "$shell", "input": {"command": each, **background}} for each in commands]
            played.append({"tools": uses})
        turns.append({"match": f"<{scenario.name}-{number}>", "steps": [*played, {"text": "done"}]})
    return turns


@pytest.fixture(scope="module", params=HARNESSES)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[House, str]]:
    """A server with this module's scripts, where only the session's own rules (and what nobody can switch
    off) hold."""
    turns = [turn for scenario in SCENARIOS for turn in script_of(scenario)]
    house = House(fresh_home(f"mission-{request.param}"), {"turns": [*turns, *spending(request.param)]})
    for name in ("npm", "pnpm"):
        house.place_program(name, 'case "$*" in *no-such-package*) exit 1;; esac')
    remote = tmp_path_factory.mktemp("remote") / "remote.git"
    here = ("git", "-C", str(house.workspace))
    subprocess.run(("git", "init", "-q", "--bare", str(remote)), check=True, capture_output=True)
    subprocess.run((*here, "remote", "add", "origin", str(remote)), check=True, capture_output=True)
    house.start()
    switch_off_defaults(house)
    yield house, request.param
    house.close()


def switch_off_defaults(house: House) -> None:
    """Only the rules of a test's own sessions, and what nobody can switch off."""
    session_id = house.create("scripted")
    rules = house.client().policies(session_id)["items"]
    names = [rule["name"] for rule in rules if rule["scope"] == "builtin"]
    house.client().put_policies({"scope": "server", "remove": names})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_ask_before_a_push_that_follows_an_install(lab: tuple[House, str], scenario: Scenario) -> None:
    house, harness = lab
    if scenario.background and harness in ("codex", "pi"):
        return  # their tools have no background of their own; the shell's is the next scenario
    session_id = house.create(harness, policies=AFTER_INSTALL)
    last = len(scenario.turns) - 1
    for number in range(last):
        house.prompt(session_id, f"<{scenario.name}-{number}>")
        house.settled(session_id)
    session_id = happens(house, session_id, harness, scenario.between)
    house.prompt(session_id, f"<{scenario.name}-{last}>")
    asked = waits_or_ends(house, session_id)
    expected = [(RULE,)] if scenario.asks else []
    if scenario.name == "two-parallel-calls" and pushed_first(house, session_id):
        expected = []  # the harness asked for the push before it mentioned the install: nothing to follow
    assert [body.rule_ids for body in asked] == expected
    if asked:
        house.client().command(session_id, "interrupt")
        house.settled(session_id)


def pushed_first(house: House, session_id: str) -> bool:
    titles = [
        body_of(event, ev.ToolRequested).title
        for event in house.events(session_id)
        if event.kind == "tool.requested"
    ]
    return PUSH in titles and titles.index(PUSH) < titles.index(INSTALL)


def happens(house: House, session_id: str, harness: str, what: tuple[str, ...]) -> str:
    if "restart" in what:
        house.kill()
        house.restart()
    if "fork" in what:
        return house.client().fork(session_id, {})["id"]
    if "switch" in what:
        other = "pi" if harness != "pi" else "claude-code"
        provider, model = MODELS[other]
        house.client().command(session_id, "switch", harness=other, model=model, provider=provider)
        house.await_kind(session_id, "harness.changed", 60)
    return session_id


def waits_or_ends(house: House, session_id: str) -> list[ev.ApprovalRequested]:
    """The approvals asked for, once the session waits for one or the turn has ended."""

    def look() -> list[Any] | None:
        session = house.session(session_id)
        if session["status"] not in ("waiting", "idle"):
            return None
        found = [event for event in house.events(session_id) if event.kind == "approval.requested"]
        return [True, *found]

    found = wait_for(look, 60, f"{session_id} asks or ends")
    return [body_of(event, ev.ApprovalRequested) for event in found[1:]]


# Three dollars.


USD_PER_MTOK = {"scripted": 15, "claude-code": 10, "codex": 30, "pi": 15}
"""Output prices of the models of `support.MODELS`: the table's, and `support.PRICE`."""


def spending(harness: str) -> list[JSON]:
    """Two answers of 1.45 dollars each; any third would pass the limit."""
    tokens = 1_450_000 // USD_PER_MTOK[harness]
    first, second, never = (writes(word, tokens) for word in ("first", "second", "never"))
    going_on = [writes("third", 10), {"text": "all three are done"}]
    return [
        {"match": "<spend>", "steps": [first, second, never]},
        {"match": "You were paused", "steps": going_on},
    ]


def writes(word: str, output_tokens: int) -> JSON:
    command = {"tool": "$shell", "input": {"command": f"echo {word} >> done.txt"}}
    return {"tools": [command], "usage": {"output_tokens": output_tokens}}


def test_pause_at_three_dollars_and_go_on_when_somebody_raises_the_cap(lab: tuple[House, str]) -> None:
    """The next call doesn't leave; after a restart a second client raises the cap, and the same native
    session goes on: its next request holds every call and result once, and no message of a person twice."""
    house, harness = lab
    session_id = house.create(harness, "<spend> please", policies=THREE_DOLLARS)
    paused = house.await_kind(session_id, "turn.paused", 60)
    assert body_of(paused, ev.TurnPaused).reason == "budget"
    assert house.session(session_id)["status"] == "paused"
    assert len(house.model_calls("<spend>")) == 2, "the call after the limit left the gateway"
    native = house.session(session_id)["run"]
    house.kill()
    house.restart()
    assert house.session(session_id)["status"] == "paused"
    second = house.client()
    second.command(session_id, "set_policies", policies=THREE_DOLLARS.replace("3.00", "30.00"))
    session = house.settled(session_id, 60)
    assert session["last_turn"]["outcome"] == "completed"
    assert native["native_ref"] == native_ref(house, session_id)
    check_last_request(house)
    assert (house.workspace / "done.txt").read_text().split() == ["first", "second", "third"]


def native_ref(house: House, session_id: str) -> str | None:
    started = [event for event in house.events(session_id) if event.kind == "harness.started"]
    updated = [event for event in house.events(session_id) if event.kind == "harness.updated"]
    if updated:
        return body_of(updated[-1], ev.HarnessUpdated).native_ref
    return body_of(started[-1], ev.HarnessStarted).native_ref


def check_last_request(house: House) -> None:
    items = history_of(house.model.requests[-1])
    said = [item.text for item in items if item.role == "user" and item.kind == "text"]
    assert sum("<spend> please" in text for text in said) == 1, said
    for word in ("first", "second"):
        calls = [item for item in items if item.kind == "call" and f"echo {word}" in item.text]
        assert len(calls) == 1, (word, calls)
    results = [item for item in items if item.kind == "result"]
    assert len(results) == len([item for item in items if item.kind == "call"])
