"""Which process is at the other end of a connection of this machine, and whether an agent of ours started it.

An agent without a sandbox runs as the person does and can read the person's token; what it can't do is shed
its runner as an ancestor. Runners and reapers are subreapers, so a double fork or a new session doesn't help;
a process whose reaper is gone still carries the marker of its run. Linux only (`/proc`); elsewhere nobody is
told apart, which SECURITY.md says.
"""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omnigent import processes
from omnigent.log import Lease

Address = tuple[str, int]
Leases = Callable[[], Awaitable[Iterable[Lease]]]

REMEMBERED = 1000
"""Connections whose peer is remembered, the newest."""
LOOKS = 3
"""How often a peer is looked for: processes come and go meanwhile."""
_MARK = f"{processes.MARKER}=".encode()


@dataclass(frozen=True, slots=True)
class Peer:
    """`inside`: a process of an agent. `gone`: ours, but nobody holds the connection any more. `outside`: all
    others, those that can't be looked into included (a tunnel of sshd's, another user's)."""

    where: Literal["inside", "gone", "outside"]
    pid: int | None = None
    program: str = ""
    session_id: str | None = None
    """Whose agent it is of."""


@dataclass(frozen=True, slots=True)
class _Socket:
    inode: int
    """0: no process has it open."""
    uid: int


class Peers:
    """Looks once per connection."""

    def __init__(self, home: Path, leases: Leases) -> None:
        self._home = home
        self._leases = leases
        self._known: dict[Address, tuple[Address, Peer]] = {}

    async def of(self, client: Address | None, server: Address | None) -> Peer:
        """`client` must be the very object that the server made for the connection: it stands for it, since
        a port comes again."""
        if sys.platform != "linux":
            return Peer("outside")
        if client is None or server is None or not _loopback(client[0]):
            return Peer("gone")
        known = self._known.get(client)
        if known is not None and known[0] is client:
            return known[1]
        runners = {(lease.pid, lease.pid_started): lease.session_id for lease in await self._leases()}
        peer = await asyncio.to_thread(self.look, client, server, runners)
        self._known.pop(client, None)
        self._known[client] = client, peer
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return peer

    def look(self, client: Address, server: Address, runners: dict[processes.Process, str]) -> Peer:
        for _ in range(LOOKS):
            found = _find_socket(client, server)
            if found is None:
                continue
            pid = _holder(found.inode)
            if pid is not None:
                session_id = self._above(pid, runners)
                if session_id is not None:
                    return Peer("inside", pid, _program(pid), session_id or None)
                if processes.start_time(pid) is not None:
                    return Peer("outside", pid, _program(pid))
            elif _find_socket(client, server) == found:  # held by one that we may not look into
                return self._hidden(found.uid, runners)
        return Peer("gone")

    def _above(self, pid: int, runners: dict[processes.Process, str]) -> str | None:
        """The session whose agent the process is of; `""` if that can't be told; None if of none."""
        for _ in range(LOOKS):
            line = processes.ancestry(pid)
            for process in line or ():
                if (session_id := runners.get(process) or marked(self._home, process[0])) is not None:
                    return session_id
            if line is not None:
                return None
        return "" if processes.start_time(pid) is not None else None

    def _hidden(self, uid: int, runners: dict[processes.Process, str]) -> Peer:
        """A process that may not be looked into holds the connection: if an agent has such a one of that
        user, it may be that."""
        for (runner, _), session_id in runners.items():
            for pid, _ in processes.descendants(runner):
                if not os.access(f"/proc/{pid}/fd", os.R_OK) and uid in _users(pid):
                    return Peer("inside", pid, _program(pid), session_id)
        return Peer("outside")


def started_by_agent(home: Path) -> str | None:
    """The session of this home whose agent started this very process, if one did."""
    if sys.platform != "linux":
        return None
    line = processes.ancestry(os.getpid()) or [(os.getpid(), 0)]
    return next((found for pid, _ in line if (found := marked(home, pid)) is not None), None)


def marked(home: Path, pid: int) -> str | None:
    """The session that a process's environment names, if it is one of this home."""
    entries = _read(f"/proc/{pid}/environ").split(b"\0")
    value = next((entry[len(_MARK) :] for entry in entries if entry.startswith(_MARK)), b"")
    session_id = value.decode(errors="replace").rpartition(":")[0]
    ours = session_id.isidentifier() and (home / "run" / session_id).is_dir()
    return session_id if ours else None


