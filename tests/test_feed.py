"""The live end of a session: everyone gets everything once, at their own pace."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from omnigent import events as ev
from omnigent.events import Delta, Draft, Event
from omnigent.feed import PAGE, RING_FRAMES, Feed, Frame, delta_frame, event_frame
from omnigent.log.seal import Numbers, seal

pytestmark = pytest.mark.anyio


class Stored:
    """A log with its feed; `publish` may come later than `store`, as it does between two awaits."""

    def __init__(self, before: int = 0) -> None:
        self.numbers = Numbers("ses_1", "ses_1")
        self.events: list[Event] = []
        self.deltas: list[Delta] = []
        self.reads = 0
        self.store(before)
        self.feed = Feed(before)

    def store(self, count: int) -> list[Event]:
        body = ev.NoticeRaised(code="x", level="info", detail="x")
        made = seal(
            [Draft(body)] * count,
            self.numbers,
            now=1,
            new_id=lambda prefix: f"{prefix}_1",
            producer="session",
            first=1,
            epoch=None,
        )
        self.events += made
        return made

    def publish(self, events: list[Event]) -> None:
        self.feed.publish(event_frame(event) for event in events)

    def add(self, count: int) -> None:
        self.publish(self.store(count))

    def say(self, text: str) -> None:
        self.feed.publish([delta_frame(Delta("msg_1", "text", 0, text))])

    async def read(self, after: int, limit: int) -> list[Event]:
        self.reads += 1
        await asyncio.sleep(0)
        return self.events[after : after + limit]

    def follow(self, after: int) -> AsyncGenerator[list[Frame]]:
        frames = self.feed.follow(after, self.read, lambda: self.deltas)
        return cast(AsyncGenerator[list[Frame]], frames)


async def seqs(follower: AsyncIterator[list[Frame]], until: int) -> list[int]:
    found: list[int] = []
    while not found or found[-1] < until:
        found += [frame.event.seq for frame in await anext(follower) if frame.event]
    return found


async def test_from_the_past_into_live_without_gap_or_repeat() -> None:
    stored = Stored(3 * PAGE + 7)
    async with aclosing(stored.follow(5)) as follower:
        assert await seqs(follower, 3 * PAGE + 7) == list(range(6, 3 * PAGE + 8))
        stored.add(3)
        assert await seqs(follower, 3 * PAGE + 10) == [3 * PAGE + 8, 3 * PAGE + 9, 3 * PAGE + 10]


async def test_what_is_stored_and_not_yet_published_comes_once() -> None:
    stored = Stored(4)
    late = stored.store(2)
    async with aclosing(stored.follow(0)) as follower:
        assert await seqs(follower, 6) == [1, 2, 3, 4, 5, 6]
        await anext(follower)
        stored.publish(late)
        stored.add(1)
        assert await seqs(follower, 7) == [7]


async def test_a_late_joiner_gets_one_delta_per_open_item_and_then_what_comes() -> None:
    stored = Stored(1)
    stored.say("hal")
    stored.deltas = [Delta("msg_1", "text", 0, "hal")]
    async with aclosing(stored.follow(1)) as follower:
        assert [frame.delta for frame in await anext(follower)] == stored.deltas
        stored.say("lo")
        assert [frame.delta and frame.delta.text for frame in await anext(follower)] == ["lo"]


async def test_a_follower_of_the_ring_reads_no_log() -> None:
    stored = Stored()
    stored.add(50)
    async with aclosing(stored.follow(20)) as follower:
        assert await seqs(follower, 50) == list(range(21, 51))
    assert stored.reads == 0


async def test_one_that_falls_off_the_ring_reads_the_log_and_loses_nothing() -> None:
    stored = Stored(2)
    async with aclosing(stored.follow(0)) as follower:
        assert await seqs(follower, 2) == [1, 2]
        await anext(follower)
        stored.add(RING_FRAMES + 100)
        head = RING_FRAMES + 102
        assert await seqs(follower, head) == list(range(3, head + 1))


async def test_deltas_push_events_off_the_ring_too() -> None:
    stored = Stored()
    async with aclosing(stored.follow(0)) as follower:
        await anext(follower)
        stored.add(2)
        for _ in range(RING_FRAMES):
            stored.say("x")
        stored.add(1)
        assert await seqs(follower, 3) == [1, 2, 3]


async def test_many_followers_at_their_own_pace() -> None:
    stored = Stored(10)
    followers = [stored.follow(after) for after in range(10)]
    slow = stored.follow(0)
    tasks = [asyncio.create_task(seqs(follower, 300)) for follower in followers]
    for _ in range(29):
        stored.add(10)
        await asyncio.sleep(0)
    assert stored.feed.followers == 10
    found = await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert found == [list(range(after + 1, 301)) for after in range(10)]
    assert await seqs(slow, 300) == list(range(1, 301))
    for follower in (*followers, slow):
        await follower.aclose()
    assert stored.feed.followers == 0


async def test_a_frame_is_encoded_once_for_all() -> None:
    stored = Stored()
    stored.add(1)
    first, second = stored.follow(0), stored.follow(0)
    assert (await anext(first))[0] is (await anext(second))[0]
    await first.aclose()
    await second.aclose()


async def test_large_frames_do_not_fill_memory_and_are_not_lost() -> None:
    """The ring is bounded in bytes too; who lags behind it reads the log."""
    stored = Stored(1)
    async with aclosing(stored.follow(0)) as follower:
        assert await seqs(follower, 1) == [1]
        reads = stored.reads
        for _ in range(200):
            stored.add(1)
            stored.say("x" * 65536)
        assert await seqs(follower, 201) == list(range(2, 202))
    assert stored.reads > reads, "200 frames of 64 KiB fitted into the ring"
