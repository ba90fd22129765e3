"""`omnigent completions bash|zsh|tcsh`: printed by shtab from the parsers themselves."""

import argparse

import shtab

from omnigent import cli
from omnigent.cli.parser import Parser
from omnigent.cli.table import COMMANDS, OK
from omnigent.cli.talk import out

_EXAMPLE = """\
eval "$(omnigent completions bash)"        in ~/.bashrc
omnigent completions zsh > ~/.zfunc/_omnigent"""


def configure(name: str, parser: Parser) -> None:
    parser.example = _EXAMPLE
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(call=completions)


def completions(options: argparse.Namespace) -> int:
    out(shtab.complete(whole_parser(), shell=options.shell))
    return OK


def whole_parser() -> Parser:
    """Every command in one parser: what shells complete, and docs are made from. Imports every module."""
    whole = Parser(prog="omnigent", description="One layer above coding agents.")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, row in COMMANDS.items():
        cli.configure(name, commands.add_parser(name, help=row.summary))
    return whole
