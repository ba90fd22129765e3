"""`omnigent run` and its short forms: create a session, then print, detach or attach."""

import argparse
import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omnigent.cli import local
from omnigent.cli.parser import Parser
from omnigent.cli.rules import placed, read_rules
from omnigent.cli.table import BUDGET, FAILED, INTERRUPTED, NEEDS_INPUT, OK
from omnigent.cli.talk import both_terminals, clean, colourful, out, tell
from omnigent.cli.transcript import question_lines, text_of
from omnigent.cli.wording import amount, approval_line, approval_more, paused_lines, standing_of_session
from omnigent.client import Client, Event, Follow, Frame, Session
from omnigent.errors import Malformed, ProviderMissing, WorkspaceMissing

_STDIN_SECONDS = 3.0
"""How long a pipe beside a prompt may stay silent."""

_AGENTS = {"claude": "claude-code", "codex": "codex", "pi": "pi"}

_EXAMPLES = """\
omnigent {name} 'fix the failing test'             attach to it on a terminal
omnigent {name} -p 'what does this project do?'    print the answer and exit
omnigent {name} -d --yes 'update the changelog'    leave it running, print its id
omnigent {name} --budget 3 --policy rules.yaml     pause at $3, with rules of its own"""


def configure(name: str, parser: Parser) -> None:
    parser.example = _EXAMPLES.format(name=name)
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what to do; `-` reads it from stdin")
    if name in _AGENTS:
        parser.set_defaults(harness=_AGENTS[name])
    else:
        parser.add_argument("-H", "--harness", help="claude-code, codex, pi, … (default: the configured one)")
    parser.add_argument("-m", "--model", help="the model, under its provider's name")
    parser.add_argument("-P", "--provider", help="a provider of config.yaml")
    parser.add_argument("-C", "--directory", default=".", metavar="DIR", help="the workspace (default: here)")
    parser.add_argument("--title", help="the session's title (default: from the prompt)")
    asking = parser.add_mutually_exclusive_group()
    asking.add_argument("--yes", action="store_true", help="allow every tool call without asking")
    asking.add_argument("--no-ask", action="store_true", help="nobody can answer: deny what would be asked")
    parser.add_argument("--policy", metavar="FILE", action="append", help="rules of this session (YAML)")
    parser.add_argument("--budget", metavar="USD", help="pause when the session has spent this much")
    parser.add_argument("-p", "--print", action="store_true", help="print the final text and exit")
    parser.add_argument("--json", action="store_true", help="print the events as JSON lines (implies -p)")
    parser.add_argument("-d", "--detach", action="store_true", help="don't wait; print the session's id")
    parser.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    workspace = workspace_of(options.directory)
    printing = options.print or options.json or not both_terminals()
    prompt = prompt_of(options.prompt, required=printing or options.detach)
    client, session = _create(options, workspace, prompt)
    tell(f"session {session['id']}  {link(session, client, token=sys.stderr.isatty())}")
    tell(standing_of_session({**session}))
    if options.yes:
        tell("warning: --yes: every tool call of this session is allowed without asking")
    if options.detach:
        out(session["id"])
        return OK
    if printing:
        return print_turn(client, session["id"], json_lines=options.json, answers=not options.no_ask)
    from omnigent.cli.attach import attach  # only for a person at a terminal

    return attach(client, session["id"], after=0)


def workspace_of(named: str) -> str:
    """The absolute path of a workspace. Raises `WorkspaceMissing`."""
    if named == ".":
        local.here()
    try:
        real = Path(named).expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        hint = "No user has that home; is it quoted?" if "~" in named else f"mkdir -p {named}"
        raise WorkspaceMissing(f"There is no directory {named}.", hint=hint) from error
    if not real.is_dir():
        raise WorkspaceMissing(f"{named} is not a directory.", hint="Name the directory it is in with -C.")
    return str(real)


def prompt_of(words: list[str], *, required: bool) -> str | None:
    """The prompt from the arguments, or from stdin for `-` or if nothing was typed and stdin is no terminal.
    What is piped in beside typed words follows them, after a blank line."""
    if words == ["-"] or (not words and required and not sys.stdin.isatty()):
        text = _read_stdin().strip()
    else:
        piped = _read_beside().strip() if required and _is_piped() else ""
        text = "\n\n".join(part for part in (" ".join(words).strip(), piped) if part)
    if not text and required:
        raise Malformed("There is no prompt.", hint="omnigent run -p 'what does this project do?'")
    return text or None


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file. Any other may be inherited, never end and not be meant for us."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_beside() -> str:
    """What is piped in beside a prompt. An inherited pipe that stays silent isn't meant for us."""
    if not select.select([sys.stdin], [], [], _STDIN_SECONDS)[0]:
        tell(f"nothing came on stdin in {_STDIN_SECONDS:.0f} s: going on without it")
        return ""
    return _read_stdin()


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise Malformed("stdin is not UTF-8 text.") from error


