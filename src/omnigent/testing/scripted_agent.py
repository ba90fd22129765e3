"""A small coding agent, complete and honest: the toy of the docs and the fastest real agent of the tests.

It talks to a model over the Anthropic Messages API, asks before every tool call and runs the allowed ones
itself. Standard library only. JSON objects, one a line, on stdin and stdout:

To the agent:
    {"type": "hello", "model", "resume": ref or null, "instructions"}      first; answered by `ready`
    {"type": "prompt", "id", "content": [block…]}                          starts a turn
    {"type": "steer", "id", "content": [block…]}                           joins the running turn
    {"type": "interrupt"}                                                  ends the turn, kills its command
    {"type": "verdict", "call", "allow", "reason", "command"?}             the answer to `call`
    {"type": "answer", "id", "values": [[…]…], "cancelled"}                the answer to `question`
    {"type": "set_model", "model"} · {"type": "ping"}
From the agent:
    {"type": "ready", "version", "model", "ref", "tools"} · {"type": "pong"}
    {"type": "taken", "id", "as": "turn" or "steer"}                       the message is in the transcript
    {"type": "delta", "item", "stream": "text" or "reasoning", "text"}
    {"type": "item_done", "item", "stream", "text"}                        all of it
    {"type": "call", "call", "tool", "input"}                              waits for its verdict
    {"type": "output", "call", "text"}                                     while the call runs
    {"type": "call_done", "call", "outcome", "output", "exit_code", "reason"}
    {"type": "question", "id", "questions"}
    {"type": "usage", "model", "input", "cache_read", "cache_write", "output"}
    {"type": "retrying", "detail"}
    {"type": "turn_end", "outcome": "completed", "interrupted" or "failed", "detail"}
Blocks are those of the Messages API. Unknown messages are ignored, both ways.

The transcript is `<state>/<ref>.jsonl`, a Messages API message a line; to seed a history is to write one.
The environment gives SCRIPTED_BASE_URL and SCRIPTED_KEY, the one argument is the state directory.
"""

import codecs
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

type JSON = dict[str, Any]

VERSION = "1.0.0"
INTERRUPTED = "Interrupted by the user."
LOST = "The agent ended before this call did; what it did is unknown."
_RETRIED = (429, 500, 502, 503, 529)
_RETRIES = 3
_POLL_SECONDS = 1.0

TOOLS: list[JSON] = [
    {
        "name": "bash",
        "description": "Run a shell command; in the background if it shall outlive the call.",
        "input_schema": {
            "type": "object",
            "properties": {"command": {"type": "string"}, "background": {"type": "boolean"}},
            "required": ["command"],
        },
    },
    {
        "name": "write_stdin",
        "description": "Type into a background command, then show what it has printed since the last look.",
        "input_schema": {
            "type": "object",
            "properties": {"session_id": {"type": "integer"}, "chars": {"type": "string"}},
            "required": ["session_id", "chars"],
        },
    },
    {
        "name": "read",
        "description": "Read a file.",
        "input_schema": {
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
        },
    },
    {
        "name": "write",
        "description": "Write a file.",
        "input_schema": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
            "required": ["path", "content"],
        },
    },
    {
        "name": "edit",
        "description": "Replace a text that occurs once in a file.",
        "input_schema": {
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "oldText": {"type": "string"},
                "newText": {"type": "string"},
            },
            "required": ["path", "oldText", "newText"],
        },
    },
    {
        "name": "AskUserQuestion",
        "description": "Ask the person.",
        "input_schema": {
            "type": "object",
            "properties": {"questions": {"type": "array"}},
            "required": ["questions"],
        },
    },
]

_printing = threading.Lock()


def tell(kind: str, **fields: Any) -> None:
    line = json.dumps({"type": kind, **fields}, separators=(",", ":")).encode() + b"\n"
    with _printing:
        while line:
            line = line[os.write(1, line) :]


