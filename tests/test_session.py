"""The session as a dialogue: people on one side, a runner on the other, the log in between."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dialogue import ANN, BOB, REAL_KEY, SESSION, Talk, begin_talk

from omnigent import events as ev
from omnigent.commands import COMMAND
from omnigent.errors import (
    BadCursor,
    Conflict,
    Draining,
    KeyReused,
    Malformed,
    MissingBinary,
    NotFound,
    TooLarge,
    UnknownHarness,
    Unprocessable,
)
from omnigent.events import Draft

pytestmark = pytest.mark.anyio


@pytest.fixture
async def talk(tmp_path: Path) -> AsyncIterator[Talk]:
    """A session with nothing done yet. Whatever the test did, the folds agree in the end."""
    talk = await begin_talk(tmp_path)
    yield talk
    await talk.check()


@pytest.fixture
async def busy(talk: Talk) -> Talk:
    """A session whose agent works on its first message."""
    await talk.prompt("first")
    await talk.ready()
    await talk.takes()
    talk.port.told()
    return talk


# Prompts and turns.


async def test_a_prompt_becomes_a_turn_and_the_turn_a_command(talk: Talk) -> None:
    message_id = await talk.prompt("hello")
    assert await talk.kinds() == ["session.created", "message.submitted", "turn.started"]
    assert (talk.view.status, talk.told()) == ("starting", [])
    await talk.ready()
    command = talk.command()
    assert command["content"] == [{"type": "text", "text": "hello"}]
    assert (command["message_id"], command["turn_id"]) == (message_id, talk.turn_id())
    assert talk.view.status == "running"
    await talk.serves()
    assert (talk.view.status, talk.view.last_turn and talk.view.last_turn["outcome"]) == ("idle", "completed")
    assert (await talk.item_data(message_id))["status"] == "delivered"


async def test_a_second_prompt_goes_to_the_agent_that_runs(talk: Talk) -> None:
    await talk.prompt("one")
    await talk.ready()
    await talk.serves()
    talk.port.told()
    await talk.prompt("two")
    assert talk.command()["content"][0]["text"] == "two"
    assert len(talk.port.launches) == 1
    await talk.serves()


async def test_the_real_key_is_in_the_launch_and_nowhere_else(talk: Talk) -> None:
    await talk.prompt("hello")
    launch = talk.port.launches[0]
    assert launch["upstream"]["headers"]["x-api-key"] == REAL_KEY
    assert REAL_KEY not in str({**launch, "upstream": None, "secrets": None})
    await talk.ready()
    assert REAL_KEY not in str([event.json_text() for event in await talk.events()])
    await talk.serves()


async def test_the_command_is_the_cause_and_its_author_the_actor(talk: Talk) -> None:
    answer = await talk.do("prompt", text="hello", actor=BOB)
    for event in (await talk.events())[1:]:
        assert (event.cause, event.actor) == (answer["command_id"], BOB)


async def test_messages_wait_in_order(busy: Talk) -> None:
    answers = [await busy.do("prompt", text=text, when="queue") for text in ("two", "three")]
    assert [answer["state"] for answer in answers] == ["queued", "queued"]
    for text in ("two", "three"):
        await busy.completes()
        assert busy.command()["content"][0]["text"] == text
        await busy.takes()
    await busy.completes()
    assert busy.view.status == "idle"


async def test_now_interrupts_and_goes_first(busy: Talk) -> None:
    await busy.prompt("later", "queue")
    await busy.prompt("urgent", "now")
    assert busy.command()["type"] == "interrupt"
    await busy.say(ev.TurnInterrupted())
    assert busy.command()["content"][0]["text"] == "urgent"
    await busy.serves()
    assert busy.command()["content"][0]["text"] == "later"


async def test_a_steer_goes_into_the_running_turn(busy: Talk) -> None:
    message_id = await busy.prompt("also this", "steer")
    command = busy.command()
    assert (command["type"], command["message_id"]) == ("steer", message_id)
    await busy.say(ev.MessageDelivered(as_="steer"), message_id)  # pyright: ignore[reportCallIssue]
    assert (await busy.item_data(message_id))["delivered_as"] == "steer"
    await busy.completes()
    assert (busy.view.status, busy.told()) == ("idle", [])


async def test_a_steer_the_turn_did_not_take_is_the_next_turn(busy: Talk) -> None:
    message_id = await busy.prompt("also this", "steer")
    busy.port.told()
    await busy.completes()
    command = busy.command()
    assert (command["type"], command["message_id"]) == ("turn", message_id)


async def test_a_steer_without_a_turn_starts_one(talk: Talk) -> None:
    await talk.prompt("hello", "steer")
    await talk.ready()
    assert talk.command()["type"] == "turn"
    await talk.serves()


async def test_a_steer_before_the_agent_is_ready_follows_the_message(talk: Talk) -> None:
    await talk.prompt("first")
    talk.port.now = "live"  # connected, and no handshake yet
    await talk.prompt("second", "steer")
    assert talk.told() == []
    await talk.ready()
    assert talk.told() == ["turn"]  # it can't be known yet that this harness steers: it waits its turn
    await talk.serves()
    assert talk.command()["content"][0]["text"] == "second"


async def test_a_steer_during_a_switch_waits_in_the_queue(busy: Talk) -> None:
    await busy.do("set_model", model="m2", provider="spare", now=True)
    await busy.say(ev.TurnInterrupted())
    busy.port.told()
    message_id = await busy.prompt("go on", "steer")
    assert busy.told() == []
    await busy.exits("switched")
    assert busy.view.turn is not None and busy.view.turn["message_id"] == message_id


async def test_a_harness_that_cannot_steer_queues(talk: Talk) -> None:
    await talk.prompt("first")
    await talk.ready(capabilities={})
    talk.port.told()
    answer = await talk.do("prompt", text="more", when="steer")
    assert (answer["state"], talk.told()) == ("queued", [])


async def test_a_queued_message_is_edited_and_another_cancelled(busy: Talk) -> None:
    edited, cancelled = await busy.prompt("a"), await busy.prompt("b")
    await busy.do("edit", message_id=edited, content=[{"type": "text", "text": "A"}])
    await busy.do("cancel", message_id=cancelled)
    await busy.completes()
    assert busy.command()["content"][0]["text"] == "A"
    await busy.serves()
    assert (await busy.item_data(cancelled))["status"] == "cancelled"
    assert busy.view.status == "idle"


async def test_what_was_handed_over_is_no_longer_edited(busy: Talk) -> None:
    waiting = await busy.prompt("later")
    assert busy.view.turn is not None
    with pytest.raises(Conflict) as refused:
        await busy.do("cancel", message_id=busy.view.turn["message_id"])
    assert refused.value.facts == {"current": "not_queued", "queue": [waiting]}


async def test_a_message_that_waited_is_told_to_the_next_agent_where_it_was_taken(talk: Talk) -> None:
    await talk.prompt("first")
    await talk.ready(native_ref=None)
    await talk.takes()
    await talk.prompt("second")
    await talk.answers("answer to first")
    await talk.completes()
    await talk.serves("answer to second")
    await talk.exits("idle")
    await talk.prompt("third")
    texts = [entry.get("text") for entry in talk.port.launches[-1]["history"]["entries"]]
    assert texts == ["first", "answer to first", "second", "answer to second"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"text": "  "}, Malformed),
        ({}, Malformed),
        ({"text": "x" * 1_000_001}, TooLarge),
        ({"content": [{"type": "image", "media_type": "image/png", "data": "§"}]}, Malformed),
    ],
)
async def test_a_prompt_that_cannot_be(talk: Talk, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await talk.do("prompt", **fields)
    assert await talk.kinds() == ["session.created"]


async def test_an_image_is_a_blob_in_the_log_and_bytes_for_the_agent(talk: Talk) -> None:
    data = base64.b64encode(b"not really a png").decode()
    await talk.do("prompt", content=[{"type": "image", "media_type": "image/png", "data": data}])
    await talk.ready()
    assert talk.command()["images"] == [{"media_type": "image/png", "data": data}]
    assert data not in str([event.json_text() for event in await talk.events()])
    await talk.serves()


# Idempotency.


async def test_the_same_key_gives_the_first_answer_again(busy: Talk) -> None:
    first = await busy.do("prompt", key="same", text="once")
    head = busy.view.as_of_seq
    command = COMMAND.validate_python({"type": "prompt", "idempotency_key": "same", "text": "once"})
    assert await busy.session.submit(command, ANN) == (first, True)
    assert busy.view.as_of_seq == head
    again = await busy.restarted()
    assert await again.session.submit(command, ANN) == (first, True)


async def test_the_same_key_with_another_body_is_refused(busy: Talk) -> None:
    await busy.do("prompt", key="same", text="once")
    with pytest.raises(KeyReused):
        await busy.do("prompt", key="same", text="twice")
    with pytest.raises(KeyReused):
        await busy.do("interrupt", key="same")


# Interrupts.


async def test_an_interrupt_before_the_hand_over_takes_the_message_back(talk: Talk) -> None:
    message_id = await talk.prompt("never mind")
    await talk.do("interrupt")
    assert (await talk.item_data(message_id))["status"] == "cancelled"
    assert talk.view.last_turn and talk.view.last_turn["outcome"] == "interrupted"
    await talk.ready()
    assert (talk.told(), talk.view.status) == ([], "idle")


async def test_an_interrupt_after_the_hand_over_is_the_agents_to_end(busy: Talk) -> None:
    await busy.prompt("next")
    await busy.do("interrupt")
    assert (busy.told(), busy.view.status) == (["interrupt"], "running")
    await busy.say(ev.TurnInterrupted())
    assert busy.told() == ["turn"]


async def test_an_interrupt_the_runner_missed_is_told_again(busy: Talk) -> None:
    turn_id = busy.turn_id() or ""
    busy.port.now = "away"
    await busy.do("interrupt")
    assert busy.told() == []
    await busy.synced(seen=[turn_id])
    assert busy.told() == ["interrupt"]


async def test_an_interrupt_of_a_message_that_never_arrived_ends_the_turn(talk: Talk) -> None:
    await talk.prompt("one")
    await talk.ready()
    await talk.serves()
    talk.port.told()
    talk.port.now = "away"
    message_id = await talk.prompt("two")
    await talk.do("interrupt")
    await talk.synced(seen=[])
    assert (talk.told(), talk.view.status) == ([], "idle")
    assert (await talk.item_data(message_id))["status"] == "cancelled"


async def test_after_a_restart_an_interrupt_waits_for_what_the_runner_knows(talk: Talk) -> None:
    await talk.prompt("one")
    await talk.ready()
    turn_id = talk.turn_id() or ""
    again = await talk.restarted("away")
    await again.do("interrupt")
    assert again.view.turn is not None
    await again.synced(seen=[turn_id])
    assert again.told() == ["interrupt"]
    await again.say(ev.TurnInterrupted())
    assert again.view.status == "idle"


async def test_an_interrupt_with_nothing_to_interrupt_is_no_error(talk: Talk) -> None:
    assert (await talk.do("interrupt"))["seq"] == 1


# The gate.


async def test_an_allow_reaches_the_agent(busy: Talk) -> None:
    call = await busy.calls("make release")
    assert (busy.view.status, busy.told()) == ("waiting", [])
    await busy.do("resolve", approval_id=busy.approval(), decision="allow")
    verdict = busy.command()
    assert (verdict["type"], verdict["item_id"], verdict["allow"]) == ("verdict", call, True)
    assert busy.view.status == "running"
    await busy.calls("make release")
    assert busy.view.status == "waiting"  # once is once


async def test_a_grant_for_the_session_is_for_that_very_action(busy: Talk) -> None:
    await busy.calls("make deploy")
    await busy.do("resolve", approval_id=busy.approval(), decision="allow", grant={"scope": "session"})
    busy.port.told()
    await busy.calls("make deploy")
    assert busy.command()["allow"] is True
    await busy.calls("make release")
    assert busy.view.status == "waiting"
    again = await busy.restarted()
    again.port.now = "live"
    await again.calls("make deploy")
    assert again.command()["allow"] is True  # the fold remembers, not the server


async def test_a_deny_reaches_the_agent_with_its_reason(busy: Talk) -> None:
    await busy.calls("make release")
    await busy.do("resolve", approval_id=busy.approval(), decision="deny", reason="not today")
    verdict = busy.command()
    assert (verdict["allow"], verdict["reason"]) == (False, "not today")


async def test_the_second_answer_is_told_who_was_first(busy: Talk) -> None:
    await busy.calls()
    approval = busy.approval()
    await busy.do("resolve", approval_id=approval, decision="allow", actor=BOB)
    with pytest.raises(Conflict) as late:
        await busy.do("resolve", approval_id=approval, decision="deny")
    assert (late.value.facts["current"], late.value.facts["by"]["id"]) == ("allowed", "bob")
    with pytest.raises(NotFound):
        await busy.do("resolve", approval_id="ap_nowhere", decision="allow")


async def test_two_who_answer_at_once_don_t_both_win(busy: Talk) -> None:
    await busy.calls()
    approval = busy.approval()
    answers = await asyncio.gather(
        busy.do("resolve", approval_id=approval, decision="allow"),
        busy.do("resolve", approval_id=approval, decision="deny", actor=BOB),
        return_exceptions=True,
    )
    assert sorted(isinstance(answer, Conflict) for answer in answers) == [False, True]
    assert busy.told() == ["verdict"]


async def test_an_approval_expires_into_a_deny(busy: Talk) -> None:
    await busy.calls()
    approval = busy.approval()
    busy.clock.at += 61_000
    with pytest.raises(Conflict) as late:
        await busy.do("resolve", approval_id=approval, decision="allow")
    assert late.value.facts["current"] == "expired"
    assert busy.command()["allow"] is False


async def test_what_expired_while_the_server_was_down_is_applied_first(busy: Talk) -> None:
    call = await busy.calls()
    approval = busy.approval()
    busy.clock.at += 61_000
    again = await busy.restarted()
    assert (await again.item_data(approval))["status"] == "expired"
    await again.synced(seen=[again.turn_id() or ""], held=[call])
    assert again.command()["allow"] is False


async def test_an_approval_outlives_the_server(busy: Talk) -> None:
    call = await busy.calls()
    again = await busy.restarted()
    await again.synced(seen=[again.turn_id() or ""], held=[call])
    assert (again.told(), again.view.status) == ([], "waiting")
    await again.do("resolve", approval_id=again.approval(), decision="allow")
    assert again.command()["allow"] is True


async def test_a_verdict_the_runner_missed_is_told_again(busy: Talk) -> None:
    call = await busy.calls()
    busy.port.now = "away"
    await busy.do("resolve", approval_id=busy.approval(), decision="allow")
    await busy.synced(seen=[busy.turn_id() or ""], held=[call])
    assert busy.command()["allow"] is True


async def test_a_call_stored_but_never_judged_is_judged_when_the_runner_returns(busy: Talk) -> None:
    """The server was killed between the append and its reaction; the event isn't sent again."""
    body = ev.ToolRequested.model_validate(
        {
            "tool": "read",
            "title": "x",
            "actions": [{"type": "file.read", "path": "x", "real_path": "/x", "in_workspace": True}],
            "parsed": "full",
            "raw": "{}",
            "native_id": "call_1",
        }
    )
    launch = busy.port.launches[-1]
    await busy.log.append(SESSION, [Draft(body, "tc_9", turn_id=busy.turn_id(), run=launch["run"])])
    again = await busy.restarted()
    await again.synced(seen=[again.turn_id() or ""], held=["tc_9"])
    assert again.command()["allow"] is True


