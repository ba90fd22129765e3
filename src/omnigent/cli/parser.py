"""The argument parser of every command: help begins with an example, errors are ours."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from omnigent.cli.table import USAGE


class UsageError(Exception):
    """Wrong arguments."""


class Parser(argparse.ArgumentParser):
    """`example` is shown first in the help; one line each."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        self.example = ""
        self._verbs: argparse._SubParsersAction[Parser] | None = None  # pyright: ignore[reportPrivateUsage]

    def format_help(self) -> str:
        examples = "".join(f"  {line}\n" for line in self.example.splitlines())
        return f"Example:\n{examples}\n{super().format_help()}" if examples else super().format_help()

    def error(self, message: str, hint: str = "") -> NoReturn:
        sys.stderr.write(f"error: {message}\nhint: {hint or f'{self.prog} --help'}\n")
        sys.exit(USAGE)

    def verbs(self) -> "argparse._SubParsersAction[Parser]":  # pyright: ignore[reportPrivateUsage]
        # Not required for argparse, which could only say that something called VERB is.
        self._verbs = self.add_subparsers(dest="verb", required=False, metavar="VERB", parser_class=Parser)
        return self._verbs

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuses what is unknown already here: a verb's own parser knows which of its flags was meant."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        if self._verbs and options.verb is None:
            self.error(f"{self.prog} wants a verb: {', '.join(self._verbs.choices)}")
        return options, unknown

    def _refuse(self, unknown: list[str]) -> NoReturn:
        flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if flag is None:
            self.error(f"there is one argument too many: {unknown[0]!r}")
        near = _nearest(flag, self._option_string_actions)
        self.error(f"there is no option {flag}", f"Did you mean {near}? {self.prog} --help" if near else "")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        what = "verb" if action is self._verbs else "/".join(action.option_strings) or action.dest
        near = _nearest(str(value), choices)
        hint = f"Did you mean {near}?" if near else f"{self.prog} --help"
        self.error(f"there is no {what} {value!r}; there is {', '.join(choices)}", hint)


def _nearest(word: str, known: Iterable[str]) -> str | None:
    import difflib  # only here, and not cheap

    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


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
