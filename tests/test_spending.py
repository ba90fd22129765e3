"""Model calls before they leave and after they are over, turns that were paused, a change of who pays: a
session as a dialogue."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from dialogue import BOB, REAL_KEY, SESSION, Port, Talk, begin_talk, make_house
from rooms import eventually

from omnigent import continuing
from omnigent import events as ev
from omnigent.errors import Conflict
from omnigent.events import JSON, Draft
from omnigent.metering import ModelCall
from omnigent.session import Session

pytestmark = pytest.mark.anyio

NANO = 1_000_000_000
PRICES = {"m1": {"input": 1.0, "output": 10.0, "cache_read": 0.5}, "cheap": {"input": 0.1, "output": 0.1}}
"""USD per million tokens."""
LAB, OTHER = (f"secret {name} at 127.0.0.1:9" for name in ("lab", "other"))
GATEWAY: JSON = {"billing": "metered", "credential": LAB, "metering": "gateway"}


def configure(talk: Talk, **lab: Any) -> None:
    """What config.yaml says from the next look on."""
    base: JSON = {"api": "anthropic-messages", "base_url": "http://127.0.0.1:9", "key": {"secret": "lab"}}
    default = {"provider": "lab", "model": "m1"}
    whole = {
        "providers": {
            "lab": {**base, "prices": PRICES, **lab},
            "spare": {**base, "key": {"secret": "other"}},
        },
        "defaults": dict.fromkeys(("scripted", "claude-code", "pi"), default),
    }
    for name in ("lab", "other"):
        (talk.home / "secrets" / name).write_text(REAL_KEY)
    (talk.home / "config.yaml").write_text(json.dumps(whole))


async def begins(talk: Talk) -> None:
    """An agent whose model calls pass the gateway has taken the first message."""
    configure(talk)
    await talk.prompt("first")
    await talk.ready(**GATEWAY)
    await talk.takes()
    talk.port.told()


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncGenerator[Talk]:
    talk = await begin_talk(tmp_path)
    await begins(talk)
    yield talk
    await talk.check()


def call(call_id: str = "call_1", **more: Any) -> ModelCall:
    """One that costs at most $0.011 by the test's prices."""
    wanted: JSON = {"model": "m1", "input_tokens": 1000, "max_output_tokens": 1000}
    return ModelCall(call_id, **wanted | more)


async def asks(talk: Talk, call_id: str = "call_1", **more: Any) -> list[JSON]:
    """The gateway holds a call and asks; what it is told at once."""
    talk.port.told()
    await talk.session.reserve(talk.port.launches[-1]["epoch"], call(call_id, **more))
    return talk.port.told()


async def granted(talk: Talk, call_id: str = "call_1", **more: Any) -> JSON:
    (frame,) = await asks(talk, call_id, **more)
    assert (frame["type"], frame["call_id"], frame["outcome"]) == ("grant", call_id, "granted"), frame
    return frame


async def refused(talk: Talk, call_id: str = "call_1", **more: Any) -> JSON:
    (frame,) = await asks(talk, call_id, **more)
    assert (frame["type"], frame["outcome"]) == ("grant", "paused"), frame
    return frame


async def held(talk: Talk, call_id: str = "call_1", **more: Any) -> str:
    """A call that waits for a person; the approval's id."""
    assert await asks(talk, call_id, **more) == []
    return talk.approval()


async def used(talk: Talk, call_id: str = "call_1", **more: Any) -> ev.UsageReported:
    """The gateway tells what became of a call; what the log then says."""
    told: JSON = {"model": "m1", "input_tokens": 1000, "output_tokens": 1000}
    body = ev.UsageReported(call_id=call_id, source="gateway", scope="call", **told | more)
    await talk.say(body)
    return (await reports(talk))[-1]


async def reports(talk: Talk) -> list[ev.UsageReported]:
    return [event.body for event in await talk.events() if isinstance(event.body, ev.UsageReported)]


async def pauses(talk: Talk, reason: Any = "budget", until: int | None = None) -> None:
    """The agent ends its turn after its call was refused, and the runner says why."""
    await talk.say(ev.TurnPaused(reason=reason, detail=f"stopped by {reason}", until=until))
    assert (talk.view.status, talk.view.turn) == ("paused", None)
    talk.port.told()