async def test_a_held_call_nobody_knows_is_denied(busy: Talk) -> None:
    await busy.synced(seen=[busy.turn_id() or ""], held=["tc_unknown"])
    assert busy.command()["allow"] is False


async def test_an_interrupt_cancels_what_is_asked_before_it_acts(busy: Talk) -> None:
    await busy.calls()
    approval = busy.approval()
    await busy.do("interrupt")
    assert (await busy.item_data(approval))["cancelled_by"] == "interrupted"
    assert (busy.view.approvals_open, busy.told()) == ({}, ["interrupt"])


async def test_with_yes_nothing_is_asked(tmp_path: Path) -> None:
    talk = await begin_talk(tmp_path, "yes")
    await talk.prompt("go")
    await talk.ready()
    talk.port.told()
    await talk.calls("rm -r x")
    assert talk.command()["allow"] is True
    assert "policy.decided" not in await talk.kinds()


async def test_where_nobody_can_answer_the_answer_is_no(tmp_path: Path) -> None:
    talk = await begin_talk(tmp_path, "deny")
    await talk.prompt("go")
    await talk.ready()
    talk.port.told()
    call = await talk.calls("rm -r x")
    assert "Nobody can be asked" in talk.command()["reason"]
    assert (await talk.item_data(call))["verdict"] == "deny"
    await talk.say(ev.QuestionAsked(questions=(ev.Question(question="why?"),)), "q_1")
    assert talk.command()["cancelled"] is True
    assert talk.view.status == "running"


