"""`omnigent help [COMMAND|exit-codes]`, and what `omnigent --help` prints."""

import argparse

from omnigent import cli
from omnigent.cli.parser import Parser
from omnigent.cli.table import COMMANDS, EXIT_CODES, OK
from omnigent.cli.talk import out
from omnigent.errors import NotFound

_HEAD = """\
Example:
  omnigent demo                             try it without a key
  omnigent 'fix the failing test'           start here, on this terminal
  omnigent run -p 'what is this?' | cat     print the answer
  omnigent ls && omnigent attach @last      see what runs, go on with it

Usage: omnigent [COMMAND] … · omnigent [OPTIONS] PROMPT (short for `run`) · omni is the same program
"""

_TAIL = """\
`omnigent COMMAND --help` begins with examples; `omnigent help exit-codes` lists the exit codes.
State is in $OMNIGENT_HOME (default ~/.omnigent); $OMNIGENT_SERVER and $OMNIGENT_TOKEN name another server."""


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent help run\nomnigent help exit-codes"
    parser.add_argument("topic", nargs="?", metavar="COMMAND", help="a command, or exit-codes")
    parser.set_defaults(call=help_)


def help_(options: argparse.Namespace) -> int:
    match options.topic:
        case None:
            out(overview())
        case "exit-codes":
            for code, meaning in EXIT_CODES.items():
                out(f"{code:>3}  {meaning}")
        case topic if topic in COMMANDS:
            out(cli.parser_of(topic).format_help().rstrip())
        case topic:
            raise NotFound(f"There is no help on {topic!r}.", hint="omnigent --help lists the commands.")
    return OK


def overview() -> str:
    lines = [_HEAD]
    for group in dict.fromkeys(row.group for row in COMMANDS.values()):
        lines.append(f"{group}:")
        lines += [f"  {name:<12} {row.summary}" for name, row in COMMANDS.items() if row.group == group]
        lines.append("")
    return "\n".join([*lines, _TAIL])
