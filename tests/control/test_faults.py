"""What breaks around the gate lets nothing through: the engine, an operator's rule, the server, the link, the
agent's own time-out, the gate extension. Each call would write a file; it does not, until someone allows it.

Tests of the same kind that stand elsewhere: a link or server that is gone for good while a question is held
(`tests/kills/test_kills.py`, all agents), a broken hook and hooks that aren't applied
(`tests/harnesses/test_claude_code.py`), an approval policy other than `untrusted`
(`tests/harnesses/test_codex.py`), a gate that is changed, missing or forged (`tests/harnesses/test_pi.py`).
"""

import json
import shutil
import threading
from collections.abc import Callable, Generator
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from rooms import Room, eventually, open_room, plays, runs
from support import JSON, House, agent_binary, body_of, fresh_home, wait_for

import omnigent
from omnigent import deciding, processes
from omnigent import events as ev
from omnigent.events import Approvals
from omnigent.harnesses import Verdict, _claude_translator
from omnigent.policies import contract as policies
from omnigent.policies import engine
from omnigent.registry import harness as find_harness
from omnigent.testing.harness_rig import body_text, hold, open_rig
from omnigent.testing.harness_suite import call, one_call

HARNESSES = ("scripted", "claude-code", "codex", "pi")
SECONDS = 60
"""Patience for a step of an agent on a busy machine."""
by_harness = pytest.mark.parametrize("harness", HARNESSES)

RULES = '''
"""Rules of an operator's who wrote them badly."""

import time
from pathlib import Path

from omnigent.policies.contract import Opinion

PLACE = Path({place!r})


class Rule:
    id = ""
    types = frozenset({{"exec"}})

    def __init__(self, given):
        self.given = given

    def empty(self):
        return {{}}

    def observe(self, memory, event, tree):
        return memory


class Raises(Rule):
    def decide(self, action, facts):
        raise RuntimeError("badly written")


class Exits(Rule):
    def decide(self, action, facts):
        raise SystemExit(3)


class Hangs(Rule):
    """Until it is released, for half a minute at most."""

    def decide(self, action, facts):
        (PLACE / self.given["asked"]).touch()
        ends = time.monotonic() + 30
        while not (PLACE / self.given["release"]).exists() and time.monotonic() < ends:
            time.sleep(0.05)
        return Opinion("deny", reason="decided after all")
'''
POINTS = """[omnigent.policies]
raises = bad_rules:Raises
exits = bad_rules:Exits
hangs = bad_rules:Hangs
"""
pytestmark = pytest.mark.slow


def script() -> JSON:
    turns: list[JSON] = []
    for harness, what in product(HARNESSES, ("raises", "exits", "hangs", "undecided", "gone")):
        word = f"{what}-{harness}"
        write = {"tool": "$shell", "input": {"command": f"echo ran >> {word}"}}
        turns.append({"match": f"<{word}>", "steps": [{"tools": [write]}, {"text": "done"}]})
    return {"turns": turns}


