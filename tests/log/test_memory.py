"""The reference log keeps its own promises."""

from collections.abc import AsyncIterator

import pytest

from omnigent.errors import Draining
from omnigent.log import Log, MemoryLog, Projector, TreeProjector
from omnigent.testing.log_suite import Hands, LogSuite, created


class TestMemoryLog(LogSuite):
    slowest_fork = 30.0
    list_growth = 1000.0

    @pytest.fixture
    async def log(self, projector: Projector, trees: TreeProjector, clock: Hands) -> AsyncIterator[Log]:
        log = MemoryLog(projector, clock, trees=trees)
        yield log
        await log.close()

    async def test_a_closed_log_says_so(self, log: Log) -> None:
        await log.create("ses_a", [created()])
        await log.close()
        with pytest.raises(Draining):
            await log.head("ses_a")