class Interrupted(Exception):
    pass


class Failed(Exception):
    """The turn can't go on; the text is for people."""


class Transcript:
    """Every message on disk before it is used."""

    def __init__(self, state: Path, ref: str | None) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.ref = ref or uuid.uuid4().hex
        self.path = state / f"{self.ref}.jsonl"
        self.messages: list[JSON] = []
        if ref:
            self._load()
        self._close_dangling()

    def add(self, role: str, content: list[JSON], message_id: str = "") -> None:
        if not content:
            return
        message = {"role": role, "content": content, **({"id": message_id} if message_id else {})}
        with self.path.open("a") as file:
            file.write(json.dumps(message) + "\n")
        self.messages.append(message)

    def for_model(self) -> list[JSON]:
        return [{"role": message["role"], "content": message["content"]} for message in self.messages]

    def _load(self) -> None:
        """All whole lines; a killed agent may have left half of one."""
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole)
        self.messages = [json.loads(line) for line in whole.splitlines()]

    def _close_dangling(self) -> None:
        last: JSON = self.messages[-1] if self.messages else {"role": "user"}
        if last["role"] == "assistant":
            calls = [block["id"] for block in last["content"] if block["type"] == "tool_use"]
            self.add("user", [result_block(call, LOST, error=True) for call in calls])


def result_block(call: str, text: str, *, error: bool) -> JSON:
    return {"type": "tool_result", "tool_use_id": call, "content": text or "(no output)", "is_error": error}


class Model:
    """One streamed request at a time; `cancel` from another thread breaks it off."""

    def __init__(self, base_url: str, key: str) -> None:
        self._url = urlsplit(base_url)
        self._key = key
        self._connection: http.client.HTTPConnection | None = None
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()
        connection = self._connection
        if connection and connection.sock:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def stream(self, body: JSON) -> Iterator[JSON]:
        """The events of the answer. Raises `Failed`, `Interrupted`."""
        for attempt in range(_RETRIES + 1):
            try:
                response = self._post(body)
            except OSError as error:
                self._retry_or_fail(attempt, f"the model can't be reached: {error}", may_retry=True)
                continue
            if response.status == 200:
                yield from self._events(response)
                return
            detail = f"{response.status} {response.read().decode(errors='replace')}"
            self._retry_or_fail(attempt, detail, may_retry=response.status in _RETRIED)

    def _post(self, body: JSON) -> http.client.HTTPResponse:
        assert self._url.hostname
        self._connection = http.client.HTTPConnection(self._url.hostname, self._url.port)
        headers = {
            "x-api-key": self._key,
            "anthropic-version": "2023-06-01",
            "content-type": "application/json",
        }
        self._connection.request("POST", f"{self._url.path}/v1/messages", json.dumps(body), headers)
        return self._connection.getresponse()

    def _retry_or_fail(self, attempt: int, detail: str, *, may_retry: bool) -> None:
        if self.cancelled.is_set():
            raise Interrupted
        if not may_retry or attempt == _RETRIES:
            raise Failed(detail)
        tell("retrying", detail=detail)
        if self.cancelled.wait(0.05 * 2**attempt):
            raise Interrupted

    def _events(self, response: http.client.HTTPResponse) -> Iterator[JSON]:
        ended = False
        try:
            for line in response:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    ended = event["type"] == "message_stop"
                    yield event
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            pass  # a connection that another thread shut down fails in any of these ways
        if self.cancelled.is_set():
            raise Interrupted
        if not ended:
            raise Failed("the model's answer broke off")


