"""`python -m omnigent.runner`: one JSON line on stdin says where the server is and who we are."""

import asyncio
import contextlib
import json
import signal
import sys

import uvloop

from omnigent import reaper
from omnigent.runner.core import Runner


async def _main() -> None:
    loop = asyncio.get_running_loop()
    life = loop.create_task(Runner(json.loads(sys.stdin.readline())).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await life


if __name__ == "__main__":
    reaper.become_subreaper()
    asyncio.run(_main(), loop_factory=uvloop.new_event_loop)
