"""`omnigent devices ls|revoke`: every face that holds a token."""

import argparse

from omnigent.cli import local
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import OK
from omnigent.cli.talk import ago, out, out_json, table, tell, width


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent devices ls\nomnigent devices revoke dev_01KA3"
    verbs = parser.verbs()
    listing = verbs.add_parser("ls", help="who holds a token")
    listing.example = "omnigent devices ls --json"
    add_json(listing)
    listing.set_defaults(call=ls)
    revoking = verbs.add_parser("revoke", help="end a device's access at once")
    revoking.example = "omnigent devices revoke dev_01KA3"
    revoking.add_argument("device", metavar="DEVICE", help="its id")
    revoking.set_defaults(call=revoke)


def ls(options: argparse.Namespace) -> int:
    rows = local.connect().devices()
    if options.json:
        out_json({"items": rows})
        return OK
    cells = [
        (row["id"], row.get("name") or "", f"{ago(row['created_at'])} ago" if row.get("created_at") else "")
        for row in rows
    ]
    for line in table(("ID", "NAME", "SINCE"), cells, width()):
        out(line)
    return OK


def revoke(options: argparse.Namespace) -> int:
    local.connect().revoke(options.device)
    tell(f"revoked {options.device}")
    return OK
