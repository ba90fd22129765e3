"""What holds for every set of rules and every tree: order, tightening, and replay."""

import json
from collections.abc import Callable
from typing import Any, Literal, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from policies.trees import START, Tree, made

from omnigent.actions import Action, FileRead, FileWrite, Mcp, Model, Net, Spawn, Unknown
from omnigent.events import (
    JSON,
    ApprovalDetached,
    PolicyEntry,
    PolicyScope,
    ToolStarted,
    TurnFailed,
    UsageReserved,
    canonical,
)
from omnigent.metering import Spend
from omnigent.policies.contract import STRICTNESS, Call, Setting, Verdict
from omnigent.policies.engine import action_digest, decide
from omnigent.policies.language import parse

RULES = """\
policies:
  - {name: push, when: {exec: git push}, then: ask}
  - {name: push-after, when: {exec: git push}, after: {exec: [npm install, npm ci]}, then: deny}
  - {name: push-recent, when: {exec: git push}, after: {exec: npm install, within: 10s}, then: pause}
  - {name: push-turn, when: {exec: git push}, after: {exec: npm install, within: turn}, then: ask}
  - {name: env, when: {read: "**/.env*"}, unless: {read: "**/.env.example"}, then: deny}
  - {name: twice, when: {exec: npm}, count: 2, then: pause}
  - {name: fast, when: {exec: "*"}, rate: 3/5s, then: ask}
  - {name: hosts, when: {net: "*"}, unless: {net: "*.example.org"}, then: ask, who: [owner, ann]}
  - {name: spawns, when: {spawn: true}, if: state.spawned > 1, then: deny}
  - {name: broken, when: {exec: ls}, if: 'action.words[0] == "x"', then: deny}
  - {name: rewritten, when: {exec: npm install}, rewrite: npm ci}
  - {name: smaller, when: {model: big}, downgrade: small}
  - {name: small, when: {model: small}, then: ask}
  - {name: money, when: {spend_usd: 1}, then: pause}
  - {name: tokens, when: {tokens: 500}, then: ask}
  - {name: any-ask, then: ask}
  - {name: any-program, when: {exec: "*", read: "**", write: "**", net: "*"}, then: ask}
  - {name: any-pause, if: 'action.type != "message"', then: pause}
  - {name: any-deny, when: {exec: "*", mcp: "*", spawn: true}, then: deny}
  - {name: everything, if: 'action.type == "unknown"', then: deny}
  - {name: looping, use: loop}
  - {name: guarded, use: approve}
  - {name: reaching, use: reach}
  - {name: blown, use: blast_radius}
"""
SCOPES: tuple[PolicyScope, ...] = ("builtin", "project", "session")
ENTRIES = tuple(entry for scope in SCOPES for entry in parse(RULES, "rules", scope))
ACTIONS: tuple[tuple[Action, ...], ...] = (
    made("git push"),
    made("git push --force origin main"),
    made("npm install"),
    made("npm ci"),
    made("npm test"),
    made("ls"),
    made("ls x"),
    tuple(each.model_copy(update={"sole": False}) for each in made("npm install", "git push")),
    (FileRead(path=".env", real_path="/w/.env", in_workspace=True),),
    (FileWrite(path="a", real_path="/w/a", in_workspace=True),),
    (Net(url="https://a.example.org", host="a.example.org"),),
    (Net(url="https://elsewhere.net", host="elsewhere.net"),),
    (Mcp(server="s", tool="t"),),
    (Spawn(description="d"),),
    (Unknown(tool="new"),),
    (Model(wire="w", provider="p", model="big", estimate_nanousd=6 * 10**8, bounded=True),),
    (Model(wire="w", provider="p", model="m", input_tokens=400),),
    (),
)
some_entries = st.lists(
    st.sampled_from(ENTRIES), max_size=10, unique_by=lambda entry: (entry.name, entry.scope)
)
shuffled = some_entries.flatmap(lambda entries: st.tuples(st.just(entries), st.permutations(entries)))
spending = st.builds(
    Spend,
    nanousd=st.sampled_from([0, 5 * 10**8, 2 * 10**9]),
    tokens=st.sampled_from([0, 200, 600]),
    unknown=st.sampled_from([0, 1]),
)


class Step:
    """One thing that may happen in a tree, with what it needs of chance."""

    def __init__(self, name: str, who: int, what: int, how: str) -> None:
        self.name, self.who, self.what, self.how = name, who, what, how

    def __repr__(self) -> str:
        return f"{self.name}({self.who}, {self.what}, {self.how})"


steps = st.builds(
    Step,
    st.sampled_from(
        ["request", "request", "request", "background", "decide", "ask", "answer", "edit", "complete",
         "complete", "fail", "turn", "end", "lose", "rules", "child", "fork", "model", "start", "detach"]
    ),
    st.integers(0, 9),
    st.integers(0, 99),
    st.sampled_from(["allow", "deny", "pause", "allowed", "denied", "expired", "cancelled", "ok", "unknown"]),
)  # fmt: skip


