"""What a `Log` must do, as tests. A log of your own subclasses `LogSuite` and gives the `log` fixture:

class TestMyLog(LogSuite):
    @pytest.fixture
    async def log(self, projector: SuiteProjector, trees: SuiteTrees, clock: Hands) -> AsyncIterator[Log]:
        log = MyLog(projector, clock, trees=trees)
        yield log
        await log.close()
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import anyio
import pytest

from omnigent import events as ev
from omnigent.errors import BadCursor, Conflict, Fenced, Gap, KeyReused, Malformed, NotFound
from omnigent.events import Draft, Event
from omnigent.log.contract import Appended, CommandRecord, Lease, ListQuery, Log, Projector, TreeProjector
from omnigent.testing.control_suite import ControlSuite
from omnigent.testing.log_rig import (
    DEADLINE,
    Hands,
    SuiteMemory,
    SuiteProjector,
    SuiteTrees,
    SuiteView,
    all_items,
    asked,
    busy_session,
    check_dense,
    check_folded,
    collect,
    created,
    forked,
    raw_event,
    read_all,
    replay,
    resolved,
    said,
    too_large_a_number,
    updated,
    with_body,
)

__all__ = [
    "DEADLINE",
    "Hands",
    "LogSuite",
    "SuiteMemory",
    "SuiteProjector",
    "SuiteTrees",
    "SuiteView",
    "all_items",
    "asked",
    "busy_session",
    "check_dense",
    "check_folded",
    "created",
    "forked",
    "read_all",
    "replay",
    "resolved",
    "said",
    "updated",
]


class LogSuite(ControlSuite):
    """The meaning of `Log`."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def clock(self) -> Hands:
        return Hands()

    @pytest.fixture
    def projector(self) -> SuiteProjector:
        return SuiteProjector()

    @pytest.fixture
    def trees(self) -> SuiteTrees:
        return SuiteTrees()

    @pytest.fixture
    async def log(self, projector: Projector, trees: TreeProjector, clock: Hands) -> AsyncIterator[Log]:
        raise NotImplementedError("give the log to be tested; close it after the yield")
        yield

    # The envelope and the chain.

    async def test_envelope_says_who_when_and_where(self, log: Log, clock: Hands) -> None:
        await log.create("ses_a", [created()])
        clock.at += 5
        actor = ev.Actor(kind="person", id="laptop", via="cli")
        draft = Draft(
            ev.MessageSubmitted(content=(ev.TextPart(text="héllo \u2028 \x7f 🎈 \x01"),)),
            item_id="msg_1",
            parent_item_id="tc_0",
            turn_id="turn_1",
            actor=actor,
            cause="cmd_1",
            run="run_1",
            observed_at=clock.at - 3,
        )
        (event,) = (await log.append("ses_a", [draft], producer="run_1", epoch=0)).events
        (stored,) = await log.read("ses_a", after=1)
        assert stored == event
        assert stored.body == draft.body
        assert (stored.v, stored.seq, stored.tree_pos, stored.root_id) == (1, 2, 2, "ses_a")
        assert (stored.at, stored.observed_at) == (clock.at, clock.at - 3)
        assert (stored.item_id, stored.parent_item_id, stored.turn_id) == ("msg_1", "tc_0", "turn_1")
        assert (stored.actor, stored.cause, stored.run) == (actor, "cmd_1", "run_1")
        assert (stored.producer, stored.producer_seq, stored.epoch) == ("run_1", 1, 0)
        assert stored.id.startswith("evt_")
        assert ev.parse_event(stored.json_text()) == stored

    async def test_hash_chain_holds_and_shows_a_change(self, log: Log) -> None:
        await busy_session(log, "ses_a", 50)
        events = await read_all(log, "ses_a")
        check_dense(events)
        forged = ev.parse_event(events[20].json_text().replace("text ", "test ", 1))
        assert forged != events[20]
        assert ev.verify([*events[:20], forged, *events[21:]]) == 21
        assert ev.verify([*events[:20], *events[21:]]) == 22

    async def test_seq_and_tree_pos_are_dense(self, log: Log) -> None:
        await log.create("ses_root", [created()])
        await log.create("ses_child", [created("child")], root_id="ses_root")
        for number in range(20):
            await log.append("ses_root", [said(f"{number}")])
            await log.append("ses_child", [said(f"{number}"), said("again")])
        check_dense(await read_all(log, "ses_root"))
        check_dense(await read_all(log, "ses_child"))
        tree: list[Event] = []
        while page := await log.read_tree("ses_root", after=len(tree), limit=7):
            tree += page
        assert [event.tree_pos for event in tree] == list(range(1, 63))
        assert [event.session_id for event in tree[:3]] == ["ses_root", "ses_child", "ses_root"]
        for session_id in ("ses_root", "ses_child"):
            own = [event for event in tree if event.session_id == session_id]
            assert own == await read_all(log, session_id)

    async def test_a_tree_has_one_top_that_exists(self, log: Log) -> None:
        with pytest.raises(NotFound):
            await log.create("ses_child", [created()], root_id="ses_root")
        await log.create("ses_root", [created()])
        await log.create("ses_child", [created()], root_id="ses_root")
        with pytest.raises(Malformed):
            await log.create("ses_grandchild", [created()], root_id="ses_child")
        with pytest.raises(NotFound):
            await log.read_tree("ses_other")

    async def test_time_never_runs_backwards(self, log: Log, clock: Hands) -> None:
        await log.create("ses_a", [created()])
        clock.at += 1000
        await log.append("ses_a", [said("late")])
        clock.at -= 5000
        await log.append("ses_a", [said("early")])
        clock.at += 9000
        await log.append("ses_a", [said("later")])
        events = await read_all(log, "ses_a")
        assert [event.at - events[0].at for event in events] == [0, 1000, 1000, 5000]
        await log.fork("ses_a", 4, "ses_fork", [forked("ses_a", events[3])])
        clock.at -= 9000
        await log.append("ses_fork", [said("early again")])
        check_dense(await read_all(log, "ses_fork"))

    async def test_create_refuses_a_taken_id(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        with pytest.raises(Conflict):
            await log.create("ses_a", [created()])
        assert await log.head("ses_a") == 1

    async def test_unknown_session_is_not_found(self, log: Log) -> None:
        for call in (
            log.append("ses_x", [said("")]),
            log.fork("ses_x", 1, "ses_y", []),
            log.head("ses_x"),
            log.read("ses_x"),
            log.view("ses_x"),
            log.item("ses_x", "msg_1"),
            log.items("ses_x"),
            log.take_epoch("ses_x"),
            log.rebuild("ses_x"),
            log.delete("ses_x"),
        ):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            await collect(log.follow("ses_x"), 1)

    async def test_what_has_no_canonical_form_is_refused_alone(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        results = await asyncio.gather(
            log.append("ses_a", [said("fine")]),
            log.append("ses_a", [said("goes with the next"), too_large_a_number()]),
            log.append("ses_a", [Draft(ev.UnknownBody(kind="later.kind", raw={}))]),
            log.append("ses_a", [said("fine too")]),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [Appended, Malformed, Malformed, Appended]
        assert await self._texts(log, "ses_a") == ["fine", "fine too"]
        await check_folded(log, "ses_a")

    # Producers, epochs, commands.

    async def test_a_batch_sent_again_is_stored_once(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        drafts = [said(f"{number}") for number in range(6)]
        first = await log.append("ses_a", drafts[:4], producer="run_1", first=1)
        assert (len(first.events), first.last_seq, first.acked) == (4, 5, 4)
        again = await log.append("ses_a", drafts[:4], producer="run_1", first=1)
        assert (again.events, again.last_seq, again.acked) == ([], 5, 4)
        tail = await log.append("ses_a", drafts[2:6], producer="run_1", first=3)
        assert ([event.producer_seq for event in tail.events], tail.last_seq, tail.acked) == ([5, 6], 7, 6)
        other = await log.append("ses_a", [said("other")], producer="run_2", first=1)
        assert (other.acked, other.last_seq) == (1, 8)
        assert await self._texts(log, "ses_a") == ["0", "1", "2", "3", "4", "5", "other"]

    async def test_a_skipped_number_is_a_gap(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        await log.append("ses_a", [said("1")], producer="run_1", first=1)
        with pytest.raises(Gap) as caught:
            await log.append("ses_a", [said("3")], producer="run_1", first=3)
        assert caught.value.facts["expected"] == 2
        assert await log.head("ses_a") == 2
        assert (await log.append("ses_a", [said("2")], producer="run_1", first=2)).acked == 2

    async def test_an_old_epoch_is_fenced(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        old = await log.take_epoch("ses_a")
        await log.append("ses_a", [said("old")], producer="run_1", epoch=old)
        new = await log.take_epoch("ses_a")
        assert new == old + 1
        with pytest.raises(Fenced):
            await log.append("ses_a", [said("too late")], producer="run_1", epoch=old)
        await log.append("ses_a", [said("new")], producer="run_2", epoch=new)
        await log.append("ses_a", [said("the host's own")])
        assert await self._texts(log, "ses_a") == ["old", "new", "the host's own"]

    async def test_leases_are_of_the_current_epoch(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        epoch = await log.take_epoch("ses_a")
        lease = Lease("ses_a", epoch, "run_1", 42, 99, "ab")
        await log.put_lease(lease)
        assert await log.leases() == [lease]
        with pytest.raises(Fenced):
            await log.put_lease(Lease("ses_a", epoch - 1, "run_0", 41, 98, "aa"))
        await log.drop_lease("ses_a", epoch - 1)
        assert await log.leases() == [lease]
        await log.drop_lease("ses_a", epoch)
        assert await log.leases() == []

    async def test_expected_head_is_compared_and_set(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        results = await asyncio.gather(
            *(log.append("ses_a", [said(f"{number}")], expect_head=1) for number in range(10)),
            return_exceptions=True,
        )
        assert [type(result) for result in results].count(Appended) == 1
        refused = [result for result in results if isinstance(result, Conflict)]
        assert len(refused) == 9
        assert refused[0].facts["current"] == {"head": 2}

    async def test_a_failing_append_spoils_no_other(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        await log.create("ses_b", [created()])
        good = [log.append(f"ses_{'ab'[number % 2]}", [said(f"{number}")]) for number in range(20)]
        bad = [
            log.append("ses_a", [said("x")], first=99),
            log.append("ses_a", [said("x")], epoch=7),
            log.append("ses_b", [said("x")], expect_head=999),
            log.append("ses_x", [said("x")]),
        ]
        mixed = [task for pair in zip(good[:4], bad, strict=True) for task in pair] + good[4:]
        results = await asyncio.gather(*mixed, return_exceptions=True)
        errors = [type(result) for result in results if isinstance(result, Exception)]
        assert errors == [Gap, Fenced, Conflict, NotFound]
        assert await self._texts(log, "ses_a") == [str(number) for number in range(0, 20, 2)]
        for session_id in ("ses_a", "ses_b"):
            check_dense(await read_all(log, session_id))
            await check_folded(log, session_id)

    async def test_a_key_is_taken_for_ever(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        command = CommandRecord("ses_a", "key 1", "sha of request", {"command_id": "cmd_1"})
        first = await log.append("ses_a", [said("once")], command=command)
        assert first.replay is None
        record = await log.command("ses_a", "key 1")
        assert record is not None
        assert record.answer == {"command_id": "cmd_1", "session_id": "ses_a", "seq": 2}
        await log.append("ses_a", [said("between")])
        again = await log.append("ses_a", [said("once")], command=command, expect_head=0)
        assert (again.events, again.last_seq, again.replay) == ([], 2, record)
        with pytest.raises(KeyReused):
            await log.append("ses_a", [said("other")], command=CommandRecord("ses_a", "key 1", "another", {}))
        assert await log.command("ses_a", "key 2") is None
        assert await log.command("ses_b", "key 1") is None
        assert await self._texts(log, "ses_a") == ["once", "between"]

    async def test_creating_and_forking_with_a_taken_key(self, log: Log) -> None:
        command = CommandRecord("org:local", "key 1", "sha", {})
        await log.create("ses_a", [created()], command=command)
        again = await log.create("ses_b", [created()], command=command)
        assert again.replay is not None
        assert again.replay.answer == {"session_id": "ses_a", "seq": 1}
        with pytest.raises(NotFound):
            await log.head("ses_b")
        (event,) = await read_all(log, "ses_a")
        fork = CommandRecord("org:local", "key 2", "sha", {})
        await log.fork("ses_a", 1, "ses_f", [forked("ses_a", event)], command=fork)
        again = await log.fork("ses_a", 1, "ses_g", [forked("ses_a", event)], command=fork)
        assert again.replay is not None
        assert again.replay.answer["session_id"] == "ses_f"
        with pytest.raises(NotFound):
            await log.head("ses_g")

    async def test_concurrent_commands_with_one_key_store_once(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        command = CommandRecord("ses_a", "key", "sha", {})
        results = await asyncio.gather(
            *(log.append("ses_a", [said("once")], command=command) for _ in range(20))
        )
        assert sum(len(result.events) for result in results) == 1
        assert {result.last_seq for result in results} == {2}

    # Reading.

    async def test_pages_go_both_ways(self, log: Log) -> None:
        await busy_session(log, "ses_a", 120)
        events = await read_all(log, "ses_a")
        forwards: list[Event] = []
        while page := await log.read("ses_a", after=len(forwards), limit=13):
            assert len(page) <= 13
            forwards += page
        assert forwards == events
        backwards: list[Event] = []
        before: int | None = None
        while page := await log.read("ses_a", before=before, limit=13, newest=True):
            backwards = page + backwards
            before = page[0].seq
        assert backwards == events
        assert await log.read("ses_a", after=50, before=60) == events[50:59]
        assert await log.read("ses_a", after=50, before=60, limit=3, newest=True) == events[56:59]
        assert await log.read("ses_a", after=50, before=51) == []
        assert await log.read("ses_a", after=1000) == []

    async def test_kinds_are_filtered_before_the_limit(self, log: Log) -> None:
        await busy_session(log, "ses_a", 200)
        events = await read_all(log, "ses_a")
        wanted = ["approval.requested", "approval.resolved"]
        found = [event for event in events if event.kind in wanted]
        assert 10 < len(found) < 100
        assert await log.read("ses_a", kinds=wanted) == found
        assert await log.read("ses_a", kinds=wanted, limit=5) == found[:5]
        assert await log.read("ses_a", kinds=wanted, limit=5, newest=True) == found[-5:]
        middle = found[4].seq
        assert await log.read("ses_a", kinds=wanted, after=middle, limit=3) == found[5:8]
        assert await log.read("ses_a", kinds=["turn.started"]) == []

    # Following.

    async def test_follow_from_the_past_into_live(self, log: Log) -> None:
        await busy_session(log, "ses_a", 50)
        until = 50 + 4 * 40

        async def write(number: int) -> None:
            for step in range(20):
                await log.append("ses_a", [said(f"{number} {step}"), said("and")], producer=f"run_{number}")

        with anyio.fail_after(DEADLINE):
            async with asyncio.TaskGroup() as tasks:
                seen = [
                    tasks.create_task(collect(log.follow("ses_a", after), until))
                    for after in (0, 0, 7, 49, 50)
                ]
                for number in range(4):
                    tasks.create_task(write(number))
        events = await read_all(log, "ses_a")
        for after, task in zip((0, 0, 7, 49, 50), seen, strict=True):
            assert task.result() == events[after:]

    async def test_many_followers_and_one_that_stalls(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        with anyio.fail_after(DEADLINE):
            async with aclosing(cast(Any, log.follow("ses_a"))) as stalled:
                assert [event.seq for event in await anext(stalled)] == [1]
                async with asyncio.TaskGroup() as tasks:
                    seen = [tasks.create_task(collect(log.follow("ses_a"), 3001)) for _ in range(50)]
                    for _ in range(300):
                        await log.append("ses_a", [said("x")] * 10)
                events = await read_all(log, "ses_a")
                assert all(task.result() == events for task in seen)
                # It goes on where it stood, though that is long past.
                assert await collect(stalled, 3001) == events[1:]

    async def test_followers_share_the_text(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        followers = [cast(Any, log.follow("ses_a")) for _ in range(3)]
        with anyio.fail_after(DEADLINE):
            for follower in followers:
                await anext(follower)
            await log.append("ses_a", [said("x")])
            texts = [(await anext(follower))[0].json_text() for follower in followers]
            for follower in followers:
                await follower.aclose()
        assert all(text is texts[0] for text in texts)

    async def test_a_follower_is_only_of_its_session(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        await log.create("ses_b", [created()])
        with anyio.fail_after(DEADLINE):
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(collect(log.follow("ses_a", 1), 2))
                await log.append("ses_b", [said("b")])
                await log.append("ses_a", [said("a")])
        assert [event.session_id for event in seen.result()] == ["ses_a"]

    async def test_follow_beyond_the_head_is_refused(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        for cursor in (2, -1):
            with pytest.raises(BadCursor):
                await collect(log.follow("ses_a", cursor), 2)

    async def test_a_follower_may_be_cancelled(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        with anyio.fail_after(DEADLINE):
            gone = asyncio.create_task(collect(log.follow("ses_a", 1), 2))
            stays = asyncio.create_task(collect(log.follow("ses_a", 1), 2))
            await log.head("ses_a")
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            await log.append("ses_a", [said("x")])
            assert len(await stays) == 1

    async def test_followers_end_when_the_log_closes(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        waits, stalls = cast(Any, log.follow("ses_a")), cast(Any, log.follow("ses_a"))
        with anyio.fail_after(DEADLINE):
            await anext(waits)
            await anext(stalls)
            async with asyncio.TaskGroup() as tasks:
                rest = tasks.create_task(collect(waits, 99))
                await log.append("ses_a", [said("last")])
                await log.close()
            assert await collect(stalls, 99) == []
        assert [event.seq for event in rest.result()] in ([], [2])

    async def test_followers_end_when_the_session_is_deleted(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        follower = cast(Any, log.follow("ses_a"))
        with anyio.fail_after(DEADLINE):
            await anext(follower)
            async with asyncio.TaskGroup() as tasks:
                rest = tasks.create_task(collect(follower, 99))
                await log.delete("ses_a")
        assert rest.result() == []

    # Forking.

    @pytest.mark.parametrize("at", [1, 2, 64, 65, 100, 129, 199, 200])
    async def test_fork_is_the_prefix_and_goes_on(self, log: Log, at: int) -> None:
        await busy_session(log, "ses_a", 200)
        parent = await read_all(log, "ses_a")
        await log.fork("ses_a", at, "ses_f", [forked("ses_a", parent[at - 1])])
        await check_folded(log, "ses_f")
        await log.append("ses_f", [said("own", "msg_0"), said("own", "msg_own"), asked("ap_own")])
        await log.append("ses_a", [said("the parent goes on", "msg_0"), said("new", "msg_new")])
        fork = await read_all(log, "ses_f")
        assert fork[:at] == parent[:at]
        assert [event.session_id for event in fork[at:]] == ["ses_f"] * 4
        assert [event.root_id for event in fork[at:]] == ["ses_f"] * 4
        assert [event.tree_pos for event in fork[at:]] == [1, 2, 3, 4]
        check_dense(fork)
        assert await log.head("ses_f") == at + 4
        await check_folded(log, "ses_f")
        await check_folded(log, "ses_a")
        assert (await read_all(log, "ses_a"))[:200] == parent

    async def test_fork_reads_across_its_seam(self, log: Log) -> None:
        await busy_session(log, "ses_a", 100)
        parent = await read_all(log, "ses_a")
        await log.fork("ses_a", 60, "ses_f", [forked("ses_a", parent[59])])
        for number in range(20):
            await log.append("ses_f", [said(f"{number}"), asked(f"ap_f{number}")])
        fork = await read_all(log, "ses_f")
        assert await log.read("ses_f", after=55, limit=10) == fork[55:65]
        assert await log.read("ses_f", before=65, limit=10, newest=True) == fork[54:64]
        asked_for = [event for event in fork if event.kind == "approval.requested"]
        assert await log.read("ses_f", kinds=["approval.requested"], limit=1000) == asked_for
        assert await log.read("ses_f", kinds=["approval.requested"], limit=22, newest=True) == asked_for[-22:]
        with anyio.fail_after(DEADLINE):
            assert await collect(log.follow("ses_f", 58), 101) == fork[58:]

    async def test_fork_of_a_fork_of_a_fork(self, log: Log) -> None:
        await busy_session(log, "ses_0", 150)
        dice = random.Random(4)
        for depth in range(1, 6):
            parent_id, session_id = f"ses_{depth - 1}", f"ses_{depth}"
            parent = await read_all(log, parent_id)
            at = dice.randrange(len(parent) - 40, len(parent))
            await log.fork(parent_id, at, session_id, [forked(parent_id, parent[at - 1])])
            for number in range(30):
                await log.append(session_id, [said(f"{depth} {number}", f"msg_{dice.randrange(40)}")])
            await log.append(parent_id, [said("the parent goes on", "msg_1"), asked(f"ap_late_{depth}")])
        for depth in range(6):
            check_dense(await read_all(log, f"ses_{depth}"))
            await check_folded(log, f"ses_{depth}")
        # Before its parent's own events: the grandparent's prefix alone.
        parent = await read_all(log, "ses_5")
        await log.fork("ses_5", 20, "ses_early", [forked("ses_5", parent[19])])
        assert (await read_all(log, "ses_early"))[:20] == (await read_all(log, "ses_0"))[:20]
        await check_folded(log, "ses_early")

    async def test_fork_beyond_the_head_is_refused(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        for at in (0, 2, -1):
            with pytest.raises(BadCursor):
                await log.fork("ses_a", at, "ses_f", [])
        with pytest.raises(NotFound):
            await log.head("ses_f")

    async def test_a_fork_that_fails_leaves_nothing(self, log: Log) -> None:
        await busy_session(log, "ses_a", 30)
        with pytest.raises(Malformed):
            await log.fork("ses_a", 20, "ses_f", [said("fine", "msg_1"), too_large_a_number()])
        with pytest.raises(NotFound):
            await log.head("ses_f")
        await log.fork("ses_a", 10, "ses_f", [said("fine", "msg_1")])
        assert (await read_all(log, "ses_f"))[:10] == (await read_all(log, "ses_a"))[:10]
        await check_folded(log, "ses_f")

    async def test_a_fork_has_its_own_epoch_and_producers(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        await log.append("ses_a", [said("x")], producer="run_1", first=1)
        epoch = await log.take_epoch("ses_a")
        await log.fork("ses_a", 2, "ses_f", [])
        assert await log.head("ses_f") == 2
        appended = await log.append("ses_f", [said("y")], producer="run_1", first=1, epoch=0)
        assert (appended.last_seq, appended.acked) == (3, 1)
        with pytest.raises(Fenced):
            await log.append("ses_f", [said("y")], epoch=epoch)

    async def test_a_fork_outlives_its_parent(self, log: Log) -> None:
        await busy_session(log, "ses_a", 80)
        parent = await read_all(log, "ses_a")
        await log.fork("ses_a", 70, "ses_f", [forked("ses_a", parent[69])])
        await log.delete("ses_a")
        assert (await read_all(log, "ses_f"))[:70] == parent[:70]
        await check_folded(log, "ses_f")

    # The inbox and lists.

    async def test_open_items_are_the_inbox(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        await log.create("ses_b", [created(), asked("ap_b")])
        await log.append("ses_a", [asked("ap_1"), asked("ap_2"), said("x", "msg_1"), asked("ap_3")])
        await log.append("ses_a", [resolved("ap_2"), said("changed", "ap_3")])
        found = await log.open_items()
        assert [(session_id, row.item_id) for session_id, row in found] == [
            ("ses_a", "ap_1"),
            ("ses_a", "ap_3"),
            ("ses_b", "ap_b"),
        ]
        assert found[1][1] == await log.item("ses_a", "ap_3")
        (*_, last) = await read_all(log, "ses_a")
        await log.fork("ses_a", last.seq, "ses_f", [forked("ses_a", last)])
        await log.fork("ses_a", last.seq, "ses_g", [])
        await log.delete("ses_b")
        assert [row.item_id for _, row in await log.open_items()] == ["ap_1", "ap_3"]

    async def test_lists_go_newest_first(self, log: Log, clock: Hands) -> None:
        for number in range(30):
            clock.at += number % 2
            await log.create(f"ses_{number:02}", [created(f"Session {number} Ärger")])
        clock.at += 10
        await log.append("ses_07", [said("touched")])
        await log.append("ses_03", [updated(archived=True)])
        await log.append("ses_05", [asked("ap_1")])
        await log.delete("ses_04")
        ids = await self._listed(log, ListQuery(limit=4))
        assert ids[:2] == ["ses_07", "ses_05"]
        rest = [f"ses_{number:02}" for number in range(29, -1, -1) if number not in (3, 4, 5, 7)]
        assert ids[2:] == rest
        assert await self._listed(log, ListQuery(limit=4, archived=True)) == ["ses_03"]
        assert len(await self._listed(log, ListQuery(limit=4, archived=None))) == 29
        assert await self._listed(log, ListQuery(query="2 äRG")) == ["ses_22", "ses_12", "ses_02"]
        assert await self._listed(log, ListQuery(limit=1, query="2 ärg")) == ["ses_22", "ses_12", "ses_02"]
        assert await self._listed(log, ListQuery(status="waiting")) == ["ses_05"]
        assert await self._listed(log, ListQuery(harness="codex")) == []
        assert await self._listed(log, ListQuery(parent="ses_01")) == []
        (row,), cursor = await log.list(ListQuery(limit=1))
        assert row["id"] == "ses_07"
        assert row["title"] == "Session 7 Ärger"
        assert cursor is not None
        for bad in ("nonsense", "1", ".", "x.ses_1"):
            with pytest.raises(BadCursor):
                await log.list(ListQuery(cursor=bad))

    # Rebuilding, moving, deleting.

    async def test_rebuild_equals_live(self, log: Log) -> None:
        await busy_session(log, "ses_a", 300)
        parent = await read_all(log, "ses_a")
        await log.fork("ses_a", 150, "ses_f", [forked("ses_a", parent[149])])
        for number in range(70):
            await log.append("ses_f", [said(f"{number}", f"msg_{number % 9}"), asked(f"ap_f{number}")])
        for session_id in ("ses_a", "ses_f"):
            inbox = await log.open_items()
            await check_folded(log, session_id)
            await log.rebuild(session_id)
            await check_folded(log, session_id)
            assert await log.open_items() == inbox
            await log.append(session_id, [said("and on", "msg_1")])
            await check_folded(log, session_id)
        await log.fork("ses_f", 260, "ses_g", [])
        await check_folded(log, "ses_g")

    async def test_export_and_import_round_trip(self, log: Log) -> None:
        events = self._foreign("ses_far", 90)
        assert await log.import_events(events) == "ses_far"
        assert await read_all(log, "ses_far") == events
        assert [event.json_text() for event in await read_all(log, "ses_far")] == [
            event.json_text() for event in events
        ]
        await check_folded(log, "ses_far")
        unknown = (await log.read("ses_far", kinds=["later.kind"]))[0]
        assert unknown.body == ev.UnknownBody(kind="later.kind", raw={"pi": 3.5, "é": [1, None]})
        assert await log.import_events(events) == "ses_far"
        assert await log.head("ses_far") == 90
        assert "ses_far" in await self._listed(log, ListQuery())

    async def test_an_imported_session_is_read_only_but_forks(self, log: Log) -> None:
        events = self._foreign("ses_far", 90)
        await log.import_events(events)
        for call in (log.append("ses_far", [said("x")]), log.take_epoch("ses_far")):
            with pytest.raises(Conflict):
                await call
        assert await log.open_items() == []
        await log.fork("ses_far", 80, "ses_near", [forked("ses_far", events[79])])
        await log.append("ses_near", [said("on", "msg_1")])
        check_dense(await read_all(log, "ses_near"))
        await check_folded(log, "ses_near")

    async def test_a_fork_is_exported_whole(self, log: Log) -> None:
        await busy_session(log, "ses_a", 40)
        parent = await read_all(log, "ses_a")
        await log.fork("ses_a", 30, "ses_f", [forked("ses_a", parent[29]), said("own", "msg_0")])
        exported = [ev.parse_event(event.json_text()) for event in await read_all(log, "ses_f")]
        assert await log.import_events(exported) == "ses_f"
        await log.delete("ses_f")
        assert await log.import_events(exported) == "ses_f"
        assert await read_all(log, "ses_f") == exported

    async def test_a_forks_export_enters_an_empty_log(self, log: Log) -> None:
        far = self._foreign("ses_far", 30)
        chain = far[-1].hash
        own = raw_event("ses_fork", 31, chain, ev.MessageStarted(), tree_pos=1)
        assert await log.import_events([*far, own]) == "ses_fork"
        assert await read_all(log, "ses_fork") == [*far, own]
        await check_folded(log, "ses_fork")
        with pytest.raises(NotFound):
            await log.head("ses_far")
        # The parent may come later, and is another session.
        assert await log.import_events(far) == "ses_far"
        assert await read_all(log, "ses_far") == far
        assert await log.read_tree("ses_fork") == [own]

    async def test_a_wrong_import_changes_nothing(self, log: Log) -> None:
        events = self._foreign("ses_far", 30)
        for wrong in (
            [],
            events[1:],
            events[:10] + events[11:],
            [*events[:29], self._foreign("ses_b", 30)[29]],
        ):
            with pytest.raises(Malformed):
                await log.import_events(wrong)
        with pytest.raises(NotFound):
            await log.head("ses_far")
        await log.import_events(events[:20])
        with pytest.raises(Conflict) as caught:
            await log.import_events(events)
        assert caught.value.facts["current"] == {"head": 20, "hash": events[19].hash}
        assert await read_all(log, "ses_far") == events[:20]

    async def test_an_erased_body_still_imports(self, log: Log) -> None:
        events = self._foreign("ses_far", 20)
        erased = with_body(events[10], '{"redacted":{"at":1,"by":"me","reason":"a key"}}')
        await log.import_events([*events[:10], erased, *events[11:]])
        stored = await read_all(log, "ses_far")
        assert isinstance(stored[10].body, ev.UnknownBody)
        check_dense(stored)

    async def test_a_deleted_session_is_gone_at_once(self, log: Log) -> None:
        await log.create("ses_root", [created()])
        await log.create("ses_child", [created()], root_id="ses_root")
        await log.put_lease(Lease("ses_root", 0, "run_1", 1, 1, "ab"))
        await log.delete("ses_root")
        assert await self._listed(log, ListQuery(archived=None)) == ["ses_child"]
        assert await log.leases() == []
        for call in (
            log.head("ses_root"),
            log.read("ses_root"),
            log.view("ses_root"),
            log.items("ses_root"),
            log.append("ses_root", [said("x")]),
            log.fork("ses_root", 1, "ses_f", []),
            log.delete("ses_root"),
        ):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(Conflict):
            await log.create("ses_root", [created()])
        # Its child goes on, numbered in the same tree, which remembers all of it.
        (event,) = (await log.append("ses_child", [said("x")])).events
        assert event.tree_pos == 3
        assert [event.tree_pos for event in await log.read_tree("ses_root")] == [1, 2, 3]
        with pytest.raises(NotFound):
            await log.append("ses_root", [said("x")])

    # At length.

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    async def test_a_hundred_thousand_events(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        for number in range(1000):
            await log.append("ses_a", [said("x" * 40, f"msg_{number}_{step // 4}") for step in range(100)])
        assert await log.head("ses_a") == 100_001
        view = await log.view("ses_a")
        assert view.as_of_seq == 100_001
        assert view.kinds["message.completed"] == 100_000
        events = await read_all(log, "ses_a")
        check_dense(events)
        with anyio.fail_after(60):
            assert await collect(log.follow("ses_a", 99_000), 100_001) == events[99_000:]
        for at in (100_001, 50_000, 77):
            began = time.perf_counter()
            await log.fork("ses_a", at, f"ses_{at}", [forked("ses_a", events[at - 1])])
            # A hundred times what it takes, and a hundredth of what a copy would.
            assert time.perf_counter() - began < self.slowest_fork
            assert (await log.view(f"ses_{at}")).kinds.get("message.completed", 0) == at - 1
            (newest, *_) = await log.items(f"ses_{at}", limit=1)
            assert newest.data["seqs"][-1] <= at

    slowest_fork = 0.5
    """Seconds; a log that replays when it forks (the reference) says so by raising it."""

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    async def test_a_page_of_a_list_costs_its_length(self, log: Log, clock: Hands) -> None:
        async def create(first: int, end: int) -> None:
            for start in range(first, end, 100):
                clock.at += 1
                await asyncio.gather(
                    *(
                        log.create(f"ses_{number}", [created(f"title {number}")])
                        for number in range(start, start + 100)
                    )
                )

        async def page() -> float:
            began = time.perf_counter()
            found, _ = await log.list(ListQuery(limit=50))
            assert len(found) == 50
            return time.perf_counter() - began

        await create(0, 200)
        few = min([await page() for _ in range(20)])
        await create(200, 5200)
        many = min([await page() for _ in range(20)])
        assert many < few * self.list_growth
        assert len(set(await self._listed(log, ListQuery(limit=1000)))) == 5200

    list_growth = 5.0
    """How much slower a page may be among 5,200 sessions than among 200."""

    # Helpers.

    async def _texts(self, log: Log, session_id: str) -> list[str]:
        events = await log.read(session_id, kinds=["message.completed"], limit=1000)
        return [ev.text_of(cast(ev.MessageCompleted, event.body).content) for event in events]

    async def _listed(self, log: Log, query: ListQuery) -> list[str]:
        """The ids of all pages."""
        found: list[str] = []
        cursor: str | None = None
        while True:
            page, cursor = await log.list(replace(query, cursor=cursor))
            assert len(page) <= query.limit
            found += [row["id"] for row in page]
            if cursor is None:
                return found

    def _foreign(self, session_id: str, count: int) -> list[Event]:
        """A session written elsewhere, by a newer version too: every seventh event is of an unknown kind."""
        events: list[Event] = []
        prev = ev.GENESIS
        for seq in range(1, count + 1):
            body: ev.Body = ev.MessageCompleted(content=(ev.TextPart(text=f"{seq} ü"),))
            if seq == 1:
                body = created("from afar").body
            elif seq % 7 == 0:
                body = ev.UnknownBody(kind="later.kind", raw={"pi": 3.5, "é": [1, None]})
            elif seq % 11 == 0:
                body = asked("").body
            events.append(raw_event(session_id, seq, prev, body, item_id=f"ap_{seq % 10}"))
            prev = events[-1].hash
        return events
