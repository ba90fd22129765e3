"""`python -m omnigent.testing.scripted_model`: the scripted model as a program."""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from .script import Script
from .server import RecordedRequest, ScriptedModel


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m omnigent.testing.scripted_model",
        description="Plays a script as a model server on 127.0.0.1; prints its URL as one JSON line.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--script", type=Path, help="JSON file; without it every prompt is echoed")
    parser.add_argument("--log", type=Path, help="append every finished request as a JSON line")
    parser.add_argument(
        "--require-key-env", metavar="NAME", help="variable with the key clients must present"
    )
    parser.add_argument("--until-eof", action="store_true", help="end when stdin is closed")
    parser.add_argument("--parent-fd", type=int, metavar="N", help="end when file descriptor N is closed")
    return parser.parse_args()


def read_script(path: Path | None) -> Script:
    if path is None:
        return Script()
    try:
        return Script.model_validate_json(path.read_text())
    except (OSError, ValidationError) as problem:
        raise SystemExit(f"cannot use the script {path}: {problem}") from None


def watch_end(fd: int, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Sets `ended` once the other side of `fd` is closed; in a thread, as a loop cannot watch every file."""

    def drain() -> None:
        while os.read(fd, 4096):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=drain, name="parent-watch", daemon=True).start()


async def run(options: argparse.Namespace) -> None:
    key = os.environ.get(options.require_key_env) if options.require_key_env else None
    if options.require_key_env and not key:
        raise SystemExit(f"--require-key-env: the variable {options.require_key_env} is not set")
    log = options.log.open("a") if options.log else None

    def append(request: RecordedRequest) -> None:
        if log:
            log.write(json.dumps(asdict(request)) + "\n")
            log.flush()

    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    for fd in [0] * options.until_eof + ([options.parent_fd] if options.parent_fd is not None else []):
        watch_end(fd, loop, ended)
    try:
        async with ScriptedModel(read_script(options.script), options.port, key, append) as model:
            print(json.dumps({"url": model.url, "pid": os.getpid()}), flush=True)
            await ended.wait()
    finally:
        if log:
            log.close()


if __name__ == "__main__":
    try:
        asyncio.run(run(parse_arguments()))
    except OSError as problem:
        sys.exit(f"cannot serve: {problem}")
