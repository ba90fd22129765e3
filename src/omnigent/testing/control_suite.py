"""What a `Log` must remember of trees, families and money: the part of `LogSuite` that control stands on."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from omnigent import events as ev
from omnigent.errors import NotFound, OverBudget
from omnigent.events import JSON, Draft, Event
from omnigent.log.contract import Appended, Log, UsageBy
from omnigent.metering import Cap, CapScope, Spend
from omnigent.testing.log_rig import (
    Hands,
    SuiteTrees,
    busy_session,
    created,
    forked,
    raw_event,
    read_all,
    said,
    too_large_a_number,
)

DOLLAR = 1_000_000_000
DAY = 86_400_000


def reserved(call_id: str, estimate: int | None = DOLLAR, tokens: int = 100, most: int = 50) -> Draft:
    body = ev.UsageReserved(
        call_id=call_id,
        model="model-1",
        provider="lab",
        input_tokens=tokens,
        max_output_tokens=most,
        estimate_nanousd=estimate,
        bounded=True,
    )
    return Draft(body)


def reported(call_id: str, cost: int | None = DOLLAR, **more: Any) -> Draft:
    told: JSON = {"source": "gateway", "scope": "call", "model": "model-1", "provider": "lab"}
    told |= {"input_tokens": 80, "output_tokens": 20, "billing": "metered"}
    told |= {"basis": "unknown" if cost is None else "table"} | more
    return Draft(ev.UsageReported(call_id=call_id, cost_nanousd=cost, **told))


def started(**more: Any) -> Draft:
    told: JSON = {"harness": "claude", "version": "1", "native_ref": None, "covers_seq": 0}
    told |= {"model": "model-1", "provider": "lab"} | more
    return Draft(ev.HarnessStarted(**told))


async def read_whole_tree(log: Log, root_id: str) -> list[Event]:
    found: list[Event] = []
    while page := await log.read_tree(root_id, after=found[-1].tree_pos if found else 0, limit=1000):
        found += page
    return found


def remembered(events: Sequence[Event]) -> JSON:
    """What folding a tree from nothing gives."""
    trees = SuiteTrees()
    state = trees.empty()
    for event in events:
        trees.fold(state, event)
    return state.dump()


async def check_tree(log: Log, session_id: str, events: Sequence[Event]) -> None:
    assert (await log.tree(session_id)).dump() == remembered(events)


async def seen(log: Log, session_id: str, at: int) -> tuple[Spend, ...]:
    spend = await log.spend(session_id, at)
    return spend["session"], spend["family"], spend["user_day"], spend["project_month"]


class ControlSuite:
    """Trees, families and the ledger."""

    # Trees.

    async def test_a_tree_is_folded_in_its_own_order(self, log: Log) -> None:
        await log.create("ses_root", [created()])
        await log.create("ses_child", [created("child")], root_id="ses_root")
        for number in range(70):
            await log.append("ses_root", [said(f"{number}")])
            await log.append("ses_child", [said(f"{number}"), said("again")])
            if number % 23 == 0:
                await check_tree(log, "ses_child", await read_whole_tree(log, "ses_root"))
        events = await read_whole_tree(log, "ses_root")
        assert len(events) == 212
        await check_tree(log, "ses_root", events)
        await check_tree(log, "ses_child", events)
        with pytest.raises(NotFound):
            await log.tree("ses_other")

    async def test_the_tree_given_is_a_copy(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        (await log.tree("ses_a")).kinds["message.completed"] = 99
        await log.append("ses_a", [said("x")])
        await check_tree(log, "ses_a", await read_all(log, "ses_a"))

    @pytest.mark.parametrize("at", [1, 2, 63, 64, 65, 100, 128, 200])
    async def test_a_fork_remembers_its_parents_tree_as_it_was(self, log: Log, at: int) -> None:
        await log.create("ses_a", [created()])
        await log.create("ses_child", [created()], root_id="ses_a")
        for number in range(66):
            await log.append("ses_a", [said(f"{number}"), said("x"), said("y")])
            await log.append("ses_child", [said(f"of the child {number}")])
        await log.append("ses_a", [said("z")])
        parent = await read_all(log, "ses_a")
        tree = await read_whole_tree(log, "ses_a")
        before = [event for event in tree if event.tree_pos <= parent[at - 1].tree_pos]
        await log.fork("ses_a", at, "ses_f", [forked("ses_a", parent[at - 1])])
        await log.append("ses_a", [said("the parent goes on")])
        await log.append("ses_f", [said("own")])
        await check_tree(log, "ses_f", before + await read_whole_tree(log, "ses_f"))
        await log.create("ses_g", [created()], root_id="ses_f")
        await check_tree(log, "ses_g", before + await read_whole_tree(log, "ses_f"))
        await check_tree(log, "ses_child", await read_whole_tree(log, "ses_a"))
        await log.rebuild("ses_f")
        await check_tree(log, "ses_f", before + await read_whole_tree(log, "ses_f"))

    async def test_forks_of_forks_remember(self, log: Log) -> None:
        dice = random.Random(7)
        await busy_session(log, "ses_0", 150)
        before: dict[str, list[Event]] = {"ses_0": []}
        for number in range(1, 9):
            parent = f"ses_{dice.randrange(number)}"
            events = await read_all(log, parent)
            at = dice.randrange(1, len(events) + 1)
            cut = events[at - 1]
            await log.fork(parent, at, f"ses_{number}", [] if number == 4 else [forked(parent, cut)])
            # The tree the event is of may be that of an ancestor: the fork was cut in its parent's prefix.
            tree = await read_whole_tree(log, cut.root_id)
            past = [event for event in tree if event.tree_pos <= cut.tree_pos]
            before[f"ses_{number}"] = before[cut.root_id] + past
            await log.append(f"ses_{number}", [said(f"{number}")] * dice.randrange(1, 90))
            await log.append(parent, [said("goes on")])
        for session_id, past in before.items():
            await check_tree(log, session_id, past + await read_whole_tree(log, session_id))
        for session_id in ("ses_0", "ses_4", "ses_8"):
            await log.rebuild(session_id)
        for session_id, past in before.items():
            await check_tree(log, session_id, past + await read_whole_tree(log, session_id))

    async def test_a_refused_append_leaves_the_tree(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        results = await asyncio.gather(
            log.append("ses_a", [said("one")]),
            log.append("ses_a", [said("x"), too_large_a_number()]),
            log.append("ses_a", [said("x")], expect_head=99),
            log.append("ses_a", [said("two")]),
            return_exceptions=True,
        )
        assert [type(result) is Appended for result in results] == [True, False, False, True]
        await check_tree(log, "ses_a", await read_all(log, "ses_a"))

    async def test_a_deleted_session_is_remembered_by_its_tree(self, log: Log) -> None:
        await log.create("ses_root", [created()])
        await log.create("ses_child", [created()], root_id="ses_root")
        await log.create("ses_other", [created()], root_id="ses_root")
        await log.append("ses_child", [said("x")])
        await log.delete("ses_child")
        await log.append("ses_root", [said("y")])
        await log.delete("ses_root")
        await log.append("ses_other", [said("z")])
        with pytest.raises(NotFound):
            await log.tree("ses_root")
        await check_tree(log, "ses_other", await read_whole_tree(log, "ses_root"))
        await log.rebuild("ses_other")
        await check_tree(log, "ses_other", await read_whole_tree(log, "ses_root"))

    async def test_an_imported_tree_is_what_is_here_of_it(self, log: Log) -> None:
        far = _foreign("ses_far", 0, ev.GENESIS, 90)
        own = _foreign("ses_fork", 90, far[-1].hash, 20)
        await log.import_events([*far, *own])
        await check_tree(log, "ses_fork", [*far, *own])
        await log.fork("ses_fork", 100, "ses_near", [forked("ses_fork", own[9])])
        await check_tree(log, "ses_near", [*far, *own[:10], *await read_whole_tree(log, "ses_near")])
        await log.fork("ses_fork", 50, "ses_early", [forked("ses_fork", far[49])])
        await log.fork("ses_early", 40, "ses_earlier", [forked("ses_early", far[39])])
        for session_id, past in (("ses_early", far[:50]), ("ses_earlier", far[:40])):
            await check_tree(log, session_id, [*past, *await read_whole_tree(log, session_id)])
            await log.rebuild(session_id)
            await check_tree(log, session_id, [*past, *await read_whole_tree(log, session_id)])
        await log.rebuild("ses_fork")
        await check_tree(log, "ses_fork", [*far, *own])

    async def test_imported_siblings_share_their_tree(self, log: Log) -> None:
        one = _foreign("ses_one", 0, ev.GENESIS, 30, root="ses_top", every=2)
        two = _foreign("ses_two", 0, ev.GENESIS, 30, root="ses_top", every=2, begin=0)
        await log.import_events(two)
        await check_tree(log, "ses_two", two)
        await log.import_events(one)
        both = sorted([*one, *two], key=lambda event: event.tree_pos)
        await check_tree(log, "ses_one", both)
        await check_tree(log, "ses_two", both)
        await log.fork("ses_one", 10, "ses_f", [])
        await check_tree(log, "ses_f", [event for event in both if event.tree_pos <= one[9].tree_pos])

    # Families.

    async def test_a_family_is_a_tree_and_its_forks(self, log: Log) -> None:
        await log.create("ses_root", [created()])
        await log.create("ses_child", [created()], root_id="ses_root")
        await log.create("ses_stranger", [created()])
        await log.fork("ses_child", 1, "ses_f", [])
        await log.create("ses_g", [created()], root_id="ses_f")
        await log.fork("ses_g", 1, "ses_h", [])
        await log.import_events(_foreign("ses_far", 0, ev.GENESIS, 9))
        await log.fork("ses_far", 3, "ses_near", [])
        for session_id in ("ses_root", "ses_child", "ses_f", "ses_g", "ses_h"):
            assert await log.family(session_id) == "ses_root"
        assert await log.family("ses_stranger") == "ses_stranger"
        assert await log.family("ses_far") == await log.family("ses_near") == "ses_far"
        with pytest.raises(NotFound):
            await log.family("ses_other")

    # The ledger.

    async def test_a_call_is_reserved_then_settled_once(self, log: Log, clock: Hands) -> None:
        await log.create("ses_a", [created(), started(metering="gateway", credential="secret lab")])
        await log.append("ses_a", [reserved("call_1", 3 * DOLLAR), reserved("call_2", None)])
        clock.at += 1
        await log.append("ses_a", [reserved("call_0", 1)])
        assert await log.reserved("ses_a") == ["call_1", "call_2", "call_0"]
        assert await seen(log, "ses_a", clock.at) == (Spend(3 * DOLLAR + 1, 450, 1),) * 4
        assert await log.usage("model") == []
        await log.append("ses_a", [reserved("call_1", 9 * DOLLAR), reported("call_1", DOLLAR)])
        assert await log.reserved("ses_a") == ["call_2", "call_0"]
        assert (await log.spend("ses_a", clock.at))["session"] == Spend(DOLLAR + 1, 400, 1)
        again = [reported("call_1", 7 * DOLLAR), reserved("call_1"), reported("call_0", 2, input_tokens=0)]
        await log.append("ses_a", [*again, reported("call_2", None), reported("call_3", 5)])
        assert await log.reserved("ses_a") == []
        assert await seen(log, "ses_a", clock.at) == (Spend(DOLLAR + 7, 320, 1),) * 4
        (row,) = await log.usage("model")
        assert row == {
            "key": "model-1",
            "calls": 4,
            "input_tokens": 240,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
            "cache_write_1h_tokens": 0,
            "output_tokens": 80,
            "reasoning_tokens": 0,
            "cost_nanousd": DOLLAR + 7,
            "unknown_calls": 1,
            "notional_nanousd": 0,
        }

    async def test_who_counts_is_said_by_the_run(self, log: Log, clock: Hands) -> None:
        told = {"source": "harness"}
        await log.create("ses_a", [created(), reported("call_old", 1, **told)])
        await log.append("ses_a", [started(metering="gateway"), reported("call_1", 10, **told)])
        await log.append("ses_a", [reported("call_2", 100)])
        await log.append("ses_a", [started(metering="harness"), reported("call_3", 1000, **told)])
        await log.append("ses_a", [reported("call_4", 10_000)])
        assert (await log.spend("ses_a", clock.at))["session"].nanousd == 11_101

    async def test_a_turns_cost_is_not_unknown_for_its_calls(self, log: Log, clock: Hands) -> None:
        told = {"source": "harness", "basis": "harness"}
        await log.create("ses_a", [created(), started(), reported("call_1", None, **told)])
        await log.append(
            "ses_a", [reported("turn", 7, scope="turn", input_tokens=0, output_tokens=0, **told)]
        )
        assert (await log.spend("ses_a", clock.at))["family"] == Spend(7, 100, 0)
        (row,) = await log.usage("session")
        assert (row["cost_nanousd"], row["unknown_calls"]) == (7, 0)

    async def test_a_subscription_costs_nothing_but_is_told(self, log: Log, clock: Hands) -> None:
        cap = Cap("session", "rule", nanousd=DOLLAR)
        await log.create("ses_a", [created(), started(metering="gateway", billing="subscription")])
        await log.append("ses_a", [reserved("call_1", 9 * DOLLAR)], caps=[cap])
        assert (await log.spend("ses_a", clock.at))["session"] == Spend(0, 150, 0, notional=9 * DOLLAR)
        await log.append("ses_a", [reported("call_1", 8 * DOLLAR, billing="unknown"), reserved("call_2")])
        assert (await log.spend("ses_a", clock.at))["session"] == Spend(0, 250, 0, notional=9 * DOLLAR)
        (row,) = await log.usage("provider")
        assert (row["cost_nanousd"], row["notional_nanousd"], row["unknown_calls"]) == (0, 8 * DOLLAR, 0)

    async def test_scopes_add_up_what_is_theirs(self, log: Log, clock: Hands) -> None:
        """Who pays together: the family, the owner's day, the project's month."""
        clock.at = 1_795_996_800_000 - 10  # the last moments of 2026-11-29
        await log.create("ses_a", [created(), reported("call_1", 1)])
        await log.create("ses_child", [created(), reported("call_1", 10)], root_id="ses_a")
        (first, *_) = await read_all(log, "ses_a")
        worktree = forked("ses_a", first)
        elsewhere = worktree.body.model_copy(update={"workspace": "/elsewhere", "owner": "you"})
        await log.fork("ses_a", 1, "ses_f", [Draft(elsewhere), reserved("call_1", 100)])
        theirs = created().body.model_copy(update={"workspace": "/theirs"})
        await log.create("ses_b", [Draft(theirs), reported("call_1", 1000)])

        async def dollars(session_id: str, at: int) -> list[int]:
            return [spend.nanousd for spend in await seen(log, session_id, at)]

        assert await dollars("ses_a", clock.at) == [1, 111, 1011, 111]
        assert await dollars("ses_f", clock.at) == [100, 111, 100, 111]
        assert await dollars("ses_b", clock.at) == [1000, 1000, 1011, 1000]
        clock.at += 20
        await log.append("ses_f", [reported("call_1", 50)])
        await log.append("ses_a", [reported("call_2", 10_000)])
        # What was reserved before midnight stays there.
        assert await dollars("ses_f", clock.at - 20) == [50, 10_061, 50, 10_061]
        assert await dollars("ses_f", clock.at) == [50, 10_061, 0, 10_061]
        assert await dollars("ses_a", clock.at + 3 * DAY) == [10_001, 10_061, 0, 0]
        rows = await log.usage("day")
        assert [(row["key"], row["cost_nanousd"]) for row in rows] == [
            ("2026-11-29", 1061),
            ("2026-11-30", 10_000),
        ]
        rows = await log.usage("project", since=clock.at - 20, until=clock.at)
        assert [(row["key"], row["calls"]) for row in rows] == [("/theirs", 1), ("/work", 3)]
        assert [row["key"] for row in await log.usage("user")] == ["me", "you"]
        assert [row["key"] for row in await log.usage("harness", session_id="ses_b")] == ["claude"]
        # Gone from the lists, not from what was spent.
        await log.delete("ses_child")
        assert await dollars("ses_a", clock.at) == [10_001, 10_061, 10_000, 10_061]
        with pytest.raises(NotFound):
            await log.spend("ses_child", clock.at)

    @pytest.mark.parametrize("scope", ["session", "family", "user_day", "project_month"])
    async def test_a_cap_refuses_what_would_pass_it(self, log: Log, scope: CapScope, clock: Hands) -> None:
        await log.create("ses_a", [created()])
        await log.append("ses_a", [reported("call_1", DOLLAR)])
        cap = Cap(scope, "three-dollars", nanousd=3 * DOLLAR)
        await log.append("ses_a", [said("x"), reserved("call_2", DOLLAR)], caps=[cap])
        with pytest.raises(OverBudget) as caught:
            await log.append("ses_a", [said("y"), reserved("call_3", DOLLAR + 1)], caps=[cap])
        assert caught.value.facts["cap"] == {
            "rule_id": "three-dollars",
            "scope": scope,
            "unit": "nanousd",
            "settled": DOLLAR,
            "reserved": DOLLAR,
            "estimate": DOLLAR + 1,
            "limit": 3 * DOLLAR,
        }
        assert await log.head("ses_a") == 4
        # Sent again, it is stored already; what nobody can price, and what isn't a call, is not refused.
        await log.append("ses_a", [reserved("call_2", 9 * DOLLAR), said("z")], caps=[cap])
        await log.append("ses_a", [reserved("call_3", DOLLAR)], caps=[cap])
        await log.append("ses_a", [reserved("call_4", None), said("z")], caps=[cap])
        with pytest.raises(OverBudget):
            await log.append(
                "ses_a", [reserved("call_5", 1)], caps=[Cap("user_day", "x", nanousd=9**12), cap]
            )
        assert (await log.spend("ses_a", clock.at))[scope].nanousd == 3 * DOLLAR

    async def test_a_cap_on_tokens(self, log: Log) -> None:
        await log.create("ses_a", [created(), reported("call_1", None)])
        cap = Cap("family", "tokens", tokens=400)
        await log.append("ses_a", [reserved("call_2", None), reserved("call_3", None)], caps=[cap])
        with pytest.raises(OverBudget) as caught:
            await log.append("ses_a", [reserved("call_4", None, tokens=1, most=0)], caps=[cap])
        assert caught.value.facts["cap"]["unit"] == "tokens"

    async def test_sessions_of_a_family_race_for_the_rest(self, log: Log, clock: Hands) -> None:
        await log.create("ses_0", [created()])
        await log.create("ses_1", [created()], root_id="ses_0")
        await log.fork("ses_1", 1, "ses_2", [])
        cap = Cap("family", "ten", nanousd=10 * DOLLAR)
        results = await asyncio.gather(
            *(
                log.append(f"ses_{number % 3}", [reserved(f"call_{number}", DOLLAR)], caps=[cap])
                for number in range(40)
            ),
            return_exceptions=True,
        )
        assert [type(result) for result in results].count(Appended) == 10
        assert [type(result) for result in results].count(OverBudget) == 30
        assert (await log.spend("ses_2", clock.at))["family"].nanousd == 10 * DOLLAR

    async def test_a_rebuilt_ledger_is_the_same(self, log: Log, clock: Hands) -> None:
        await self._spend_at_random(log, clock)
        before = await self._ledger(log, clock.at)
        for session_id in ("ses_0", "ses_3", "ses_5", "ses_1"):
            await log.rebuild(session_id)
            assert await self._ledger(log, clock.at) == before
        assert sum(row["calls"] for row in before["model"]) > 50

    async def test_an_imported_sessions_calls_count_once(self, log: Log, clock: Hands) -> None:
        """Its own, not those of the prefix it brings along."""
        bodies = [created().body, reported("call_1", 5).body, reported("call_2", 7).body]
        chain, events = ev.GENESIS, list[Event]()
        for seq, body in enumerate(bodies, start=1):
            session_id = "ses_far" if seq < 3 else "ses_fork"
            events.append(raw_event(session_id, seq, chain, body, tree_pos=seq if seq < 3 else 1))
            chain = events[-1].hash
        await log.import_events(events)
        (row,) = await log.usage("project")
        assert (row["key"], row["calls"], row["cost_nanousd"]) == ("/work", 1, 7)
        await log.import_events(events[:2])
        await log.import_events(events)
        assert [(row["key"], row["cost_nanousd"]) for row in await log.usage("session")] == [
            ("ses_far", 5),
            ("ses_fork", 7),
        ]
        for session_id in ("ses_fork", "ses_far"):
            await log.rebuild(session_id)
        assert sum(row["calls"] for row in await log.usage("model")) == 2

    # Helpers.

    async def _spend_at_random(self, log: Log, clock: Hands) -> None:
        dice = random.Random(3)
        await log.create("ses_0", [created(), started(metering="gateway")])
        for number in range(1, 6):
            if number % 2:
                await log.create(f"ses_{number}", [created()], root_id="ses_0")
            else:
                parent = f"ses_{number - 1}"
                events = await read_all(log, parent)
                await log.fork(parent, len(events), f"ses_{number}", [forked(parent, events[-1])])
            billing = dice.choice(["metered", "subscription", "unknown"])
            await log.append(f"ses_{number}", [started(metering="gateway", billing=billing)])
        for number in range(150):
            clock.at += DAY // 20
            session_id, call = f"ses_{dice.randrange(6)}", f"call_{dice.randrange(60)}"
            cost = dice.choice([None, dice.randrange(5 * DOLLAR)])
            draft = reserved(call, cost) if dice.random() < 0.5 else reported(call, cost, billing="unknown")
            await log.append(session_id, [draft, said(f"{number}")])

    async def _ledger(self, log: Log, at: int) -> dict[str, Any]:
        """Everything the ledger says."""
        by: tuple[UsageBy, ...] = (
            "model",
            "day",
            "project",
            "harness",
            "user",
            "session",
            "provider",
        )
        found: dict[str, Any] = {name: await log.usage(name) for name in by}
        for number in range(6):
            session_id = f"ses_{number}"
            found[session_id] = await log.spend(session_id, at), await log.reserved(session_id)
        return found


def _foreign(
    session_id: str,
    after: int,
    prev_hash: str,
    count: int,
    *,
    root: str | None = None,
    every: int = 1,
    begin: int = 1,
) -> list[Event]:
    """Events written elsewhere; `every` how many positions of the tree are between two of them."""
    events: list[Event] = []
    for number in range(count):
        body = created("from afar").body if after + number == 0 else said(f"{number} ü").body
        event = raw_event(
            session_id,
            after + number + 1,
            prev_hash,
            body,
            tree_pos=begin + number * every + (every - 1),
            root_id=root,
        )
        events.append(event)
        prev_hash = event.hash
    return events
