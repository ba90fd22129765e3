"""The two rules of the mission, in all the shapes in which they have to hold."""

import pytest
from policies.trees import START, Tree, compound, made

from omnigent.actions import Action, Model
from omnigent.events import JSON, ApprovalDetached, PolicyEntry
from omnigent.metering import Spend
from omnigent.policies.contract import Call, Setting, Verdict
from omnigent.policies.engine import decide
from omnigent.policies.language import parse

PUSH = """\
policies:
  - name: push-after-install
    when:  {exec: "git push"}
    after: {exec: ["npm install", "npm i", "npm ci", "pnpm add"]}
    then:  ask
    reason: Dependencies changed before this push.
"""
MONEY = """\
policies:
  - name: three-dollars
    when: {spend_usd: 3.00}
    then: pause
"""
RULES = parse(PUSH, "push.yaml", "session")


def tree(rules: tuple[PolicyEntry, ...] = RULES) -> Tree:
    grown = Tree()
    grown.created()
    grown.policies(rules)
    grown.turn()
    return grown


def decision(
    grown: Tree, *actions: Action | str, session: str = "", item_id: str = "tc_new", pos: int | None = None
) -> Verdict:
    call = Call(item_id, made(*actions), pos=pos)
    setting = Setting(session or grown.root, grown.at + 1000, session={"workspace": "/w"})
    return decide(call, grown.state, setting)


def test_direct() -> None:
    grown = tree()
    assert decision(grown, "git push").decision == "allow"
    grown.ran("npm install")
    verdict = decision(grown, "git push origin main")
    assert verdict.decision == "ask"
    assert verdict.rule_ids == ("session.push-after-install",)
    assert verdict.reason == "Dependencies changed before this push."
    assert verdict.asked[0].action == 0


def test_in_one_compound_command() -> None:
    verdict = decision(tree(), *compound("npm install", "git push"))
    assert verdict.decision == "ask"
    assert verdict.asked[0].action == 1


def test_in_the_other_order() -> None:
    assert decision(tree(), *compound("git push", "npm install")).decision == "allow"


def test_an_install_known_to_have_failed() -> None:
    grown = tree()
    grown.ran("npm install", exit_code=1)
    assert decision(grown, "git push").decision == "allow"


def test_failed_inside_a_pipeline() -> None:
    grown = tree()
    grown.ran(*compound("npm install", "tee log"), exit_code=1)
    assert decision(grown, "git push").decision == "ask"


def test_failed_without_an_exit_code() -> None:
    grown = tree()
    grown.completed(grown.request("npm install"), "error")
    assert decision(grown, "git push").decision == "ask"


def test_install_in_turn_1_push_in_turn_5() -> None:
    grown = tree()
    grown.ran("npm ci")
    for _ in range(4):
        grown.end()
        grown.turn()
        grown.ran("ls")
    assert decision(grown, "git push").decision == "ask"


def test_two_parallel_calls_of_one_message() -> None:
    grown = tree()
    grown.request("npm install")
    push = grown.request("git push", item_id="tc_push")
    pos = grown.events[-1].tree_pos
    assert decision(grown, "git push", item_id=push, pos=pos).decision == "ask"
    grown.request("npm install")
    other = tree()
    push = other.request("git push", item_id="tc_push")
    pos = other.events[-1].tree_pos
    other.ran("npm install")
    assert decision(other, "git push", item_id=push, pos=pos).decision == "allow"


@pytest.mark.parametrize("exit_code", [None, 1])
def test_a_background_install(exit_code: int | None) -> None:
    grown = tree()
    call = grown.request("npm install", background=True)
    assert decision(grown, "git push").decision == "ask"
    grown.completed(call, "error", exit_code)
    assert decision(grown, "git push").decision == "ask"


def test_an_install_still_running() -> None:
    grown = tree()
    grown.request("npm install")
    assert decision(grown, "git push").decision == "ask"


def test_a_denied_install_never_happened() -> None:
    grown = tree()
    grown.decided(grown.request("npm install"), "deny")
    assert decision(grown, "git push").decision == "allow"


