"""The server's verbs, one call at a time and with 50 writers at once."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable

from http_calls import JSON, Caller, Connection, dial, request_bytes
from measure import Figure, compare
from servers import BareServer, OurServer, Server, scratch

SESSIONS = 10_000
TITLE = "what a person might say to an agent, in a line or so; " * 6
"""The body of the appended event: some 350 bytes with its envelope's share."""
WRITERS = 50


def measure_verbs(quick: bool) -> list[Figure]:
    with scratch() as place:
        bare, ours = BareServer(place / "bare"), OurServer(place / "ours")
        sessions = 2000 if quick else SESSIONS
        for server in (bare, ours):
            server.fill(sessions)
            server.start()
        try:
            return _verbs(bare, ours, 40 if quick else 300, sessions) + asyncio.run(
                _writers(bare, ours, 2 if quick else 8)
            )
        finally:
            bare.stop()
            ours.stop()


def _verbs(bare: BareServer, ours: OurServer, count: int, sessions: int) -> list[Figure]:
    pairs = [(server.connect(), _create(server.connect(), ours)) for server in (bare, ours)]
    for connection, session in pairs:
        for _ in range(250):
            connection.call("PATCH", f"/v1/sessions/{session}", {"title": TITLE})
    numbers = itertools.count()

    def create(connection: Connection, _: str) -> float:
        return connection.timed("POST", "/v1/sessions", _session(ours, "new"), secrets.token_hex(8))

    def append(connection: Connection, session: str) -> float:
        body = {"title": f"{next(numbers)} {TITLE}"}
        return connection.timed("PATCH", f"/v1/sessions/{session}", body)

    def page(connection: Connection, session: str) -> float:
        return connection.timed("GET", f"/v1/sessions/{session}/events?after=0&limit=200")

    def listed(connection: Connection, _: str) -> float:
        return connection.timed("GET", "/v1/sessions?limit=20")

    return [
        _alternate("create a session", create, pairs, count, 4),
        _alternate("append one event (PATCH title)", append, pairs, count, 3),
        _alternate("page of 200 events", page, pairs, count, 3),
        _alternate(f"list 20 of {sessions:,} sessions", listed, pairs, count, 3),
    ]


def _alternate(
    name: str,
    verb: Callable[[Connection, str], float],
    pairs: list[tuple[Connection, str]],
    count: int,
    most: float,
) -> Figure:
    """A B A B …, and the first twenty of each for nothing."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(count + 20):
        for pair, samples in zip(pairs, times, strict=True):
            took = verb(*pair)
            if number >= 20:
                samples.append(took)
    return compare(name, "ms", *times, most=most)


def _session(ours: OurServer, title: str) -> JSON:
    return {"harness": "scripted", "workspace": str(ours.workspace), "title": title}


def _create(connection: Connection, ours: OurServer) -> str:
    return connection.call("POST", "/v1/sessions", _session(ours, "one"), secrets.token_hex(8))["id"]


async def _writers(bare: BareServer, ours: OurServer, rounds: int) -> list[Figure]:
    """50 connections, each appending to a session of its own as fast as it is answered."""
    rates: tuple[list[float], list[float]] = ([], [])
    crews = [await _crew(server, ours) for server in (bare, ours)]
    for number in range(rounds + 1):
        for (server, writers), samples in zip(crews, rates, strict=True):
            rate = await _rate(server, writers)
            if number:
                samples.append(rate)
    for _, writers in crews:
        for caller, _ in writers:
            caller.close()
    return [compare(f"{WRITERS} concurrent writers", "events/s", *rates, least=0.5)]


async def _crew(server: Server, ours: OurServer) -> tuple[Server, list[tuple[Caller, str]]]:
    connection = server.connect()
    sessions = [_create(connection, ours) for _ in range(WRITERS)]
    connection.close()
    return server, [(await dial(server.port), session) for session in sessions]


async def _rate(server: Server, writers: list[tuple[Caller, str]], each: int = 20) -> float:
    async def write(caller: Caller, session: str) -> None:
        request = request_bytes(server.token, "PATCH", f"/v1/sessions/{session}", {"title": TITLE})
        for _ in range(each):
            await caller.call(request)

    began = time.perf_counter()
    await asyncio.gather(*(write(*writer) for writer in writers))
    return len(writers) * each / (time.perf_counter() - began)
