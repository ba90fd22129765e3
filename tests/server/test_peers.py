"""Who asks: processes of an agent are refused whatever token they hold, and that is seen; people are not."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from omnigent import processes
from omnigent.ids import new_id
from omnigent.log import Lease
from omnigent.server import peers as peers_module
from omnigent.server.peers import Address, Peer, Peers
from omnigent.server.refusals import PER_MINUTE

from .conftest import Served

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who asks"),
]

ASK = """
import http.client, json, os, sys
host, port, token, out, requests = sys.argv[1:6]
answers = []
link = http.client.HTTPConnection(host, int(port), timeout=20)
for method, path, body, headers in json.loads(requests):
    own = {"Authorization": "Bearer " + token, "Idempotency-Key": os.urandom(8).hex()}
    link.request(method, path, None if body is None else json.dumps(body), own | headers)
    answer = link.getresponse()
    answers.append([answer.status, answer.read().decode()])
with open(out + ".part", "w") as file:
    json.dump(answers, file)
os.rename(out + ".part", out)
"""
DETACH = """
import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.run(sys.argv[1:])
    os._exit(0)
os.wait()
"""
"""A double fork and a session of its own: whoever started it is no longer its parent."""


@contextmanager
def runner(*, reaped: bool = True) -> Generator[subprocess.Popen[bytes]]:
    """A process that stands for a runner, with a reaper below it as a real one has, that starts what it is
    told: one JSON line of argv, then environment."""
    code = """