async def test_a_question_is_answered_once(busy: Talk) -> None:
    await busy.say(ev.QuestionAsked(questions=(ev.Question(question="which?"),)), "q_1")
    assert busy.view.status == "waiting"
    await busy.do("answer", question_id="q_1", values=[["this"]], actor=BOB)
    assert busy.command()["values"] == [["this"]]
    assert busy.view.status == "running"
    with pytest.raises(Conflict) as late:
        await busy.do("answer", question_id="q_1", values=[["that"]])
    assert late.value.facts["by"]["id"] == "bob"


async def test_an_answer_the_runner_missed_is_told_again(busy: Talk) -> None:
    await busy.say(ev.QuestionAsked(questions=(ev.Question(question="which?"),)), "q_1")
    busy.port.now = "away"
    await busy.do("answer", question_id="q_1", values=[["this"]])
    busy.port.now = "live"
    await busy.session.synced([busy.turn_id() or ""], [], ["q_1"], [], True)
    assert busy.command()["values"] == [["this"]]


async def test_an_approval_asked_after_the_turn_is_seen_and_outlives_the_runner(busy: Talk) -> None:
    await busy.completes()
    await busy.calls()
    assert busy.view.status == "waiting"
    approval = busy.approval()
    await busy.session.close_idle()
    assert busy.told() == []  # not idle
    await busy.vanishes()
    assert (await busy.item_data(approval))["detached"]
    assert busy.view.status == "waiting"


