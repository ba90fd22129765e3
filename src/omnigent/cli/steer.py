"""`omnigent send`, `interrupt`, `stop`, `close` and `resume`: one command to a session each."""

import argparse
import sys

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.table import OK
from omnigent.cli.talk import out_json, tell
from omnigent.errors import Malformed


def configure(name: str, parser: Parser) -> None:
    if name == "send":
        parser.example = "omnigent send 'now run the tests'\nomnigent send @last --when steer 'not that file'"
        parser.usage = "omnigent send [-h] [--when WHEN] [--json] [SESSION] TEXT"
        parser.add_argument("words", nargs="+", metavar="[SESSION] TEXT", help="TEXT `-` reads it from stdin")
        parser.add_argument(
            "--when",
            choices=("auto", "queue", "steer", "now"),
            default="auto",
            help="auto: now if idle, else queued; steer: into the running turn; now: interrupt first",
        )
        parser.set_defaults(call=send)
    else:
        parser.example = f"omnigent {name} @last"
        add_session(parser)
        parser.set_defaults(call=plain_command, command=name)
    add_json(parser)


def send(options: argparse.Namespace) -> int:
    if len(options.words) > 2:
        raise Malformed(
            "A message of several words wants quotes.", hint="omnigent send SESSION 'the message'"
        )
    *named, text = options.words
    text = sys.stdin.read().strip() if text == "-" else text
    if not text.strip():
        raise Malformed("The message is empty.")
    return _ask(options, named[0] if named else None, "prompt", text=text, when=options.when)


def plain_command(options: argparse.Namespace) -> int:
    return _ask(options, options.session, options.command)


def _ask(options: argparse.Namespace, named: str | None, type_: str, **fields: str) -> int:
    client = local.connect()
    session_id = naming.find(client, named)
    answer = client.command(session_id, type_, **fields)
    if options.json:
        out_json(answer)
    else:
        tell(f"{session_id}: {type_} {answer.get('state', 'accepted')}")
    return OK
