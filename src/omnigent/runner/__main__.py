"""`python -m omnigent.runner`: forks a runner for each line on stdin, and ends with stdin.

A line is JSON and says where the server is and who the runner is; the answer is `[pid, start time]`. The
runners live on when this process ends. It must stay single-threaded: only what called fork goes on in a fork.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys

import uvloop

from omnigent import processes, reaper
from omnigent.events import JSON
from omnigent.runner.core import Runner


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # runners that ended leave no zombies
    gc.freeze()  # what is imported stays shared with the forks
    for line in sys.stdin.buffer:
        boot = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_runner()
            asyncio.run(_run(boot), loop_factory=uvloop.new_event_loop)
            return
        print(json.dumps([pid, processes.start_time(pid)]), flush=True)


def _become_runner() -> None:
    """Nothing of the parent's: its session, its pipes, its signals."""
    os.setsid()
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reaper.become_subreaper()


async def _run(boot: JSON) -> None:
    loop = asyncio.get_running_loop()
    life = loop.create_task(Runner(boot).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await life


if __name__ == "__main__":
    main()
