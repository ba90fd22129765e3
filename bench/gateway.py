"""The model gateway over a direct call: what it adds to the first byte, what many streams get through.

Three processes beside this one, which asks: a provider that writes server-sent events, and two gateways
before it, with a meter that grants at once and with one that asks over a Unix socket, as a runner's does. Run
as a program this file is one of them.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from measure import Figure, added, compare
from servers import KEY, free_port, scratch, until

from omnigent.gateway import Gateway
from omnigent.metering import Free, Grant, Meter, ModelCall
from omnigent.providers import Upstream

TOKEN = "bench-placeholder"
STREAMS = 32
PACED_EVENTS_PER_SECOND = 100
"""Of each stream: faster than models speak."""
REQUEST_BYTES = 100_000
"""A conversation some way on, as agents send it with every call."""
WIRE = "anthropic-messages"
DELTA = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": " a few words as they come"},
}
EVENT = f"event: content_block_delta\ndata: {json.dumps(DELTA)}\n\n".encode()
FIRST = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9}}}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":9}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)


def measure_gateway(quick: bool) -> list[Figure]:
    with scratch() as place, _servers(place) as ports:
        return uvloop.run(_measure(ports, 40 if quick else 300, 2 if quick else 7))


async def _measure(ports: dict[str, int], calls: int, rounds: int) -> list[Figure]:
    first: dict[str, list[float]] = {name: [] for name in ports}
    lines = {name: await Line.dial(name, port) for name, port in ports.items()}
    for number in range(calls + 10):
        for name, line in lines.items():
            took, _ = await line.ask(events=1, pause=0)
            if number >= 10:
                first[name].append(took * 1000)
    for line in lines.values():
        line.close()
    paced: dict[str, list[float]] = {name: [] for name in ports}
    flat: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(rounds):
        for name, port in ports.items():
            paced[name].append(await _throughput(name, port, 150, 1 / PACED_EVENTS_PER_SECOND))
            flat[name].append(await _throughput(name, port, 300, 0))
    rate = f"{STREAMS} streams of {PACED_EVENTS_PER_SECOND} events/s"
    return [
        added("first byte", first["direct"], first["free"], 3),
        added("first byte, meter over a socket", first["direct"], first["link"], 3),
        compare(rate, "MB/s", paced["direct"], paced["free"], least=0.7),
        compare(f"{rate}, meter over a socket", "MB/s", paced["direct"], paced["link"], least=0.7),
        compare(f"{STREAMS} streams as fast as they go", "MB/s", flat["direct"], flat["free"]),
    ]


async def _throughput(name: str, port: int, events: int, pause: float) -> float:
    """Megabytes per second of all streams together."""
    lines = [await Line.dial(name, port) for _ in range(STREAMS)]
    began = time.perf_counter()
    sizes = await asyncio.gather(*(line.ask(events, pause) for line in lines))
    took = time.perf_counter() - began
    for line in lines:
        line.close()
    return sum(size for _, size in sizes) / took / 1e6


class Line:
    """A kept connection to the provider, or to a gateway before it."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = "/v1/messages" if name == "direct" else f"/m/{WIRE}/v1/messages"
        self._reader = reader
        self._writer = writer

    @classmethod
    async def dial(cls, name: str, port: int) -> "Line":
        return cls(name, *await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, events: int, pause: float) -> tuple[float, int]:
        """Seconds to the first event, and the answer's bytes."""
        asked = {"model": "m", "stream": True, "max_tokens": 9, "events": events, "pause": pause}
        body = json.dumps({**asked, "messages": ["x" * 1000] * (REQUEST_BYTES // 1000)}).encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: x\r\nx-api-key: {TOKEN}\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        began = time.perf_counter()
        self._writer.write(head.encode() + body)
        await self._reader.readuntil(b"message_start")
        took = time.perf_counter() - began
        size, tail = 0, b""
        while True:
            piece = await self._reader.read(1 << 16)
            if not piece:
                raise ConnectionError("the answer broke off")
            size += len(piece)
            tail = tail[-8:] + piece[-8:]
            if tail.endswith(b"\r\n0\r\n\r\n"):
                return took, size

    def close(self) -> None:
        self._writer.close()


@contextmanager
def _servers(place: Path) -> Generator[dict[str, int]]:
    """Name → port: the provider itself (`direct`), and gateways before it."""
    ports = {name: free_port() for name in ("direct", "free", "link")}
    meter = place / "meter"
    options = {
        "direct": ["--meter", str(meter)],
        "free": ["--upstream", str(ports["direct"])],
        "link": ["--upstream", str(ports["direct"]), "--meter", str(meter)],
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, more in options.items():
            argv = [sys.executable, __file__, "--port", str(ports[name]), *more]
            started.append(subprocess.Popen(argv))
            until(lambda port=ports[name]: _listens(port), 30, f"the start of {name}")
        yield ports
    finally:
        for process in started:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


async def _provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of the provider."""
    while head := await _head(reader):
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        asked = json.loads(await reader.readexactly(int(length.partition(b":")[2])))
        writer.write(HEAD)
        _write(writer, FIRST)
        for number in range(asked["events"]):
            if asked["pause"]:
                await asyncio.sleep(asked["pause"])
            elif number % 16 == 0:
                await writer.drain()
                await asyncio.sleep(0)
            _write(writer, EVENT)
        _write(writer, LAST)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _write(writer: asyncio.StreamWriter, event: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


async def _grant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The other end of a `SocketMeter`."""
    while line := await reader.readline():
        if json.loads(line)["kind"] == "reserve":
            writer.write(b'{"outcome": "granted"}\n')


class SocketMeter(Free):
    """Asks for every call, one after the other as they come, and waits for the answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    async def reserve(self, call: ModelCall) -> Grant:
        self._writer.write(json.dumps({"kind": "reserve", **call.json()}).encode() + b"\n")
        # Answers are all alike and come in the order of the questions.
        async with self._turn:
            await self._reader.readline()
        return Grant("granted")


async def _serve(port: int, upstream: int | None, meter: Path | None) -> None:
    if upstream is None:
        assert meter is not None
        grants = await asyncio.start_unix_server(_grant, meter)
        async with grants, await asyncio.start_server(_provide, "127.0.0.1", port) as server:
            await server.serve_forever()
    one: Meter = Free() if meter is None else SocketMeter(*await asyncio.open_unix_connection(str(meter)))
    listener = socket.create_server(("127.0.0.1", port))
    target = Upstream(WIRE, f"http://127.0.0.1:{upstream}", {"x-api-key": KEY})
    gateway = Gateway(target, TOKEN, listener, one)
    await gateway.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, help="a port; without one this is the provider itself")
    parser.add_argument("--meter", type=Path, help="the Unix socket on which calls are granted")
    chosen = parser.parse_args()
    # The provider is to be cheap; a gateway runs on what a runner runs on.
    run = uvloop.run if chosen.upstream is None else asyncio.run
    run(_serve(chosen.port, chosen.upstream, chosen.meter))