def open_house(name: str, place: Path, grace_seconds: float) -> Generator[House]:
    """A server into which an operator has installed the rules."""
    package = place / "site"
    info = package / "bad_rules-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (package / "bad_rules.py").write_text(RULES.format(place=str(place)))
    house = House(fresh_home(name), script(), grace_seconds=grace_seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        try:
            house.start()
            rules = house.client().policies(house.create("scripted"))["items"]
            names = [rule["name"] for rule in rules if rule["scope"] == "builtin"]
            house.client().put_policies({"scope": "server", "remove": names})
            yield house
        finally:
            for harness, what in product(HARNESSES, ("hangs", "undecided", "gone")):
                release(place, f"{what}-{harness}")
            house.close()


def release(place: Path, word: str) -> None:
    (place / f"release-{word}").touch()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def house(place: Path) -> Generator[House]:
    yield from open_house("faults", place, 60)


@pytest.fixture
def hasty(tmp_path: Path) -> Generator[House]:
    """Its runners wait 2 s for their server."""
    yield from open_house("faults-hasty", tmp_path, 2)


def under(function: str, word: str = "") -> str:
    given = {"asked": f"asked-{word}", "release": f"release-{word}"}
    rule = {"name": "operators", "function": function, "with": given}
    return json.dumps({"policies": [rule]})


def ran(house: House, word: str) -> bool:
    return (house.workspace / word).exists()


def open_approval(house: House, session_id: str) -> ev.ApprovalRequested:
    """The question that holds the session."""
    status: Callable[[], bool] = lambda: house.session(session_id)["status"] == "waiting"  # noqa: E731
    wait_for(status, SECONDS, f"{session_id} waits")
    asked = [event for event in house.events(session_id) if event.kind == "approval.requested"]
    return body_of(asked[-1], ev.ApprovalRequested)


def deny(house: House, session_id: str) -> None:
    """Answer no, and see the turn end."""
    asked = next(e for e in house.events(session_id) if e.kind == "approval.requested")
    client = house.client()
    client.command(session_id, "resolve", approval_id=asked.item_id, decision="deny", reason="better-not")
    assert house.settled(session_id, SECONDS)["last_turn"]["outcome"] == "completed"
    assert any("better-not" in json.dumps(request.body) for request in house.model.requests)


# ── An operator's own rule ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(200)
@pytest.mark.parametrize("fault", ["raises", "exits"])
@by_harness
def test_a_rule_that_breaks_asks(house: House, harness: str, fault: str) -> None:
    word = f"{fault}-{harness}"
    session_id = house.create(harness, f"<{word}>", policies=under(fault))
    asked = open_approval(house, session_id)
    assert asked.rule_ids == ("builtin.doubt",)
    assert not ran(house, word)
    deny(house, session_id)
    assert not ran(house, word)


@pytest.mark.timeout(200)
@by_harness
def test_a_rule_that_hangs_asks(house: House, place: Path, harness: str) -> None:
    word = f"hangs-{harness}"
    session_id = house.create(harness, f"<{word}>", policies=under("hangs", word))
    asked = open_approval(house, session_id)
    assert asked.rule_ids == (deciding.DOUBT,)
    assert asked.reason == "The policies didn't decide in time."
    assert (place / f"asked-{word}").exists() and not ran(house, word)
    deny(house, session_id)
    assert not ran(house, word)


# ── The server ──────────────────────────────────────────────────────────────────────────────────────────


def undecided(house: House, place: Path, word: str) -> str:
    """A session whose call is with a rule that has no answer yet."""
    harness = word.partition("-")[2]
    session_id = house.create(harness, f"<{word}>", policies=under("hangs", word))
    wait_for((place / f"asked-{word}").exists, SECONDS, f"{word} is being decided")
    return session_id


@pytest.mark.timeout(200)
@by_harness
def test_a_server_killed_before_it_decided_decides_when_it_is_back(
    house: House, place: Path, harness: str
) -> None:
    word = f"undecided-{harness}"
    session_id = undecided(house, place, word)
    house.kill()
    assert not ran(house, word)
    assert house.agent_processes(session_id)
    release(place, word)
    house.restart()
    settled = house.settled(session_id, SECONDS)
    assert settled["last_turn"]["outcome"] == "completed"
    decided = body_of(house.await_kind(session_id, "policy.decided"), ev.PolicyDecided)
    assert decided.verdict == "deny" and decided.reason == "decided after all"
    assert house.kinds(session_id).count("approval.requested") == 0
    assert not ran(house, word)


@pytest.mark.timeout(200)
@by_harness
def test_a_server_killed_before_it_decided_and_gone_for_good(
    hasty: House, tmp_path: Path, harness: str
) -> None:
    house, word = hasty, f"gone-{harness}"
    session_id = undecided(house, tmp_path, word)
    house.kill()
    house.nothing_runs(session_id, 30)
    release(tmp_path, word)
    house.restart()
    settled = house.settled(session_id, SECONDS)
    assert settled["last_turn"]["outcome"] == "failed"
    failed = body_of(house.await_kind(session_id, "turn.failed"), ev.TurnFailed)
    assert failed.code == "runner_lost"
    assert not ran(house, word)
    assert not house.client().inbox()


# ── The engine, the link ────────────────────────────────────────────────────────────────────────────────


class Fault(Exception):
    """Nothing that the engine raises itself."""


type Broken = Callable[[policies.Call], None]


@pytest.fixture
def hanging() -> Generator[Broken]:
    """Gives no answer while the test runs."""
    over = threading.Event()

    def wait(call: policies.Call) -> None:
        over.wait(30)

    yield wait
    over.set()


def raising(call: policies.Call) -> None:
    raise Fault("the engine is broken")


def always(*given: object) -> bool:
    return True


def spoil(monkeypatch: pytest.MonkeyPatch, about: Literal["tools", "models"], fault: Broken) -> None:
    """The engine fails for the calls of tools, or for those of the model."""
    works = engine.decide

    def decide(call: policies.Call, *given: Any) -> policies.Verdict:
        if (call.actions[0].type == "model") == (about == "models"):
            fault(call)
        return works(call, *given)

    monkeypatch.setattr(engine, "decide", decide)


WRITES = plays(runs("echo ran >> ran"), {"text": "done"})


def written(room: Room) -> bool:
    return (room.home / "work" / "ran").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["raises", "hangs"])
