"""Approvals whose agent is gone, grants, edits, repeated denials: a session as a dialogue."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from dialogue import BOB, Talk, begin_talk

from omnigent import events as ev
from omnigent.errors import Conflict, NotFound, Unprocessable

pytestmark = pytest.mark.anyio


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncGenerator[Talk]:
    """A session whose agent has taken its first message."""
    talk = await begin_talk(tmp_path)
    await talk.prompt("first")
    await talk.ready(capabilities={"steers": True, "sets_model": True, "rewrites": True})
    await talk.takes()
    talk.port.told()
    yield talk
    await talk.check()


async def revived(talk: Talk, decision: str, **more: Any) -> str:
    """Its agent is gone while a call is held; a person answers, another agent takes up. What it is told."""
    await talk.calls("make release")
    await talk.vanishes()
    approval = talk.approval()
    await talk.do("resolve", approval_id=approval, decision=decision, **more)
    assert not talk.view.approvals_open
    assert talk.view.turn is not None
    assert talk.view.turn["trigger"] == "resume"
    await talk.ready()
    command = talk.command()
    await talk.takes()
    return command["content"][0]["text"]


async def test_an_allow_for_an_agent_that_is_gone_lets_the_same_call_run_once(busy: Talk) -> None:
    said = await revived(busy, "allow", actor=BOB)
    assert "make release" in said
    assert "allowed" in said
    (grant,) = busy.view.grants
    assert (grant["scope"], grant["uses"]) == ("once", 1)
    again = await busy.calls("make release")
    assert busy.command()["allow"] is True
    assert busy.view.grants == []
    await busy.say(ev.ToolCompleted(outcome="ok", exit_code=0), again)
    await busy.calls("make release")
    assert busy.told() == []
    assert len(busy.view.approvals_open) == 1


async def test_the_grant_left_for_an_agent_that_is_gone_is_for_that_call_alone(busy: Talk) -> None:
    await revived(busy, "allow")
    await busy.calls("make release -j2")
    assert busy.told() == []
    assert len(busy.view.grants) == 1


async def test_the_grant_left_for_an_agent_that_is_gone_runs_out(busy: Talk) -> None:
    await revived(busy, "allow")
    busy.clock.at += 3_600_001
    await busy.calls("make release")
    assert busy.told() == []
    assert len(busy.view.approvals_open) == 1


async def test_a_deny_for_an_agent_that_is_gone_reaches_the_next(busy: Talk) -> None:
    said = await revived(busy, "deny", reason="not on a friday")
    assert "not on a friday" in said
    assert busy.view.grants == []


async def test_a_detached_approval_expires_and_starts_nobody(busy: Talk) -> None:
    await busy.calls("make release")
    await busy.vanishes()
    approval = busy.approval()
    busy.clock.at += 61_000
    with pytest.raises(Conflict, match="expired"):
        await busy.do("resolve", approval_id=approval, decision="allow")
    assert busy.view.turn is None
    assert busy.view.status == "idle"


async def test_a_detached_approval_outlives_later_turns_and_ends_with_the_session(busy: Talk) -> None:
    await busy.calls("make release")
    await busy.vanishes()
    approval = busy.approval()
    await busy.prompt("something else")
    await busy.ready()
    await busy.serves()
    assert busy.approval() == approval
    await busy.do("stop")
    with pytest.raises(Conflict, match="cancelled") as late:
        await busy.do("resolve", approval_id=approval, decision="allow")
    assert late.value.facts["cancelled_by"] == "closed"


async def test_an_answer_for_an_agent_that_is_gone_waits_behind_the_open_turn(busy: Talk) -> None:
    await busy.calls("make release")
    await busy.vanishes()
    approval = busy.approval()
    await busy.prompt("something else")
    await busy.ready()
    await busy.takes()
    busy.port.told()
    await busy.do("resolve", approval_id=approval, decision="allow")
    assert busy.told() == []
    await busy.completes()
    assert "make release" in busy.command()["content"][0]["text"]
    await busy.takes()


async def test_an_agent_that_waits_too_long_is_let_go_and_comes_back_with_the_answer(busy: Talk) -> None:
    call = await busy.calls("make release")
    busy.clock.at += 29_000
    await busy.session.let_go()
    assert busy.told() == []
    busy.clock.at += 2_000
    await busy.session.let_go()
    assert busy.told() == ["close"]
    assert (await busy.item_data(call))["status"] == "cancelled"
    await busy.exits("idle")
    approval = busy.approval()
    assert (await busy.item_data(approval))["detached"]
    await busy.do("resolve", approval_id=approval, decision="allow")
    await busy.ready()
    assert "make release" in busy.command()["content"][0]["text"]
    await busy.takes()


@pytest.mark.parametrize("scope", ["session", "pattern"])
async def test_a_grant_silences_what_it_covers_until_it_is_revoked(busy: Talk, scope: str) -> None:
    await busy.calls("make release")
    (asked,) = busy.view.approvals_open
    grant = {"scope": scope, **({"pattern": "exec: make release"} if scope == "pattern" else {})}
    await busy.do("resolve", approval_id=asked, decision="allow", grant=grant)
    assert busy.command()["allow"] is True
    await busy.calls("make release")
    assert busy.command()["allow"] is True
    await busy.calls("make deploy")
    assert busy.told() == []
    (known,) = busy.view.grants
    await busy.do("revoke_grant", grant_id=known["grant_id"])
    await busy.calls("make release")
    assert busy.told() == []
    with pytest.raises(NotFound):
        await busy.do("revoke_grant", grant_id=known["grant_id"])


async def test_a_pattern_that_does_not_cover_the_call_is_refused(busy: Talk) -> None:
    await busy.calls("make release")
    grant = {"scope": "pattern", "pattern": "exec: cargo build"}
    with pytest.raises(Unprocessable, match="doesn't cover"):
        await busy.do("resolve", approval_id=busy.approval(), decision="allow", grant=grant)
    assert len(busy.view.approvals_open) == 1


async def test_the_offered_patterns_cover_the_call(busy: Talk) -> None:
    await busy.calls("make release")
    item = await busy.item_data(busy.approval())
    assert item["patterns"]
    grant = {"scope": "pattern", "pattern": item["patterns"][0]}
    await busy.do("resolve", approval_id=busy.approval(), decision="allow", grant=grant)
    assert busy.command()["allow"] is True


async def test_an_edited_command_runs_in_place_of_the_proposed_one(busy: Talk) -> None:
    await busy.calls("make release")
    assert (await busy.item_data(busy.approval()))["edit"] == "make release"
    await busy.do("resolve", approval_id=busy.approval(), decision="allow", edited="make check")
    told = busy.command()
    assert (told["allow"], told["command"]) == (True, "make check")


async def test_where_the_harness_takes_no_other_command_none_can_be_written(busy: Talk) -> None:
    await busy.vanishes()
    await busy.prompt("again")
    await busy.ready(capabilities={})
    await busy.takes()
    await busy.calls("make release")
    with pytest.raises(Unprocessable, match="can't be edited"):
        await busy.do("resolve", approval_id=busy.approval(), decision="allow", edited="make check")


async def test_the_third_identical_denied_call_ends_the_turn_with_a_reason(busy: Talk) -> None:
    for number in range(3):
        await busy.calls("make release")
        await busy.do("resolve", approval_id=busy.approval(), decision="deny", reason="no")
        frames = [frame["command"]["type"] for frame in busy.port.told()]
        assert frames == (["verdict"] if number < 2 else ["verdict", "cut_short"])
    await busy.say(ev.TurnFailed(code="denied_repeatedly", detail="denied three times"))
    assert busy.view.last_turn is not None
    assert busy.view.last_turn["code"] == "denied_repeatedly"


async def test_other_denied_calls_do_not_add_up(busy: Talk) -> None:
    for name in "abcd":
        await busy.calls(f"make deploy-{name}")
        await busy.do("resolve", approval_id=busy.approval(), decision="deny", reason="no")
        assert busy.command()["type"] == "verdict"
