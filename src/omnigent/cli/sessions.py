"""`omnigent ls`, `show` and `rm`."""

import argparse
import sys
from typing import Any

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.run import link
from omnigent.cli.table import OK
from omnigent.cli.talk import ago, both_terminals, one_line, out, out_json, shorten_home, table, tell, width
from omnigent.cli.talk import ask as ask_person
from omnigent.cli.wording import budget_line, cost_of, grant_line, paused_lines, standing_of_session
from omnigent.client import Session
from omnigent.errors import Malformed


def configure(name: str, parser: Parser) -> None:
    if name == "ls":
        parser.example = "omnigent ls                  the newest 20\nomnigent ls --status waiting --json"
        parser.add_argument("--limit", type=int, default=20, metavar="N")
        parser.add_argument("--status", help="starting, idle, running, waiting, paused, lost or closed")
        parser.add_argument("-H", "--harness")
        parser.add_argument("--query", metavar="TEXT", help="only sessions whose title has this text")
        parser.add_argument("--archived", action="store_true", help="the archived ones")
        parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
        add_json(parser)
        parser.set_defaults(call=ls)
        return
    add_session(parser)
    if name == "show":
        parser.example = "omnigent show @last\nomnigent show --json | jq .usage"
        add_json(parser)
        parser.set_defaults(call=show)
    else:
        parser.example = "omnigent rm ses_01KA3 --yes"
        parser.add_argument("--yes", action="store_true", help="don't ask")
        parser.set_defaults(call=rm)


def ls(options: argparse.Namespace) -> int:
    if not 1 <= options.limit <= 10_000:
        raise Malformed("--limit takes 1 to 10000.")
    client = local.connect()
    filters: dict[str, Any] = {"status": options.status, "harness": options.harness, "query": options.query}
    filters["archived"] = True if options.archived else None
    sessions: list[Session] = []
    cursor: str | None = None
    while len(sessions) < options.limit:
        page = client.page_of_sessions(
            limit=min(200, options.limit - len(sessions)), cursor=cursor, **filters
        )
        sessions += page["items"]
        cursor = page.get("next_cursor")
        if not cursor:
            break
    if options.json:
        out_json({"items": sessions, "next_cursor": cursor})
    elif options.quiet:
        for session in sessions:
            out(session["id"])
    else:
        _list(sessions)
    return OK


def _list(sessions: list[Session]) -> None:
    if not sessions:
        tell("There is no session yet. Start one: omnigent run 'PROMPT'")
        return
    for line in table(("ID", "STATUS", "HARNESS", "AGE", "TITLE", "WORKSPACE"), map(_row, sessions), width()):
        out(line)


def _row(session: Session) -> tuple[str, ...]:
    return (
        session["id"],
        status_of(session),
        session["harness"],
        ago(session["updated_at"]),
        one_line(session["title"], 50),
        shorten_home(session["workspace"]),
    )


def status_of(session: Session) -> str:
    """The status, and how the last turn ended where that isn't plain."""
    last = session.get("last_turn")
    failed = session["status"] == "idle" and last and last.get("outcome") in ("failed", "interrupted")
    return f"idle ({last['outcome']})" if failed and last else session["status"]


def show(options: argparse.Namespace) -> int:
    client = local.connect()
    session = client.session(naming.find(client, options.session))
    if options.json:
        out_json(session)
        return OK
    seen = sys.stdout.isatty()
    for name, value in [*facts(session), ("url", link(session, client, token=seen))]:
        out(f"{name:<10} {value}")
    if not seen:
        tell("`omnigent show` in a terminal prints the link that opens it.")
    return OK


def facts(session: Session) -> list[tuple[str, str]]:
    """The lines of `show`: those that have something to say."""
    pending, usage = session.get("pending") or {}, session.get("usage") or {}
    last = session.get("last_turn") or {}
    waiting = [f"{count} {name}" for name, count in pending.items() if count]
    tokens = f"{usage.get('input_tokens', 0):,} in, {usage.get('output_tokens', 0):,} out"
    cost, grants = cost_of(usage, session.get("billing") or ""), session.get("grants") or ()
    why, rules = session.get("paused"), session.get("policies")
    paused = paused_lines(why, session["id"]) if why else []
    lines = [
        ("id", session["id"]),
        ("title", one_line(session["title"])),
        (
            "status",
            " ".join(part for part in (status_of(session), session.get("status_reason") or "") if part),
        ),
        ("harness", session["harness"]),
        ("model", " · ".join(part for part in (session.get("model"), session.get("provider")) if part)),
        ("workspace", session["workspace"]),
        ("runs in", standing_of_session({**session})),
        ("waits for", ", ".join(waiting)),
        *(("paused", line) for line in paused),
        ("queue", str(session.get("queue_length") or "")),
        ("last turn", one_line(": ".join(str(last[key]) for key in ("outcome", "detail") if last.get(key)))),
        ("usage", ", ".join(part for part in (tokens, cost) if part)),
        ("budget", budget_line(session.get("budget"))),
        (
            "policies",
            f"{rules}  (omnigent policy ls {session['id']})" if rules else "",
        ),
        *(("allowed", f"{grant_line(grant)}  ({grant['grant_id']})") for grant in grants),
        ("events", str(session["last_seq"])),
        ("created", f"{ago(session['created_at'])} ago"),
    ]
    return [(name, value) for name, value in lines if value]


def rm(options: argparse.Namespace) -> int:
    if not options.session:
        raise Malformed("Name the session to delete.", hint="`omnigent ls` lists them; @last is the newest.")
    client = local.connect()
    session = client.session(naming.find(client, options.session))
    if not options.yes:
        if not both_terminals():
            raise Malformed("Deleting asks first, and this is no terminal.", hint="Say --yes.")
        if ask_person(f"Delete {session['id']} ({one_line(session['title'], 50)})? [y/N] ").lower() not in (
            "y",
            "yes",
        ):
            tell("Nothing was deleted.")
            return OK
    client.delete(session["id"])
    tell(f"deleted {session['id']}")
    return OK
