"""Rules over recorded logs: what they say is what they would have said live, at every place of the log."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from omnigent import events as ev
from omnigent.actions import Exec, FileRead
from omnigent.events import Body, Draft, Event
from omnigent.hindsight import Judged, Trial, judge
from omnigent.log import MemoryLog
from omnigent.policies.folding import TreeProjector
from omnigent.policies.language import parse
from omnigent.server.recorded import lineage, recorded_events
from omnigent.views import SessionProjector

pytestmark = pytest.mark.anyio

DAY = 86_400_000
START = 1_796_083_200_000
"""2026-11-30T00:00Z."""

PUSH = """\
policies:
  - name: push-after-install
    when: {exec: git push}
    after: {exec: ["npm install", "npm ci"]}
    then: ask
    reason: Dependencies changed before this push.
"""
DOLLARS = "policies:\n  - {name: three-dollars, when: {spend_usd: 3.0, model: '*'}, then: pause}\n"


class Clock:
    now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def log(clock: Clock) -> AsyncIterator[MemoryLog]:
    log = MemoryLog(SessionProjector(), clock)
    yield log
    await log.close()


def created(approvals: ev.Approvals = "ask") -> Draft:
    return Draft(
        ev.SessionCreated(
            title="t", harness="scripted", model="m", provider="p", workspace="/w", approvals=approvals,
            owner="local",
        )
    )  # fmt: skip


def requested(item: str, *commands: str) -> Draft:
    actions = tuple(
        Exec(
            command=command, argv=tuple(command.split()), program=command.split()[0],
            words=tuple(command.split()[1:]), cwd="/w", sole=len(commands) == 1, everyday=True,
        )
        for command in commands
    )  # fmt: skip
    title = " && ".join(commands)
    body = ev.ToolRequested(
        tool="bash", title=title, actions=actions, parsed="full", raw="{}", native_id=item
    )
    return Draft(body, item, turn_id="turn_1")


def done(item: str, exit_code: int = 0) -> Draft:
    outcome = "error" if exit_code else "ok"
    return Draft(ev.ToolCompleted(outcome=outcome, exit_code=exit_code), item, turn_id="turn_1")


def used(call: str, usd: float | None, **more: Any) -> Draft:
    cost = None if usd is None else int(usd * 1e9)
    fields: dict[str, Any] = {"source": "gateway", "scope": "call", "model": "m", "billing": "metered"} | more
    return Draft(ev.UsageReported(call_id=call, cost_nanousd=cost, input_tokens=10, **fields))


async def judged(log: MemoryLog, session: str, text: str | None, **trial: Any) -> list[Judged]:
    entries = None if text is None else parse(text, "test", "session")
    events = await recorded_events(log, session)
    return list(judge(events, Trial(entries=entries, **trial)))


def said(found: list[Judged]) -> list[tuple[str, str]]:
    return [(one.call.item_id, one.verdict.decision) for one in found]


async def test_a_push_after_an_install_asks_and_one_before_it_doesnt(log: MemoryLog) -> None:
    drafts = [requested("tc_1", "git push"), done("tc_1"), requested("tc_2", "npm ci"), done("tc_2"),
              requested("tc_3", "git push")]  # fmt: skip
    await log.create("ses_1", [created(), *drafts])
    found = await judged(log, "ses_1", PUSH, as_recorded=False)
    assert said(found) == [("tc_1", "allow"), ("tc_2", "allow"), ("tc_3", "ask")]
    last = found[-1]
    assert last.verdict.rule_ids == ("session.push-after-install",)
    assert last.verdict.reason == "Dependencies changed before this push."
    assert (last.event.seq, last.kind, last.title, last.recorded) == (6, "tool", "git push", "")


@pytest.mark.parametrize(
    ("between", "verdict"),
    [
        ([requested("tc_1", "npm ci"), done("tc_1", 1)], "allow"),
        ([requested("tc_1", "npm ci", "true"), done("tc_1", 1)], "ask"),
        ([requested("tc_1", "npm ci")], "ask"),
        (
            [
                requested("tc_1", "npm ci"),
                Draft(ev.PolicyDecided(verdict="deny", rule_ids=("x",), reason="no"), "tc_1"),
            ],
            "allow",
        ),
    ],
)
async def test_what_was_denied_or_failed_then_did_not_happen(
    log: MemoryLog, between: list[Draft], verdict: str
) -> None:
    await log.create("ses_1", [created(), *between, requested("tc_9", "git push")])
    assert said(await judged(log, "ses_1", PUSH, as_recorded=False))[-1] == ("tc_9", verdict)


async def test_a_fork_remembers_its_prefix_and_a_child_its_tree(log: MemoryLog) -> None:
    note = Draft(ev.NoticeRaised(code="x", level="info", detail="so that it is longer than the fork"))
    await log.create("ses_1", [created(), *[note] * 9, requested("tc_1", "npm ci"), done("tc_1")])
    parent = (await log.read("ses_1"))[-1]
    forked = ev.SessionForked(
        parent_id="ses_1", at_seq=12, parent_hash=parent.hash, owner="local", title="f", harness="scripted",
        model="m", provider="p", workspace="/w", approvals="ask",
    )  # fmt: skip
    await log.fork("ses_1", 12, "ses_2", [Draft(forked), requested("tc_2", "git push")])
    assert said(await judged(log, "ses_2", PUSH, as_recorded=False)) == [("tc_1", "allow"), ("tc_2", "ask")]
    assert lineage(await recorded_events(log, "ses_2"), "ses_2") == {"ses_1", "ses_2"}
    assert lineage(await recorded_events(log, "ses_1"), "ses_1") == {"ses_1"}

    child = created().body
    assert isinstance(child, ev.SessionCreated)
    child = child.model_copy(update={"parent_id": "ses_1"})
    await log.create("ses_3", [Draft(child), requested("tc_3", "git push")], root_id="ses_1")
    found = await judged(log, "ses_3", PUSH, as_recorded=False, sessions=frozenset({"ses_3"}))
    assert said(found) == [("tc_3", "ask")]


async def test_a_fork_knows_what_its_parents_children_did_before_the_cut(clock: Clock) -> None:
    """The events read are those that the log itself has folded."""
    log = MemoryLog(SessionProjector(), clock, trees=TreeProjector())
    child = created().body
    assert isinstance(child, ev.SessionCreated)
    child = Draft(child.model_copy(update={"parent_id": "ses_1"}))
    await log.create("ses_1", [created()])
    await log.create("ses_2", [child, requested("tc_1", "npm ci"), done("tc_1")], root_id="ses_1")
    await log.append("ses_1", [requested("tc_2", "ls"), done("tc_2")])
    for parent, at_seq, fork in (("ses_1", 3, "ses_3"), ("ses_3", 4, "ses_4")):
        forked = ev.SessionForked(
            parent_id=parent, at_seq=at_seq, parent_hash="", owner="local", title="f", harness="scripted",
            model="m", provider="p", workspace="/w", approvals="ask",
        )  # fmt: skip
        await log.fork(parent, at_seq, fork, [Draft(forked), requested(f"tc_{fork}", "git push")])
        await log.append("ses_2", [requested(f"tc_after_{fork}", "npm ci")])
    events = await recorded_events(log, "ses_4")
    projector = TreeProjector()
    state = projector.empty()
    for event in events:
        projector.fold(state, event)
    assert state.dump() == (await log.tree("ses_4")).dump()
    found = await judged(log, "ses_4", PUSH, as_recorded=False, sessions=lineage(events, "ses_4"))
    assert said(found) == [("tc_2", "allow"), ("tc_ses_4", "ask")]
    await log.delete("ses_3")
    assert [event.seq for event in await recorded_events(log, "ses_4") if event.session_id == "ses_4"] == [
        5,
        6,
    ]
    await log.close()


async def test_the_next_call_after_the_limit_would_have_been_held(log: MemoryLog) -> None:
    await log.create("ses_1", [created(), used("call_1", 1.0), used("call_2", 1.9), used("call_3", 0.2)])
    found = await judged(log, "ses_1", DOLLARS, as_recorded=False)
    assert said(found) == [("call_1", "allow"), ("call_2", "allow"), ("call_3", "pause")]
    assert [one.kind for one in found] == ["model"] * 3


async def test_a_reservation_is_set_aside_until_it_is_settled(log: MemoryLog) -> None:
    def reserve(call: str, usd: float) -> Draft:
        body = ev.UsageReserved(
            call_id=call, model="m", provider="p", estimate_nanousd=int(usd * 1e9), bounded=True
        )
        return Draft(body)

    drafts = [reserve("call_1", 2.0), reserve("call_2", 2.0), used("call_1", 0.1), used("call_2", 0.1),
              reserve("call_3", 2.0)]  # fmt: skip
    await log.create("ses_1", [created(), *drafts])
    found = await judged(log, "ses_1", DOLLARS, as_recorded=False)
    assert said(found) == [("call_1", "allow"), ("call_2", "pause"), ("call_3", "allow")]


async def test_an_unknown_price_is_not_zero(log: MemoryLog) -> None:
    await log.create("ses_1", [created(), used("call_1", None), used("call_2", 0.1)])
    assert said(await judged(log, "ses_1", DOLLARS, as_recorded=False)) == [
        ("call_1", "ask"), ("call_2", "ask"),
    ]  # fmt: skip


async def test_a_day_ends(log: MemoryLog, clock: Clock) -> None:
    daily = DOLLARS.replace("spend_usd: 3.0, model: '*'}", "spend_usd: 3.0, model: '*'}, scope: user_day")
    await log.create("ses_1", [created(), used("call_1", 2.9)])
    clock.now += DAY
    await log.append("ses_1", [used("call_2", 2.9)])
    await log.append("ses_1", [used("call_3", 2.9)])
    found = await judged(log, "ses_1", daily, as_recorded=False)
    assert said(found) == [("call_1", "allow"), ("call_2", "allow"), ("call_3", "pause")]


async def test_as_recorded_has_the_sessions_mode_its_grants_and_its_budget(log: MemoryLog) -> None:
    everything = "policies:\n  - {name: all, when: {exec: '*'}, then: ask}\n"
    await log.create("ses_1", [created("deny"), requested("tc_1", "ls")])
    assert said(await judged(log, "ses_1", everything)) == [("tc_1", "deny")]
    assert said(await judged(log, "ses_1", everything, as_recorded=False)) == [("tc_1", "ask")]

    grant = ev.GrantAdded(scope="pattern", rule_ids=("session.all",), pattern="exec: ls")
    budget = ev.BudgetChanged(cap_nanousd=1_000_000_000)
    drafts = [Draft(grant, "gr_1"), requested("tc_1", "ls"), Draft(ev.GrantRevoked(), "gr_1"),
              requested("tc_2", "ls"), Draft(budget), used("call_1", 0.9), used("call_2", 0.9)]  # fmt: skip
    await log.create("ses_2", [created(), *drafts])
    assert said(await judged(log, "ses_2", everything)) == [
        ("tc_1", "allow"), ("tc_2", "ask"), ("call_1", "allow"), ("call_2", "pause"),
    ]  # fmt: skip


async def test_without_rules_given_those_recorded_hold_from_where_they_changed(log: MemoryLog) -> None:
    changed = ev.PolicyChanged(policies=parse(PUSH.replace("then: ask", "then: deny"), "t", "session"))
    drafts = [requested("tc_1", "npm ci"), done("tc_1"), Draft(ev.PolicyChanged(policies=())),
              requested("tc_2", "git push"), Draft(changed), requested("tc_3", "git push")]  # fmt: skip
    await log.create("ses_1", [created(), *drafts])
    found = await judged(log, "ses_1", None)
    assert said(found)[1:] == [("tc_2", "allow"), ("tc_3", "deny")]
    assert [entry.name for entry in found[-1].effective] == ["push-after-install"]


async def test_the_moment_may_be_another(log: MemoryLog) -> None:
    night = "policies:\n  - {name: night, when: {exec: '*'}, if: 'at.getHours() >= 22', then: deny}\n"
    await log.create("ses_1", [created(), requested("tc_1", "ls")])
    assert said(await judged(log, "ses_1", night, as_recorded=False)) == [("tc_1", "allow")]
    late = START + 23 * 3_600_000
    assert said(await judged(log, "ses_1", night, as_recorded=False, at=late)) == [("tc_1", "deny")]


async def test_what_was_recorded_is_told_beside_and_harmless_calls_are_not_judged(log: MemoryLog) -> None:
    harmless = requested("tc_0", "ls").body
    assert isinstance(harmless, ev.ToolRequested)
    decided = ev.PolicyDecided(verdict="ask", rule_ids=("x",), reason="r")
    later = ev.PolicyDecided(verdict="deny", rule_ids=("x",), reason="r")
    await log.create(
        "ses_1",
        [
            created(), Draft(harmless.model_copy(update={"gated": False}), "tc_0"), requested("tc_1", "ls"),
            Draft(decided, "tc_1"), Draft(later, "tc_1"),
        ],
    )  # fmt: skip
    (one,) = await judged(log, "ses_1", PUSH)
    assert (one.call.item_id, one.recorded) == ("tc_1", "ask")


async def test_protected_places_are_denied_in_a_replay_too(log: MemoryLog) -> None:
    read = FileRead(path="/home/o/token", real_path="/home/o/token", in_workspace=False)
    body: Body = ev.ToolRequested(
        tool="read", title="read", actions=(read,), parsed="full", raw="", native_id="1"
    )
    await log.create("ses_1", [created("yes"), Draft(body, "tc_1")])
    (one,) = await judged(log, "ses_1", "policies: []", protected=("/home/o",))
    assert (one.verdict.decision, one.verdict.rule_ids) == ("deny", ("builtin.protect",))


async def test_judging_leaves_the_events_as_they_were(log: MemoryLog) -> None:
    await log.create("ses_1", [created(), requested("tc_1", "npm ci"), done("tc_1")])
    events = await recorded_events(log, "ses_1")
    before = [event.json_text() for event in events]
    list(judge(events, Trial(entries=parse(PUSH, "t", "session"))))
    assert [event.json_text() for event in events] == before
    assert ev.verify(events) is None
    assert all(isinstance(event, Event) for event in events)