def _loopback(host: str) -> bool:
    return host in ("::1", "localhost") or host.removeprefix("::ffff:").startswith("127.")


def _find_socket(client: Address, server: Address) -> _Socket | None:
    """The client's end of the connection; None if there is none any more, or it is nobody's."""
    found = ask_kernel(client, server) or read_tables(client, server)
    return found if found is not None and found.inode else None


_REQUEST = struct.Struct("=IHHII BBBBI")
"""A netlink header, then the head of `inet_diag_req_v2` (sock_diag(7)); the socket's addresses follow."""
_SOCK_DIAG, _BY_FAMILY, _ANY_COOKIE = 4, 20, b"\xff" * 8


def ask_kernel(client: Address, server: Address) -> _Socket | None:
    """By its two ends, in microseconds; None if it doesn't know of it, or of such questions. It takes an IPv4
    connection through a socket for IPv6 for what it is."""
    wide = ":" in client[0].removeprefix("::ffff:")
    family = socket.AF_INET6 if wide else socket.AF_INET
    hosts = (socket.inet_pton(family, _host(address, wide)).ljust(16, b"\0") for address in (client, server))
    ends = struct.pack(">HH", client[1], server[1]) + b"".join(hosts) + bytes(4) + _ANY_COOKIE
    size = _REQUEST.size + len(ends)
    head = _REQUEST.pack(size, _BY_FAMILY, 1, 1, 0, family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asked:
            asked.settimeout(1)
            asked.sendto(head + ends, (0, 0))
            told = asked.recv(4096)
    except OSError:
        return None
    if len(told) < 88 or struct.unpack_from("=H", told, 4)[0] != _BY_FAMILY:
        return None
    # 16 bytes of header, 4 of states, 48 of ends, three numbers; then user and inode
    uid, inode = struct.unpack_from("=II", told, 80)
    return _Socket(inode, uid)


def read_tables(client: Address, server: Address) -> _Socket | None:
    """The same from the tables in /proc, which takes milliseconds."""
    for name, wide, mapped in (("tcp", False, False), ("tcp6", True, False), ("tcp6", True, True)):
        row = f" {_hex(client, wide, mapped)} {_hex(server, wide, mapped)} ".encode()
        table = _read(f"/proc/net/{name}")
        if (at := table.find(row)) >= 0:
            # local, remote, state, queues, timer, retransmits, uid, timeout, inode (proc(5))
            fields = table[at : at + 200].split(None, 9)
            return _Socket(int(fields[8]), int(fields[6]))
    return None


def _host(address: Address, wide: bool) -> str:
    host = address[0].removeprefix("::ffff:")
    if wide:
        return host if ":" in host else "::1"
    return "127.0.0.1" if ":" in host else host


def _hex(address: Address, wide: bool, mapped: bool) -> str:
    """As the kernel writes it: words of four bytes, each in the machine's order. A program may have made a
    socket for IPv6 and reach 127.0.0.1 through it."""
    if wide and not mapped:
        packed = socket.inet_pton(socket.AF_INET6, _host(address, wide=True))
    else:
        packed = socket.inet_aton(_host(address, wide=False))
        packed = bytes(10) + b"\xff\xff" + packed if mapped else packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"


def _holder(inode: int) -> int | None:
    """Who has the socket open. The newest process first: most clients have just been started."""
    link = f"socket:[{inode}]"
    return next((pid for pid in _newest_first() if has_open(pid, link)), None)


def _newest_first() -> Iterator[int]:
    """All processes; this one, whose own connections are many, last."""
    own = os.getpid()
    pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)  # noqa: PTH208
    yield from (pid for pid in pids if pid != own)
    yield own


def has_open(pid: int, link: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):  # noqa: PTH208
            with suppress(FileNotFoundError):
                if os.readlink(f"{folder}/{name}") == link:  # noqa: PTH115
                    return True
    except OSError:
        return False  # it has ended, or isn't ours
    return False


def _program(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def _users(pid: int) -> set[int]:
    """Real, effective, saved and file system user of a process."""
    lines = _read(f"/proc/{pid}/status").splitlines()
    row = next((line for line in lines if line.startswith(b"Uid:")), b"Uid:")
    return {int(word) for word in row.split()[1:]}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
