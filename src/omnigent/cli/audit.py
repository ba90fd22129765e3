"""`omnigent audit verify|export`: whether a session's logs are whole, and all of what they say."""

import argparse

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.saving import add_output, save
from omnigent.cli.table import FAILED, OK
from omnigent.cli.talk import out, out_json
from omnigent.client import JSON, Client
from omnigent.errors import Malformed

HOUSE = "org_local"

_HELP = """\
A session has two chained logs: its own, and the full audit, which has every verdict, plain allows too.
Each event's hash covers all before it, so that a change, a gap or a cut in the middle shows."""


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent audit verify @last\nomnigent audit export ses_01KA3 -o audit.jsonl"
    parser.epilog = _HELP
    verbs = parser.verbs()
    verify_ = verbs.add_parser("verify", help="check both chains; exit 1 when one is broken")
    verify_.example = "omnigent audit verify @last"
    _add_stream(verify_)
    add_json(verify_)
    verify_.set_defaults(call=verify)
    export_ = verbs.add_parser("export", help="both logs as JSON lines")
    export_.example = "omnigent audit export @last | jq 'select(.log == \"audit\") .event.body'"
    _add_stream(export_)
    add_output(export_, "default: stdout")
    export_.set_defaults(call=export)


def _add_stream(parser: Parser) -> None:
    add_session(parser)
    parser.add_argument(
        "--house", action="store_true", help="what belongs to no session: policies of wider scopes, refusals"
    )


def _stream(client: Client, options: argparse.Namespace) -> str:
    if options.house and options.session:
        raise Malformed("--house is no session's.", hint="Leave one of them out.")
    return HOUSE if options.house else naming.find(client, options.session)


def verify(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id = _stream(client, options)
    found = client.verify_audit(session_id)
    if options.json:
        out_json(found)
    else:
        out(session_id)
        for name in ("session", "audit"):
            out(f"{name:<8} {chain_line(found[name])}")
    return OK if found["ok"] else FAILED


def chain_line(chain: JSON | None) -> str:
    """What was found of one chain."""
    if chain is None:
        return "nothing recorded"
    if chain["broken_at"] is not None:
        return f"BROKEN at event {chain['broken_at']}: from there on it isn't what was written"
    return f"whole, {chain['events']:,} events"


def export(options: argparse.Namespace) -> int:
    client = local.connect()
    data = client.audit(_stream(client, options))
    save(data, options.output or "-", force=options.force)
    return OK
