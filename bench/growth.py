"""What a long log costs: forking and opening at 100, 10,000 and 100,000 events."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count, islice
from pathlib import Path

from http_calls import JSON, Connection
from measure import Figure, Spread, quantile
from servers import OurServer, scratch

from omnigent import events as ev
from omnigent.events import Draft
from omnigent.ids import new_id, now
from omnigent.log import SqliteLog
from omnigent.views import SessionProjector

MOST_FORK_MS = 5.0
FLAT = 2.0
"""The longest log may cost so many times the shortest …"""
FLAT_MS = 0.5
"""… and so much more, in which the clock and the disk have their say."""
BATCH = 1000
ITEMS, EVENTS = 20, 50
"""What is shown first: so few that the shortest log fills it too."""


def measure_growth(quick: bool) -> list[Figure]:
    sizes = (100, 3_000, 10_000) if quick else (100, 10_000, 100_000)
    rounds = 10 if quick else 40
    with scratch() as place:
        server = OurServer(place / "ours")
        logs, figures = asyncio.run(_in_the_log(server, sizes, rounds))
        return figures + _over_http(server, logs, rounds)


def _turns() -> Iterator[Draft]:
    """Turns of ten events each: a message, an answer, a tool call, its usage."""
    for number in count():
        message, turn, answer, call = (f"{prefix}_{number}" for prefix in ("msg", "turn", "msg_a", "tc"))
        text = (ev.TextPart(text=f"What does part {number} of this repository do? " * 3),)
        requested = ev.ToolRequested(
            tool="Read", title="Read a file", actions=(), parsed="full", raw="{}", native_id=f"call_{number}"
        )
        usage = ev.UsageReported(
            call_id=call, source="harness", scope="call", input_tokens=900, output_tokens=80
        )
        output = ev.Output(text="a line of a file\n" * 10, size=170)
        yield Draft(ev.MessageSubmitted(content=text), message)
        yield Draft(ev.TurnStarted(trigger="prompt", message_id=message), turn_id=turn)
        yield Draft(ev.MessageDelivered(as_="turn"), message, turn_id=turn)
        yield Draft(requested, call, turn_id=turn)
        yield Draft(ev.ToolStarted(), call, turn_id=turn)
        yield Draft(ev.ToolCompleted(outcome="ok", output=output), call, turn_id=turn)
        yield Draft(ev.MessageStarted(), answer, turn_id=turn)
        yield Draft(ev.MessageCompleted(content=text), answer, turn_id=turn)
        yield Draft(usage, turn_id=turn)
        yield Draft(ev.TurnCompleted(), turn_id=turn)


Logs = dict[int, str]
"""Events → the session that has so many."""


async def _in_the_log(server: OurServer, sizes: tuple[int, ...], rounds: int) -> tuple[Logs, list[Figure]]:
    log = SqliteLog(server.home / "omnigent.db", SessionProjector(), now)
    logs: Logs = {}
    for size in sizes:
        logs[size] = session = new_id("ses")
        await log.create(session, [server.created(f"{size} events")])
        drafts = islice(_turns(), size - 1)
        while batch := list(islice(drafts, BATCH)):
            await log.append(session, batch)
    cuts = {size: (await log.read(logs[size], after=size - 1, limit=1))[0].hash for size in sizes}

    async def fork(size: int) -> None:
        body = _forked(logs[size], size, cuts[size], server.workspace)
        await log.fork(logs[size], size, new_id("ses"), [Draft(body)])

    async def fork_back(size: int) -> None:
        body = _forked(logs[size], size // 2, cuts[size], server.workspace)
        await log.fork(logs[size], size // 2, new_id("ses"), [Draft(body)])

    async def open_session(size: int) -> None:
        await log.view(logs[size])
        await log.items(logs[size], limit=ITEMS)
        await log.read(logs[size], newest=True, limit=EVENTS)

    figures = [
        await _alternate("log: fork at the head", fork, sizes, rounds, MOST_FORK_MS),
        await _alternate("log: fork in the middle", fork_back, sizes, rounds, MOST_FORK_MS),
        await _alternate("log: open (view, items, newest page)", open_session, sizes, rounds),
    ]
    await log.close()
    return logs, figures


def _forked(parent: str, at_seq: int, parent_hash: str, workspace: Path) -> ev.SessionForked:
    return ev.SessionForked(
        parent_id=parent,
        at_seq=at_seq,
        parent_hash=parent_hash,
        owner="local",
        title="a fork",
        harness="scripted",
        model="scripted-1",
        provider="messages",
        workspace=str(workspace),
        approvals="ask",
    )


async def _alternate(
    name: str,
    work: Callable[[int], Awaitable[None]],
    sizes: tuple[int, ...],
    rounds: int,
    most_ms: float | None = None,
) -> Figure:
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 3):
        for size in sizes:
            began = time.perf_counter()
            await work(size)
            if number > 2:
                times[size].append((time.perf_counter() - began) * 1000)
    return _flat(name, times, most_ms)


def _over_http(server: OurServer, logs: Logs, rounds: int) -> list[Figure]:
    forks: dict[int, list[float]] = {size: [] for size in logs}
    opens: dict[int, list[float]] = {size: [] for size in logs}
    firsts: dict[int, list[float]] = {size: [] for size in logs}
    body: JSON = {"share_workspace": True}
    for start in range(3):
        server.start()
        try:
            connection = server.connect()
            connection.call(
                "GET", "/v1/sessions?limit=1"
            )  # the first request of a process pays for its imports
            for size in _turned(list(logs), start):
                firsts[size].append(_open(connection, logs[size], size))
            for _ in range(rounds // 3):
                for size, session in logs.items():
                    path = f"/v1/sessions/{session}/fork"
                    forks[size].append(connection.timed("POST", path, body, secrets.token_hex(8)))
                    opens[size].append(_open(connection, session, size))
        finally:
            server.stop()
    return [
        _flat("HTTP: fork (shared workspace)", forks),
        _flat("HTTP: open (session, items, newest page)", opens),
        _flat("HTTP: first open after a server's start", firsts, slack_ms=10),
    ]


def _turned(sizes: list[int], by: int) -> list[int]:
    """So that each size is first once: the first to ask warms what all share."""
    return sizes[by % len(sizes) :] + sizes[: by % len(sizes)]


def _open(connection: Connection, session: str, size: int) -> float:
    path = f"/v1/sessions/{session}"
    return sum(
        connection.timed("GET", f"{path}{more}")
        for more in ("", f"/items?limit={ITEMS}", f"/events?tail={EVENTS}")
    )


def _flat(
    name: str, times: dict[int, list[float]], most_ms: float | None = None, slack_ms: float = FLAT_MS
) -> Figure:
    # Judged by the lower quartile: whoever shares the disk adds to a commit, and nobody takes away from it.
    costs = {size: quantile(samples, 0.25) for size, samples in times.items()}
    shortest, longest = min(times), max(times)
    ratio = costs[longest] / costs[shortest]
    flat = costs[longest] <= FLAT * costs[shortest] + slack_ms
    ok = flat and (most_ms is None or max(costs.values()) <= most_ms)
    target = f"≤ {FLAT:g}×" + ("" if most_ms is None else f", ≤ {most_ms:g} ms")
    steps = ", ".join(f"{size:,}: {Spread.of(times[size]).text('ms')}" for size in times if size != shortest)
    return Figure(
        name, Spread.of(times[shortest]).text("ms"), steps, f"{ratio:.2f}×", target, ok, blocks=True
    )
