"""One session, many readers: how long an event takes from its writer to each of them."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterator

from http_calls import Caller, Follower, dial, follow, mark, request_bytes
from measure import Figure, compare
from servers import BareServer, OurServer, Server, scratch

PER_SECOND = 20
PADDING = "a line of what an agent says while it works; " * 6


def measure_fanout(quick: bool) -> list[Figure]:
    with scratch() as place:
        bare, ours = BareServer(place / "bare"), OurServer(place / "ours")
        bare.start()
        ours.start()
        try:
            sizes = (1, 50) if quick else (1, 50, 200)
            return asyncio.run(_fanout(bare, ours, sizes, 1 if quick else 4, 1.5 if quick else 3))
        finally:
            bare.stop()
            ours.stop()


async def _fanout(
    bare: BareServer, ours: OurServer, sizes: tuple[int, ...], rounds: int, seconds: float
) -> list[Figure]:
    numbers = itertools.count(1)
    figures: list[Figure] = []
    for size in sizes:
        halls = [await Hall.open(server, ours, size) for server in (bare, ours)]
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds + 1):
            for hall, samples in zip(halls, times, strict=True):
                latencies = await hall.speak(numbers, seconds if number else 0.5)
                if number:
                    samples += latencies
        for hall in halls:
            hall.close()
        readers = f"{size} follower{'s' if size > 1 else ''}"
        figures.append(compare(f"fan-out to {readers}, p50", "ms", *times, most=2))
        figures.append(compare(f"fan-out to {readers}, p99", "ms", *times, most=3, share=0.99))
    return figures


class Hall:
    """A session, its writer and its followers."""

    def __init__(self, server: Server, session: str, writer: Caller, followers: list[Follower]) -> None:
        self._server = server
        self._session = session
        self._writer = writer
        self._followers = followers

    @classmethod
    async def open(cls, server: Server, ours: OurServer, size: int) -> "Hall":
        body = {"harness": "scripted", "workspace": str(ours.workspace), "title": "hall"}
        connection = server.connect()
        session: str = connection.call("POST", "/v1/sessions", body, secrets.token_hex(8))["id"]
        connection.close()
        writer = await dial(server.port)
        followers = [await follow(server.port, server.token, session, 1) for _ in range(size)]
        return cls(server, session, writer, followers)

    async def speak(self, numbers: Iterator[int], seconds: float) -> list[float]:
        """Milliseconds from the writer's first byte to each follower, for each event at 20 a second."""
        loop = asyncio.get_running_loop()
        sent: dict[int, float] = {}
        start = loop.time()
        for tick in range(int(seconds * PER_SECOND)):
            await asyncio.sleep(max(0, start + tick / PER_SECOND - loop.time()))  # the pace itself
            number = next(numbers)
            path, body = f"/v1/sessions/{self._session}", {"title": f"{mark(number)} {PADDING}"}
            request = request_bytes(self._server.token, "PATCH", path, body)
            sent[number] = time.perf_counter()
            await self._writer.call(request)
        last = max(sent)
        limit = loop.time() + 30
        while not all(last in follower.seen for follower in self._followers):
            if loop.time() > limit:
                raise TimeoutError("a follower didn't get the last event within 30 s")
            await asyncio.sleep(0.005)
        return [
            (follower.seen[number] - at) * 1000 for number, at in sent.items() for follower in self._followers
        ]

    def close(self) -> None:
        self._writer.close()
        for follower in self._followers:
            follower.close()