class Command:
    """A shell command in a session of its own, its output read by a thread."""

    def __init__(self, command: str, on_output: Callable[[str], None] | None = None) -> None:
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.text = ""
        self.seen = 0
        self.changed = threading.Condition()
        self._on_output = on_output
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            text = decoder.decode(data)
            with self.changed:
                self.text += text
                self.changed.notify_all()
            if self._on_output and text:
                self._on_output(text)

    def finish(self) -> int:
        """Wait for its end; what it left behind may hold its output open, which isn't waited for."""
        assert self.process.stdin
        self.process.stdin.close()
        code = self.process.wait()
        self._reader.join(0.2)
        return code

    def type(self, chars: str) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(chars.encode())
            self.process.stdin.flush()
        except OSError:
            return  # it has ended, which the look that follows shows

    def look(self) -> str:
        """What is new, waited for a moment."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.text) > self.seen, _POLL_SECONDS)
            new, self.seen = self.text[self.seen :], len(self.text)
        return new

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class Tools:
    """Runs what was allowed. `kill` from another thread ends the foreground command."""

    def __init__(self) -> None:
        self._foreground: Command | None = None
        self._background: dict[int, Command] = {}

    def kill(self) -> None:
        for command in [self._foreground, *self._background.values()]:
            if command:
                command.kill()

    def run(self, call: str, tool: str, given: JSON) -> tuple[str, str, int | None]:
        """(outcome, output, exit code)."""
        try:
            match tool:
                case "bash":
                    return self._bash(call, given)
                case "write_stdin":
                    return "ok", self._type(given), None
                case "read":
                    return "ok", Path(given["path"]).read_text(errors="replace"), None
                case "write":
                    Path(given["path"]).parent.mkdir(parents=True, exist_ok=True)
                    Path(given["path"]).write_text(given["content"])
                    return "ok", "written", None
                case "edit":
                    return "ok", self._edit(given), None
                case _:
                    return "error", f"There is no tool named {tool}.", None
        except (OSError, KeyError, ValueError) as error:
            return "error", f"{type(error).__name__}: {error}", None

    def _bash(self, call: str, given: JSON) -> tuple[str, str, int | None]:
        if given.get("background"):
            number = len(self._background) + 1
            self._background[number] = Command(given["command"])
            return "ok", f"Running in the background as session ID {number}.", None
        self._foreground = Command(given["command"], lambda text: tell("output", call=call, text=text))
        code = self._foreground.finish()
        output, self._foreground = self._foreground.text, None
        return ("ok" if code == 0 else "error"), output, code if code >= 0 else 128 - code

    def _type(self, given: JSON) -> str:
        command = self._background[given["session_id"]]
        command.type(given["chars"])
        return command.look()

    def _edit(self, given: JSON) -> str:
        path = Path(given["path"])
        text = path.read_text()
        if text.count(given["oldText"]) != 1:
            raise ValueError(f"the text to replace occurs {text.count(given['oldText'])} times")
        path.write_text(text.replace(given["oldText"], given["newText"]))
        return "edited"


class Turn:
    """One prompt to its end, in a thread of its own. The main thread calls the methods of the first half."""

    def __init__(self, agent: "Agent", prompt: JSON) -> None:
        self.agent = agent
        self.prompt = prompt
        self.transcript = agent.transcript
        self.model = Model(agent.base_url, agent.key)
        self.steers: queue.SimpleQueue[JSON] = queue.SimpleQueue()
        self.answers: dict[str, queue.SimpleQueue[JSON | None]] = {}
        self.thread = threading.Thread(target=self.run, daemon=True)

    def interrupt(self) -> None:
        self.model.cancel()
        self.agent.tools.kill()
        for answer in list(self.answers.values()):
            answer.put(None)

    def answer(self, key: str, message: JSON) -> None:
        if key in self.answers:
            self.answers[key].put(message)

    # The turn's own thread from here.

    def run(self) -> None:
        self.transcript.add("user", self.prompt["content"], self.prompt["id"])
        tell("taken", id=self.prompt["id"], **{"as": "turn"})
        try:
            while self.ask_model():
                pass
            outcome, detail = "completed", ""
        except Interrupted:
            outcome, detail = "interrupted", ""
        except Failed as failure:
            outcome, detail = "failed", str(failure)
        self.agent.turn = None
        tell("turn_end", outcome=outcome, detail=detail)

    def ask_model(self) -> bool:
        """One model call and the tools it asks for. Whether another has to follow."""
        blocks: list[JSON] = []
        try:
            self.read_answer(blocks)
        finally:
            spoken = [b for b in blocks if b["type"] == "text" and b["text"].strip()]
            calls = [b for b in blocks if b["type"] == "tool_use" and "partial" not in b]
            self.transcript.add("assistant", [*spoken, *calls])
            if self.model.cancelled.is_set():
                self.transcript.add("user", [result_block(c["id"], INTERRUPTED, error=True) for c in calls])
        if calls:
            self.run_calls(calls)
        return bool(calls) or self.take_steers([])

    def read_answer(self, blocks: list[JSON]) -> None:
        """Stream the answer into `blocks`, telling it on the way."""
        used: JSON = {}
        name = self.agent.model
        open_item = ""
        try:
            for event in self.model.stream(self.request()):
                match event["type"]:
                    case "message_start":
                        used |= event["message"]["usage"]
                        name = event["message"].get("model", name)
                    case "content_block_start":
                        blocks.append({**event["content_block"], "partial": ""})
                        open_item = uuid.uuid4().hex
                    case "content_block_delta":
                        self.take_delta(blocks[-1], event["delta"], open_item)
                    case "content_block_stop":
                        self.finish_block(blocks[-1], open_item)
                        open_item = ""
                    case "message_delta":
                        used |= event["usage"]
                    case "error":
                        raise Failed(json.dumps(event["error"]))
                    case _:
                        pass
        finally:
            for block in blocks:
                if "partial" in block and block["type"] == "text":
                    block["text"] = block["partial"]
        tell(
            "usage",
            model=name,
            input=used.get("input_tokens", 0),
            cache_read=used.get("cache_read_input_tokens", 0),
            cache_write=used.get("cache_creation_input_tokens", 0),
            output=used.get("output_tokens", 0),
        )

    def request(self) -> JSON:
        return {
            "model": self.agent.model,
            "max_tokens": 8192,
            "stream": True,
            "system": self.agent.system(),
            "tools": TOOLS,
            "messages": self.transcript.for_model(),
        }

    def take_delta(self, block: JSON, delta: JSON, item: str) -> None:
        streams = {"text_delta": ("text", "text"), "thinking_delta": ("thinking", "reasoning")}
        if delta["type"] in streams:
            key, stream = streams[delta["type"]]
            block["partial"] += delta[key]
            tell("delta", item=item, stream=stream, text=delta[key])
        elif delta["type"] == "input_json_delta":
            block["partial"] += delta["partial_json"]

    def finish_block(self, block: JSON, item: str) -> None:
        whole = block.pop("partial")
        match block["type"]:
            case "tool_use":
                block["input"] = json.loads(whole or "{}")
            case "text":
                block["text"] = whole
                tell("item_done", item=item, stream="text", text=whole)
            case _:
                tell("item_done", item=item, stream="reasoning", text=whole)

    def run_calls(self, calls: list[JSON]) -> None:
        gated = [call for call in calls if call["name"] != "AskUserQuestion"]
        self.answers = {call["id"]: queue.SimpleQueue[JSON | None]() for call in calls}
        for call in gated:
            tell("call", call=call["id"], tool=call["name"], input=json.dumps(call["input"]))
        results: list[JSON] = []
        try:
            for call in calls:
                results.append(self.run_call(call))
        finally:
            for call in calls[len(results) :]:
                results.append(result_block(call["id"], INTERRUPTED, error=True))
            if not self.model.cancelled.is_set():
                self.take_steers(results)
            else:
                self.transcript.add("user", results)
        self.check_interrupt()

    def run_call(self, call: JSON) -> JSON:
        if call["name"] == "AskUserQuestion":
            return self.ask_person(call)
        verdict = self.wait(call["id"])
        if not verdict["allow"]:
            reason = verdict.get("reason", "")
            tell("call_done", call=call["id"], outcome="denied", output="", exit_code=None, reason=reason)
            return result_block(call["id"], f"Denied: {reason}", error=True)
        given = call["input"]
        if "command" in verdict:  # a person wrote another
            given = given | {"command": verdict["command"]}
        outcome, output, code = self.agent.tools.run(call["id"], call["name"], given)
        if self.model.cancelled.is_set():
            outcome, output = "cancelled", output + INTERRUPTED
        tell("call_done", call=call["id"], outcome=outcome, output=output, exit_code=code, reason="")
        self.check_interrupt()
        return result_block(call["id"], output, error=outcome != "ok")

    def ask_person(self, call: JSON) -> JSON:
        tell("question", id=call["id"], questions=call["input"]["questions"])
        answer = self.wait(call["id"])
        if answer.get("cancelled"):
            return result_block(call["id"], "Nobody will answer.", error=True)
        said = "; ".join(", ".join(values) for values in answer["values"])
        return result_block(call["id"], f"The person answered: {said}", error=False)

    def wait(self, key: str) -> JSON:
        self.check_interrupt()
        answer = self.answers[key].get()
        if answer is None:
            raise Interrupted
        return answer

    def check_interrupt(self) -> None:
        if self.model.cancelled.is_set():
            raise Interrupted

    def take_steers(self, content: list[JSON]) -> bool:
        """Add `content` and the messages that came meanwhile, as one. Whether there were any."""
        taken: list[JSON] = []
        while not self.steers.empty():
            taken.append(self.steers.get())
        blocks = [block for steer in taken for block in steer["content"]]
        self.transcript.add("user", content + blocks, ",".join(steer["id"] for steer in taken))
        for steer in taken:
            tell("taken", id=steer["id"], **{"as": "steer"})
        return bool(taken)


class Agent:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.base_url = os.environ.pop("SCRIPTED_BASE_URL")
        self.key = os.environ.pop("SCRIPTED_KEY")
        self.model = ""
        self.instructions = ""
        self.tools = Tools()
        self.transcript: Transcript
        self.turn: Turn | None = None

    def system(self) -> str:
        files = [Path("AGENTS.md")]
        told = [path.read_text(errors="replace") for path in files if path.is_file()]
        opening = f"You are the scripted agent.\nWorking directory: {Path.cwd()}\n"
        return "\n\n".join([opening, *told, *([self.instructions] if self.instructions else [])])

    def obey(self, message: JSON) -> None:
        turn = self.turn
        match message.get("type"):
            case "hello":
                self.greet(message)
            case "prompt" if turn is None:
                self.turn = Turn(self, message)
                self.turn.thread.start()
            case "steer" if turn:
                turn.steers.put(message)
            case "interrupt" if turn:
                turn.interrupt()
            case "verdict" if turn:
                turn.answer(message["call"], message)
            case "answer" if turn:
                turn.answer(message["id"], message)
            case "set_model":
                self.model = message["model"]
            case "ping":
                tell("pong")
            case _:
                return

    def greet(self, message: JSON) -> None:
        self.model = message["model"]
        self.instructions = message.get("instructions", "")
        self.transcript = Transcript(self.state, message.get("resume"))
        names = [tool["name"] for tool in TOOLS]
        tell("ready", version=VERSION, model=self.model, ref=self.transcript.ref, tools=names)


def main() -> None:
    agent = Agent(Path(sys.argv[1]))
    for line in sys.stdin.buffer:
        agent.obey(json.loads(line))
    if agent.turn:
        agent.turn.interrupt()
    agent.tools.kill()
    os._exit(0)  # the turn's thread may be anywhere


if __name__ == "__main__":
    main()
