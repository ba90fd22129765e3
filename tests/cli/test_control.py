"""Control on the command line without a server: what is typed, what it becomes, how it is told. Pure."""

import time
from pathlib import Path
from typing import Any

import pytest

from omnigent import cli
from omnigent.cli.attach import State, resolution
from omnigent.cli.budget import _split as split_words  # pyright: ignore[reportPrivateUsage]
from omnigent.cli.policy import explained
from omnigent.cli.rules import placed, read_rules
from omnigent.cli.run import Turn, rules_of
from omnigent.cli.sessions import facts
from omnigent.cli.transcript import Transcript
from omnigent.cli.usage import cost, row_of, total
from omnigent.cli.wait import verdict
from omnigent.cli.wording import (
    amount,
    approval_more,
    budget_line,
    cost_of,
    dollars,
    duration_ms,
    paused_lines,
    standing_of_session,
)
from omnigent.client import Event, Session
from omnigent.errors import Malformed, PolicyInvalid

JSON = dict[str, Any]

APPROVAL: JSON = {
    "title": "npm ci && git push",
    "reason": "Dependencies changed before this push.",
    "rule_ids": ["project.push-after-install"],
    "actions": [
        {"type": "exec", "command": "npm ci", "doubt": ""},
        {"type": "exec", "command": "git push", "doubt": ""},
    ],
    "patterns": ["exec: git push", "exec: git *"],
    "edit": "npm ci && git push",
    "may_answer": ["owner"],
    "hold": "ask",
}


def event(kind: str, item: str = "", **body: Any) -> Event:
    return {
        "seq": 9, "at": 0, "kind": kind, "session_id": "ses_1", "item_id": item, "turn_id": None,
        "actor": {"kind": "person", "id": "phone", "via": "web"}, "cause": None, "body": body,
    }  # fmt: skip


def session(**more: Any) -> Session:
    row: Any = {
        "id": "ses_1", "title": "t", "harness": "scripted", "model": "m", "provider": "p", "workspace": "/w",
        "status": "idle", "last_seq": 3, "created_at": 0, "updated_at": 0, "sandbox": "host",
        "billing": "metered",
    }  # fmt: skip
    return row | more


# Approvals.


def test_an_approval_shows_its_parts_its_rule_and_what_could_be_allowed() -> None:
    shown = "\n".join(approval_more("ap_1", APPROVAL))
    assert "1. npm ci" in shown and "2. git push" in shown
    assert "rule: project.push-after-install  (omnigent policy explain ap_1)" in shown
    assert "pattern: exec: git push  (and 1 wider)" in shown
    assert "answered by" not in shown
    assert "may be answered by: ann" in "\n".join(approval_more("ap_1", APPROVAL | {"may_answer": ["ann"]}))
    assert "agent is gone" in "\n".join(approval_more("ap_1", APPROVAL | {"detached": True}))


def test_one_plain_command_is_not_listed_twice_but_its_doubt_is_told() -> None:
    one = APPROVAL | {"actions": APPROVAL["actions"][:1]}
    assert not any("npm ci" in line for line in approval_more("ap_1", one))
    doubtful = one | {"actions": [{"type": "exec", "command": "$X", "doubt": "X isn't known."}]}
    assert "    not sure what it does: X isn't known." in approval_more("ap_1", doubtful)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("y", {"decision": "allow", "grant": {"scope": "once"}}),
        ("a", {"decision": "allow", "grant": {"scope": "once"}}),
        ("s", {"decision": "allow", "grant": {"scope": "session"}}),
        ("p", {"decision": "allow", "grant": {"scope": "pattern", "pattern": "exec: git push"}}),
        ("p exec: git *", {"decision": "allow", "grant": {"scope": "pattern", "pattern": "exec: git *"}}),
        ("e git push --dry-run", {"decision": "allow", "edited": "git push --dry-run"}),
        ("n use staging", {"decision": "deny", "reason": "use staging"}),
        ("d", {"decision": "deny", "reason": ""}),
    ],
)
def test_keys_of_an_approval(line: str, fields: JSON) -> None:
    assert resolution(APPROVAL, line) == fields