# Switching and models.


@pytest.fixture
async def agents(talk: Talk, agents_home: Path) -> Talk:
    (talk.home / "harnesses").symlink_to(agents_home / "harnesses")
    return talk


async def test_a_switch_ends_the_old_agent_and_carries_the_context(agents: Talk) -> None:
    await agents.prompt("first")
    await agents.ready()
    await agents.serves("answer")
    agents.port.told()
    await agents.do("switch", harness="claude")
    assert agents.told() == ["close"]
    await agents.exits("switched")
    launch = agents.port.launches[-1]
    assert (launch["harness"], launch["native_ref"], launch["model"]) == ("claude-code", None, "m1")
    assert [entry["text"] for entry in launch["history"]["entries"]] == ["first", "answer"]
    assert agents.view.harness == "scripted"
    await agents.ready(how="seeded", carried=ev.Carried(how="seeded", messages=2))
    changed = next(e.body for e in await agents.events() if isinstance(e.body, ev.HarnessChanged))
    assert (changed.from_, changed.to, changed.carried.messages) == ("scripted", "claude-code", 2)
    assert (agents.view.harness, agents.view.status) == ("claude-code", "idle")


async def test_what_happens_while_the_new_agent_starts_does_not_end_it(agents: Talk) -> None:
    await agents.prompt("first")
    await agents.ready()
    await agents.serves()
    await agents.do("switch", harness="claude-code")
    await agents.exits("switched")
    agents.port.now = "live"
    agents.port.told()
    await agents.say(ev.NoticeRaised(code="x", level="info", detail="still starting"))
    await agents.prompt("second")
    assert agents.told() == []
    await agents.ready()
    assert agents.view.harness == "claude-code"
    assert agents.command()["content"][0]["text"] == "second"


