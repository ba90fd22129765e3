"""Followers that never read their socket: nobody else may notice."""

import asyncio
import itertools
import secrets
import socket
import statistics
import time
from collections.abc import Sequence

from http_calls import JSON, Connection, Follower, follow, mark, request_bytes
from measure import Figure, Spread, quantile
from servers import Model, OurServer, resident_mb, scratch

STALLED = 10
LARGE = "0123456789abcdef" * 4096
"""64 kB: a few of them fill every buffer on the way to a socket that isn't read."""
MOST = 1.5
"""So many times what it takes without them …"""
SLACK_MS = 3.0
"""… and so much more: the machine's own unrest."""
SCRIPT: JSON = {
    "turns": [
        {"match": "hold", "steps": [{"hang": True}]},
        {"steps": [{"text": "A line of what an agent says while it works. " * 600}]},
    ]
}


def measure_stalled(quick: bool) -> list[Figure]:
    with scratch() as place:
        model = Model(place, SCRIPT)
        server = OurServer(place / "ours", model.url)
        server.start()
        try:
            return asyncio.run(_followers(server, 30 if quick else 100)) + asyncio.run(
                _agent(server, 4 if quick else 12)
            )
        finally:
            server.stop()
            model.close()


class Deaf:
    """Connections that ask for a stream and read nothing, with the smallest buffer the system gives."""

    def __init__(self, server: OurServer, session: str, after: int) -> None:
        path = f"/v1/sessions/{session}/events?after={after}"
        self._sockets: list[socket.socket] = []
        for _ in range(STALLED):
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.connect(("127.0.0.1", server.port))
            one.sendall(request_bytes(server.token, "GET", path, stream=True))
            self._sockets.append(one)

    def close(self) -> None:
        for one in self._sockets:
            one.close()


async def _followers(server: OurServer, count: int) -> list[Figure]:
    """Large events (edits of a message in the queue) to a session with and one without deaf followers."""
    connection = server.connect()
    quiet, deaf = _hall(connection, server), _hall(connection, server)
    sockets = Deaf(server, deaf[0], 1)
    readers = [
        await follow(server.port, server.token, session, _head(connection, session))
        for session, _ in (quiet, deaf)
    ]
    before = resident_mb(server.pid)
    times: tuple[list[float], list[float]] = ([], [])
    posts: tuple[list[float], list[float]] = ([], [])
    for number in itertools.islice(itertools.count(1), count + 10):
        for (session, message), reader, samples, calls in zip(
            (quiet, deaf), readers, times, posts, strict=True
        ):
            sent, posted = _edit(connection, session, message, number)
            latency = (await _seen(reader, number) - sent) * 1000
            if number > 10:  # by then their buffers are full
                samples.append(latency)
                calls.append(posted)
    grown = resident_mb(server.pid) - before
    for reader in readers:
        reader.close()
    sockets.close()
    for session, _ in (quiet, deaf):
        _command(connection, session, {"type": "close"})
    connection.close()
    sent_mb = len(LARGE) * (count + 10) / 1e6
    told = f"after {sent_mb:.0f} MB to each of {STALLED} that never read"
    memory = Figure("server's memory grew by", "", f"{grown:.0f} MB", told, "")
    return [
        _unmoved(f"64 kB event to a reader beside {STALLED} deaf ones, p50", *times, 0.5),
        _unmoved(f"64 kB event to a reader beside {STALLED} deaf ones, p90", *times, 0.9),
        _unmoved(f"append of it beside {STALLED} deaf ones, p50", *posts, 0.5),
        memory,
    ]


def _hall(connection: Connection, server: OurServer) -> tuple[str, str]:
    """A session whose turn never ends, and a message that waits behind it."""
    body = {"harness": "scripted", "workspace": str(server.workspace), "prompt": "hold"}
    session: str = connection.call("POST", "/v1/sessions", body, secrets.token_hex(8))["id"]
    queued = _command(connection, session, {"type": "prompt", "text": "wait"})
    return session, queued["message_id"]


def _command(connection: Connection, session: str, body: JSON) -> JSON:
    body = {**body, "idempotency_key": secrets.token_hex(8)}
    return connection.call("POST", f"/v1/sessions/{session}/commands", body)


def _head(connection: Connection, session: str) -> int:
    return connection.call("GET", f"/v1/sessions/{session}/events?tail=1")["head_seq"]


def _edit(connection: Connection, session: str, message: str, number: int) -> tuple[float, float]:
    """(when it was sent, how many ms its answer took)."""
    content = [{"type": "text", "text": f"{mark(number)} {LARGE}"}]
    body = {
        "type": "edit",
        "message_id": message,
        "content": content,
        "idempotency_key": secrets.token_hex(8),
    }
    sent = time.perf_counter()
    return sent, connection.timed("POST", f"/v1/sessions/{session}/commands", body)


async def _seen(reader: Follower, number: int) -> float:
    limit = time.monotonic() + 30
    while number not in reader.seen:
        if time.monotonic() > limit:
            raise TimeoutError(f"event {number} didn't reach a reader within 30 s")
        await asyncio.sleep(0)
    return reader.seen[number]


async def _agent(server: OurServer, count: int) -> list[Figure]:
    """Whole turns of an agent that streams, on a session with and without deaf followers."""
    connection = server.connect()
    body = {"harness": "scripted", "workspace": str(server.workspace)}
    sessions = [connection.call("POST", "/v1/sessions", body, secrets.token_hex(8))["id"] for _ in range(2)]
    sockets = Deaf(server, sessions[1], 1)
    ends: list[list[float]] = [[], []]
    readers = [
        await follow(server.port, server.token, session, 1, _turn_ends(seen))
        for session, seen in zip(sessions, ends, strict=True)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(count + 2):
        for session, seen, samples in zip(sessions, ends, times, strict=True):
            began, done = time.perf_counter(), len(seen)
            _command(connection, session, {"type": "prompt", "text": "speak"})
            limit = time.monotonic() + 60
            while len(seen) == done:
                if time.monotonic() > limit:
                    raise TimeoutError("a turn didn't end within 60 s")
                await asyncio.sleep(0.001)
            if number > 1:
                samples.append((seen[-1] - began) * 1000)
    for reader in readers:
        reader.close()
    sockets.close()
    for session in sessions:
        _command(connection, session, {"type": "close"})
    connection.close()
    return [_unmoved(f"an agent's turn beside {STALLED} deaf followers, p50", *times, 0.5)]


def _turn_ends(seen: list[float]):
    def look(data: bytes, at: float) -> None:
        if b'"kind":"turn.completed"' in data:
            seen.append(at)

    return look


def _unmoved(name: str, quiet: Sequence[float], deaf: Sequence[float], share: float) -> Figure:
    """Whether the deaf cost more than the machine's unrest."""
    if share == 0.5:
        bare, ours = statistics.median(quiet), statistics.median(deaf)
        texts = Spread.of(quiet).text("ms"), Spread.of(deaf).text("ms")
    else:
        bare, ours = quantile(quiet, share), quantile(deaf, share)
        texts = f"{bare:.1f} ms", f"{ours:.1f} ms"
    ok = ours <= MOST * bare + SLACK_MS
    return Figure(name, *texts, f"{ours / bare:.2f}×", f"≤ {MOST:g}× + {SLACK_MS:g} ms", ok, blocks=True)
