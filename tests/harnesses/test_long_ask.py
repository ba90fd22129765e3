"""An approval that comes after 150 s of real time, for all real agents at once: they only wait."""

import asyncio
from pathlib import Path

import pytest
from harnesses import test_claude_code, test_codex, test_pi

from omnigent.testing.harness_suite import HarnessSuite

SUITES = (test_claude_code.TestNewest, test_codex.TestNewest, test_pi.TestPi)

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.first, pytest.mark.timeout(400)]


async def test_an_approval_after_150_seconds(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        for suite in SUITES:
            tasks.create_task(hold(suite(), tmp_path / suite.harness))


async def hold(suite: HarnessSuite, place: Path) -> None:
    place.mkdir()
    await suite.check_long_ask(place, 150)
