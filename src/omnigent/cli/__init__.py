"""The `omnigent` command. A command's module is imported when that command runs, and not before."""

import importlib
import os
import sys

from omnigent.cli.parser import Parser
from omnigent.cli.table import COMMANDS, INTERRUPTED, OK, USAGE
from omnigent.cli.talk import both_terminals, tell, tell_error
from omnigent.errors import OmnigentError


def run(arguments: list[str]) -> int:
    """Carry out one command line. Returns the exit code; expected errors are told, not raised."""
    try:
        return _dispatch(arguments)
    except OmnigentError as error:
        tell_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] in (["--help"], ["-h"]):
        arguments = ["help"]
    elif not _names_command(arguments):
        arguments = ["run", *arguments]
    name, *rest = arguments
    options = parser_of(name).parse_args(rest)
    return options.call(options)


def _names_command(arguments: list[str]) -> bool:
    """Whether the first word is a command, not a prompt or an option of `run`. Exits when it is neither."""
    if not arguments:
        if not both_terminals() and sys.stdin.isatty():
            _refuse("There is nothing to do.", "omnigent --help")
        return False
    word = arguments[0]
    if word in COMMANDS:
        return True
    if word.startswith("-") or any(letter.isspace() for letter in word):
        return False
    import difflib  # only here, and not cheap

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"Did you mean `omnigent {near[0]}`?" if near else "`omnigent --help` lists the commands."
    _refuse(f"There is no command {word!r}.", f"{hint} A prompt of one word: omnigent run {word}")
    return False


def _refuse(detail: str, hint: str) -> None:
    tell(f"error: {detail}\nhint: {hint}")
    sys.exit(USAGE)


def parser_of(name: str) -> Parser:
    """The parser of one command, from its module."""
    row = COMMANDS[name]
    parser = Parser(prog=f"omnigent {name}", description=f"{row.summary[0].upper()}{row.summary[1:]}.")
    configure(name, parser)
    return parser


def configure(name: str, parser: Parser) -> None:
    """Give a parser the arguments of a command and, as `call`, what carries it out."""
    importlib.import_module(f"omnigent.cli.{COMMANDS[name].module}").configure(name, parser)
