"""Which processes there are, who started them, and how to end them. Standard library only, quick to import.

A process is named by its pid *and* its start time, since pids come again. On Linux the facts are from
`/proc`. Elsewhere (macOS) they are from `ps`: slower, start times in whole seconds, and a process whose
parent has ended is no longer found by parentage, only by its marker.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

if sys.platform != "linux":
    import subprocess  # slow to import, and every start of an agent would pay for it

type Process = tuple[int, int]
"""(pid, start time). The start time is opaque: clock ticks since boot on Linux."""

MARKER = "OMNIGENT_RUN"
"""The environment variable that every process of a run inherits; its value is `<session>:<epoch>`."""

_LINUX = sys.platform == "linux"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05


def start_time(pid: int) -> int | None:
    """When the process started; None if there is none that runs (a zombie doesn't)."""
    row = _stat(pid) if _LINUX else _table().get(pid)
    return row[1] if row else None


def alive(pid: int, start: int) -> bool:
    """Whether this very process still runs."""
    return start_time(pid) == start


def descendants(pid: int) -> list[Process]:
    """All running processes below `pid`, parents first.

    One look can miss a process whose parent ends while we look; whoever must be sure looks twice.
    """
    table = _table()
    children: dict[int, list[int]] = {}
    for child, (parent, _) in table.items():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, ())]
        found += frontier
    return [(child, table[child][1]) for child in found]


def ancestry(pid: int) -> list[Process] | None:
    """The process and all above it. None if one of them ended while we looked, and its child moved."""
    found: list[Process] = []
    table = None if _LINUX else _table()
    while pid:
        row = _stat(pid) if table is None else table.get(pid)
        if row is None:
            return None
        found.append((pid, row[1]))
        pid = row[0]
    return found


def carrying(value: str, marker: str = MARKER) -> list[Process]:
    """The processes whose environment, as they were started, has `marker=value`; not this process itself."""
    entry = f"{marker}={value}"
    pids = _carrying_linux(entry.encode()) if _LINUX else _carrying_ps(entry)
    own = os.getpid()
    return [(pid, start) for pid in pids if pid != own and (start := start_time(pid)) is not None]


def kill(processes: Iterable[Process]) -> int:
    """SIGKILL each that still is the process named. The number of those hit."""
    hit = 0
    for pid, start in processes:
        if alive(pid, start):
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
            hit += 1
    return hit


def kill_rounds(find: Callable[[], list[Process]], seconds: float) -> int:
    """Kill what `find` finds until two looks in a row find nothing, or the time is over.

    Blocks. Answers how many processes were killed.
    """
    killed: set[Process] = set()
    deadline = time.monotonic() + seconds
    pause, empty = _FIRST_PAUSE, 0
    while empty < 2 and time.monotonic() < deadline:
        found = find()
        empty = 0 if found else empty + 1
        kill(found)
        killed.update(found)
        if found:
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    return len(killed)


def kill_tree(pid: int, seconds: float = 5.0) -> int:
    """Kill a process and all below it. Blocks until they have ended, at most `seconds`."""
    start = start_time(pid)
    if start is None:
        return 0
    below = descendants(pid)
    kill([(pid, start)])
    return 1 + kill_rounds(lambda: [p for p in {*below, *descendants(pid)} if alive(*p)], seconds)


def kill_carrying(value: str, marker: str = MARKER, seconds: float = 5.0) -> int:
    """Kill all that carry the marker. Blocks until they have ended, at most `seconds`."""
    return kill_rounds(lambda: carrying(value, marker), seconds)


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, start time) from `/proc/<pid>/stat` (proc(5)); after the last `)` come fields 3 and on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie with one thread has ended; with more, only its first thread has.
    if len(fields) < 20 or (fields[0] in b"ZX" and int(fields[17]) <= 1):
        return None
    return int(fields[1]), int(fields[19])


def _table() -> dict[int, tuple[int, int]]:
    """Every running process: pid → (parent, start time)."""
    if not _LINUX:
        return _table_ps()
    rows = ((pid, _stat(pid)) for pid in _pids())
    return {pid: row for pid, row in rows if row}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _carrying_linux(entry: bytes) -> list[int]:
    found: list[int] = []
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                environment = file.read()
        except OSError:
            continue
        if entry in environment and entry in environment.split(b"\0"):
            found.append(pid)
    return found


def _ps(*options: str) -> list[str]:
    if sys.platform == "linux":
        raise NotImplementedError("/proc is read instead")
    ran = subprocess.run(["ps", *options], capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    return ran.stdout.splitlines()


def _table_ps() -> dict[int, tuple[int, int]]:
    table: dict[int, tuple[int, int]] = {}
    for line in _ps("-A", "-o", "pid=,ppid=,state=,lstart="):
        pid, parent, state, started = line.split(None, 3)
        if not state.startswith("Z"):
            table[int(pid)] = int(parent), int(time.mktime(time.strptime(started.strip())))
    return table


def _carrying_ps(entry: str) -> list[int]:
    rows = (line.split() for line in _ps("-A", "-E", "-ww", "-o", "pid=,command="))
    return [int(row[0]) for row in rows if entry in row[1:]]