def test_an_allow_may_end() -> None:
    before = time.time_ns() // 1_000_000
    until = resolution(APPROVAL, "s 2h")["grant"]["until"]
    assert 0 <= until - before - 7_200_000 < 60_000


@pytest.mark.parametrize(
    ("line", "approval", "told"),
    [
        ("maybe", APPROVAL, "It waits for an approval"),
        ("p", APPROVAL | {"patterns": ()}, "No pattern is offered"),
        ("e ls", APPROVAL | {"edit": ""}, "can't run another command"),
        ("e", APPROVAL, "e takes the command"),
        ("s soon", APPROVAL, "takes a time like 30m"),
    ],
)
def test_a_wrong_key_is_told_the_right_ones(line: str, approval: JSON, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        resolution(approval, line)


def test_who_answered_through_which_face_and_how_far() -> None:
    transcript = Transcript()
    grant = {"scope": "pattern", "pattern": "exec: npm *", "until": None}
    told = transcript.event(event("approval.resolved", "ap_1", outcome="allowed", grant=grant, reason=""))
    assert told == "  allowed by phone (web), and from now on exec: npm *\n"
    edited = event("approval.resolved", "ap_1", outcome="allowed", grant={"scope": "once"}, edited="ls -l")
    assert "edited to: ls -l" in transcript.event(edited)


# Pauses.


PAUSED: JSON = {
    "reason": "budget",
    "rule_ids": ["budget"],
    "detail": "$3.00 of $3.00 are spent.",
    "until": None,
}


def test_a_pause_says_what_to_do() -> None:
    shown = Transcript().event(event("turn.paused", **PAUSED))
    assert shown.startswith("‖ paused (budget): $3.00 of $3.00 are spent.  [budget]\n")
    assert "omnigent budget ses_1 USD" in shown and "omnigent resume ses_1" in shown
    quota = paused_lines({"reason": "quota", "until": 1_700_000_000_000}, "ses_1")
    assert "goes on by itself at 2023-11-1" in quota[1]


@pytest.mark.parametrize(
    ("body", "answers", "code"),
    [
        (PAUSED, True, 7),
        (PAUSED, False, 7),
        (PAUSED | {"reason": "policy"}, False, 8),
        (PAUSED | {"reason": "quota"}, True, 8),
        (PAUSED | {"reason": "quota", "until": 5}, True, None),
    ],
)
def test_a_headless_run_ends_at_a_pause_that_needs_somebody(
    body: JSON, answers: bool, code: int | None
) -> None:
    turn = Turn(answers=answers)
    assert turn.take(event("turn.paused", **body)) == code
    assert ("omnigent resume ses_1" in turn.waiting) == (code is not None)


def test_a_call_that_a_rule_holds_ends_a_run_even_where_nobody_is_asked() -> None:
    held = event("approval.requested", "ap_1", **APPROVAL | {"hold": "pause"})
    assert Turn(answers=False).take(held) == 8
    assert Turn(answers=False).take(event("approval.requested", "ap_1", **APPROVAL)) is None


@pytest.mark.parametrize(
    ("paused", "done", "needs"),
    [
        (PAUSED, 7, 0),
        (PAUSED | {"reason": "policy"}, 8, 0),
        (PAUSED | {"reason": "quota", "until": 5}, None, 0),
    ],
)
def test_wait_at_a_pause(paused: JSON, done: int | None, needs: int) -> None:
    now = session(status="paused", paused=paused)
    assert (verdict(now, "done"), verdict(now, "needs-input")) == (done, needs)


def test_attach_knows_that_a_turn_is_paused() -> None:
    state = State(head=1)
    state.take(event("turn.started"))
    state.take(event("turn.paused", **PAUSED))
    assert (state.turn, state.settled, state.paused) == (False, True, PAUSED)
    state.take(event("turn.resumed"))
    assert state.paused is None


# Money.


def test_what_nobody_knows_the_price_of_is_never_zero() -> None:
    assert cost_of({"input_tokens": 5, "cost_usd": None}) == "cost unknown"
    assert cost_of({"input_tokens": 5, "cost_usd": 0.5, "cost_partial": True}).startswith("at least $0.50")
    assert "nothing billed" in cost_of({"input_tokens": 5, "cost_usd": 0.5}, "subscription")
    assert cost_of({}) == ""
    row = {"cost_usd": None, "unknown_calls": 2}
    assert cost(row) == "unknown"
    assert cost({"cost_usd": 1.0, "unknown_calls": 2}) == "≥ $1.00"


def test_money_is_shown_in_cents_or_as_small_as_it_is() -> None:
    assert [dollars(one) for one in (0, 3, 1234.5, 0.0042, 1e-9)] == [
        "$0.00", "$3.00", "$1,234.50", "$0.0042", "less than $0.000001",
    ]  # fmt: skip


def test_rows_of_usage_and_their_total() -> None:
    row = {
        "key": "m", "calls": 2, "input_tokens": 1500, "cache_read_tokens": 10, "cache_write_tokens": 5,
        "cache_write_1h_tokens": 0, "output_tokens": 7, "reasoning_tokens": 0, "cost_usd": None,
        "unknown_calls": 2, "notional_usd": 0.25,
    }  # fmt: skip
    assert row_of(row, "model") == ("m", "2", "1,500", "15", "7", "unknown", "2", "$0.25")
    both = total([row, row | {"cost_usd": 1.5, "unknown_calls": 0, "notional_usd": None}])
    assert row_of(both, "model") == ("total", "4", "3,000", "30", "14", "≥ $1.50", "2", "$0.25")


def test_a_budget_in_words() -> None:
    budget = {"cap_usd": 3.0, "spent_usd": 1.5, "reserved_usd": 0.25, "unknown_calls": 1}
    assert budget_line(budget) == (
        "$1.50 of $3.00, $0.25 set aside for calls under way, 1 call(s) of unknown price"
    )
    assert budget_line(None) == budget_line({"cap_usd": None}) == ""


def test_show_names_what_pays_where_it_runs_and_what_is_allowed() -> None:
    grant = {
        "grant_id": "gr_1",
        "scope": "pattern",
        "pattern": "exec: npm *",
        "rule_ids": ["builtin.approve"],
    }
    shown = dict(
        facts(
            session(
                run={"credential": "env LAB_KEY", "metering": "gateway"},
                budget={"cap_usd": 3.0, "spent_usd": 1.0, "reserved_usd": 0, "unknown_calls": 0},
                policies=7,
                grants=[grant],
                paused=PAUSED,
            )
        )
    )
    assert shown["runs in"] == "sandbox: host (it runs as you) · billing: metered (env LAB_KEY)"
    assert shown["budget"] == "$1.00 of $3.00"
    assert shown["policies"] == "7  (omnigent policy ls ses_1)"
    assert shown["allowed"] == "exec: npm *  [builtin.approve]  (gr_1)"
    assert "omnigent resume" in shown["paused"]
    bare = dict(facts(session()))
    assert not {"budget", "policies", "allowed", "paused"} & set(bare)
    assert standing_of_session({}) == "sandbox: host (it runs as you) · billing: unknown"


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ([], (None, None)),
        (["5"], (None, "5")),
        (["$2.50"], (None, "$2.50")),
        (["off"], (None, "off")),
        (["@last"], ("@last", None)),
        (["ses_1", "off"], ("ses_1", "off")),
        (["ses_1", "lots"], ("ses_1", "lots")),
    ],
)
def test_a_budget_takes_a_session_and_an_amount_either_alone(
    words: list[str], split: tuple[str | None, str | None]
) -> None:
    assert split_words(words) == split