async def test_a_target_that_fails_to_start_leaves_the_session_where_it_was(agents: Talk) -> None:
    await agents.prompt("first")
    await agents.ready()
    await agents.serves()
    await agents.do("switch", harness="claude-code")
    await agents.exits("switched")
    await agents.prompt("second")
    agents.port.now = "live"
    await agents.exits("failed_to_start", "no such model")
    assert agents.view.harness == "scripted"
    assert "command.ended" in await agents.kinds()
    launch = agents.port.launches[-1]
    assert (launch["harness"], launch["native_ref"]) == ("scripted", "native-1")
    await agents.ready(how="native_resume")
    await agents.serves()
    assert agents.view.status == "idle"


async def test_a_switch_waits_its_turn_and_now_does_not(agents: Talk) -> None:
    await agents.prompt("first")
    await agents.ready()
    await agents.takes()
    await agents.prompt("second")
    agents.port.told()
    await agents.do("switch", harness="claude-code", now=True)
    assert agents.told() == ["interrupt"]
    await agents.say(ev.TurnInterrupted())
    assert agents.told() == ["close"]
    await agents.exits("switched")
    await agents.ready()
    assert agents.view.harness == "claude-code"
    assert agents.command()["content"][0]["text"] == "second"


async def test_a_target_that_is_not_there_is_refused_at_once(talk: Talk) -> None:
    with pytest.raises(MissingBinary):
        await talk.do("switch", harness="claude-code")
    with pytest.raises(UnknownHarness):
        await talk.do("switch", harness="cluade-code")
    assert talk.view.queue == []


async def test_a_model_is_set_in_the_running_agent(busy: Talk) -> None:
    await busy.do("set_model", model="m2")
    assert (busy.told(), busy.view.model) == ([], "m1")
    await busy.completes()
    assert (busy.command()["model"], busy.view.model) == ("m2", "m2")
    assert busy.view.queue == []


async def test_a_model_of_another_provider_restarts_the_agent(busy: Talk) -> None:
    await busy.completes()
    await busy.do("set_model", model="m2", provider="spare")
    assert busy.told() == ["close"]
    await busy.prompt("go on")
    await busy.exits("switched")
    assert [busy.port.launches[-1][name] for name in ("provider", "model")] == ["spare", "m2"]
    await busy.ready(how="native_resume")
    assert busy.command()["content"][0]["text"] == "go on"


async def test_a_model_set_while_the_agent_starts_is_not_forgotten(talk: Talk) -> None:
    await talk.prompt("first")
    await talk.do("interrupt")
    await talk.do("set_model", model="m2")
    await talk.ready()
    assert (talk.told(), talk.view.model) == (["set_model"], "m2")


async def test_a_switch_without_a_model_says_so(agents: Talk) -> None:
    with pytest.raises(Unprocessable):
        await agents.do("switch", harness="codex")


# Stop, close, idle.


