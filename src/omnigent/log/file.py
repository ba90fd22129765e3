"""The database file: who holds it, how it is opened, what is said when it can't be used."""

import fcntl
import os
import sqlite3
from pathlib import Path

from omnigent.errors import HomeUnusable


def open_database(path: Path) -> sqlite3.Connection:
    """A connection for any thread, without transactions of its own; raises `sqlite3.Error`."""
    db = sqlite3.connect(
        path, timeout=5, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -32768")
    db.execute("PRAGMA journal_size_limit = 67108864")
    return db


def take_lock(path: Path) -> int:
    """The file's lock, held as long as the descriptor is open; makes the database private to its user."""
    home = path.parent
    try:
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = f"create it and make it yours: mkdir -p {home} && chmod 700 {home}"
        raise HomeUnusable(f"{home}: {error.strerror}", hint=hint, path=str(home)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace")
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise HomeUnusable(
                f"{home} is in use by process {holder}",
                hint="stop that server (`omnigent server stop`), or choose another OMNIGENT_HOME",
                path=str(home),
            ) from error
        hint = f"make it a file you can write: chmod 600 {path}"
        raise HomeUnusable(f"{path}: {error.strerror}", hint=hint, path=str(path)) from error
    return lock


def unusable(path: Path, error: sqlite3.Error) -> HomeUnusable:
    """The error for people."""
    full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    hint = (
        "free some space on its disk" if full else "check the disk; restore the file from a backup if damaged"
    )
    return HomeUnusable(f"{path}: {error}", hint=hint, path=str(path))
