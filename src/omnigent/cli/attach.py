"""`omnigent attach`: a session live, line by line, and a prompt. Works on a terminal and on pipes.

One thread reads the stream and prints; the main thread reads the person's lines. Piped lines wait for the
turn before them, so that a script of lines does what a person would.
"""

import argparse
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_session
from omnigent.cli.run import event_of
from omnigent.cli.table import BUDGET, FAILED, INTERRUPTED, NEEDS_INPUT, OK
from omnigent.cli.talk import colourful, tell, tell_error
from omnigent.cli.transcript import Transcript, choices, coloured, question_lines
from omnigent.cli.wording import (
    amount,
    approval_line,
    approval_more,
    duration_ms,
    paused_lines,
    standing_of_session,
)
from omnigent.client import JSON, Client, Event, Follow, Session
from omnigent.errors import Malformed, OmnigentError

TAIL = 200
"""Events of the past that are shown when a session is joined."""

_HELP = """\
A line is sent as a message (into the running turn where the agent can take it, else after it).
Asked for approval: y allows once; s (or `s 2h`) the same from now on; p (or `p PATTERN`) what the pattern
matches; `e COMMAND` runs that instead; `n REASON` refuses.
Asked a question: the number of an option, several with commas, or your own words.
/interrupt  /stop  /resume  /budget USD|off  /switch HARNESS [MODEL]  /model MODEL  /quit
Ctrl-C interrupts, twice detaches"""


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent attach            the latest session of this directory\nomnigent attach @last"
    parser.epilog = _HELP
    add_session(parser)
    parser.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id = naming.find(client, options.session)
    session = client.session(session_id)
    tell(standing_of_session({**session}))
    return attach(client, session_id, after=max(0, session["last_seq"] - TAIL))


def attach(client: Client, session_id: str, *, after: int, one_turn: bool = False) -> int:
    """Show everything after a seq, then live, until the person leaves, piped lines are done, or (`one_turn`)
    the running turn has ended."""
    session = client.session(session_id)
    watch = Watch(client, session)
    follow = client.follow(session_id, after)
    threading.Thread(target=watch.read, args=(follow,), name="follow", daemon=True).start()
    try:
        return Dialogue(client, watch, one_turn=one_turn).run()
    finally:
        watch.finish()


class State:
    """What the dialogue must know of a session: does it work, and what does it wait for."""

    def __init__(self, head: int) -> None:
        self.seen = 0
        self.head = head
        """The seq that must have been seen before the state can be trusted."""
        self.open: dict[str, JSON] = {}
        """Open approvals and questions, oldest first: id → body with `kind`."""
        self.turn = False
        self.outcome = ""
        self.paused: JSON | None = None
        """Why the turn waits to go on: the body of its `turn.paused`."""
        self._unserved: set[str] = set()
        """Messages whose turn hasn't begun."""

    @property
    def current(self) -> bool:
        return self.seen >= self.head

    @property
    def settled(self) -> bool:
        """Nothing happens any more unless a person says something."""
        return self.current and (bool(self.open) or (not self.turn and not self._unserved))

    def take(self, event: Event) -> None:
        self.seen = event["seq"]
        item, body = event["item_id"] or "", event["body"]
        match event["kind"]:
            case "message.submitted":
                self._unserved.add(item)
            case "message.delivered" | "message.cancelled" | "message.failed":
                self._unserved.discard(item)
            case "turn.started":
                self.turn, self.paused = True, None
                self._unserved.discard(body.get("message_id") or "")
            case "turn.completed" | "turn.failed" | "turn.interrupted" as kind:
                self.turn, self.outcome, self.paused = False, kind.removeprefix("turn."), None
                self.open.clear()
            case "turn.paused":
                self.turn, self.outcome, self.paused = False, "paused", body
            case "turn.resumed":
                self.paused = None
            case "approval.requested" | "question.asked" as kind:
                self.open[item] = {**body, "kind": kind.partition(".")[0]}
            case "approval.resolved" | "question.answered":
                self.open.pop(item, None)
            case "session.forked":
                self.open.clear()
                self._unserved.clear()
                self.turn = False
            case _:
                pass