async def test_stop_ends_turn_queue_and_process_and_the_next_prompt_starts_anew(busy: Talk) -> None:
    waiting = await busy.prompt("later")
    await busy.do("stop")
    assert busy.told() == ["interrupt"]
    await busy.say(ev.TurnInterrupted())
    assert busy.told() == ["close"]
    assert (await busy.item_data(waiting))["status"] == "cancelled"
    message_id = await busy.prompt("at once")
    await busy.exits("closed")
    assert busy.view.turn is not None and busy.view.turn["message_id"] == message_id
    await busy.ready(how="native_resume")
    assert busy.command()["content"][0]["text"] == "at once"


async def test_stop_before_the_agent_is_there_ends_it_when_it_comes(talk: Talk) -> None:
    await talk.prompt("first")
    await talk.do("stop")
    assert talk.view.status == "idle"
    await talk.ready()
    assert talk.told() == ["close"]
    await talk.exits("closed")
    await talk.prompt("second")
    assert len(talk.port.launches) == 2


async def test_stop_while_the_runner_is_away_is_told_when_it_returns(busy: Talk) -> None:
    turn_id = busy.turn_id() or ""
    busy.port.now = "away"
    await busy.do("stop")
    await busy.synced(seen=[turn_id])
    assert busy.told() == ["interrupt"]
    await busy.say(ev.TurnInterrupted())
    assert busy.told() == ["close"]


async def test_a_closed_session_takes_no_prompt_until_it_is_reopened(busy: Talk) -> None:
    await busy.do("close")
    assert busy.view.status == "running"  # until it has ended
    await busy.say(ev.TurnInterrupted())
    await busy.exits("closed")
    assert busy.view.status == "closed"
    with pytest.raises(Conflict) as refused:
        await busy.prompt("hello?")
    assert refused.value.facts["current"] == "closed"
    await busy.do("resume")
    await busy.prompt("hello")
    assert busy.port.launches[-1]["native_ref"] == "native-1"


async def test_an_idle_agent_is_closed_and_a_prompt_that_comes_meanwhile_waits_for_the_next(
    busy: Talk,
) -> None:
    await busy.session.close_idle()
    assert busy.told() == []  # it works
    await busy.completes()
    await busy.session.close_idle()
    assert busy.told() == ["close"]
    message_id = await busy.prompt("just now")
    await busy.exits("idle")
    assert (await busy.item_data(message_id))["status"] == "submitted"
    await busy.ready(how="native_resume")
    assert busy.command()["message_id"] == message_id
    assert "turn.failed" not in await busy.kinds()


async def test_a_server_that_stops_takes_no_work_but_answers(busy: Talk) -> None:
    await busy.prompt("waiting")
    await busy.calls()
    busy.session.draining = True
    with pytest.raises(Draining):
        await busy.prompt("more")
    await busy.do("resolve", approval_id=busy.approval(), decision="allow")
    assert busy.told() == ["verdict"]
    await busy.completes()
    assert (busy.told(), busy.view.status) == ([], "starting")


# The agent's and the runner's end.


@pytest.mark.parametrize("error", [Unprocessable("no key"), FileNotFoundError(2, "No such file")])
async def test_an_agent_that_cannot_be_started_fails_the_turn(
    talk: Talk, error: Unprocessable | OSError
) -> None:
    talk.port.failure = error
    message_id = await talk.prompt("first")
    assert talk.view.last_turn and talk.view.last_turn["code"] == "start_failed"
    assert (await talk.item_data(message_id))["code"] == "not_delivered"
    assert talk.view.status == "idle"


async def test_a_long_queue_of_failures_ends(busy: Talk) -> None:
    for number in range(120):
        await busy.prompt(f"message {number}")
    busy.port.failure = Unprocessable("no key")
    await busy.say(ev.TurnFailed(code="agent_exited", detail="crash"))
    await busy.exits("crashed")
    assert (busy.view.status, busy.view.queue) == ("idle", [])


async def test_an_agent_that_dies_at_once_fails_the_turn_and_the_next_gets_a_new_one(talk: Talk) -> None:
    first = await talk.prompt("first")
    second = await talk.prompt("second")
    talk.port.now = "live"
    await talk.exits("failed_to_start", "bad config")
    assert (await talk.item_data(first))["status"] == "failed"
    assert talk.view.turn is not None and talk.view.turn["message_id"] == second
    assert len(talk.port.launches) == 2
    await talk.ready()
    await talk.serves()


