"""Turns that a provider or a budget stops, with the real agents: a quota's goes on by itself, a bill that
nobody paid fails it, a rate limit is the harness's own to wait out, and a family shares its budget."""

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from support import JSON, House, body_of, fresh_home, wait_for

from omnigent import events as ev
from omnigent.testing.scripted_model import history_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HARNESSES = ("scripted", "claude-code", "codex", "pi")
MESSAGES = ("scripted", "claude-code", "pi")
"""Those that speak Anthropic's wire here; the other speaks OpenAI's Responses."""
USED_UP = "The five hours' limit of this plan is reached."


def writes(word: str) -> JSON:
    return {"tools": [{"tool": "$shell", "input": {"command": f"echo {word} >> done.txt"}}]}


def script(harness: str, reset: float) -> JSON:
    """`reset`: when the quota opens again, in seconds since 1970."""
    if harness in MESSAGES:
        headers = {
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-reset": str(int(reset)),
        }
        quota: JSON = {"status": 429, "message": USED_UP, "headers": headers}
        unpaid: JSON = {"status": 402, "code": "billing_error", "message": "Your credit balance is too low."}
        busy: JSON = {"status": 429, "code": "rate_limit_error"}
    else:
        wait = max(1, reset - time.time())
        quota = {"status": 429, "code": "usage_limit_reached", "message": USED_UP, "retry_after": wait}
        unpaid = {"status": 429, "code": "insufficient_quota", "message": "You exceeded your quota."}
        busy = {"status": 429, "code": "rate_limit_exceeded"}
    busy |= {"message": "Slow down.", "times": 1, "retry_after": 1}
    spends = {"text": "That was dear.", "usage": {"output_tokens": 66_000}}
    return {
        "turns": [
            {"match": "You were paused", "steps": [writes("second"), {"text": "Both are done."}]},
            {"match": "<quota>", "steps": [writes("first"), {"error": quota}]},
            {"match": "<unpaid>", "steps": [{"error": unpaid}]},
            {"match": "<busy>", "steps": [{"text": "Here I am.", "error": busy}]},
            {"match": "<dear>", "steps": [spends]},
            {"match": "<hello>", "steps": [{"text": "Hello."}]},
        ]
    }


@pytest.fixture(scope="module", params=HARNESSES)
def lab(request: pytest.FixtureRequest) -> Generator[tuple[House, str]]:
    house = House(fresh_home(f"pauses-{request.param}"), script(request.param, 0))
    house.start()
    yield house, request.param
    house.close()


def begin(lab: tuple[House, str], prompt: str, reset: float = 0, **more: Any) -> str:
    """A session in a workspace of its own."""
    house, harness = lab
    house.model.set_script(script(harness, reset))
    workspace = house.home / "places" / str(len(house.model.requests)) / prompt.strip("<>")
    workspace.mkdir(parents=True, exist_ok=True)
    return house.create(harness, f"{prompt} please", workspace=str(workspace), approvals="yes", **more)


def done(house: House, session_id: str) -> list[str]:
    path = Path(house.session(session_id)["workspace"]) / "done.txt"
    return path.read_text().split() if path.exists() else []


def native_refs(house: House, session_id: str) -> set[str]:
    """The agent's own sessions in which the work was done."""
    found = {
        event.body.native_ref
        for event in house.events(session_id)
        if isinstance(event.body, ev.HarnessStarted | ev.HarnessUpdated)
    }
    return {ref for ref in found if ref}


def check_said_once(house: House, text: str) -> None:
    """The model's newest request holds what a person said once, each call once and its result."""
    items = history_of(house.model.requests[-1])
    said = [item.text for item in items if item.role == "user" and item.kind == "text"]
    assert sum(text in each for each in said) == 1, said
    assert sum("You were paused" in each for each in said) == 1, said
    calls = [item.text for item in items if item.kind == "call"]
    assert len(calls) == len({each for each in calls if "echo" in each})
    assert sum(item.kind == "result" for item in items) == len(calls)