class Watch:
    """The reading side: the stream's frames to the screen and into `state`, both under one lock."""

    def __init__(self, client: Client, session: Session) -> None:
        self.session_id = session["id"]
        self.state = State(session["last_seq"])
        self.trouble: OmnigentError | None = None
        self.over = False
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.lock = threading.Lock()
        self.woken, self._wake = os.pipe()
        self._transcript = Transcript(coloured(colourful()))
        self._prompted = ""
        self._finished = False
        self._add_open(client, session)

    def _add_open(self, client: Client, session: Session) -> None:
        """What was asked before the part of the log that is read."""
        if session["status"] == "waiting":
            for row in client.inbox():
                if row["session_id"] == self.session_id:
                    self.state.open[row["item"]["id"]] = {**row["item"], "kind": row["item"]["type"]}
        self.state.turn = session["status"] in ("running", "waiting", "starting")
        self.state.paused = session.get("paused")

    def read(self, follow: Follow) -> None:
        """The stream's thread. Its errors are the dialogue's to raise."""
        try:
            for frame in follow:
                if self._finished:
                    return
                match frame.event:
                    case "event":
                        event = event_of(frame)
                        with self.lock:
                            self.state.take(event)
                            self._write(self._transcript.event(event))
                    case "delta":
                        with self.lock:
                            self._write(self._transcript.delta(frame.data))
                    case "lost":
                        self.say("the server is away, reconnecting …")
                    case _:
                        pass
                self.wake()
            self.over = True
        except OmnigentError as error:
            self.trouble = error
        except OSError:  # stdout or the wake pipe is gone: nobody watches any more
            self.over = True
        with suppress(OSError):
            self.wake()

    def wake(self) -> None:
        os.write(self._wake, b".")

    def say(self, text: str) -> None:
        """A line of talk between the lines of the transcript."""
        with self.lock:
            self._write(self._transcript.end())
            self._hide_prompt()
            tell(text)

    def prompt(self) -> None:
        """Show what is waited for, once, on a terminal."""
        with self.lock:
            label = self._label() if self.terminal and self.state.settled else ""
            if label and label != self._prompted:
                self._write(self._transcript.end())
                self._hide_prompt()
                sys.stdout.write(label)
                sys.stdout.flush()
                self._prompted = label

    def answered(self) -> None:
        """The person ended a line: the prompt is used up."""
        self._prompted = ""

    def finish(self) -> None:
        """Nothing is shown any more, though the thread may still wait for its next frame."""
        with self.lock:
            self._finished = True
            self._write(self._transcript.end())
            self._hide_prompt()

    def _label(self) -> str:
        first = next(iter(self.state.open.values()), None)
        if first is None:
            return "> "
        return _keys(first) if first["kind"] == "approval" else "answer: "

    def _hide_prompt(self) -> None:
        if self._prompted:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
            self._prompted = ""

    def _write(self, text: str) -> None:
        if text:
            self._hide_prompt()
            sys.stdout.write(text)
            sys.stdout.flush()