@pytest.mark.parametrize(
    "end", [ev.TurnFailed(code="agent_exited", detail="segfault"), ev.TurnInterrupted(how="kill")]
)
async def test_an_agent_that_ends_takes_its_turn_along_and_no_other(
    busy: Talk, end: ev.TurnFailed | ev.TurnInterrupted
) -> None:
    await busy.prompt("second")
    await busy.say(end)
    assert busy.told() == []  # nothing is handed to a dead agent
    await busy.exits("crashed")
    assert busy.view.status == "starting"
    await busy.ready(how="native_resume")
    assert busy.command()["content"][0]["text"] == "second"
    await busy.serves()
    kinds = await busy.kinds()
    assert (kinds.count(end.KIND), kinds.count("message.failed")) == (1, 0)


async def test_a_prompt_right_after_a_stop_is_not_stopped(talk: Talk) -> None:
    """The stopped runner is gone, but its session hasn't heard of that yet."""
    await talk.prompt("first")
    await talk.ready()
    await talk.serves()
    await talk.do("stop")
    await talk.says(Draft(ev.HarnessExited(reason="closed")))
    before, talk.port.now = talk.port.launches[-1]["epoch"], "none"
    talk.told()
    await talk.prompt("second")
    await talk.session.gone(before)
    await talk.ready(how="native_resume")
    assert talk.command()["content"][0]["text"] == "second"
    await talk.serves()
    assert talk.view.last_turn and talk.view.last_turn["outcome"] == "completed"


async def test_runner_gone_before_the_agent_was_ready(talk: Talk) -> None:
    message_id = await talk.prompt("first")
    await talk.vanishes()
    assert talk.view.last_turn and talk.view.last_turn["code"] == "runner_lost"
    assert (await talk.item_data(message_id))["code"] == "not_delivered"
    assert len(talk.port.launches) == 1  # a runner that dies at once isn't started for ever


async def test_runner_gone_after_the_hand_over_and_before_the_acknowledgement(talk: Talk) -> None:
    message_id = await talk.prompt("first")
    await talk.ready()
    await talk.vanishes()
    assert (await talk.item_data(message_id))["code"] == "delivery_unknown"
    assert talk.view.status == "idle"


async def test_a_message_found_in_the_native_transcript_was_delivered(talk: Talk) -> None:
    message_id = await talk.prompt("first")
    await talk.ready()
    transcripts = talk.home / "run" / SESSION / "scripted" / "transcripts"
    transcripts.mkdir(parents=True)
    (transcripts / "native-1.jsonl").write_text(f'{{"role": "user", "id": "{message_id}"}}\n')
    await talk.vanishes()
    assert (await talk.item_data(message_id))["status"] == "delivered"
    await talk.prompt("second")  # a turn broken off leaves no transcript to trust: what the log holds is told
    launch = talk.port.launches[-1]
    assert launch["native_ref"] is None
    assert [entry["text"] for entry in launch["history"]["entries"]] == ["first"]


async def test_runner_gone_in_the_middle_of_the_turn(busy: Talk) -> None:
    item_id = busy.item("msg")
    await busy.say(ev.MessageStarted(), item_id)
    await busy.session.say([{"item_id": item_id, "stream": "text", "offset": 0, "text": "hal"}])
    await busy.vanishes()
    assert (await busy.item_data(item_id))["status"] == "lost"
    assert busy.view.run is None
    assert busy.view.last_turn and busy.view.last_turn["code"] == "runner_lost"


async def test_runner_gone_while_a_call_is_held(busy: Talk) -> None:
    call = await busy.calls()
    approval = busy.approval()
    await busy.vanishes()
    assert (await busy.item_data(approval))["detached"]
    assert (await busy.item_data(call))["status"] == "cancelled"
    assert busy.view.turn is None
    assert busy.view.status == "waiting"


async def test_runner_gone_with_a_queue(busy: Talk) -> None:
    message_id = await busy.prompt("second")
    await busy.vanishes()
    assert busy.view.turn is not None and busy.view.turn["message_id"] == message_id
    await busy.ready(how="native_resume")
    assert busy.command()["message_id"] == message_id


async def test_a_late_word_of_a_runners_end_does_not_touch_the_next(busy: Talk) -> None:
    """A prompt may slip in between a process's end and the session's hearing of it."""
    await busy.completes()
    epoch = busy.port.launches[-1]["epoch"]
    busy.port.now = "none"
    busy.session._driver.ready = False  # pyright: ignore[reportPrivateUsage] - as after its harness.exited
    await busy.prompt("second")
    await busy.session.gone(epoch)
    assert busy.view.turn is not None
    await busy.ready(how="native_resume")
    assert busy.command()["content"][0]["text"] == "second"
    await busy.serves()


async def test_a_turn_its_agent_ended_without_taking_the_message(talk: Talk) -> None:
    message_id = await talk.prompt("first")
    await talk.ready()
    await talk.say(ev.TurnFailed(code="agent_exited", detail="segfault"))
    assert (await talk.item_data(message_id))["code"] == "delivery_unknown"
    await talk.exits("crashed")
    second = await talk.prompt("second")
    await talk.ready()
    await talk.completes()
    assert (await talk.item_data(second))["status"] == "delivered"


