"""The SQLite log: the suite, and what only a file can do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omnigent.log import Log, Projector, SqliteLog
from omnigent.testing.log_suite import Hands, LogSuite


class TestSqliteLog(LogSuite):
    @pytest.fixture
    async def log(self, tmp_path: Path, projector: Projector, clock: Hands) -> AsyncIterator[Log]:
        log = SqliteLog(tmp_path / "omnigent.db", projector, clock)
        yield log
        await log.close()
