"""`omnigent budget`, `grants` and `revoke`: what a session may spend, and may do without asking again."""

import argparse

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, tell
from omnigent.cli.wording import amount, budget_line, cost_of, dollars, grant_line, paused_lines
from omnigent.client import JSON, Client, Session
from omnigent.errors import Conflict, Malformed, NotFound

_EXAMPLES = {
    "budget": (
        "omnigent budget                 what it is, and what is gone\n"
        "omnigent budget 5               $5 for the latest session of this directory\n"
        "omnigent budget ses_01KA3 off   no cap"
    ),
    "grants": "omnigent grants @last",
    "revoke": "omnigent revoke gr_01KA3",
}


def configure(name: str, parser: Parser) -> None:
    parser.example = _EXAMPLES[name]
    match name:
        case "budget":
            parser.usage = "omnigent budget [-h] [--json] [SESSION] [USD|off]"
            parser.epilog = (
                "The cap binds the session with its children and forks: forking doesn't multiply it."
            )
            parser.add_argument("words", nargs="*", metavar="[SESSION] [USD|off]")
            parser.set_defaults(call=budget)
        case "grants":
            add_session(parser)
            parser.set_defaults(call=grants)
        case _:
            parser.add_argument(
                "grant", metavar="GRANT", help="id or unique start of one; `grants` lists them"
            )
            parser.set_defaults(call=revoke)
    add_json(parser)


def budget(options: argparse.Namespace) -> int:
    named, typed = _split(options.words)
    cap = None if typed in (None, "off") else amount(typed, "The budget")
    client = local.connect()
    session_id = naming.find(client, named)
    if typed is None:
        return _show(client.session(session_id), json=options.json)
    done = client.command(session_id, "set_budget", cap_usd=cap)
    if options.json:
        out_json(done)
        return OK
    tell(f"{session_id}: " + ("no cap" if cap is None else f"may spend {dollars(cap)}"))
    paused = client.session(session_id).get("paused")
    if paused:
        tell("\n".join(paused_lines(paused, session_id)))
    return OK


def _split(words: list[str]) -> tuple[str | None, str | None]:
    """The session and the amount, either of which may be left out. What looks like an amount is one."""
    if len(words) > 2:
        raise Malformed("Give one session and one amount.", hint="omnigent budget SESSION 5")
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, None
    is_amount = words[0] == "off" or words[0].removeprefix("$").replace(".", "", 1).isdecimal()
    return (None, words[0]) if is_amount else (words[0], None)


def _show(session: Session, *, json: bool) -> int:
    found = session.get("budget")
    usage: JSON = session.get("usage") or {}
    if json:
        out_json({"session_id": session["id"], "budget": found, "usage": usage})
        return OK
    spent = cost_of(usage, session.get("billing") or "")
    out(budget_line(found) or "no cap" + (f"; so far {spent}" if spent else ""))
    return OK


def grants(options: argparse.Namespace) -> int:
    client = local.connect()
    session = client.session(naming.find(client, options.session))
    found = session.get("grants") or []
    if options.json:
        out_json({"items": found, "next_cursor": None})
        return OK
    for grant in found:
        out(f"{grant['grant_id']}  {grant_line(grant)}")
    tell("omnigent revoke GRANT   asks again" if found else "Nothing is allowed without asking again.")
    return OK


def revoke(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id, grant = _find(client, options.grant)
    done = client.command(session_id, "revoke_grant", grant_id=grant["grant_id"])
    if options.json:
        out_json(done)
    else:
        tell(f"{session_id}: asks again: {grant_line(grant)}")
    return OK


def _find(client: Client, named: str) -> tuple[str, JSON]:
    """The session that has the grant, and the grant. Raises `NotFound`, or `Conflict` with those that fit."""
    start = named.upper().removeprefix("GR_")
    fitting = [
        (session["id"], grant)
        for session in client.sessions(limit=200)
        for grant in session.get("grants") or ()
        if str(grant["grant_id"]).upper().removeprefix("GR_").startswith(start)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise NotFound(
            f"There is no grant {named!r}; it may have ended.", hint="`omnigent grants SESSION` lists them."
        )
    some = "\n".join(f"{grant['grant_id']}  {grant_line(grant)}" for _, grant in fitting[:5])
    raise Conflict(f"{len(fitting)} grants fit; give more of the id:\n{some}")
