"""A download into a file or to stdout: the option, and the writing."""

import argparse
import sys
from pathlib import Path

from omnigent.cli.talk import tell
from omnigent.errors import Conflict, Malformed


def add_output(parser: argparse.ArgumentParser, help_: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help=help_)
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")


def save(data: bytes, path: str, *, force: bool) -> None:
    """`-` is stdout. Raises `Conflict` for a file that is there without `force`, `Malformed` for a place that
    can't be written."""
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        with Path(path).open("wb" if force else "xb") as opened:
            opened.write(data)
    except FileExistsError as error:
        raise Conflict(f"{path} is there already.", hint="Overwrite it with --force.") from error
    except OSError as error:
        raise Malformed(
            f"{path} can't be written: {error.strerror}.", hint="Name another file with -o."
        ) from error
    tell(f"{path}: {len(data):,} bytes")
