"""`omnigent demo`: a real agent at work without a key. The model's part is a script; everything else is real.

The agent reads a file, runs a check that fails, mends the file and runs the check again, each run of the
check after somebody allowed it. All of it happens in a home of its own under `$OMNIGENT_HOME/demo`, never in
TMPDIR: Codex's sandbox refuses to work there.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from omnigent.cli import local
from omnigent.cli.attach import attach
from omnigent.cli.harness import install_shown
from omnigent.cli.launch import launch
from omnigent.cli.parser import Parser
from omnigent.cli.run import event_of, link
from omnigent.cli.server import stop_local
from omnigent.cli.table import FAILED, OK
from omnigent.cli.talk import both_terminals, colourful, out, tell
from omnigent.cli.transcript import Transcript, coloured
from omnigent.client import Client
from omnigent.config import child_environment, ready_home
from omnigent.errors import HomeUnusable, MissingBinary, OmnigentError
from omnigent.harnesses.install import PINS
from omnigent.processes import kill, start_time
from omnigent.registry import harness_name

_KEY = "OMNIGENT_DEMO_KEY"

_PROMPT = "Read greeting.txt, run check.sh, fix what it finds, and run it again."

_FILES = {
    "README.md": "# Greeter\n\nA project of one greeting. `sh check.sh` tells whether it is spelt right.\n",
    "greeting.txt": "Helo, world!\n",
    "check.sh": """\
# Every run leaves a line in check.log.
if grep -q '^Hello' greeting.txt; then
    echo ok | tee -a check.log
else
    echo 'FAIL: greeting.txt must begin with Hello' | tee -a check.log
    exit 1
fi
""",
}
_RULES = """\
policies:
  - name: checks-ask
    when: {exec: sh *}
    then: ask
    reason: In this demo a person looks before a script runs.
"""
"""A check is an everyday command, which the defaults let pass; the demo is to show an approval."""
_GREETING = "Hello, world!\n"
_RUNS = ["FAIL: greeting.txt must begin with Hello", "ok"]


def _step(text: str, tool: str | None = None, **given: str) -> dict[str, Any]:
    tools = [{"tool": tool, "input": given}] if tool else []
    return {"text": text, "tools": tools, "chunk_delay_ms": 20}


_SCRIPT: dict[str, Any] = {
    "turns": [
        {
            "match": "greeting.txt",
            "steps": [
                _step("I'll look at the greeting first.", "$read", path="greeting.txt"),
                _step("Now the check, to see what it says.", "$shell", command="sh check.sh"),
                _step(
                    "A letter is missing. I'll put it in.",
                    "$edit",
                    path="greeting.txt",
                    old=_FILES["greeting.txt"].strip(),
                    new="Hello, world!",
                ),
                _step("And the check once more.", "$shell", command="sh check.sh"),
                _step("Done: the greeting said `Helo`, now it says `Hello`, and the check passes."),
            ],
        }
    ]
}

_MODELS = {
    "claude-code": "claude-sonnet-5",
    "codex": "gpt-5.5",
    "pi": "gpt-5.5",
    "scripted": "scripted-model",
}


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent demo\nomnigent demo -H codex --exit"
    parser.add_argument(
        "-H", "--harness", default="claude-code", help=f"{', '.join(_MODELS)} (default: claude-code)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the demo's directory, its log and project")
    parser.add_argument("--exit", action="store_true", help="stop at the end instead of waiting for Enter")
    parser.set_defaults(call=demo)


def demo(options: argparse.Namespace) -> int:
    harness = harness_name(options.harness)
    main = ready_home(local.home_path())
    if not shutil.which("git"):
        raise MissingBinary("The demo needs git.", hint="Install git with the system's packages.")
    if harness in PINS:
        tell(f"1/4  {PINS[harness].title}: installed under {main / 'harnesses'} if it isn't yet")
        install_shown(harness, main)
    else:
        tell(f"1/4  {harness} comes with Omnigent")
    _end_on_signals()
    place = _make_place(main)
    try:
        done = _perform(place, main, harness, options)
    except OmnigentError:
        tell(f"kept: {place}")
        raise
    except BaseException:  # an end that was asked for
        if not options.keep:
            shutil.rmtree(place, ignore_errors=True)
        raise
    kept = options.keep or not done
    transcript = _tidy(place, main, kept=kept)
    tell(f"transcript: {transcript}" + (f"\nkept: {place}" if kept else ""))
    return OK if done else FAILED


def _end_on_signals() -> None:
    """A closed terminal and a `kill` end the demo as its own end does: nothing of it stays."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` said so
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)
    if number == signal.SIGHUP:  # the terminal is gone, and each write to it would be an error
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
    sys.exit(128 + number)


def _perform(place: Path, main: Path, harness: str, options: argparse.Namespace) -> bool:
    project = place / "project"
    tell(f"2/4  a small repository: {project}")
    _make_project(project)
    tell("3/4  a scripted model in place of a vendor's, and a server for this demo")
    with _model(place) as model_url:
        home = _make_home(place, main, model_url)
        return _session(home, project, harness, options)


def _make_place(main: Path) -> Path:
    room = main / "demo"
    try:
        room.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=room, prefix=""))
    except OSError as error:
        raise HomeUnusable(f"{room} can't be written: {error.strerror}.") from error