@pytest.mark.parametrize("typed", ["lots", "-1", "nan", "inf", ""])
def test_an_amount_that_is_none(typed: str) -> None:
    with pytest.raises(Malformed, match="US dollars"):
        amount(typed, "--budget")
    assert amount("$2.50", "--budget") == 2.5


@pytest.mark.parametrize("typed", ["", "2", "h", "0h", "-1h", "1.5h", "2x"])
def test_a_time_that_is_none(typed: str) -> None:
    with pytest.raises(Malformed, match="30m, 2h or 1d"):
        duration_ms(typed, "--until")


# Refusals, policies.


def test_a_refusal_and_a_denied_model_call_are_told() -> None:
    body: JSON = {"what": "POST /v1/x resolve", "reason": "Only a person may.", "pid": 7, "program": "curl"}
    shown = Transcript().event(event("access.refused", **body))
    assert shown == "! refused by curl (process 7): POST /v1/x resolve: Only a person may.\n"
    denied = event(
        "policy.decided", "call_1", verdict="deny", rule_ids=["server.models"], reason="Not that model.",
        action={"type": "model", "model": "m"},
    )  # fmt: skip
    assert Transcript().event(denied) == "  ✗ denied by server.models: Not that model.\n"
    asked = event("policy.decided", "tc_1", verdict="ask", rule_ids=["x"], reason="r")
    assert Transcript().event(asked) == ""


