"""The argument parser of every command: help begins with an example, errors are ours."""

import argparse
import sys
from typing import Any, NoReturn

from omnigent.cli.table import USAGE


class UsageError(Exception):
    """Wrong arguments."""


class Parser(argparse.ArgumentParser):
    """`example` is shown first in the help; one line each."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        self.example = ""

    def format_help(self) -> str:
        examples = "".join(f"  {line}\n" for line in self.example.splitlines())
        return f"Example:\n{examples}\n{super().format_help()}" if examples else super().format_help()

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}\nhint: {self.prog} --help\n")
        sys.exit(USAGE)

    def verbs(self) -> "argparse._SubParsersAction[Parser]":  # pyright: ignore[reportPrivateUsage]
        return self.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)


def add_session(parser: argparse.ArgumentParser) -> None:
    """The optional session argument; `naming.find` resolves it."""
    parser.add_argument(
        "session",
        nargs="?",
        metavar="SESSION",
        help="id, unique start of one, @last, title or URL; the latest of this directory when left out",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON on stdout, under the API's names")