async def over_budget(talk: Talk, cap: float = 0.01) -> None:
    """A turn that is paused since its next call might cost more than is left."""
    await talk.do("set_budget", cap_usd=cap)
    await refused(talk)
    await pauses(talk)


async def goes_on(talk: Talk) -> None:
    """The paused turn goes on by a message of the host's own, which the running agent is told."""
    assert talk.view.paused is None
    assert talk.view.turn is not None
    assert talk.view.turn["trigger"] == "resume"
    told = talk.command()
    assert (told["type"], told["content"][0]["text"]) == ("turn", continuing.PAUSED)
    said = [event for event in await talk.events() if isinstance(event.body, ev.MessageSubmitted)]
    assert said[-1].actor == continuing.HOST
    assert sum(event.actor.kind == "person" for event in said) == 1
    assert "turn.resumed" in await talk.kinds()


# Before a call leaves.


async def test_a_call_is_set_aside_in_the_ledger_before_it_leaves(busy: Talk) -> None:
    await granted(busy)
    assert busy.view.reserved["call_1"]["estimate_nanousd"] == 11_000_000
    assert busy.view.reserved["call_1"]["bounded"] is True
    spend = await busy.log.spend(SESSION, busy.clock.at)
    assert spend["family"].nanousd == 11_000_000
    assert "policy.decided" not in await busy.kinds()


async def test_a_question_put_again_after_a_reconnect_gets_the_same_answer(busy: Talk) -> None:
    await granted(busy)
    await granted(busy)
    assert (await busy.kinds()).count("usage.reserved") == 1


async def test_of_an_older_agent_no_call_is_let_out(busy: Talk) -> None:
    await busy.session.reserve(busy.port.launches[-1]["epoch"] - 1, call())
    assert busy.told() == []
    assert not busy.view.reserved


async def test_a_call_that_might_pass_the_cap_does_not_leave(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=0.02)
    await granted(busy, "call_1")
    frame = await refused(busy, "call_2")
    assert (frame["cause"], frame["rule_ids"]) == ("budget", ["budget"])
    assert list(busy.view.reserved) == ["call_1"]
    await used(busy, "call_1", output_tokens=100)  # it came out cheaper: there is room again
    await granted(busy, "call_3")


async def test_a_rule_that_says_no_is_no_matter_of_money(busy: Talk) -> None:
    rule = "policies:\n  - {name: other-models, when: {model: m1}, then: DO, reason: not this one}\n"
    await busy.do("set_policies", policies=rule.replace("DO", "deny"))
    (frame,) = await asks(busy, "call_1")
    assert (frame["outcome"], frame["reason"]) == ("denied", "not this one")
    await busy.do("set_policies", policies=rule.replace("DO", "pause"))
    frame = await refused(busy, "call_2")
    assert (frame["cause"], frame["rule_ids"]) == ("policy", ["session.other-models"])


async def test_a_cheaper_model_is_named_in_the_answer_and_in_the_ledger(busy: Talk) -> None:
    rule = "policies:\n  - {name: cheaper, when: {model: m1}, downgrade: cheap}\n"
    await busy.do("set_policies", policies=rule)
    assert (await granted(busy))["model"] == "cheap"
    assert busy.view.reserved["call_1"]["model"] == "cheap"


async def sibling(talk: Talk) -> tuple[Session, Port]:
    """A fork of the session: of its family, with a lock, a runner and a log of its own."""
    at = (await talk.events())[-1]
    body = ev.SessionForked(
        parent_id=SESSION,
        at_seq=at.seq,
        parent_hash=at.hash,
        owner="local",
        title="",
        harness="scripted",
        model="m1",
        provider="lab",
        workspace=str(talk.home),
        approvals="ask",
    )
    await talk.log.fork(SESSION, at.seq, "ses_2", [Draft(body)])
    port = Port()
    port.now = "live"
    house = make_house(talk.home, talk.log, talk.clock, port, talk.audit)
    session = Session(house, await talk.log.view("ses_2"))
    configure(talk)  # a new house looks again
    return session, port