class Forest:
    """A tree and its forks, grown by random steps: at most five sessions and three forks."""

    def __init__(self, entries: list[PolicyEntry]) -> None:
        self.trees = [Tree()]
        self.sessions: list[tuple[Tree, str]] = [(self.trees[0], "ses_root")]
        self.open: list[tuple[Tree, str, str]] = []
        self.approvals: list[tuple[Tree, str, str]] = []
        self.trees[0].created()
        self.trees[0].policies(entries)

    def take(self, step: Step) -> None:
        tree, session = self.sessions[step.who % len(self.sessions)]
        cast(Callable[[Tree, str, Step], None], getattr(self, f"_{step.name}"))(tree, session, step)

    def _request(self, tree: Tree, session: str, step: Step) -> None:
        actions = [each for each in ACTIONS[step.what % len(ACTIONS)] if not isinstance(each, Model)]
        later = (step.what % 4) * 2000
        self.open.append((tree, session, tree.request(*actions, session=session, later=later)))

    def _background(self, tree: Tree, session: str, step: Step) -> None:
        actions = [each for each in ACTIONS[step.what % len(ACTIONS)] if not isinstance(each, Model)]
        self.open.append((tree, session, tree.request(*actions, session=session, background=True)))

    def _decide(self, tree: Tree, session: str, step: Step) -> None:
        if self.open and step.how in ("allow", "deny", "pause"):
            tree, session, item_id = self.open[step.what % len(self.open)]
            tree.decided(item_id, step.how, session)

    def _ask(self, tree: Tree, session: str, step: Step) -> None:
        if self.open:
            tree, session, item_id = self.open[step.what % len(self.open)]
            approval_id = f"ap_{tree.root}_{len(tree.events)}"
            tree.asked(item_id, approval_id, session)
            self.approvals.append((tree, session, approval_id))

    def _answer(self, tree: Tree, session: str, step: Step) -> None:
        if self.approvals and step.how in ("allowed", "denied", "expired", "cancelled"):
            tree, session, approval_id = self.approvals[step.what % len(self.approvals)]
            tree.answered(approval_id, step.how, session=session)

    def _edit(self, tree: Tree, session: str, step: Step) -> None:
        if self.approvals:
            tree, session, approval_id = self.approvals[step.what % len(self.approvals)]
            tree.answered(approval_id, "allowed", "npm ci && git push", session=session)

    def _detach(self, tree: Tree, session: str, step: Step) -> None:
        if self.approvals:
            tree, session, approval_id = self.approvals[step.what % len(self.approvals)]
            tree.add(ApprovalDetached(), approval_id, session=session)

    def _complete(self, tree: Tree, session: str, step: Step) -> None:
        if self.open:
            tree, session, item_id = self.open.pop(step.what % len(self.open))
            outcome = step.how if step.how in ("denied", "cancelled", "unknown") else "ok"
            tree.completed(item_id, outcome, session=session)

    def _fail(self, tree: Tree, session: str, step: Step) -> None:
        if self.open:
            tree, session, item_id = self.open.pop(step.what % len(self.open))
            tree.completed(item_id, "error", 1, session)

    def _start(self, tree: Tree, session: str, step: Step) -> None:
        if self.open:
            tree, session, item_id = self.open[step.what % len(self.open)]
            tree.add(ToolStarted(), item_id, session=session)

    def _turn(self, tree: Tree, session: str, step: Step) -> None:
        tree.turn(session)

    def _end(self, tree: Tree, session: str, step: Step) -> None:
        tree.end(session)

    def _lose(self, tree: Tree, session: str, step: Step) -> None:
        tree.add(TurnFailed(code="runner_lost", detail=""), session=session)

    def _rules(self, tree: Tree, session: str, step: Step) -> None:
        count = step.what % 6
        tree.policies([ENTRIES[(step.what * 7 + n * 11) % len(ENTRIES)] for n in range(count)], session)

    def _child(self, tree: Tree, session: str, step: Step) -> None:
        if len(self.sessions) < 5 + 3:
            name = f"{session}_{len(self.sessions)}"
            tree.created(name, session)
            self.sessions.append((tree, name))

    def _fork(self, tree: Tree, session: str, step: Step) -> None:
        if len(self.trees) < 4:
            forked = tree.fork(f"ses_fork{len(self.trees)}", session)
            self.trees.append(forked)
            self.sessions.append((forked, forked.root))

    def _model(self, tree: Tree, session: str, step: Step) -> None:
        tree.add(UsageReserved(call_id=f"c{len(tree.events)}", model="big", provider="p"), session=session)