def test_a_change_of_policies_is_told_with_its_author() -> None:
    changed = event("policy.changed", policies=[], added=["a"], removed=[], changed=["b"], loosens=True)
    assert Transcript().event(changed) == "— policies: + a; ~ b  (by phone, looser than before)\n"
    begun = event("policy.changed", policies=[], added=[f"r{n}" for n in range(9)], removed=[], changed=[])
    assert "+ 9 rules" in Transcript().event(begun)
    assert Transcript().event({**begun, "seq": 2}) == ""


def test_a_start_says_sandbox_and_billing() -> None:
    started = event(
        "harness.started", harness="pi", version="1", model="m", sandbox="host", billing="subscription",
        credential="vendor log-in", metering="harness",
    )  # fmt: skip
    shown = Transcript().event(started)
    assert "sandbox: host" in shown and "billing: subscription (vendor log-in)" in shown
    assert "counted by the agent itself" in shown


def test_a_wrong_rule_is_told_with_its_place_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("policies:\n  - name: a\n    wen: {exec: x}\n")
    with pytest.raises(PolicyInvalid) as caught, placed(str(path)):
        raise PolicyInvalid(
            "policies:3:5: There is no key 'wen'.", hint="Did you mean when?", line=3, column=5
        )
    assert caught.value.detail == (
        f"{path}:3:5: There is no key 'wen'.\n    3 |     wen: {{exec: x}}\n      |     ^"
    )
    assert caught.value.hint == "Did you mean when?"


def test_policy_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="can't be read"):
        read_rules(str(tmp_path / "none.yaml"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Malformed, match="not UTF-8"):
        read_rules(str(tmp_path / "binary"))
    with pytest.raises(Malformed, match="takes one file"):
        rules_of(["a", "b"])


def test_an_explanation_names_rule_facts_and_what_it_looks_back_at() -> None:
    found = {
        "item_id": "tc_2", "session_id": "ses_1", "title": "git push", "verdict": "ask",
        "reason": "Look first.",
        "recorded_verdict": None, "facts": ["after: npm install at 12"], "actions": APPROVAL["actions"][1:],
        "rules": [{"name": "p", "scope": "project", "description": "run git push: ask"}],
        "after": [{"seq": 12, "session_id": "ses_0", "at": 0, "title": "npm install"}],
        "approval": {"id": "ap_1", "status": "allowed", "by": {"id": "ann"}},
    }  # fmt: skip
    shown = "\n".join(explained(found))
    assert "verdict   ask: Look first." in shown
    assert "p (project): run git push: ask" in shown
    assert "event 12 of ses_0: npm install" in shown
    assert "approval  ap_1  allowed by ann" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["policy", "ls"], ["policy", "add", "f"], ["policy", "rm", "n"], ["policy", "check", "f"],
        ["policy", "test", "f", "--events", "e"], ["policy", "explain", "tc_1"], ["policy", "replay"],
        ["audit", "verify"], ["usage"], ["budget"], ["grants"], ["revoke", "gr_1"], ["resume"],
    ],
)  # fmt: skip
def test_commands_of_control_take_json(words: list[str]) -> None:
    name, *rest = words
    assert cli.parser_of(name).parse_args([*rest, "--json"]).json is True