@pytest.mark.parametrize("killed", ["nothing", "server", "all"])
def test_a_quota_pauses_the_turn_and_its_reset_lets_it_go_on(lab: tuple[House, str], killed: str) -> None:
    """By itself, in the same native session, whatever was killed meanwhile."""
    house, _ = lab
    reset = int(time.time()) + (6 if killed == "nothing" else 12)
    session_id = begin(lab, "<quota>", reset)
    event = house.await_kind(session_id, "turn.paused", 60)
    paused = body_of(event, ev.TurnPaused)
    assert paused.reason == "quota"
    assert paused.until is not None
    assert abs(paused.until / 1000 - reset) <= 10
    assert USED_UP in paused.detail
    if killed != "nothing":
        kill(house, session_id, everything=killed == "all")
        house.restart()
    session = house.settled(session_id, 90)
    assert session["last_turn"]["outcome"] == "completed", session["last_turn"]
    resumed = next(e for e in house.events(session_id) if e.kind == "turn.resumed")
    assert resumed.at >= paused.until
    assert done(house, session_id) == ["first", "second"]
    assert len(native_refs(house, session_id)) == 1
    check_said_once(house, "<quota> please")
    raised = [e.body for e in house.events(session_id) if isinstance(e.body, ev.NoticeRaised)]
    assert [notice.code for notice in raised].count("quota") == 1


def kill(house: House, session_id: str, *, everything: bool) -> None:
    assert house.session(session_id)["status"] == "paused"
    runners = [pid for pid, _ in house.leases().values()] if everything else []
    house.kill()
    for pid in runners:
        os.kill(pid, signal.SIGKILL)
    if everything:
        house.nothing_runs(session_id, 10)


def test_a_quota_pause_is_shown_until_when(lab: tuple[House, str]) -> None:
    house, _ = lab
    reset = int(time.time()) + 3600
    session_id = begin(lab, "<quota>", reset)
    house.await_kind(session_id, "turn.paused", 60)
    session = house.session(session_id)
    assert session["status"] == "paused"
    assert (session["paused"]["reason"], session["last_turn"]["outcome"]) == ("quota", "paused")
    assert session["paused"]["until"] is not None
    house.client().command(session_id, "resume")  # a person needn't wait
    assert house.settled(session_id, 60)["last_turn"]["outcome"] == "completed"
    assert done(house, session_id) == ["first", "second"]


def test_what_nobody_paid_for_fails_the_turn(lab: tuple[House, str]) -> None:
    house, _ = lab
    session_id = begin(lab, "<unpaid>")
    session = house.settled(session_id, 60)
    assert (session["last_turn"]["outcome"], session["last_turn"]["code"]) == ("failed", "billing")
    assert len(house.model_calls("<unpaid>")) == 1, "it was tried again"


def test_a_rate_limit_is_waited_out_by_the_harness(lab: tuple[House, str]) -> None:
    house, _ = lab
    session_id = begin(lab, "<busy>")
    session = house.settled(session_id, 90)
    raised = [e.body for e in house.events(session_id) if isinstance(e.body, ev.NoticeRaised)]
    assert sorted(notice.code for notice in raised) == ["rate_limited", "retrying"]
    assert session["last_turn"]["outcome"] == "completed", session["last_turn"]
    assert "turn.paused" not in house.kinds(session_id)
    assert len(house.model_calls("<busy>")) == 2


def test_a_budget_at_create_stops_the_first_call_and_raising_it_goes_on(lab: tuple[House, str]) -> None:
    """Before the agent ever heard of its model: its message is in its native session all the same."""
    house, _ = lab
    session_id = begin(lab, "<first>", budget_usd=0.000001)
    house.await_kind(session_id, "turn.paused", 60)
    session = house.session(session_id)
    assert (session["status"], session["paused"]["reason"]) == ("paused", "budget")
    assert house.model_calls("<first>") == []
    house.client().command(session_id, "set_budget", cap_usd=50)
    session = house.settled(session_id, 60)
    assert session["last_turn"]["outcome"] == "completed", session["last_turn"]
    assert done(house, session_id) == ["second"]
    check_said_once(house, "<first> please")


def test_a_fork_shares_its_familys_budget() -> None:
    house = House(fresh_home("family"), script("scripted", 0))
    try:
        house.start()
        lab = (house, "scripted")
        session_id = begin(lab, "<dear>", budget_usd=1)
        assert house.settled(session_id)["last_turn"]["outcome"] == "completed"
        client = house.client()
        fork = client.fork(session_id, {"share_workspace": True})["id"]
        for each in (fork, session_id):
            house.prompt(each, "<hello>")
            paused = body_of(house.await_kind(each, "turn.paused"), ev.TurnPaused)
            assert (paused.reason, paused.rule_ids) == ("budget", ("budget",))
        assert house.model_calls("<hello>") == []
        spent = house.session(fork)["budget"]
        assert spent["cap_usd"] == 1
        client.command(fork, "set_budget", cap_usd=10)
        assert house.settled(fork)["last_turn"]["outcome"] == "completed"
        assert house.session(session_id)["status"] == "paused"
        client.command(session_id, "interrupt")
        wait_for(lambda: house.session(session_id)["status"] == "idle", 10, "the pause given up")
    finally:
        house.close()