@pytest.mark.parametrize("approvals", ["ask", "yes", "deny"])
async def test_an_engine_that_fails_is_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Broken, approvals: Approvals, fault: str
) -> None:
    """It asks, even where every ask would pass; where nobody can be asked it denies."""
    monkeypatch.setattr(deciding, "DECIDE_SECONDS", 1.0)
    spoil(monkeypatch, "tools", raising if fault == "raises" else hanging)
    if fault == "hangs":  # only an operator's code can, and is kept from the server's own thread
        monkeypatch.setattr(engine, "runs_foreign_code", always)
    async with open_room(tmp_path, WRITES, approvals) as room:
        await room.do("prompt", text="go")
        if approvals != "deny":
            asked = await room.until("approval.requested")
            assert room.session.view.status == "waiting"
            assert not written(room)
            await room.do("resolve", approval_id=asked.item_id, decision="deny")
        decided = body_of(await room.until("policy.decided"), ev.PolicyDecided)
        assert decided.rule_ids == (deciding.DOUBT,)
        said = "The policies couldn't decide (Fault)." if fault == "raises" else "The policies didn't decide"
        assert decided.reason.startswith(said)
        await room.until("turn.completed")
        assert not written(room)


@pytest.mark.anyio
async def test_an_engine_that_fails_for_a_model_call_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "models", raising)
    async with open_room(tmp_path, WRITES, "yes") as room:
        await room.do("prompt", text="go")
        asked = await room.until("approval.requested")
        assert body_of(asked, ev.ApprovalRequested).rule_ids == (deciding.DOUBT,)
        assert room.model.requests == []
        await room.do("resolve", approval_id=asked.item_id, decision="deny")
        await room.until("turn.failed")
        assert room.model.requests == [] and not written(room)


@pytest.mark.anyio
async def test_a_link_that_is_cut_while_a_call_is_held_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the grace the agent is gone and its call with it; the question stays, for whoever answers it."""
    spoil(monkeypatch, "tools", raising)
    async with open_room(tmp_path, WRITES, "ask", grace_seconds=0.5) as room:
        await room.do("prompt", text="go")
        await room.until("approval.requested")
        agent = await room.agent()
        await room.leave()
        await eventually(lambda: not any(processes.alive(*each) for each in agent), "the agent's end")
        await room.come_back()
        await room.until("approval.detached")
        assert room.session.view.status == "waiting"
        assert not written(room)


# ── The agent's own end of the gate ─────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
async def test_a_hook_whose_time_passes_without_an_answer_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claude waits a day; here a second. A verdict that comes later finds nothing to allow."""
    gate = cast(Any, _claude_translator)._HOOKS["PreToolUse"][0] | {"timeout": 1}
    monkeypatch.setattr(_claude_translator, "_HOOKS", {"PreToolUse": [gate]})
    claude = find_harness("claude-code")
    turns = {"turns": [one_call("run it", call("$shell", command="echo ran >> ran"))]}
    binary = agent_binary("claude-code", claude.versions[-1])
    async with open_rig(claude, binary, claude.wires[0], "claude-sonnet-5", turns, tmp_path) as rig:
        await rig.open()
        rig.judge = hold
        turn = await rig.start("run it")
        ask = await rig.asked(turn)
        assert isinstance(await rig.end(turn, SECONDS), ev.TurnCompleted)
        done = turn.completion(ask)
        await rig.send(Verdict(ask.item_id, allow=True))
        await rig.turn("anything else?")
        assert done and done.outcome == "cancelled", done
        assert not (rig.workspace / "ran").exists()
        told = body_text(rig.requests()[-1])
        assert "did not respond before its timeout" in told and "was not executed" in told


@pytest.mark.timeout(150)
@pytest.mark.parametrize("fault", ["deleted", "changed"])
def test_pi_does_not_start_without_its_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """On an installation of its own, whose gate extension is spoilt between two runs of one session."""
    source = Path(omnigent.__file__).parent
    shutil.copytree(source, tmp_path / "omnigent", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    write = {"tool": "$shell", "input": {"command": "echo ran >> ran"}}
    turns = [{"match": "<write>", "steps": [{"tools": [write]}, {"text": "done"}]}]
    house = House(fresh_home("gateless"), {"turns": turns})
    try:
        house.start()
        session_id = house.create("pi", "hello", approvals="yes")
        house.settled(session_id, SECONDS)
        house.client().command(session_id, "stop")
        house.await_kind(session_id, "harness.exited")
        gate = tmp_path / "omnigent" / "harnesses" / "pi_gate.js"
        if fault == "deleted":
            gate.unlink()
        else:
            gate.write_text("export default function open() {}\n")
        calls = len(house.model.requests)
        house.prompt(session_id, "<write>")
        failed = body_of(house.await_kind(session_id, "turn.failed"), ev.TurnFailed)
        assert failed.code == "start_failed"
        assert "gate for Pi (pi_gate.js) was changed or is missing" in failed.detail
        assert house.session(session_id)["status"] == "idle"
        assert len(house.model.requests) == calls
        assert not ran(house, "ran")
    finally:
        house.close()
