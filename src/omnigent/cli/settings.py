"""`omnigent config path|show`."""

import argparse

import yaml

from omnigent.cli import local
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json
from omnigent.config import load_config


def configure(name: str, parser: Parser) -> None:
    parser.example = 'omnigent config show\n$EDITOR "$(omnigent config path)"'
    verbs = parser.verbs()
    path = verbs.add_parser("path", help="where the file is, or would be")
    path.example = "omnigent config path"
    path.set_defaults(call=show_path)
    showing = verbs.add_parser("show", help="the configuration in force, defaults included")
    showing.example = "omnigent config show --json"
    add_json(showing)
    showing.set_defaults(call=show)


def show_path(options: argparse.Namespace) -> int:
    out(str(local.home_path() / "config.yaml"))
    return OK


def show(options: argparse.Namespace) -> int:
    values = load_config(local.home_path()).model_dump(mode="json", exclude_none=True)
    values["defaults"] = {"harness": values.pop("harness"), **values.pop("harnesses")}
    if options.json:
        out_json(values)
    else:
        out(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
    return OK