async def test_two_of_a_family_that_ask_at_once_for_the_last_money_do_not_both_get_it(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=0.015)
    fork, port = await sibling(busy)
    assert fork.view.budget_nanousd == 15_000_000
    busy.port.told()
    epoch = busy.port.launches[-1]["epoch"]
    await asyncio.gather(
        busy.session.reserve(epoch, call("call_1")),
        fork.reserve(0, call("call_2")),
    )
    frames = [*busy.port.told(), *port.told()]
    assert sorted(frame["outcome"] for frame in frames) == ["granted", "paused"]
    (loser,) = [frame for frame in frames if frame["outcome"] == "paused"]
    assert (loser["cause"], loser["rule_ids"]) == ("budget", ["budget"])
    spend = await busy.log.spend(SESSION, busy.clock.at)
    assert spend["family"].nanousd == 11_000_000


async def test_what_a_fork_spent_counts_for_its_parent(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=0.015)
    fork, port = await sibling(busy)
    await fork.reserve(0, call("call_2"))
    assert [frame["outcome"] for frame in port.told()] == ["granted"]
    await refused(busy, "call_1")


# A person is asked.


async def test_an_unknown_price_under_a_cap_asks_and_an_allow_lets_the_call_out(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=1)
    approval = await held(busy, model="nobody-knows")
    assert busy.view.status == "waiting"
    assert "price" in (await busy.item_data(approval))["reason"]
    await busy.do("resolve", approval_id=approval, decision="allow", actor=BOB)
    assert busy.port.told() == [{"type": "ask_again", "call_id": "call_1"}]
    await granted(busy, model="nobody-knows")
    assert busy.view.reserved["call_1"]["estimate_nanousd"] is None
    told = await used(busy, model="nobody-knows")
    assert (told.cost_nanousd, told.basis) == (None, "unknown")
    assert busy.view.cost_partial
    await held(busy, "call_2")  # from now on the sum is a lower bound: even a known price is asked about


async def test_a_denied_call_is_refused_with_the_reason(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=1)
    approval = await held(busy, model="nobody-knows")
    await busy.do("resolve", approval_id=approval, decision="deny", reason="use another")
    assert busy.told() == ["ask_again"]
    (frame,) = await asks(busy, model="nobody-knows")
    assert (frame["outcome"], frame["reason"]) == ("denied", "use another")
    assert not busy.view.reserved


async def test_an_allow_does_not_silence_what_stops_the_call_by_then(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=0.02)
    approval = await held(busy, model="nobody-knows")
    await granted(busy, "call_2", max_output_tokens=1900)
    await busy.do("resolve", approval_id=approval, decision="allow")
    await used(busy, "call_2", input_tokens=1000, output_tokens=1900)
    await refused(busy, model="nobody-knows")


async def test_nobody_who_could_be_asked_is_a_no(tmp_path: Path) -> None:
    talk = await begin_talk(tmp_path, "deny")
    await begins(talk)
    await talk.do("set_budget", cap_usd=1)
    (frame,) = await asks(talk, model="nobody-knows")
    assert (frame["outcome"], talk.view.approvals_open) == ("denied", {})


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_that_does_not_come_refuses_the_call(busy: Talk, late: bool) -> None:
    await busy.do("set_budget", cap_usd=1)
    approval = await held(busy, model="nobody-knows")
    busy.clock.at += 61_000
    if late:
        with pytest.raises(Conflict, match="expired"):
            await busy.do("resolve", approval_id=approval, decision="allow")
        assert busy.told() == ["ask_again"]
    else:
        busy = await busy.restarted()
        configure(busy)
        await busy.synced(seen=[busy.turn_id() or ""])
    (frame,) = await asks(busy, model="nobody-knows")
    assert frame["outcome"] == "denied"


async def test_a_held_call_outlives_the_server(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=1)
    approval = await held(busy, model="nobody-knows")
    busy = await busy.restarted()
    configure(busy)
    await busy.synced(seen=[busy.turn_id() or ""])
    assert await held(busy, model="nobody-knows") == approval  # put again after the reconnect
    await busy.do("resolve", approval_id=approval, decision="allow")
    await granted(busy, model="nobody-knows")


async def test_an_interrupt_cancels_what_is_asked_of_a_model_call(busy: Talk) -> None:
    await busy.do("set_budget", cap_usd=1)
    approval = await held(busy, model="nobody-knows")
    await busy.do("interrupt")
    with pytest.raises(Conflict) as late:
        await busy.do("resolve", approval_id=approval, decision="allow")
    assert late.value.facts["cancelled_by"] == "interrupted"
    await busy.say(ev.TurnInterrupted())