# A server that starts again.


async def test_after_a_restart_nothing_is_sent_twice(busy: Talk) -> None:
    steer = await busy.prompt("also", "steer")
    turn_id = busy.turn_id() or ""
    again = await busy.restarted()
    await again.synced(seen=[turn_id, steer])
    assert again.told() == []
    await again.completes()
    assert again.told() == ["turn"]  # the steer nobody took


async def test_after_a_restart_all_that_was_missed_is_sent(talk: Talk) -> None:
    await talk.prompt("first")
    await talk.ready()
    again = await talk.restarted()
    await again.synced(seen=[])
    assert again.told() == ["turn"]


async def test_events_told_again_are_stored_once(busy: Talk) -> None:
    launch, head = busy.port.launches[-1], busy.view.as_of_seq
    drafts = [Draft(ev.NoticeRaised(code="x", level="info", detail=str(n))) for n in range(3)]
    first = busy.number + 1
    assert await busy.session.ingest(launch["run"], launch["epoch"], first, drafts[:2]) == first + 1
    assert await busy.session.ingest(launch["run"], launch["epoch"], first, drafts) == first + 2
    assert busy.view.as_of_seq == head + 3


async def test_a_turn_that_no_runner_ever_had_is_begun_at_the_start(talk: Talk) -> None:
    """The server was killed between the append of the turn and the start of a runner."""
    body = ev.TurnStarted(trigger="prompt", message_id="msg_9")
    submitted = ev.MessageSubmitted(content=(ev.TextPart(text="first"),))
    await talk.log.append(SESSION, [Draft(submitted, "msg_9"), Draft(body, turn_id="turn_9")])
    again = await talk.restarted("none")
    assert len(again.port.launches) == 1
    await again.ready()
    assert again.command()["message_id"] == "msg_9"
    await again.serves()
    assert again.view.status == "idle"


async def test_a_switch_under_way_when_the_server_ended_is_carried_out(agents: Talk) -> None:
    await agents.prompt("first")
    await agents.ready()
    await agents.serves()
    await agents.do("switch", harness="claude-code")
    again = await agents.restarted("away")
    await again.synced()
    assert "close" in again.told()
    await again.exits("switched")
    assert again.port.launches[-1]["harness"] == "claude-code"
    await again.ready()
    assert (again.view.harness, again.view.status) == ("claude-code", "idle")


# Which native session goes on.


async def test_a_native_session_with_everything_is_resumed(busy: Talk) -> None:
    await busy.completes()
    await busy.exits("idle")
    await busy.prompt("second")
    launch = busy.port.launches[-1]
    assert (launch["native_ref"], launch["history"]) == ("native-1", None)


async def test_a_native_session_that_missed_a_turn_is_seeded_anew(agents: Talk) -> None:
    await agents.prompt("one")
    await agents.ready()
    await agents.serves("1")
    await agents.do("switch", harness="claude-code")
    await agents.exits("switched")
    await agents.ready(native_ref="native-2")
    await agents.prompt("two")
    await agents.serves("2")
    await agents.do("switch", harness="scripted")
    await agents.exits("switched")
    launch = agents.port.launches[-1]
    assert launch["native_ref"] is None
    assert [entry["text"] for entry in launch["history"]["entries"]] == ["one", "1", "two", "2"]


async def test_a_native_session_that_missed_nothing_is_resumed_after_two_switches(agents: Talk) -> None:
    await agents.prompt("one")
    await agents.ready()
    await agents.serves("1")
    await agents.do("switch", harness="claude-code")
    await agents.exits("switched")
    await agents.ready(native_ref="native-2")
    await agents.do("switch", harness="scripted")
    await agents.exits("switched")
    assert agents.port.launches[-1]["native_ref"] == "native-1"


# Following.


async def test_a_follower_beyond_the_head_is_refused(talk: Talk) -> None:
    with pytest.raises(BadCursor):
        async for _ in talk.session.follow(2):
            pass


async def test_a_late_follower_gets_the_text_so_far(busy: Talk) -> None:
    item_id = busy.item("msg")
    await busy.say(ev.MessageStarted(), item_id)
    await busy.session.say([{"item_id": item_id, "stream": "text", "offset": 0, "text": "hal"}])
    await busy.session.say([{"item_id": item_id, "stream": "text", "offset": 1, "text": "allo"}])
    follower = busy.session.follow(0)
    deltas = [frame.delta for batch in [await anext(follower), await anext(follower)] for frame in batch]
    assert [(d.offset, d.text) for d in deltas if d] == [(0, "hallo")]
    await follower.aclose()  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
