"""The reader of our stdout, when we wait for something else: `omnigent logs -f | head`."""

import os
import select
import sys
import threading

from omnigent.cli.table import OK


def exit_when_gone() -> None:
    """From now on the process ends, quietly and with 0, as soon as nobody reads its stdout any more.

    A write would tell, but there may be none for hours. Only for commands that have nothing to clean up.
    """
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are told unasked
    threading.Thread(target=_watch, args=(poll,), name="reader", daemon=True).start()


def _watch(poll: select.poll) -> None:
    poll.poll()
    os._exit(OK)