# After a call.


@pytest.mark.parametrize(
    ("told", "cost", "basis"),
    [
        ({}, 11_000_000, "table"),
        ({"cache_read_tokens": 2000}, 12_000_000, "table"),
        ({"outcome": "aborted", "output_tokens": 10}, 1_100_000, "estimate"),
        ({"outcome": "error"}, 11_000_000, "table"),
        ({"cost_nanousd": 5, "basis": "provider"}, 5, "provider"),
        ({"model": "nobody-knows"}, None, "unknown"),
    ],
)
async def test_a_call_is_priced_when_it_is_over(busy: Talk, told: JSON, cost: int | None, basis: str) -> None:
    await granted(busy, model=told.get("model", "m1"))
    report = await used(busy, **told)
    assert (report.cost_nanousd, report.basis) == (cost, basis)
    assert (report.provider, report.credential, report.billing) == ("lab", LAB, "metered")
    assert busy.view.reserved == {}
    assert busy.view.cost_nanousd == cost
    spend = await busy.log.spend(SESSION, busy.clock.at)
    assert (spend["session"].nanousd, spend["session"].unknown) == (cost or 0, int(cost is None))


async def test_of_a_call_its_gateway_forgot_the_input_counts(busy: Talk) -> None:
    await granted(busy, "call_1")
    await granted(busy, "call_2")
    await busy.synced(seen=[busy.turn_id() or ""], calls=["call_2"])
    assert list(busy.view.reserved) == ["call_2"]
    (report,) = await reports(busy)
    assert (report.call_id, report.outcome, report.basis) == ("call_1", "lost", "estimate")
    assert (report.input_tokens, report.output_tokens, report.cost_nanousd) == (1000, 0, 1_000_000)


async def test_with_the_runner_its_calls_are_lost(busy: Talk) -> None:
    await granted(busy, "call_1")
    await busy.vanishes()
    assert busy.view.reserved == {}
    assert [report.outcome for report in await reports(busy)] == ["lost"]


async def test_a_server_that_finds_no_runner_counts_its_calls_as_lost(busy: Talk) -> None:
    await granted(busy, "call_1")
    busy = await busy.restarted("none")
    assert busy.view.reserved == {}
    assert [report.outcome for report in await reports(busy)] == ["lost"]
    assert busy.view.status == "idle"


# Paused turns.


async def test_a_raised_budget_lets_the_paused_turn_go_on(busy: Talk) -> None:
    await over_budget(busy)
    await busy.do("set_budget", cap_usd=1)
    await goes_on(busy)
    await busy.takes()
    await granted(busy, "call_2")


async def test_a_budget_that_is_still_used_up_leaves_it_paused(busy: Talk) -> None:
    await granted(busy, "call_0")
    await used(busy, "call_0")  # $0.011
    await over_budget(busy)
    await busy.do("set_budget", cap_usd=0.011)
    assert (busy.told(), busy.view.status) == ([], "paused")
    with pytest.raises(Conflict) as still:
        await busy.do("resume")
    assert still.value.facts["current"] == "paused"
    await busy.do("set_budget", cap_usd=0.03)
    await goes_on(busy)


async def test_rules_that_changed_let_what_they_paused_go_on(busy: Talk) -> None:
    rule = "policies:\n  - {name: nights, when: {model: m1}, then: pause}\n"
    await busy.do("set_policies", policies=rule)
    await refused(busy)
    await pauses(busy, "policy")
    with pytest.raises(Conflict):
        await busy.do("resume")
    await busy.do("set_policies", remove=["nights"])
    await goes_on(busy)


async def test_resume_after_the_agent_has_ended_starts_it_on_its_native_session(busy: Talk) -> None:
    await over_budget(busy)
    await busy.session.close_idle()
    assert busy.told() == ["close"]
    await busy.exits("idle")
    assert busy.view.status == "paused"
    await busy.do("set_budget", cap_usd=None)
    assert busy.port.launches[-1]["native_ref"] == "native-1"
    await busy.ready(**GATEWAY)
    await goes_on(busy)