class Lines:
    """Whole lines from a file descriptor, without blocking on half of one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._rest = b""
        self._lines: list[str] = []

    def fill(self) -> None:
        data = os.read(self.fd, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self.ended = True
            lines, self._rest = ([self._rest] if self._rest else []), b""
        self._lines += [line.decode("utf-8", "replace") for line in lines]

    def take(self) -> str | None:
        return self._lines.pop(0) if self._lines else None


class Dialogue:
    """The writing side: a person's lines become commands."""

    def __init__(self, client: Client, watch: Watch, *, one_turn: bool = False, stdin: int = 0) -> None:
        self._one_turn = one_turn
        self._client = client
        self._watch = watch
        self._lines = Lines(stdin)
        self._interrupts = 0
        self._answers: list[list[str]] = []
        """The answers so far to the questions of the first open question item."""
        self._slashes: dict[str, Callable[[list[str]], None]] = {
            "/interrupt": lambda _: self._command("interrupt"),
            "/stop": lambda _: self._command("stop"),
            "/resume": lambda _: self._command("resume"),
            "/budget": self._budget,
            "/switch": self._switch,
            "/model": self._model,
            "/help": lambda _: watch.say(_HELP),
        }

    def run(self) -> int:
        while True:
            try:
                code = self._step()
            except KeyboardInterrupt:
                code = self._on_interrupt()
            if code is not None:
                return code

    def _step(self) -> int | None:
        watch, lines = self._watch, self._lines
        if watch.trouble:
            raise watch.trouble
        if watch.over:
            tell("the session was deleted")
            return OK
        with watch.lock:
            settled = watch.state.settled
            may_read = watch.terminal or settled
            if self._one_turn and settled and watch.state.outcome:
                return self._exit_code()
        if may_read and (line := lines.take()) is not None:
            return self._line(line.strip())
        if lines.ended and (settled or (watch.terminal and not self._one_turn)):
            return self._on_end()
        watch.prompt()
        sources = [watch.woken, lines.fd] if may_read and not lines.ended else [watch.woken]
        ready, _, _ = select.select(sources, [], [])
        if watch.woken in ready:
            os.read(watch.woken, 65536)
        if lines.fd in ready:
            lines.fill()
        return None

    def _on_end(self) -> int:
        """The person's lines are at their end, and (but for a terminal, which was left) the turns too."""
        watch = self._watch
        if not watch.terminal:
            return self._exit_code()
        if not self._one_turn:
            return OK
        asked = next((body["kind"] for body in watch.state.open.values()), None)
        watch.say(f"the input ended before the {asked} was answered" if asked else "the input ended")
        return FAILED

    def _exit_code(self) -> int:
        state = self._watch.state
        if state.open:
            for item, body in state.open.items():
                self._watch.say("\n".join(_asked(item, body)))
            return NEEDS_INPUT
        if state.paused:
            self._watch.say("\n".join(paused_lines(state.paused, self._watch.session_id)))
            return BUDGET if state.paused["reason"] == "budget" else NEEDS_INPUT
        return {"failed": FAILED, "interrupted": INTERRUPTED}.get(state.outcome, OK)

    def _on_interrupt(self) -> int | None:
        self._interrupts += 1
        if self._interrupts > 1:
            return INTERRUPTED
        if self._watch.state.turn:
            self._watch.say("interrupting the turn … (Ctrl-C again detaches)")
            self._command("interrupt")
        else:
            self._watch.say("(Ctrl-C again, or /quit, detaches; the session goes on)")
        return None

    def _line(self, line: str) -> int | None:
        self._interrupts = 0
        self._watch.answered()
        if line in ("/quit", "/detach", "/exit"):
            return OK
        if line.startswith("/"):
            name, *rest = line.split()
            slash = self._slashes.get(name)
            if slash:
                slash(rest)
            else:
                self._watch.say(f"There is no command {name}.\n{_HELP}")
        elif line:
            self._said(line)
        return None

    def _said(self, line: str) -> None:
        state = self._watch.state
        with self._watch.lock:
            first = next(iter(state.open.items()), None)
        if first is None:
            self._command("prompt", text=line, when="steer" if state.turn else "auto")
        elif first[1]["kind"] == "approval":
            self._resolve(first[0], first[1], line)
        else:
            self._answer(first[0], first[1], line)

    def _resolve(self, approval_id: str, approval: JSON, line: str) -> None:
        try:
            fields = resolution(approval, line)
        except Malformed as error:
            self._watch.say(f"{error.detail} {error.hint}".strip())
            return
        self._command("resolve", approval_id, approval_id=approval_id, **fields)

    def _answer(self, question_id: str, body: JSON, line: str) -> None:
        questions: list[JSON] = body["questions"]
        self._answers.append(choices(questions[len(self._answers)], line))
        if len(self._answers) < len(questions):
            self._watch.say("\n".join(question_lines(question_id, [questions[len(self._answers)]])))
            return
        values, self._answers = self._answers, []
        self._command("answer", question_id, question_id=question_id, values=values)

    def _switch(self, words: list[str]) -> None:
        if not words:
            self._watch.say("/switch HARNESS [MODEL]")
            return
        self._command("switch", harness=words[0], **({"model": words[1]} if len(words) > 1 else {}))

    def _budget(self, words: list[str]) -> None:
        try:
            cap = None if words == ["off"] else amount(" ".join(words), "/budget")
        except Malformed as error:
            self._watch.say(error.detail)
            return
        self._command("set_budget", cap_usd=cap)

    def _model(self, words: list[str]) -> None:
        if words:
            self._command("set_model", model=words[0])
        else:
            self._watch.say("/model MODEL")

    def _command(self, type_: str, closes: str | None = None, **fields: Any) -> None:
        """`closes`: the open item that is answered by it."""
        watch = self._watch
        try:
            answer = self._client.command(watch.session_id, type_, **fields)
        except OmnigentError as error:
            with watch.lock:
                sys.stdout.flush()
                tell_error(error)
            return
        with watch.lock:
            watch.state.head = max(watch.state.head, int(answer.get("seq") or 0))
            if closes:
                watch.state.open.pop(closes, None)


def resolution(approval: JSON, line: str) -> JSON:
    """A typed answer to an approval, as the fields of `resolve`. Raises `Malformed`."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    match word.lower():
        case "y" | "yes" | "a":
            return {"decision": "allow", "grant": {"scope": "once"}}
        case "s":
            until = {"until": time.time_ns() // 1_000_000 + duration_ms(rest, "s")} if rest else {}
            return {"decision": "allow", "grant": {"scope": "session", **until}}
        case "p":
            offered = approval.get("patterns") or ()
            pattern = rest or next(iter(offered), "")
            if not pattern:
                raise Malformed("No pattern is offered here.", hint="Write one: `p exec: npm run *`.")
            return {"decision": "allow", "grant": {"scope": "pattern", "pattern": pattern}}
        case "e":
            if not approval.get("edit"):
                raise Malformed("Its agent can't run another command.", hint="Say what to run: `n REASON`.")
            if not rest:
                raise Malformed("e takes the command to run instead:", hint=f"e {approval['edit']}")
            return {"decision": "allow", "edited": rest}
        case "n" | "no" | "d":
            return {"decision": "deny", "reason": rest}
        case _:
            raise Malformed(
                "It waits for an approval: y, s, p, e COMMAND, or `n REASON`.",
                hint="/interrupt ends the turn.",
            )


def _keys(approval: JSON) -> str:
    """The prompt for an approval: the keys that it takes."""
    more = [", [p]attern"] if approval.get("patterns") else []
    more += [", [e]dit + command"] if approval.get("edit") else []
    return f"allow? [y]es, this [s]ession{''.join(more)}, [n]o + reason: "


def _asked(item: str, body: JSON) -> list[str]:
    if body["kind"] == "approval":
        return [f"needs input: {item} asks: {approval_line(body)}", *approval_more(item, body)]
    return question_lines(f"needs input: {item}", body["questions"])
