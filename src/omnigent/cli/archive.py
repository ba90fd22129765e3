"""`omnigent export` and `import`."""

import argparse
import io
import json
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, tell
from omnigent.client import Client
from omnigent.errors import Conflict, Malformed, NotFound


def configure(name: str, parser: Parser) -> None:
    if name == "export":
        parser.example = "omnigent export @last -o session.zip"
        add_session(parser)
        parser.add_argument("-o", "--output", metavar="FILE", help="`-` is stdout (default: SESSION.zip)")
        parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
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
        with path.open("wb" if options.force else "xb") as opened:
            opened.write(archive)
    except FileExistsError as error:
        raise Conflict(f"{path} is there already.", hint="Overwrite it with --force.") from error
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
    client = local.connect()
    known = _is_here(client, archive)
    session = client.import_(archive)
    if options.json:
        out_json(session)
        return OK
    out(session["id"])
    if known:
        tell("It was here already; nothing was imported.")
    else:
        tell(f"It is read-only here; `omnigent fork {session['id']}` goes on from it.")
    return OK


def _is_here(client: Client, archive: bytes) -> bool:
    """Whether the server knows the archive's session. What is wrong with it is the server's to say."""
    with suppress(zipfile.BadZipFile, KeyError, ValueError, TypeError, NotFound):
        manifest = json.loads(zipfile.ZipFile(io.BytesIO(archive)).read("manifest.json"))
        client.session(str(manifest["session_id"]))
        return True
    return False
