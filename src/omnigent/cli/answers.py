"""`omnigent inbox`, `approve`, `deny` and `answer`: what agents wait for."""

import argparse
import time
from typing import Any

from omnigent.cli import local
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import OK
from omnigent.cli.talk import ask as ask_person
from omnigent.cli.talk import both_terminals, one_line, out, out_json, tell
from omnigent.cli.transcript import choices, question_lines
from omnigent.cli.wording import approval_line, approval_more, duration_ms
from omnigent.client import JSON, Client, Waiting
from omnigent.errors import Conflict, Malformed, NotFound

_EXAMPLES = {
    "inbox": "omnigent inbox\nomnigent inbox --json",
    "approve": (
        "omnigent approve                                      the only open one\n"
        "omnigent approve ap_01KA3 --session --until 2h        and exactly this for two hours\n"
        "omnigent approve ap_01KA3 --pattern 'exec: npm run *'\n"
        "omnigent approve ap_01KA3 --edit 'git push --dry-run'"
    ),
    "deny": "omnigent deny ap_01KA3 -m 'use the staging database'",
    "answer": "omnigent answer               asks you here\nomnigent answer q_01KA3 2 'only the tests'",
}


def configure(name: str, parser: Parser) -> None:
    parser.example = _EXAMPLES[name]
    if name != "inbox":
        parser.add_argument(
            "id", nargs="?", metavar="ID", help="id or unique start of one; the only open one when left out"
        )
    if name == "approve":
        reach = parser.add_mutually_exclusive_group()
        reach.add_argument("--session", action="store_true", help="and exactly the same from now on")
        reach.add_argument("--pattern", metavar="P", help="and what the pattern matches; `inbox` shows some")
        parser.add_argument("--until", metavar="TIME", help="how long that holds: 30m, 2h, 1d")
        parser.add_argument("--edit", metavar="CMD", help="run this command instead")
    if name == "deny":
        parser.add_argument("-m", "--reason", default="", help="the agent reads it")
    if name == "answer":
        parser.add_argument(
            "values",
            nargs="*",
            metavar="VALUE",
            help="per question: a number, several with commas, or text",
        )
    add_json(parser)
    parser.set_defaults(call={"inbox": inbox, "approve": approve, "deny": deny, "answer": answer}[name])


def inbox(options: argparse.Namespace) -> int:
    rows = local.connect().inbox()
    if options.json:
        out_json({"items": rows})
        return OK
    for row in rows:
        for line in lines_of(row):
            out(line)
    if not rows:
        tell("Nothing waits for you.")
    return OK


def lines_of(row: Waiting) -> list[str]:
    """A waiting item for people: what, then in which session."""
    item = row["item"]
    asked = (
        [f"? {item['id']} asks: {approval_line(item)}", *approval_more(item["id"], item)]
        if item["type"] == "approval"
        else question_lines(item["id"], item["questions"])
    )
    return [*asked, f"    in {row['session_id']}  {one_line(row['session_title'], 60)}"]


def approve(options: argparse.Namespace) -> int:
    grant = _grant(options)
    if options.edit is not None and not options.edit.strip():
        raise Malformed("The edited command is empty.", hint="To refuse it: omnigent deny ID -m 'why'")
    client = local.connect()
    row = pick(client.inbox(), "approval", options.id)
    fields: dict[str, Any] = {"decision": "allow", "grant": grant}
    if options.edit is not None:
        if row["item"].get("edit") == "":
            raise Malformed(
                "Its agent can't run another command than the one it proposed.",
                hint=f"Refuse it and say what to run: omnigent deny {row['item']['id']} -m 'run … instead'",
            )
        fields["edited"] = options.edit
    return _resolve(client, row, options, **fields)


def _grant(options: argparse.Namespace) -> JSON:
    """How far the allow reaches, as the API has it."""
    if options.pattern is not None and not options.pattern.strip():
        raise Malformed("The pattern is empty.", hint="omnigent approve ID --pattern 'exec: npm run *'")
    scope = "session" if options.session else "pattern" if options.pattern else "once"
    grant: JSON = {"scope": scope}
    if options.pattern:
        grant["pattern"] = options.pattern
    if options.until is not None:
        if scope == "once":
            raise Malformed(
                "--until says how long a wider allow holds.", hint="Add --session, or --pattern P."
            )
        grant["until"] = time.time_ns() // 1_000_000 + duration_ms(options.until, "--until")
    return grant


def deny(options: argparse.Namespace) -> int:
    client = local.connect()
    return _resolve(
        client, pick(client.inbox(), "approval", options.id), options, decision="deny", reason=options.reason
    )


def _resolve(client: Client, row: Waiting, options: argparse.Namespace, **fields: Any) -> int:
    approval = row["item"]
    done = client.command(row["session_id"], "resolve", approval_id=approval["id"], **fields)
    _tell_done(options, done, f"{fields['decision']}: {approval_line(approval)}")
    return OK


def answer(options: argparse.Namespace) -> int:
    client = local.connect()
    rows = client.inbox()
    named, typed = options.id, list(options.values)
    if named and not _fitting(rows, "question", named) and not named.startswith("q_"):
        named, typed = None, [named, *typed]
    row = pick(rows, "question", named)
    questions: list[JSON] = row["item"]["questions"]
    if not typed and both_terminals():
        typed = [_ask(row["item"]["id"], question) for question in questions]
    if len(typed) != len(questions):
        raise Malformed(
            f"{row['item']['id']} asks {len(questions)} question(s), {len(typed)} answer(s) were given.",
            hint="\n".join(question_lines(row["item"]["id"], questions)),
        )
    values = [choices(question, text) for question, text in zip(questions, typed, strict=True)]
    done = client.command(row["session_id"], "answer", question_id=row["item"]["id"], values=values)
    _tell_done(options, done, f"answered: {'; '.join(', '.join(value) for value in values)}")
    return OK


def _ask(item_id: str, question: JSON) -> str:
    for line in question_lines(item_id, [question]):
        tell(line)
    return ask_person("answer: ")


def _tell_done(options: argparse.Namespace, done: JSON, text: str) -> None:
    if options.json:
        out_json(done)
    else:
        tell(text)


def pick(rows: list[Waiting], kind: str, named: str | None) -> Waiting:
    """The open item meant. Raises `NotFound` when there is none, `Conflict` when several fit."""
    fitting = _fitting(rows, kind, named)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        which = f"There is no open {kind} {named!r}." if named else f"No {kind} is open."
        raise NotFound(which, hint="`omnigent inbox` lists what waits; it may have been answered elsewhere.")
    some = "\n".join(line for row in fitting[:5] for line in lines_of(row))
    raise Conflict(f"{len(fitting)} fit; name one:\n{some}")


def _fitting(rows: list[Waiting], kind: str, named: str | None) -> list[Waiting]:
    """By item id, start of one, or (for scripts that know only that) the session's id."""
    open_ones = [row for row in rows if row["item"]["type"] == kind]
    if named is None:
        return open_ones
    start = named.upper()
    return [
        row
        for row in open_ones
        if row["session_id"] == named
        or row["item"]["id"].upper().startswith(start)
        or row["item"]["id"].partition("_")[2].startswith(start)
    ]