def _make_project(project: Path) -> None:
    project.mkdir()
    for name, text in _FILES.items():
        (project / name).write_text(text)
    author = (
        "-c",
        "user.name=Omnigent demo",
        "-c",
        "user.email=demo@localhost",
        "-c",
        "commit.gpgsign=false",
    )
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "A greeting")):
        subprocess.run(("git", *words), cwd=project, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _model(place: Path) -> Generator[str]:
    """The scripted model's URL while it runs. Closing its stdin ends it, also when we are killed."""
    script, key = place / "script.json", secrets.token_hex(16)
    script.write_text(json.dumps(_SCRIPT, indent=2))
    secret = place / "key"
    secret.touch(mode=0o600)
    secret.write_text(key)
    words = (
        "--script",
        str(script),
        "--log",
        str(place / "model.log"),
        "--require-key-env",
        _KEY,
        "--until-eof",
    )
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "omnigent.testing.scripted_model", *words],
        env=child_environment(dict(os.environ)) | {_KEY: key},
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us
    )
    assert child.stdin and child.stdout
    try:
        ready = child.stdout.readline()
        if not ready:
            raise OmnigentError("The scripted model didn't start; its words are above.")
        yield json.loads(ready)["url"]
    finally:
        child.stdin.close()
        child.stdout.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _make_home(place: Path, main: Path, model_url: str) -> Path:
    """The demo's own home: its configuration names the scripted model; installed agents are shared."""
    home = ready_home(place / "home")
    (main / "harnesses").mkdir(exist_ok=True)
    (home / "harnesses").symlink_to(main / "harnesses")
    (home / "secrets").mkdir(mode=0o700)
    (place / "key").rename(home / "secrets" / "demo")
    key = {"secret": "demo"}
    config: dict[str, Any] = {
        "server": {"port": 0},  # any that is free: the usual one is for the person's own server
        "providers": {
            "demo-anthropic": {"api": "anthropic-messages", "base_url": model_url, "key": key},
            "demo-openai": {"api": "openai-responses", "base_url": f"{model_url}/v1", "key": key},
        },
        "defaults": {
            name: {
                "provider": "demo-anthropic" if name in ("claude-code", "scripted") else "demo-openai",
                "model": model,
            }
            for name, model in _MODELS.items()
        },
    }
    (home / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return home


def _session(home: Path, project: Path, harness: str, options: argparse.Namespace) -> bool:
    """Play it. Whether the work was really done."""
    client = launch(home)
    try:
        session = client.create(
            {
                "harness": harness, "workspace": str(project), "title": "Demo", "prompt": _PROMPT,
                "policies": _RULES,
            }
        )  # fmt: skip
        session_id = session["id"]
        tell(f"4/4  watch it live: {link(session, client, token=True)}\n")
        code = FAILED
        try:
            code = _play(client, session_id)
        finally:
            _write_transcript(client, session_id, project.parent / "transcript.txt")
        done = _is_done(project)
        _tell_result(project, done=done)
        if code == OK and both_terminals() and not options.exit:
            tell("The page stays until you press Enter.")
            with suppress(KeyboardInterrupt):
                sys.stdin.readline()
        return done and code == OK
    finally:
        _stop(home, client)


def _play(client: Client, session_id: str) -> int:
    """The turn, live. At a terminal the person answers what is asked; elsewhere the demo does and says so."""
    if both_terminals():
        return attach(client, session_id, after=0, one_turn=True)
    transcript = Transcript(coloured(colourful()))
    for frame in client.follow(session_id):
        if frame.event == "delta":
            _write(transcript.delta(frame.data))
        if frame.event != "event":
            continue
        event = event_of(frame)
        _write(transcript.event(event))
        if event["kind"] == "approval.requested":
            tell("  (no terminal here: the demo allows it)")
            client.command(session_id, "resolve", approval_id=event["item_id"], decision="allow")
        if event["kind"] in ("turn.completed", "turn.failed", "turn.interrupted"):
            break
    return OK


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _write_transcript(client: Client, session_id: str, path: Path) -> None:
    transcript = Transcript(full=True)
    with suppress(OmnigentError):  # the server is gone: the error that matters is on its way
        path.write_text("".join(transcript.event(event) for event in client.all_events(session_id)))


def _is_done(project: Path) -> bool:
    """Whether the file was really edited and the command really ran, twice. Read from the disk."""
    try:
        greeting, runs = (project / "greeting.txt").read_text(), (project / "check.log").read_text()
    except OSError:
        return False
    return greeting == _GREETING and runs.splitlines() == _RUNS


def _tell_result(project: Path, *, done: bool) -> None:
    diff = subprocess.run(
        ("git", "diff", "-U0", "--", "greeting.txt"), cwd=project, capture_output=True, text=True, check=False
    )
    out()
    for line in diff.stdout.splitlines()[4:]:
        out(line)
    log = project / "check.log"
    out(f"check.log: {' | '.join(log.read_text().splitlines())}" if log.exists() else "check.log: not there")
    tell("The file was edited and the command ran." if done else "error: the work was not done")


def _stop(home: Path, client: Client) -> None:
    """No process of the demo stays, also after an interrupt in the middle of a turn."""
    with suppress(OmnigentError):
        for session in client.sessions(limit=20):
            if session["status"] != "idle":
                client.command(session["id"], "stop")
    pid = int((local.server_record(home) or {}).get("pid") or 0)
    started = start_time(pid) if pid else None
    code = FAILED
    with suppress(OmnigentError):
        code = stop_local(home, 30)
    if code != OK and started is not None:
        kill([(pid, started)])


def _tidy(place: Path, main: Path, *, kept: bool) -> Path:
    """Remove the demo's directory unless it is kept. Where the transcript is."""
    transcript = place / "transcript.txt"
    if kept or not transcript.exists():
        return transcript
    moved = transcript.rename(main / "demo" / f"{place.name}.txt")
    shutil.rmtree(place, ignore_errors=True)
    return moved
