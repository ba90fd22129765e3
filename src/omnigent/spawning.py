"""Where runners come from: one process that has everything imported, and forks a runner when asked.

A fork costs some 5 ms, a fresh interpreter with the runner's imports some 300 ms of a core, felt at every
start. The process has no thread, no secret and no session, and ends with the server; the runners it forked
don't.
"""

import asyncio
import contextlib
import errno
import json
import sys
from pathlib import Path

from omnigent.config import child_environment
from omnigent.events import JSON
from omnigent.processes import Process

TRIES = 2
"""One that was killed, or hangs, is noticed only as it is asked; then a new one is."""
ANSWER_SECONDS = 15.0
"""Its own start included."""


class Spawner:
    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self._home = home
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        """One question and its answer at a time."""

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def warm(self) -> None:
        """Have it there before the next runner is wanted."""
        async with self._lock:
            await self._ready()

    async def spawn(self, boot: JSON) -> Process:
        """A new runner, told `boot`. Raises `OSError`."""
        async with self._lock:
            for _ in range(TRIES):
                process = await self._ready()
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(json.dumps(boot).encode() + b"\n")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        if answer := await process.stdout.readline():
                            pid, started = json.loads(answer)
                            return pid, started
                await self._end()
        raise OSError(errno.ECHILD, "it gave no answer; logs/runner.log says why")

    async def cool(self) -> None:
        """Let it go: the next runner pays for its start."""
        async with self._lock:
            await self._end()

    async def _ready(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await self._start()
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it holds nothing, and would otherwise import to the end first
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        logs = self._home / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        with (logs / "runner.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "omnigent.runner",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=child_environment(self._environ),
                start_new_session=True,
            )
