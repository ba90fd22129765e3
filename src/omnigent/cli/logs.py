"""`omnigent logs`: a session's past as a transcript or as JSON lines; `-f` stays for what comes."""

import argparse
import json
import sys

from omnigent.cli import local, naming, reader
from omnigent.cli.parser import Parser, add_session
from omnigent.cli.run import event_of
from omnigent.cli.table import OK
from omnigent.cli.talk import colourful, out, tell
from omnigent.cli.transcript import Transcript, coloured
from omnigent.client import Client


def configure(name: str, parser: Parser) -> None:
    parser.example = (
        "omnigent logs -f        the latest session of this directory\nomnigent logs @last --json"
    )
    add_session(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    parser.add_argument("--after", type=int, default=0, metavar="N", help="only events after this number")
    parser.add_argument("--full", action="store_true", help="whole outputs, and the agent's reasoning")
    parser.add_argument("--json", action="store_true", help="every event as one JSON line")
    parser.set_defaults(call=logs)


def logs(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id = naming.find(client, options.session)
    transcript = None if options.json else Transcript(coloured(colourful()), full=options.full)
    last: int = options.after
    if not options.follow:
        _past(client, session_id, last, transcript)
        return OK
    reader.exit_when_gone()
    for frame in client.follow(session_id, last):
        if frame.event == "event":
            _write(transcript.event(event_of(frame)) if transcript else frame.text + "\n")
        elif frame.event == "delta" and transcript:
            _write(transcript.delta(frame.data))
        elif frame.event == "lost":
            tell("the server is away, reconnecting …")
    return OK


def _past(client: Client, session_id: str, after: int, transcript: Transcript | None) -> None:
    for event in client.all_events(session_id, after):
        if transcript:
            _write(transcript.event(event))
        else:
            out(json.dumps(event, ensure_ascii=False, separators=(",", ":")))


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
