"""`omnigent wait`: until a session is done, idle or needs somebody. Makes scripts easy."""

import argparse
import time

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.table import BUDGET, FAILED, INTERRUPTED, NEEDS_INPUT, OK, TIMEOUT
from omnigent.cli.talk import out_json, tell
from omnigent.client import Client, Session

_POLL = 2.0
"""Seconds between two looks while nothing happens: a lost runner shows in the status, not in an event."""

_HELP = """\
done (the default): nothing happens any more by itself; exit 0 after a good turn, 1 after a failed one, 7
when the budget is reached, 8 when an approval or question is open or a turn is paused otherwise, 130 after
an interrupted one.
idle: no turn runs. needs-input: an approval or question is open, or a turn is paused."""


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent wait && omnigent logs\nomnigent wait @last --until needs-input --timeout 600"
    parser.epilog = _HELP
    add_session(parser)
    parser.add_argument("--until", choices=("idle", "needs-input", "done"), default="done")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="then exit 124")
    add_json(parser)
    parser.set_defaults(call=wait)


def wait(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.timeout if options.timeout is not None else None
    client = local.connect()
    session_id = naming.find(client, options.session)
    session, code = _await(client, session_id, options.until, deadline)
    if options.json:
        out_json(session)
    else:
        tell(f"{session_id}: {session['status']}")
    return code


def _await(client: Client, session_id: str, until: str, deadline: float | None) -> tuple[Session, int]:
    while True:
        session = client.session(session_id)
        code = verdict(session, until)
        if code is not None:
            return session, code
        if deadline is not None and time.monotonic() >= deadline:
            return session, TIMEOUT
        left = _POLL if deadline is None else min(_POLL, max(0.01, deadline - time.monotonic()))
        client.await_event(session_id, session["last_seq"], left)


def verdict(session: Session, until: str) -> int | None:
    """The exit code once the session is where it should be; None before."""
    status, open_ones = session["status"], sum((session.get("pending") or {}).values())
    resting = status in ("idle", "closed", "lost", "paused") and not session.get("queue_length")
    outcome = (session.get("last_turn") or {}).get("outcome")
    if until == "needs-input":
        return OK if open_ones or status == "paused" else FAILED if status == "closed" else None
    if until == "idle":
        return OK if resting else None
    if status == "waiting" or open_ones:
        return NEEDS_INPUT
    if status == "paused":
        return _paused(session)
    if not resting:
        return None
    return (
        FAILED if status == "lost" else {"failed": FAILED, "interrupted": INTERRUPTED}.get(outcome or "", OK)
    )


def _paused(session: Session) -> int | None:
    """None while the pause ends by itself, at a quota's reset."""
    paused = session.get("paused") or {}
    if paused.get("until"):
        return None
    return BUDGET if paused.get("reason") == "budget" else NEEDS_INPUT
