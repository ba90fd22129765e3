"""`omnigent secret set|ls|rm`: values that must never be stored or shown, and keys of providers by name."""

import argparse
import getpass
import sys

from omnigent import secrets
from omnigent.cli import local
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, tell


def configure(name: str, parser: Parser) -> None:
    parser.example = (
        "omnigent secret set deploy-key < key.txt\nomnigent secret ls\nomnigent secret rm deploy-key"
    )
    verbs = parser.verbs()
    setting = verbs.add_parser("set", help="register a secret; its value comes by stdin or a hidden prompt")
    setting.example = "omnigent secret set deploy-key\npass show deploy | omnigent secret set deploy-key"
    setting.add_argument("name", metavar="NAME", help="config.yaml refers to it as {secret: NAME}")
    setting.set_defaults(call=set_)
    listing = verbs.add_parser("ls", help="the names; never the values")
    listing.example = "omnigent secret ls --json"
    add_json(listing)
    listing.set_defaults(call=ls)
    removing = verbs.add_parser(
        "rm", help="forget a secret: from the next start of an agent on it is shown again"
    )
    removing.example = "omnigent secret rm deploy-key"
    removing.add_argument("name", metavar="NAME")
    removing.set_defaults(call=rm)


def set_(options: argparse.Namespace) -> int:
    """The value is never an argument: other users of the machine can read those."""
    terminal = sys.stdin.isatty()
    value = getpass.getpass(f"{options.name}: ") if terminal else sys.stdin.read()
    new = secrets.store(local.home_path(), options.name, value.strip())
    tell(f"{'stored' if new else 'changed'} {options.name}")
    return OK


def ls(options: argparse.Namespace) -> int:
    found = secrets.names(local.home_path())
    if options.json:
        out_json({"items": [{"name": name} for name in found]})
        return OK
    for name in found:
        out(name)
    return OK


def rm(options: argparse.Namespace) -> int:
    secrets.remove(local.home_path(), options.name)
    tell(f"removed {options.name}")
    return OK
