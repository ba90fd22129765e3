"""A writer to be killed: appends to the home given as its argument and prints what was acknowledged.

One line per acknowledged append: session, producer, first producer_seq, its events' last seq.
"""

import asyncio
import os
import random
import sys
from contextlib import suppress
from pathlib import Path

from omnigent.errors import Conflict
from omnigent.ids import new_id, now
from omnigent.log import Log, open_log
from omnigent.testing.log_suite import SuiteProjector, asked, created, resolved, said

SESSIONS = ("ses_a", "ses_b", "ses_c")


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def write(log: Log, session_id: str, producer: str) -> None:
    dice = random.Random()
    first = 1
    while True:
        drafts = [
            said("x" * dice.randrange(3000), f"msg_{dice.randrange(30)}") for _ in range(dice.randrange(4))
        ]
        drafts += [asked(f"ap_{producer}_{first}"), resolved(f"ap_{producer}_{first}")]
        appended = await log.append(session_id, drafts, producer=producer, first=first)
        say(f"{session_id} {producer} {first + len(drafts) - 1} {appended.last_seq}")
        first += len(drafts)


async def fork(log: Log) -> None:
    dice = random.Random()
    while True:
        source = dice.choice(SESSIONS)
        fork_id = new_id("ses")
        appended = await log.fork(
            source, dice.randrange(1, await log.head(source) + 1), fork_id, [said("forked")]
        )
        say(f"{fork_id} session 1 {appended.last_seq}")


async def main() -> None:
    log = open_log(Path(sys.argv[1]), SuiteProjector(), now)
    run = sys.argv[2]
    for session_id in SESSIONS:
        with suppress(Conflict):  # an earlier round made it
            await log.create(session_id, [created()])
    say("ready")
    async with asyncio.TaskGroup() as tasks:
        for number in range(9):
            tasks.create_task(write(log, SESSIONS[number % 3], f"run_{run}_{number}"))
        tasks.create_task(fork(log))


asyncio.run(main())
