"""`omnigent switch`, `model` and `fork`."""

import argparse
import sys
from typing import Any

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.run import link, workspace_of
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, tell
from omnigent.errors import Malformed


def configure(name: str, parser: Parser) -> None:
    if name == "model":
        parser.example = "omnigent model claude-sonnet-5\nomnigent model @last gpt-5.5 --now"
        parser.usage = "omnigent model [-h] [-P PROVIDER] [--effort EFFORT] [--now] [--json] [SESSION] MODEL"
        parser.add_argument("words", nargs="+", metavar="[SESSION] MODEL")
        parser.add_argument("--effort", help="how much the model reasons, where it can be told")
        parser.set_defaults(call=model)
    else:
        add_session(parser)
        parser.add_argument("-H", "--harness", required=name == "switch")
        parser.add_argument("-m", "--model")
        parser.set_defaults(call=switch if name == "switch" else fork)
    parser.add_argument("-P", "--provider")
    if name == "fork":
        parser.example = "omnigent fork @last --at 120\nomnigent fork -H codex"
        parser.add_argument(
            "--at", type=int, metavar="SEQ", help="last event kept (default: the last whole turn)"
        )
        parser.add_argument("-C", "--directory", metavar="DIR", help="the fork's workspace")
        parser.add_argument("--share-workspace", action="store_true", help="work in the same directory")
    else:
        parser.add_argument("--now", action="store_true", help="interrupt the running turn first")
    if name == "switch":
        parser.example = "omnigent switch -H codex\nomnigent switch @last -H pi -m gpt-5.5 --now"
    add_json(parser)


def switch(options: argparse.Namespace) -> int:
    fields = {
        "harness": options.harness,
        "model": options.model,
        "provider": options.provider,
        "now": options.now,
    }
    return _change(options, options.session, "switch", fields)


def model(options: argparse.Namespace) -> int:
    if len(options.words) > 2:
        raise Malformed("Give one model, and at most one session before it.", hint="omnigent model --help")
    *named, name = options.words
    fields = {"model": name, "provider": options.provider, "effort": options.effort, "now": options.now}
    return _change(options, named[0] if named else None, "set_model", fields)


def _change(options: argparse.Namespace, named: str | None, type_: str, fields: dict[str, Any]) -> int:
    client = local.connect()
    session_id = naming.find(client, named)
    answer = client.command(
        session_id, type_, **{key: value for key, value in fields.items() if value is not None}
    )
    if options.json:
        out_json(answer)
    else:
        tell(f"{session_id}: {type_} {answer.get('state', 'accepted')}")
    return OK


def fork(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id = naming.find(client, options.session)
    body: dict[str, Any] = {
        "at_seq": options.at,
        "harness": options.harness,
        "model": options.model,
        "provider": options.provider,
    }
    if options.directory:
        body["workspace"] = workspace_of(options.directory)
    if options.share_workspace:
        body["share_workspace"] = True
    made = client.fork(session_id, {key: value for key, value in body.items() if value is not None})
    if options.json:
        out_json(made)
    else:
        out(made["id"])
        tell(f"forked from {session_id}  {link(made, client, token=sys.stderr.isatty())}")
    return OK
