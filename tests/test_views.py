"""The one fold: what it gives live it gives again, and nothing it opens stays open for ever."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigent import events as ev
from omnigent.events import JSON, Body, Draft, Event
from omnigent.log.seal import Numbers, seal
from omnigent.views import SessionProjector, SessionView

PROJECTOR = SessionProjector()
CREATED = ev.SessionCreated(
    title="",
    harness="scripted",
    model="m",
    provider="lab",
    workspace="/w",
    approvals="ask",
    owner="local",
)
EXEC: JSON = {"type": "exec", "command": "ls"}


def sealed(drafts: Sequence[Draft]) -> list[Event]:
    counter = iter(range(10**6))
    return seal(
        [Draft(CREATED), *drafts],
        Numbers("ses_1", "ses_1"),
        now=1000,
        new_id=lambda prefix: f"{prefix}_{next(counter)}",
        producer="session",
        first=1,
        epoch=None,
    )


def fold(events: Sequence[Event]) -> tuple[SessionView, dict[str, JSON]]:
    view, items = PROJECTOR.empty(), dict[str, JSON]()
    for event in events:
        items |= PROJECTOR.fold(view, event, items.get)
    return view, items


def folded(*drafts: Draft) -> tuple[SessionView, dict[str, JSON]]:
    return fold(sealed(drafts))


def submitted(item_id: str, when: Any = "auto") -> Draft:
    return Draft(ev.MessageSubmitted(content=(ev.TextPart(text=item_id),), when=when), item_id)


def turn(item_id: str | None = "msg_1", turn_id: str = "turn_1") -> Draft:
    return Draft(ev.TurnStarted(trigger="prompt", message_id=item_id), turn_id=turn_id)


def delivered(item_id: str, as_: Any = "turn", run: str | None = "run_1") -> Draft:
    return Draft(ev.MessageDelivered(as_=as_), item_id, run=run)  # pyright: ignore[reportCallIssue]


def started(harness: str = "scripted", run: str = "run_1", ref: str | None = "native-1") -> Draft:
    body = ev.HarnessStarted(
        harness=harness, version="1", native_ref=ref, covers_seq=0, model=None, provider=None
    )
    return Draft(body, run=run)


def requested(item_id: str = "tc_1") -> Draft:
    body = ev.ToolRequested.model_validate(
        {
            "tool": "bash",
            "title": "ls",
            "actions": [EXEC],
            "parsed": "full",
            "raw": "{}",
            "native_id": "1",
        }
    )
    return Draft(body, item_id)


def asked(item_id: str = "ap_1", call_id: str = "tc_1") -> Draft:
    body = ev.ApprovalRequested.model_validate(
        {
            "call_id": call_id,
            "actions": [EXEC],
            "action_sha256": "00",
            "title": "ls",
            "reason": "",
            "expires_at": 2000,
        }
    )
    return Draft(body, item_id)


BEGUN = (submitted("msg_1"), turn(), started(), delivered("msg_1"))
COMPLETED = Draft(ev.TurnCompleted(), turn_id="turn_1")
FAILED = Draft(ev.TurnFailed(code="agent_exited", detail="x"), turn_id="turn_1")
INTERRUPTED = Draft(ev.TurnInterrupted(), turn_id="turn_1")
CLOSED = Draft(ev.SessionClosed())


@pytest.mark.parametrize(
    ("drafts", "status"),
    [
        ((), "idle"),
        ((submitted("msg_1"),), "starting"),
        ((submitted("msg_1"), turn()), "starting"),
        (BEGUN, "running"),
        ((*BEGUN, requested(), asked()), "waiting"),
        ((*BEGUN, Draft(ev.QuestionAsked(questions=()), "q_1")), "waiting"),
        (
            (*BEGUN, requested(), asked(), Draft(ev.ApprovalResolved(outcome="allowed"), "ap_1")),
            "running",
        ),
        ((*BEGUN, COMPLETED), "idle"),
        ((*BEGUN, FAILED), "idle"),
        ((*BEGUN, submitted("msg_2"), COMPLETED), "starting"),
        ((*BEGUN, requested(), asked(), COMPLETED), "waiting"),
        ((*BEGUN, CLOSED), "running"),
        ((*BEGUN, COMPLETED, CLOSED), "closed"),
        ((CLOSED, Draft(ev.SessionReopened())), "idle"),
    ],
)
def test_the_status_follows_from_what_is_open(drafts: tuple[Draft, ...], status: str) -> None:
    assert folded(*drafts)[0].status == status


def test_the_queue_is_in_order_now_first_and_steers_apart() -> None:
    switch = Draft(ev.CommandQueued(arguments={"type": "switch", "harness": "x"}), "cmd_1")
    hurried = Draft(ev.CommandQueued(arguments={"type": "switch", "harness": "y", "now": True}), "cmd_2")
    drafts = (
        *BEGUN,
        submitted("a"),
        switch,
        submitted("b", "queue"),
        submitted("s", "steer"),
        submitted("n", "now"),
        hurried,
    )
    view, _ = folded(*drafts)
    assert [entry["id"] for entry in view.queue] == ["cmd_2", "n", "a", "cmd_1", "b"]
    assert view.steers == ["s"]


@pytest.mark.parametrize(
    ("end", "text", "call", "message"),
    [
        (COMPLETED, "lost", "unknown", "delivered"),
        (FAILED, "lost", "unknown", "failed"),
        (INTERRUPTED, "interrupted", "cancelled", "failed"),
    ],
)
def test_the_end_of_a_turn_closes_all_it_left_open(end: Draft, text: str, call: str, message: str) -> None:
    drafts = (
        submitted("msg_1"),
        turn(),
        started(),
        Draft(ev.MessageStarted(), "msg_2"),
        Draft(ev.ItemUpdated(stream="text", offset=0, text="hal"), "msg_2"),
        Draft(ev.ItemUpdated(stream="reasoning", offset=0, text="hm"), "rsn_1"),
        requested(),
        end,
    )
    view, items = folded(*drafts)
    assert (view.texts, view.calls, view.turn) == ({}, {}, None)
    assert [items[name]["status"] for name in ("msg_1", "msg_2", "rsn_1", "tc_1")] == [
        message,
        text,
        text,
        call,
    ]
    assert items["msg_2"]["content"] == [{"type": "text", "text": "hal"}]


def test_a_whole_message_is_not_reopened_by_a_late_piece() -> None:
    whole = Draft(ev.MessageCompleted(content=(ev.TextPart(text="hallo"),)), "msg_2")
    piece = Draft(ev.ItemUpdated(stream="text", offset=0, text="hal"), "msg_2")
    _, items = folded(*BEGUN, Draft(ev.MessageStarted(), "msg_2"), whole, piece, INTERRUPTED)
    assert items["msg_2"]["status"] == "complete"
    assert items["msg_2"]["content"] == [{"type": "text", "text": "hallo"}]


def test_late_output_replaces_the_guess_about_its_call() -> None:
    late = Draft(ev.ToolCompleted(outcome="ok", output=ev.Output(text="out")), "tc_1")
    _, items = folded(*BEGUN, requested(), INTERRUPTED, late)
    assert (items["tc_1"]["status"], items["tc_1"]["output"]["text"]) == ("ok", "out")


def test_the_late_end_of_an_older_turn_does_not_end_the_new_one() -> None:
    view, _ = folded(*BEGUN, INTERRUPTED, turn(None, "turn_2"), INTERRUPTED)
    assert view.turn is not None and view.turn["id"] == "turn_2"


def test_pieces_are_placed_once_whatever_overlaps() -> None:
    pieces = [(0, "hal"), (1, "allo"), (5, "!"), (0, "hallo!")]
    drafts = [Draft(ev.ItemUpdated(stream="output", offset=o, text=t), "tc_1") for o, t in pieces]
    assert folded(*BEGUN, requested(), *drafts)[1]["tc_1"]["output"]["text"] == "hallo!"


def test_a_grant_is_remembered_until_it_is_revoked_and_one_for_once_until_it_is_used() -> None:
    lasting = ev.GrantAdded(scope="session", rule_ids=("builtin.approve",), digests=("00",))
    once = ev.GrantAdded(scope="once", rule_ids=("builtin.approve",), call_sha256="00", uses=1)
    used = ev.PolicyDecided(verdict="allow", rule_ids=(), reason="", grant_ids=("gr_1", "gr_2"))
    view, _ = folded(*BEGUN, Draft(lasting, "gr_1"), Draft(once, "gr_2"), requested(), Draft(used, "tc_1"))
    assert [grant["grant_id"] for grant in view.grants] == ["gr_1"]
    assert view.calls["tc_1"]["decided"]
    view, _ = folded(*BEGUN, Draft(lasting, "gr_1"), Draft(ev.GrantRevoked(), "gr_1"))
    assert view.grants == []


def test_another_harnesses_content_makes_a_native_session_stale() -> None:
    here = (*BEGUN, COMPLETED, started("codex", "run_2", "native-2"))
    assert folded(*here)[0].native["scripted"]["stale"] is False
    view, _ = folded(*here, submitted("msg_2"), turn("msg_2", "turn_2"), delivered("msg_2", run="run_2"))
    assert {name: native["stale"] for name, native in view.native.items()} == {
        "scripted": True,
        "codex": False,
    }


def test_a_message_found_in_the_transcript_leaves_its_native_session_good() -> None:
    exited = Draft(ev.HarnessExited(reason="runner_lost"), run=None)
    view, _ = folded(submitted("msg_1"), turn(), started(), exited, delivered("msg_1", run=None))
    assert view.native["scripted"]["stale"] is False


def test_a_turn_broken_off_makes_its_native_session_stale() -> None:
    assert folded(*BEGUN, FAILED)[0].native["scripted"]["stale"] is True
    for end in (COMPLETED, INTERRUPTED):
        assert folded(*BEGUN, end)[0].native["scripted"]["stale"] is False


def test_a_fork_inherits_the_talk_and_nothing_open() -> None:
    forked = ev.SessionForked(
        parent_id="ses_0",
        at_seq=9,
        parent_hash="0",
        owner="local",
        title="f",
        harness="codex",
        model=None,
        provider="lab",
        workspace="/f",
        approvals="ask",
    )
    open_things = (
        submitted("msg_1"),
        turn(),
        started(),
        requested(),
        asked(),
        Draft(ev.QuestionAsked(questions=()), "q_1"),
        submitted("msg_2"),
        submitted("msg_3", "steer"),
        Draft(forked),
    )
    view, items = folded(*open_things)
    assert (view.turn, view.run, view.queue, view.steers, view.native, view.grants) == (
        None,
        None,
        [],
        [],
        {},
        [],
    )
    assert (view.status, view.last_turn) == ("idle", {"id": "turn_1", "outcome": "interrupted"})
    statuses = {name: items[name]["status"] for name in ("msg_1", "msg_2", "msg_3", "tc_1", "ap_1", "q_1")}
    assert statuses == {
        "msg_1": "failed",
        "msg_2": "cancelled",
        "msg_3": "cancelled",
        "tc_1": "cancelled",
        "ap_1": "cancelled",
        "q_1": "cancelled",
    }


def test_unknown_cost_makes_the_sum_a_lower_bound_never_zero() -> None:
    used = [
        ev.UsageReported(call_id="c", source="harness", scope="call", input_tokens=3, cost_nanousd=cost)
        for cost in (None, 7)
    ]
    view, _ = folded(*(Draft(body) for body in used))
    assert (view.usage["input_tokens"], view.cost_nanousd, view.cost_partial) == (6, 7, True)
    assert folded(Draft(used[0]))[0].cost_nanousd is None


def test_calls_priced_with_their_turn_leave_no_gap_in_the_sum() -> None:
    call = ev.UsageReported(call_id="c", source="harness", scope="call", input_tokens=3, basis="harness")
    turn = ev.UsageReported(call_id="t", source="harness", scope="turn", cost_nanousd=7, basis="harness")
    view, _ = folded(Draft(call), Draft(turn))
    assert (view.usage["input_tokens"], view.cost_nanousd, view.cost_partial) == (3, 7, False)


def test_the_safe_place_to_fork_is_before_the_open_turn() -> None:
    assert folded(*BEGUN, requested())[0].safe_seq == 2
    assert folded(*BEGUN, COMPLETED)[0].safe_seq == 6


# Whatever comes.

ITEMS = st.sampled_from(["msg_1", "msg_2", "tc_1", "tc_2", "ap_1", "q_1", "cmd_1", "rsn_1"])
TURNS = st.sampled_from([None, "turn_1", "turn_2"])
RUNS = st.sampled_from([None, "run_1", "run_2"])
ENDS = (ev.TurnCompleted, ev.TurnFailed, ev.TurnInterrupted)


def bodies() -> st.SearchStrategy[Body]:
    """Any kind with small values; item ids collide on purpose."""
    made = [
        st.builds(ev.MessageSubmitted, content=st.just((ev.TextPart(text="x"),)), when=st.sampled_from(
            ["auto", "queue", "steer", "now"]
        )),
        st.builds(ev.TurnStarted, trigger=st.just("prompt"), message_id=st.none() | ITEMS),
        st.builds(ev.ItemUpdated, stream=st.sampled_from(["text", "reasoning", "output"]),
                  offset=st.integers(0, 3), text=st.text(max_size=3)),
        st.builds(ev.MessageCompleted, content=st.just((ev.TextPart(text="x"),))),
        st.builds(ev.ReasoningCompleted, text=st.just("x")),
        st.builds(ev.ToolCompleted, outcome=st.sampled_from(["ok", "error", "denied"])),
        st.builds(ev.ApprovalResolved, outcome=st.sampled_from(["allowed", "denied", "cancelled"])),
        st.builds(ev.QuestionAnswered, outcome=st.sampled_from(["answered", "cancelled"])),
        st.builds(ev.PolicyDecided, verdict=st.sampled_from(["ask", "deny"]), rule_ids=st.just(()),
                  reason=st.just("")),
        st.builds(ev.HarnessExited, reason=st.just("crashed")),
        st.builds(ev.TurnFailed, code=st.just("x"), detail=st.just("")),
        st.sampled_from([
            requested().body, asked().body, started().body, started("codex").body, delivered("x").body,
            delivered("x", "steer").body, ev.MessageQueued(), ev.MessageCancelled(), ev.MessageStarted(),
            ev.MessageFailed(code="not_delivered"), ev.MessageEdited(content=()), ev.ToolStarted(),
            ev.QuestionAsked(questions=()), ev.TurnCompleted(), ev.TurnInterrupted(), ev.SessionClosed(),
            ev.SessionReopened(), ev.CommandQueued(arguments={"type": "switch"}),
            ev.CommandEnded(outcome="done"), ev.PlanUpdated(entries=()), ev.ContextCompacted(),
        ]),
    ]  # fmt: skip
    return st.one_of(made)


def drafts() -> st.SearchStrategy[list[Draft]]:
    one = st.builds(Draft, bodies(), ITEMS, turn_id=TURNS, run=RUNS)
    return st.lists(one, max_size=40)


@given(drafts())
@settings(max_examples=150, deadline=None)
def test_any_log_folds_and_nothing_sticks(given_drafts: list[Draft]) -> None:
    events = sealed(given_drafts)
    view, items = PROJECTOR.empty(), dict[str, JSON]()
    for event in events:
        items |= PROJECTOR.fold(view, event, items.get)
        if isinstance(event.body, ENDS) and view.turn is None:
            assert (view.calls, view.texts) == ({}, {})
            statuses = {item["status"] for item in items.values() if item["type"] == "tool_call"}
            assert not statuses & {"requested", "held", "running"}
    for item in items.values():
        assert json.loads(json.dumps(item)) == item
        assert item["type"] != "tool_call" or {"tool", "raw", "status", "actions"} <= set(item)
        assert item["type"] != "message" or {"role", "content", "status"} <= set(item)


@given(drafts())
@settings(max_examples=60, deadline=None)
def test_a_stored_fold_goes_on_like_one_in_memory(given_drafts: list[Draft]) -> None:
    """Reloaded after every event, or without any items at hand (as a session folds): the same view."""
    events = sealed(given_drafts)
    view, _ = fold(events)
    reloaded, bare = PROJECTOR.empty(), PROJECTOR.empty()
    items: dict[str, JSON] = {}
    for event in events:
        reloaded = PROJECTOR.load(json.loads(json.dumps(reloaded.dump())))
        items |= PROJECTOR.fold(reloaded, event, items.get)
        PROJECTOR.fold(bare, event, lambda _: None)
    assert reloaded.dump() == view.dump() == bare.dump()