import json, os, socket, subprocess, sys
from omnigent import reaper
reaper.become_subreaper()
ours, theirs = socket.socketpair()
for line in sys.stdin:
    argv, environment = json.loads(line)
    if json.loads(os.environ["REAPED"]):
        argv = reaper.command(theirs.fileno(), argv)
    subprocess.Popen(argv, env=os.environ | environment, pass_fds=[theirs.fileno()])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        env=os.environ | {"REAPED": json.dumps(reaped)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        processes.kill_tree(process.pid)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


Request = tuple[str, str, Any, dict[str, str]]
"""Method, path, body, headers."""


async def eventually(look: Callable[[], object]) -> None:
    limit = time.monotonic() + 25
    while not look():
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


class House:
    """A served house with one session whose runner is `process`."""

    def __init__(self, served: Served, session: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        self.served, self.session_id, self.process = served, session["id"], process

    def asking(self, out: Path, requests: list[Request]) -> list[str]:
        host, port = self.served.url.removeprefix("http://").split(":")
        wanted = [[method, path, body, headers] for method, path, body, headers in requests]
        return [sys.executable, "-S", "-c", ASK, host, port, self.served.token, str(out), json.dumps(wanted)]

    async def all_from_inside(
        self, requests: list[Request], through: tuple[str, ...] = (), environ: dict[str, str] | None = None
    ) -> list[tuple[int, Any]]:
        """What an agent's process gets for them, all on one connection."""
        out = self.served.workspace / new_id("cmd")
        argv = [*through, *self.asking(out, requests)]
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([argv, environ or {}]).encode() + b"\n")
        self.process.stdin.flush()
        await eventually(out.exists)
        answers = json.loads(out.read_text())
        return [(status, json.loads(text) if text[:1] == "{" else text) for status, text in answers]

    async def from_inside(
        self, method: str, path: str, body: Any = None, *, through: tuple[str, ...] = (), **more: Any
    ) -> tuple[int, Any]:
        request: Request = (method, path, body, more.get("headers", {}))
        (answer,) = await self.all_from_inside([request], through, more.get("environ"))
        return answer

    async def refused(self, session_id: str | None = None) -> list[dict[str, Any]]:
        path = f"/v1/sessions/{session_id or self.session_id}/events?kinds=access.refused"
        return [event["body"] for event in (await self.served.ask("GET", path))[1]["events"]]


@asynccontextmanager
async def housed(served: Served, *, reaped: bool = True) -> AsyncGenerator[House]:
    session = await served.session()
    with runner(reaped=reaped) as process:
        started = processes.start_time(process.pid)
        assert started is not None
        epoch = await served.sessions.log.take_epoch(session["id"])
        await served.sessions.log.put_lease(
            Lease(session["id"], epoch, new_id("run"), process.pid, started, "0" * 64)
        )
        yield House(served, session, process)


@pytest.fixture
async def house(served: Served) -> AsyncGenerator[House]:
    async with housed(served) as found:
        yield found


PERSON_ONLY: list[tuple[str, str, Any]] = [
    *(
        ("POST", "/v1/sessions/{id}/commands", {"idempotency_key": "k1", **command})
        for command in (
            {"type": "resolve", "approval_id": "ap_1", "decision": "allow"},
            {"type": "answer", "question_id": "q_1", "values": [["x"]]},
            {"type": "set_budget", "cap_usd": None},
            {"type": "set_policies", "remove": ["everything"]},
            {"type": "revoke_grant", "grant_id": "gr_1"},
            {"type": "resume"},
            {"type": "prompt", "text": "do it"},
        )
    ),
    ("PATCH", "/v1/sessions/{id}", {"title": "mine"}),
    ("DELETE", "/v1/sessions/{id}", None),
    ("POST", "/v1/devices", {"name": "mine"}),
    ("DELETE", "/v1/devices/dev_1", None),
    ("POST", "/v1/server/drain", {}),
    ("GET", "/v1/inbox", None),
    ("GET", "/v1/sessions/{id}/events", None),
]


async def test_an_agents_process_is_refused(house: House) -> None:
    asked: list[Request] = [(m, path.format(id=house.session_id), body, {}) for m, path, body in PERSON_ONLY]
    for (method, path, _, _), (status, problem) in zip(
        asked, await house.all_from_inside(asked), strict=True
    ):
        assert (status, problem["code"]) == (403, "forbidden"), (method, path)
        assert house.served.token not in json.dumps(problem)
    told = await house.refused()
    words = [
        f"{method} {path}" + (f" {body['type']}" if path.endswith("commands") else "")
        for method, path, body, _ in asked
    ]
    assert [row["what"] for row in told] == words
    assert all(row["program"].startswith("python") and row["pid"] for row in told)
    _, page = await house.served.ask("GET", f"/v1/sessions/{house.session_id}/items")
    notices = [item["code"] for item in page["items"] if item["type"] == "notice"]
    assert notices == ["access_refused"] * len(asked)
    assert house.served.stopped == []
    assert (await house.served.ask("GET", f"/v1/sessions/{house.session_id}"))[1]["title"] == ""


async def test_a_person_is_let_in_while_agents_run(house: House) -> None:
    assert (await house.served.ask("PATCH", f"/v1/sessions/{house.session_id}", {"title": "x"}))[0] == 200
    out = house.served.workspace / "person"
    process = await asyncio.create_subprocess_exec(*house.asking(out, [("GET", "/v1/inbox", None, {})]))
    assert await asyncio.wait_for(process.wait(), 25) == 0
    assert json.loads(out.read_text())[0][0] == 200
    assert await house.refused() == []


STAYS = ("sh", "-c", '"$@"; exec sleep 60', "sh")
"""The agent itself goes on; else its reaper ends what it left behind."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "through",
    [("sh", "-c", '"$@" & wait', "sh"), ("nohup", "setsid", "-f"), (sys.executable, "-c", DETACH)],
    ids=["sh", "nohup setsid", "double fork"],
)
async def test_a_way_around_by_forks(house: House, through: tuple[str, ...]) -> None:
    status, _ = await house.from_inside("GET", "/v1/inbox", through=(*STAYS, *through))
    assert status == 403
    assert len(await house.refused()) == 1


@pytest.mark.slow
async def test_the_marker_tells_when_parentage_does_not(served: Served) -> None:
    """The lease is gone, and the runner with it: what it started still carries the marker."""
    async with housed(served) as house:
        await served.sessions.log.drop_lease(house.session_id, 1)
        assert await served.sessions.log.leases() == []
        marker = {processes.MARKER: f"{house.session_id}:1"}
        assert (await house.from_inside("GET", "/v1/inbox", environ=marker))[0] == 200
        (served.home / "run" / house.session_id).mkdir(parents=True)
        assert (await house.from_inside("GET", "/v1/inbox", environ=marker))[0] == 403
        elsewhere = {processes.MARKER: "ses_of_another_home:1"}
        assert (await house.from_inside("GET", "/v1/inbox", environ=elsewhere))[0] == 200
        without = (*STAYS, "env", "-u", processes.MARKER)
        assert (await house.from_inside("GET", "/v1/inbox", environ=marker, through=without))[0] == 403


@pytest.mark.slow
async def test_an_address_in_a_header_is_no_way_in(house: House) -> None:
    asked: list[Request] = [
        ("GET", "/v1/inbox", None, {"X-Forwarded-For": name, "Forwarded": f"for={name}"})
        for name in ("127.0.0.1", "203.0.113.9", "127.0.0.1:1")
    ]
    assert [status for status, _ in await house.all_from_inside(asked)] == [403] * 3


@pytest.mark.slow
async def test_another_session_named_sees_it_too(house: House) -> None:
    other = await house.served.session()
    command = {"type": "interrupt", "idempotency_key": "k"}
    status, _ = await house.from_inside("POST", f"/v1/sessions/{other['id']}/commands", command)
    assert status == 403
    assert len(await house.refused()) == len(await house.refused(other["id"])) == 1
    status, _ = await house.from_inside("POST", "/v1/sessions/ses_nothere/commands", command)
    assert status == 403
    assert len(await house.refused()) == 2


@pytest.mark.slow
async def test_the_log_is_not_flooded(house: House) -> None:
    await house.all_from_inside([("GET", "/v1/inbox", None, {})] * 10)
    assert len(await house.refused()) == 1
    await house.all_from_inside([("GET", f"/v1/blobs/{n}", None, {}) for n in range(40)])
    assert len(await house.refused()) == PER_MINUTE


async def test_without_a_token_it_is_unauthorized_and_public_is_public(house: House) -> None:
    asked: list[Request] = [
        ("GET", "/v1/inbox", None, {"Authorization": "Bearer wrong"}),
        ("GET", "/healthz", None, {}),
    ]
    assert [status for status, _ in await house.all_from_inside(asked)] == [401, 200]
    assert await house.refused() == []


# The peer of a connection, by itself.


@asynccontextmanager
async def accepted(family: int, host: str, reach: str) -> AsyncGenerator[tuple[Any, Any, socket.socket]]:
    """(client's address, server's, the client's socket) of one connection."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        listener.listen()
        with socket.socket(family) as client:
            client.connect((reach, listener.getsockname()[1]))
            server, address = listener.accept()
            with server:
                yield address[:2], server.getsockname()[:2], client


async def nobody() -> list[Lease]:
    return []


@pytest.mark.parametrize(
    ("family", "host", "reach"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "127.0.0.1", "::ffff:127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
    ],
)
@pytest.mark.parametrize("find", ["ask_kernel", "read_tables"])
async def test_the_process_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: str, family: int, host: str, reach: str
) -> None:
    """Both ways to find a socket, each without the other."""

    def knows_nothing(client: Address, server: Address) -> None:
        return None

    for other in {"ask_kernel", "read_tables"} - {find}:
        monkeypatch.setattr(peers_module, other, knows_nothing)
    async with accepted(family, host, reach) as (client, server, _):
        peer = await Peers(tmp_path, nobody).of(client, server)
        assert (peer.where, peer.pid) == ("outside", os.getpid())


async def test_a_peer_that_is_gone(tmp_path: Path) -> None:
    async with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, server, connection):
        connection.close()
        assert await Peers(tmp_path, nobody).of(client, server) == Peer("gone")
    assert await Peers(tmp_path, nobody).of(("127.0.0.1", 1), ("127.0.0.1", 2)) == Peer("gone")
    assert await Peers(tmp_path, nobody).of(("203.0.113.9", 1), ("127.0.0.1", 2)) == Peer("gone")
    assert await Peers(tmp_path, nobody).of(None, None) == Peer("gone")


