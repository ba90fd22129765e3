"""The memory: one append-only log per session, and the few rows derived from it.

`Log` (in `contract`) is the promise, `LogSuite` in `omnigent.testing.log_suite` its meaning, executable.
`MemoryLog` is the reference, `SqliteLog` the default.
"""

from pathlib import Path

from omnigent.ids import Clock
from omnigent.log.contract import (
    Appended,
    CommandRecord,
    ItemRow,
    Lease,
    ListQuery,
    Log,
    Projector,
    TreeProjector,
    UsageBy,
    View,
)
from omnigent.log.memory import MemoryLog
from omnigent.log.sqlite import SqliteLog

__all__ = [
    "Appended",
    "CommandRecord",
    "ItemRow",
    "Lease",
    "ListQuery",
    "Log",
    "MemoryLog",
    "Projector",
    "SqliteLog",
    "TreeProjector",
    "UsageBy",
    "View",
    "open_log",
]


def open_log(home: Path, projector: Projector, clock: Clock, *, trees: TreeProjector | None = None) -> Log:
    """The SQLite log in `home/omnigent.db`. Raises `HomeUnusable`, or `NewerHome` for a newer schema."""
    return SqliteLog(home / "omnigent.db", projector, clock, trees=trees)