def _create(options: argparse.Namespace, workspace: str, prompt: str | None) -> tuple[Client, Session]:
    home = local.home_path()
    if not local.is_remote() and not _names_providers(home):
        _set_up(home)
    approvals = "yes" if options.yes else "deny" if options.no_ask else "ask"
    body: dict[str, Any] = {
        "harness": options.harness, "model": options.model, "provider": options.provider,
        "workspace": workspace, "title": options.title, "prompt": prompt, "approvals": approvals,
        "policies": rules_of(options.policy), "budget_usd": budget_of(options.budget),
    }  # fmt: skip
    body = {name: value for name, value in body.items() if value is not None}
    client = local.connect()
    with placed(*(options.policy or ())):
        try:
            return client, client.create(body)
        except ProviderMissing:
            if local.is_remote() or not _set_up(home):
                raise
        client = local.connect()
        return client, client.create(body)


def rules_of(files: list[str] | None) -> str | None:
    """The text of the one policy file. Raises `Malformed` for several, or for one that can't be read."""
    if not files:
        return None
    if len(files) > 1:
        raise Malformed("--policy takes one file.", hint="Put the rules in one file, under one `policies:`.")
    return read_rules(files[0])


def budget_of(typed: str | None) -> float | None:
    return None if typed is None else amount(typed, "--budget")


def _names_providers(home: Path) -> bool:
    """Whether the configuration may have providers, by its text: reading it as YAML would cost every run more
    than the run itself. A false yes is found by the server."""
    try:
        return "providers" in (home / "config.yaml").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _set_up(home: Path) -> bool:
    """Propose a provider unless one is configured (then False). Raises `ProviderMissing`, `ConfigInvalid`."""
    from omnigent.cli.setup import propose  # the first run only, and not cheap
    from omnigent.config import load_config

    if load_config(home).providers:
        return False
    propose(home)
    return True


def link(session: Session, client: Client, *, token: bool) -> str:
    """The session's URL. `token`: with the token, in the fragment, which browsers don't send; only where a
    person reads it, for what is written elsewhere ends up in logs."""
    url = (session.get("web_url") or f"{client.url}/s/{session['id']}").partition("#")[0]
    return f"{url}#token={client.token}" if token else url


def print_turn(client: Client, session_id: str, *, json_lines: bool, answers: bool) -> int:
    """Follow the first turn to its end. `answers`: an open approval or question ends it with exit code 8."""
    turn = Turn(answers=answers)
    show = _print_json if json_lines else _print_nothing
    code = follow_turn(client, client.follow(session_id), turn, show)
    if not json_lines and turn.text:
        out(clean(turn.text) if colourful() else turn.text)
    if turn.waiting and code in (NEEDS_INPUT, BUDGET):
        tell(turn.waiting)
        if not turn.paused:
            tell("hint: omnigent approve (or deny, answer); omnigent attach goes on in this terminal")
    elif turn.trouble:
        tell(f"error: {turn.trouble}")
    return code


class Turn:
    """The first turn of a new session, from its events: how it ended, and its last text."""

    def __init__(self, *, answers: bool) -> None:
        self.text = ""
        self.trouble = ""
        self.waiting = ""
        self.paused = False
        self._answers = answers
        self._code: int | None = None

    def take(self, event: Event) -> int | None:
        """The exit code once it is known."""
        body = event["body"]
        match event["kind"]:
            case "message.completed":
                self.text = text_of(body["content"]) or self.text
            case "turn.completed":
                self._code = OK
            case "turn.failed":
                self._code = {"denied": 6, "budget": 7}.get(body["code"], FAILED)
                self.trouble = clean(f"{body['detail']} ({body['code']})")
            case "turn.interrupted":
                self._code = INTERRUPTED
            case "message.failed":
                self._code, self.trouble = FAILED, clean(f"{body['detail']} ({body['code']})")
            case "approval.requested" if self._answers or body.get("hold") == "pause":
                self._code = NEEDS_INPUT
                asks = f"needs input: {event['item_id']} asks: {approval_line(body)}"
                self.waiting = "\n".join([asks, *approval_more(event["item_id"] or "", body)])
            case "turn.paused" if not body.get("until"):
                self._code, self.paused = BUDGET if body["reason"] == "budget" else NEEDS_INPUT, True
                self.waiting = "\n".join(paused_lines(body, event["session_id"]))
            case "question.asked" if self._answers:
                self._code = NEEDS_INPUT
                self.waiting = "\n".join(
                    question_lines(f"needs input: {event['item_id']}", body["questions"])
                )
            case _:
                pass
        return self._code


def follow_turn(client: Client, follow: Follow, turn: Turn, show: Callable[[Frame], None]) -> int:
    """Read until the turn's exit code is known. Ctrl-C interrupts the turn; a second one leaves at once."""
    session_id, interrupted = follow.session_id, False
    while True:
        try:
            for frame in follow:
                show(frame)
                if frame.event == "lost":
                    tell("the server is away, reconnecting …")
                code = turn.take(event_of(frame)) if frame.event == "event" else None
                if code is not None:
                    return INTERRUPTED if interrupted else code
            tell("error: the session was deleted")
            return FAILED
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            tell("interrupting the turn … (Ctrl-C again leaves it)")
            client.command(session_id, "interrupt")


def event_of(frame: Frame) -> Event:
    event: Any = frame.data
    return event


def _print_json(frame: Frame) -> None:
    if frame.event == "event":
        out(frame.text)


def _print_nothing(frame: Frame) -> None:
    pass
