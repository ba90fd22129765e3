"""`omnigent export` and `import`."""

import argparse
import sys
from pathlib import Path

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, tell
from omnigent.errors import Malformed, NotFound


def configure(name: str, parser: Parser) -> None:
    if name == "export":
        parser.example = "omnigent export @last -o session.zip"
        add_session(parser)
        parser.add_argument("-o", "--output", metavar="FILE", help="`-` is stdout (default: SESSION.zip)")
        parser.set_defaults(call=export)
    else:
        parser.example = "omnigent import session.zip"
        parser.add_argument("file", metavar="FILE", help="`-` is stdin")
        add_json(parser)
        parser.set_defaults(call=import_)


def export(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id = naming.find(client, options.session)
    archive = client.export(session_id)
    if options.output == "-":
        sys.stdout.buffer.write(archive)
        sys.stdout.buffer.flush()
        return OK
    path = Path(options.output or f"{session_id}.zip")
    try:
        path.write_bytes(archive)
    except OSError as error:
        raise Malformed(
            f"{path} can't be written: {error.strerror}.", hint="Name another file with -o."
        ) from error
    out(str(path))
    tell(f"{len(archive):,} bytes")
    return OK


def import_(options: argparse.Namespace) -> int:
    try:
        archive = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    except OSError as error:
        raise NotFound(f"{options.file} can't be read: {error.strerror}.") from error
    session = local.connect().import_(archive)
    if options.json:
        out_json(session)
    else:
        out(session["id"])
    return OK