async def test_one_look_per_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    looked = Peers.look

    def counted(self: Peers, *arguments: Any) -> Peer:
        nonlocal looks
        looks += 1
        return looked(self, *arguments)

    monkeypatch.setattr(Peers, "look", counted)
    peers = Peers(tmp_path, nobody)
    async with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, server, _):
        for _ in range(5):
            await peers.of(client, server)
        assert looks == 1
        again = (client[0], client[1])  # another connection from the same port
        await peers.of(again, server)
        assert looks == 2


async def test_one_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel of sshd's belongs to the person and can't be looked into: it comes in. When an agent has such
    a process, it doesn't. (What the kernel lets one read is played: root, who may run this, reads all.)"""
    opened = peers_module.has_open
    with runner(reaped=False) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps([["sleep", "60"], {}]).encode() + b"\n")
        process.stdin.flush()
        await eventually(lambda: processes.descendants(process.pid))
        below = processes.descendants(process.pid)
        started = processes.start_time(process.pid)
        assert started is not None
        lease = Lease("ses_x", 1, "run_x", process.pid, started, "0" * 64)

        async def leases() -> list[Lease]:
            return [lease]

        def seen(pid: int, link: str) -> bool:
            return pid != os.getpid() and opened(pid, link)

        def readable(path: str, mode: int) -> bool:
            return int(path.split("/")[2]) not in shut

        shut: set[int] = set()
        monkeypatch.setattr(peers_module, "has_open", seen)
        monkeypatch.setattr(os, "access", readable)
        async with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, server, _):
            assert (await Peers(tmp_path, leases).of(client, server)).where == "outside"
        shut.update(pid for pid, _ in below)
        async with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, server, _):
            peer = await Peers(tmp_path, leases).of(client, server)
            assert (peer.where, peer.session_id) == ("inside", "ses_x") and peer.pid in shut