async def test_a_quota_pause_goes_on_by_itself(busy: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnigent.gate.SHORTEST_PAUSE_MS", 0)
    await pauses(busy, "quota", busy.clock.at + 50)
    assert busy.told() == []
    busy.clock.at += 50
    await eventually(lambda: busy.port.frames, "its own timer, by the loop's clock")
    await goes_on(busy)


async def test_a_reset_that_is_over_already_is_not_tried_at_once(busy: Talk) -> None:
    await pauses(busy, "quota", busy.clock.at - 1000)
    for _ in range(4):
        busy.clock.at += 1000
        await busy.restarted()
        assert busy.view.status == "paused"
    busy.clock.at += 1000
    await busy.restarted("none")
    assert busy.view.paused is None
    assert len(busy.port.launches) == 2


async def test_before_its_reset_a_quota_pause_stays(busy: Talk) -> None:
    await pauses(busy, "quota", busy.clock.at + 10_000)
    busy = await busy.restarted("none")
    assert busy.view.status == "paused"
    await busy.do("set_budget", cap_usd=100)  # money isn't what stopped it
    assert (busy.view.status, busy.port.launches[1:]) == ("paused", [])
    await busy.do("interrupt")


async def test_a_quota_reset_while_the_server_was_down_goes_on_at_its_start(busy: Talk) -> None:
    await pauses(busy, "quota", busy.clock.at + 10_000)
    busy.clock.at += 10_001
    busy = await busy.restarted("none")
    assert busy.view.turn is not None
    assert busy.view.turn["trigger"] == "resume"
    configure(busy)
    await busy.ready(**GATEWAY)
    await goes_on(busy)


async def test_a_quota_reset_while_the_runner_was_away_goes_on_when_it_is_gone(busy: Talk) -> None:
    await pauses(busy, "quota", busy.clock.at + 10_000)
    busy.clock.at += 10_001
    busy.port.now = "away"
    await busy.vanishes()
    assert len(busy.port.launches) == 2
    await busy.ready(**GATEWAY)
    await goes_on(busy)


@pytest.mark.parametrize("how", ["interrupt", "stop", "close"])
@pytest.mark.parametrize("runs", [True, False])
async def test_a_paused_turn_is_given_up(busy: Talk, how: str, runs: bool) -> None:
    await over_budget(busy)
    if not runs:
        await busy.exits("idle")
    await busy.do(how)
    assert busy.view.paused is None
    assert busy.view.last_turn is not None
    assert busy.view.last_turn["outcome"] == "interrupted"
    if runs and how != "interrupt":
        assert busy.told() == ["close"]
        await busy.exits("closed")
    assert busy.view.status == ("closed" if how == "close" else "idle")
    if how != "close":
        await busy.prompt("another")
        assert busy.view.turn is not None


async def test_a_prompt_waits_behind_the_paused_turn(busy: Talk) -> None:
    await over_budget(busy)
    answer = await busy.do("prompt", text="and then this")
    assert (answer["state"], busy.told(), busy.view.status) == ("queued", [], "paused")
    await busy.do("set_budget", cap_usd=None)
    told = busy.command()
    assert told["content"][0]["text"] == continuing.PAUSED
    await busy.serves()
    assert busy.command()["content"][0]["text"] == "and then this"
    await busy.takes()


async def test_given_up_the_paused_turn_makes_room_for_what_waits(busy: Talk) -> None:
    await over_budget(busy)
    await busy.prompt("and then this")
    await busy.do("interrupt")
    assert busy.command()["content"][0]["text"] == "and then this"
    await busy.takes()


async def test_a_model_is_set_while_the_turn_is_paused(busy: Talk) -> None:
    await over_budget(busy)
    await busy.do("set_model", model="cheap")
    assert busy.told() == ["set_model"]
    assert busy.view.status == "paused"
    await busy.do("set_budget", cap_usd=None)
    await goes_on(busy)


# Who pays.


async def idle(talk: Talk) -> None:
    """Its first agent has done its turn and is gone."""
    await talk.answers()
    await talk.completes()
    await talk.exits("idle")
    talk.port.told()


CHANGES = [({"key": {"secret": "other"}}, "secret other"), ({"billing": "subscription"}, "subscription")]


@pytest.mark.parametrize(("lab", "named"), CHANGES)
async def test_a_change_of_who_pays_asks_before_the_agent_starts(busy: Talk, lab: JSON, named: str) -> None:
    await idle(busy)
    configure(busy, **lab)
    await busy.prompt("second")
    assert (len(busy.port.launches), busy.view.status) == (1, "waiting")
    item = await busy.item_data(busy.approval())
    assert item["rule_ids"] == ["builtin.billing"]
    assert named in item["title"]
    assert "secret lab" in item["reason"]
    await busy.do("resolve", approval_id=busy.approval(), decision="allow")
    assert len(busy.port.launches) == 2
    wanted = {"billing": "metered", "credential": LAB}
    wanted |= {"credential": OTHER} if "key" in lab else {"billing": "subscription"}
    launch = busy.port.launches[-1]
    assert {name: launch[name] for name in wanted} == wanted
    await busy.ready(**GATEWAY | wanted)
    assert busy.command()["content"][0]["text"] == "second"
    await busy.serves()
    await busy.exits("idle")
    await busy.prompt("third")  # it was agreed to once
    assert len(busy.port.launches) == 3
    await busy.ready(**GATEWAY | wanted)
    await busy.serves()


async def test_a_refused_change_of_who_pays_fails_the_turn(busy: Talk) -> None:
    await idle(busy)
    configure(busy, key={"secret": "other"})
    message = await busy.prompt("second")
    await busy.do("resolve", approval_id=busy.approval(), decision="deny")
    assert busy.view.last_turn is not None
    assert (busy.view.last_turn["outcome"], busy.view.last_turn["code"]) == ("failed", "billing_refused")
    assert (await busy.item_data(message))["code"] == "not_delivered"
    assert (len(busy.port.launches), busy.view.status) == (1, "idle")


@pytest.mark.parametrize("late", [False, True])
async def test_an_unanswered_change_of_who_pays_fails_the_turn(busy: Talk, late: bool) -> None:
    await idle(busy)
    configure(busy, key={"secret": "other"})
    await busy.prompt("second")
    approval = busy.approval()
    busy.clock.at += 61_000
    if late:
        with pytest.raises(Conflict, match="expired"):
            await busy.do("resolve", approval_id=approval, decision="allow")
    else:
        busy = await busy.restarted("none")
    assert busy.view.last_turn is not None
    assert busy.view.last_turn["code"] == "billing_refused"
    assert (busy.view.status, len(busy.port.launches)) == ("idle", 1)


async def test_the_question_who_pays_outlives_the_server(busy: Talk) -> None:
    await idle(busy)
    configure(busy, key={"secret": "other"})
    await busy.prompt("second")
    approval = busy.approval()
    port = busy.port
    house = make_house(busy.home, busy.log, busy.clock, port, busy.audit)
    busy.session = Session(house, await busy.log.view(SESSION))
    configure(busy, key={"secret": "other"})
    await busy.session.recover()
    assert (busy.approval(), len(port.launches)) == (approval, 1)
    await busy.do("resolve", approval_id=approval, decision="allow")
    assert len(port.launches) == 2


@pytest.mark.parametrize("how", ["interrupt", "stop"])
async def test_a_turn_that_waits_for_who_pays_can_be_given_up(busy: Talk, how: str) -> None:
    await idle(busy)
    configure(busy, key={"secret": "other"})
    await busy.prompt("second")
    approval = busy.approval()
    await busy.do(how)
    assert (busy.view.status, len(busy.port.launches)) == ("idle", 1)
    with pytest.raises(Conflict, match="cancelled"):
        await busy.do("resolve", approval_id=approval, decision="allow")


@pytest.mark.parametrize(
    ("type_", "fields"),
    [("switch", {"harness": "scripted", "provider": "spare", "model": "m1"}),
     ("set_model", {"provider": "spare", "model": "m1"})],
)  # fmt: skip
async def test_a_switch_to_who_else_pays_must_say_that_it_may(busy: Talk, type_: str, fields: JSON) -> None:
    with pytest.raises(Conflict) as refused:
        await busy.do(type_, **fields)
    assert refused.value.facts == {"current": f"metered ({LAB})", "wanted": f"metered ({OTHER})"}
    assert busy.view.queue == []
    await busy.do(type_, accept_billing=True, **fields)
    assert len(busy.view.queue) == 1
    await busy.do("stop")
    await busy.say(ev.TurnInterrupted())