def verdict_of(
    entries: list[PolicyEntry], forest: list[Step], actions: tuple[Action, ...], spent: Spend, **rest: Any
) -> Verdict:
    grown = Forest(entries)
    for step in forest:
        if step.name not in ("rules", "fork"):
            grown.take(step)
    tree = grown.trees[0]
    setting = Setting("ses_root", tree.at + 500, spend={"family": spent}, session={"workspace": "/w"}, **rest)
    return decide(Call("tc_new", actions), tree.state, setting)


def said(verdict: Verdict) -> JSON:
    """Without what is only told in another order."""
    return {
        "decision": verdict.decision,
        "rules": sorted(verdict.rule_ids),
        "asked": sorted((each.action, sorted(each.rule_ids)) for each in verdict.asked),
        "who": sorted(verdict.may_answer),
        "facts": sorted(verdict.facts),
        "caps": sorted(map(repr, verdict.caps)),
        "command": verdict.command,
        "model": verdict.model,
        "grants": sorted(verdict.grant_ids),
    }


@settings(max_examples=100, deadline=None)
@given(shuffled, st.lists(steps, max_size=12), st.sampled_from(ACTIONS), spending)
def test_the_order_of_policies_changes_nothing(
    orders: tuple[list[PolicyEntry], list[PolicyEntry]],
    forest: list[Step],
    actions: tuple[Action, ...],
    spent: Spend,
) -> None:
    one, two = (verdict_of(each, forest, actions, spent) for each in orders)
    assert said(one) == said(two)


approvals = st.sampled_from(["ask", "yes", "deny"])


@settings(max_examples=100, deadline=None)
@given(
    some_entries,
    st.sampled_from(ENTRIES),
    st.lists(steps, max_size=12),
    st.sampled_from(ACTIONS),
    spending,
    approvals,
)
def test_another_policy_never_loosens(
    entries: list[PolicyEntry],
    more: PolicyEntry,
    forest: list[Step],
    actions: tuple[Action, ...],
    spent: Spend,
    mode: Literal["ask", "yes", "deny"],
) -> None:
    before = verdict_of(entries, forest, actions, spent, approvals=mode)
    after = verdict_of([*entries, more], forest, actions, spent, approvals=mode)
    assert STRICTNESS[after.decision] >= STRICTNESS[before.decision]
    if before.decision == after.decision == "ask":
        assert set(before.rule_ids) <= set(after.rule_ids)
        assert {each.action for each in before.asked} <= {each.action for each in after.asked}
    if after.decision == "allow" and not after.model:
        assert set(before.caps) <= set(after.caps)


@settings(max_examples=100, deadline=None)
@given(some_entries, st.lists(steps, max_size=12), st.sampled_from(ACTIONS), spending, st.booleans())
def test_grants_silence_only_asks(
    entries: list[PolicyEntry], forest: list[Step], actions: tuple[Action, ...], spent: Spend, all_: bool
) -> None:
    before = verdict_of(entries, forest, actions, spent)
    named = before.rule_ids if all_ else before.rule_ids[:1]
    digests = [action_digest(action) for action in actions]
    grant = {"grant_id": "gr_1", "scope": "session", "rule_ids": named, "digests": digests, "until": None}
    after = verdict_of(entries, forest, actions, spent, grants=[grant])
    if before.decision in ("allow", "deny", "pause"):
        assert after.decision == before.decision
    elif len(named) < len(before.rule_ids):
        assert after.decision == "ask"
        assert set(after.rule_ids) == set(before.rule_ids) - set(named)
    elif actions and before.command is None and before.model is None:  # else what runs isn't what was granted
        assert after.decision == "allow"
        assert after.grant_ids == ("gr_1",)


@settings(max_examples=100, deadline=None)
@given(some_entries, st.lists(steps, min_size=5, max_size=40), st.data())
def test_a_replay_gives_the_live_state_at_every_prefix(
    entries: list[PolicyEntry], forest: list[Step], data: st.DataObject
) -> None:
    grown = Forest(entries)
    live: dict[tuple[str, int], str] = {}
    for step in forest:
        grown.take(step)
        live |= {(tree.root, len(tree.events)): canonical(tree.state.dump()) for tree in grown.trees}
    for tree in grown.trees:
        reload_at = data.draw(st.sets(st.integers(1, len(tree.events)), max_size=6))
        plain, dumped = tree.replayed(0), tree.replayed(0)
        for event in tree.events:
            tree.projector.fold(plain, event)
            tree.projector.fold(dumped, event)
            text = canonical(plain.dump())
            assert text == live.get((tree.root, event.tree_pos), text)
            assert text == canonical(dumped.dump())
            if event.tree_pos in reload_at:
                dumped = tree.projector.load(json.loads(text))


@settings(max_examples=30, deadline=None)
@given(st.lists(steps, min_size=5, max_size=60))
def test_a_state_stays_small(forest: list[Step]) -> None:
    grown = Forest(list(ENTRIES))
    for step in forest:
        grown.take(step)
    for tree in grown.trees:
        assert len(canonical(tree.state.dump())) < 60_000
    assert grown.trees[0].events[0].at >= START
