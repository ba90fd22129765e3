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
from omnigent.cli.saving import add_output, save
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, tell
from omnigent.client import Client
from omnigent.errors import NotFound


def configure(name: str, parser: Parser) -> None:
    if name == "export":
        parser.example = "omnigent export @last -o session.zip"
        add_session(parser)
        add_output(parser, "`-` is stdout (default: SESSION.zip)")
        parser.set_defaults(call=export)
    else:
        parser.example = "omnigent import session.zip"
        parser.add_argument("file", metavar="FILE", help="`-` is stdin")
        add_json(parser)
        parser.set_defaults(call=import_)


def export(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id = naming.find(client, options.session)
    path = options.output or f"{session_id}.zip"
    save(client.export(session_id), path, force=options.force)
    if path != "-":
        out(path)
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