@pytest.mark.parametrize(
    ("outcome", "edited", "expected"),
    [
        ("allowed", None, "ask"),
        ("denied", None, "allow"),
        ("expired", None, "allow"),
        ("cancelled", None, "allow"),
        ("allowed", "npm run build", "allow"),
    ],
)
def test_a_held_install_counts_once_it_is_allowed(outcome: str, edited: str | None, expected: str) -> None:
    grown = tree()
    call = grown.request("npm install")
    grown.asked(call, "ap_1")
    assert decision(grown, "git push").decision == "allow"
    grown.answered("ap_1", outcome, edited)
    assert decision(grown, "git push").decision == expected


def test_an_edited_command_is_the_one_that_counts() -> None:
    grown = tree()
    call = grown.request("npm run build")
    grown.asked(call, "ap_1")
    grown.answered("ap_1", "allowed", "npm install")
    assert decision(grown, "git push").decision == "ask"


def test_a_detached_approval_lets_nothing_run() -> None:
    grown = tree()
    call = grown.request("npm install")
    grown.asked(call, "ap_1")
    grown.add(ApprovalDetached(), "ap_1")
    grown.answered("ap_1", "allowed")
    assert decision(grown, "git push").decision == "allow"


def test_an_install_by_a_sub_agent() -> None:
    grown = tree()
    grown.created("ses_child", "ses_root")
    grown.ran("npm install", session="ses_child")
    assert decision(grown, "git push").decision == "ask"
    assert decision(grown, "git push", session="ses_child").decision == "ask"


def test_across_a_fork() -> None:
    grown = tree()
    for _ in range(20):
        grown.ran("ls")
    grown.ran("npm install")
    forked = grown.fork("ses_fork")
    push = forked.request("git push", item_id="tc_push")
    pos = forked.events[-1].tree_pos
    assert decision(forked, "git push", item_id=push, pos=pos).decision == "ask"
    before = tree().fork("ses_other")
    assert decision(before, "git push").decision == "allow"


def test_across_a_restart() -> None:
    grown = tree()
    grown.ran("npm install")
    grown.state = grown.replayed(reload_at=range(100))
    assert decision(grown, "git push").decision == "ask"


def test_a_rule_that_comes_later_knows_what_was_installed() -> None:
    grown = tree(())
    grown.ran("npm install left-pad")
    grown.ran("npm ci", exit_code=1)
    grown.policies(RULES)
    assert decision(grown, "git push").decision == "ask"
    other = tree(())
    other.ran("npm ci", exit_code=1)
    other.policies(RULES)
    assert decision(other, "git push").decision == "allow"


# Money.


def model(estimate: int | None = 100_000_000, name: str = "m") -> Model:
    return Model(wire="anthropic", provider="p", model=name, estimate_nanousd=estimate, bounded=True)


def spending(spent: Spend, action: Action, *, grants: tuple[JSON, ...] = ()) -> Verdict:
    grown = tree(parse(MONEY, "money.yaml", "session"))
    setting = Setting("ses_root", START, spend={"family": spent}, grants=grants)
    return decide(Call("call_1", (action,)), grown.state, setting)


def test_pause_at_three_dollars() -> None:
    verdict = spending(Spend(2_900_000_000), model())
    assert verdict.decision == "allow"
    assert [(cap.scope, cap.nanousd, cap.rule_id) for cap in verdict.caps] == [
        ("family", 3_000_000_000, "session.three-dollars")
    ]
    verdict = spending(Spend(2_900_000_001), model())
    assert verdict.decision == "pause"
    assert verdict.rule_ids == ("session.three-dollars",)


def test_an_unknown_price_asks_and_a_grant_answers() -> None:
    verdict = spending(Spend(), model(None))
    assert verdict.decision == "ask"
    grant: JSON = {
        "grant_id": "gr_1",
        "scope": "pattern",
        "rule_ids": verdict.rule_ids,
        "pattern": "model: m",
    }
    assert spending(Spend(), model(None), grants=(grant,)).grant_ids == ("gr_1",)
    assert spending(Spend(3_000_000_000), model(None), grants=(grant,)).decision == "pause"
    assert spending(Spend(unknown=1), model()).decision == "ask"


def test_the_rules_have_at_most_six_lines() -> None:
    for text in (PUSH, MONEY):
        assert len(text.splitlines()) - 1 <= 6
