"""What Pi says and what it is told: the RPC protocol as a pure translator.

Facts of 0.85 to 0.87 that shape it: `tool_execution_start` comes before the gate is asked, and for calls that
never reach it; a turn is over at `agent_settled`, since retries and queued messages follow `agent_end`; what
is still queued then would run with the next prompt; an interrupt before the run has begun is lost.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from omnigent.events import (
    JSON,
    Content,
    ContextCompacted,
    FilePart,
    MessageDelivered,
    NoticeRaised,
    TextPart,
    ToolCompleted,
    ToolRequested,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    UsageReported,
)
from omnigent.events import Output as ToolOutput
from omnigent.harnesses import (
    Ask,
    Emit,
    Exited,
    Input,
    Interrupt,
    Launch,
    Opened,
    Output,
    Ping,
    Pong,
    Raw,
    Ready,
    Refuse,
    Say,
    Send,
    SetModel,
    StartTurn,
    Steer,
    Verdict,
)
from omnigent.harnesses._book import Book
from omnigent.harnesses._pi_history import NOTE as KEY
from omnigent.harnesses._pi_history import carried
from omnigent.harnesses._pi_tools import actions_of, exit_code_of, news_of, text_of_result, title_of
from omnigent.history import Image

PROVIDER = "omnigent"
"""What the gateway is called among Pi's providers."""


@dataclass(slots=True)
class _Call:
    """A call between `tool_execution_start` and `_end`."""

    tool: str
    args: JSON
    question: str | None = None
    """The gate's open question."""
    verdict: Verdict | None = None
    output: str = ""
    """The last snapshot of a running command's output."""
    whole: str | None = None
    """All of a long output."""


@dataclass(slots=True)
class _Turn:
    message_id: str
    interrupting: bool = False
    stop: str | None = None
    """The stop reason of the last answer, None before one."""
    error: str = ""
    steers: set[str] = field(default_factory=set[str])
    """Not yet acknowledged."""
    unanswered: set[str] = field(default_factory=set[str])
    """Those that Pi hasn't said it has queued."""
    settled: bool = False


@dataclass(slots=True)
class PiTranslator:
    """`provider` describes the gateway to Pi, for a model and whether it is to reason."""

    launch: Launch
    book: Book
    provider: Callable[[str, bool], JSON]
    token: str = ""
    tools: tuple[str, ...] = ()
    ready: bool = False
    turn: _Turn | None = None
    calls: dict[str, _Call] = field(default_factory=dict[str, _Call])
    changing_model: int = 0
    """How many changes of the model Pi hasn't answered yet."""
    held: Send | None = None
    """A prompt that waits for them."""
    answer: int = 0
    """Counts the model's answers, as a part of the keys of their blocks."""
    blocks: dict[str, str] = field(default_factory=dict[str, str])
    """Open blocks of the streaming answer: key → `text` or `thinking`."""
    breaks: dict[str, str] = field(default_factory=dict[str, str])
    """Line breaks at the end of a reasoning, so far."""

    def step(self, given: Input) -> list[Output]:
        match given:
            case Opened():
                return [Send({"id": "hello", "type": "get_state"})]
            case Raw(message):
                return self._hear(message)
            case StartTurn():
                return self._start(given)
            case Steer():
                return self._steer(given)
            case Interrupt():
                return self._interrupt()
            case Verdict():
                return self._decide(given)
            case SetModel():
                return self._set_model(given)
            case Ping():
                return [Send({"id": "ping", "type": "get_state"})]
            case Exited():
                return self._exit(given)
            case _:
                return []

    # Commands.

    def _start(self, given: StartTurn) -> list[Output]:
        self.book.begin(given.turn_id)
        self.turn = _Turn(given.message_id)
        # The gate takes the first line off again.
        text = f"{self.token} {given.message_id}\n{_text(given.content)}"
        prompt = _message("prompt", given.message_id, text, given.images)
        if self.changing_model:
            self.held = prompt
            return []
        return [prompt]

    def _steer(self, given: Steer) -> list[Output]:
        if self.turn is None or self.turn.settled or self.turn.interrupting:
            return []  # the session queues it again when it sees the turn's end
        self.turn.steers.add(given.message_id)
        self.turn.unanswered.add(given.message_id)
        text = _text(given.content)
        notice = json.dumps({"token": self.token, "message": given.message_id, "text": text})
        steer = _message("steer", given.message_id, text, given.images)
        return [self._command("omnigent-expect", notice), steer]

    def _interrupt(self) -> list[Output]:
        if self.turn is None:
            return []
        self.turn.interrupting = True
        if self.held:
            self.held = None
            return self._end_turn()
        held = [call for call in self.calls.values() if call.question and not call.verdict]
        out: list[Output] = [self._answer_gate(call, False, "The turn was interrupted.") for call in held]
        return [Send({"id": "clear", "type": "clear_queue"}), Send({"id": "abort", "type": "abort"}), *out]

    def _decide(self, verdict: Verdict) -> list[Output]:
        call = self.calls.get(self.book.native(verdict.item_id) or "")
        if call is None or call.question is None or call.verdict:
            return []
        call.verdict = verdict
        out: list[Output] = [self._answer_gate(call, verdict.allow, verdict.reason, verdict.command)]
        return out + (self.book.released(verdict.item_id) if verdict.allow else [])

    def _answer_gate(self, call: _Call, allow: bool, reason: str, command: str | None = None) -> Send:
        answer: JSON = {"token": self.token, "allow": allow, "reason": reason}
        if command is not None:
            answer["input"] = {"command": command}
        value = json.dumps(answer)
        return Send({"type": "extension_ui_response", "id": call.question, "value": value})

    def _set_model(self, given: SetModel) -> list[Output]:
        wish: JSON = {
            "token": self.token,
            "provider": PROVIDER,
            "model": given.model,
            "effort": given.effort,
            "config": self.provider(given.model, given.effort not in (None, "off")),
        }
        self.changing_model += 1
        return [self._command("omnigent-model", json.dumps(wish))]

    def _model_changed(self) -> list[Output]:
        """Pi answers a command when it is done; a prompt must not overtake it."""
        self.changing_model -= 1
        if self.changing_model or self.held is None:
            return []
        prompt, self.held = self.held, None
        return [prompt]

    def _command(self, name: str, args: str) -> Send:
        """One of the gate's own commands. A person's text never comes to stand at the start of a prompt."""
        return Send({"id": name, "type": "prompt", "message": f"/{name} {args}"})

    # What Pi says.

    def _hear(self, message: JSON) -> list[Output]:
        hear = _HEARD.get(str(message.get("type")))
        return hear(self, message) if hear else []

    def hear_response(self, message: JSON) -> list[Output]:
        name, _, about = str(message.get("id")).partition(" ")
        failed = "" if message.get("success") else str(message.get("error") or "Pi refused it.")
        match name:
            case "hello":
                return self._greet(_object(message.get("data")))
            case "ping":
                return [Pong()]
            case "prompt" if failed and self.turn and self.turn.message_id == about:
                return self._end_turn(failed)
            case "steer":
                return self._steer_answered(about, failed)
            case "omnigent-model":
                return self._model_changed()
            case "drained":
                return self._end_turn()
            case _:
                return []

    def _greet(self, state: JSON) -> list[Output]:
        if not self.token:
            return [Refuse("gate_missing", "Pi started without Omnigent's gate.")]
        if self.ready:
            return []
        self.ready = True
        model = _object(state.get("model")).get("id")
        launch = self.launch
        seeded = launch.history is not None and launch.native_ref is None
        return [
            Ready(
                native_ref=state.get("sessionFile"),
                version=launch.binary.version,
                model=model,
                tools=self.tools,
                how="native_resume" if launch.native_ref else "seeded" if seeded else "new",
                carried=carried(launch.history) if launch.history and seeded else None,
            )
        ]

    def hear_gate(self, message: JSON) -> list[Output]:
        """An extension speaks. Only the gate is loaded; what lacks its token is not from it."""
        if message.get("statusKey") == KEY:
            return self._hear_fact(_parse(message.get("statusText")))
        if message.get("method") == "input" and message.get("title") == KEY:
            question = _parse(message.get("placeholder"))
            if self.token and question.get("token") == self.token:
                return self._ask(str(message.get("id")), question)
        if message.get("method") in ("select", "confirm", "input", "editor"):
            return [Send({"type": "extension_ui_response", "id": message.get("id"), "cancelled": True})]
        return []

    def _hear_fact(self, fact: JSON) -> list[Output]:
        if not self.token:
            self.token = str(fact.get("token") or "")
        if fact.get("token") != self.token:
            return [Refuse("gate_forged", "Something else spoke for Omnigent's gate inside Pi.")]
        if "tools" in fact:
            self.tools = tuple(str(tool) for tool in cast(list[object], fact["tools"]))
        if "delivered" in fact:
            return self._delivered(str(fact["delivered"]))
        if call := self.calls.get(str(fact.get("call"))):
            call.whole = str(fact.get("output"))
        if fact.get("error"):
            detail = f"Pi could not change the model: {fact['error']}"
            return [Emit(NoticeRaised(code="model_refused", level="error", detail=detail))]
        return []

    def _delivered(self, message_id: str) -> list[Output]:
        if self.turn is None:
            return []
        if message_id == self.turn.message_id:
            return [Emit(MessageDelivered.model_validate({"as": "turn"}), message_id)]
        if message_id in self.turn.steers:
            self.turn.steers.discard(message_id)
            return [Emit(MessageDelivered.model_validate({"as": "steer"}), message_id)]
        return []

    def _ask(self, request: str, question: JSON) -> list[Output]:
        native, tool = str(question.get("id")), str(question.get("tool"))
        given = _object(question.get("input"))
        call = self.calls.setdefault(native, _Call(tool, given))
        call.question, call.args = request, given
        if self.turn is None or self.turn.interrupting:
            return [self._answer_gate(call, False, "The turn was interrupted.")]
        return [Ask(self.book.call(native), self._requested(native, call))]

    def _requested(self, native: str, call: _Call, gated: bool = True) -> ToolRequested:
        actions, parsed = actions_of(call.tool, call.args, self.launch.workspace)
        return ToolRequested(
            tool=call.tool,
            title=title_of(call.tool, call.args),
            actions=tuple(actions),
            parsed=parsed,
            raw=json.dumps(call.args, ensure_ascii=False),
            native_id=native,
            gated=gated,
        )

    def tool_started(self, message: JSON) -> list[Output]:
        native = str(message.get("toolCallId"))
        self.calls[native] = _Call(str(message.get("toolName")), _object(message.get("args")))
        return []

    def tool_updated(self, message: JSON) -> list[Output]:
        native = str(message.get("toolCallId"))
        call = self.calls.get(native)
        if call is None or call.verdict is None or not call.verdict.allow:
            return [_bypassed(str(message.get("toolName")))]
        snapshot = text_of_result(message.get("partialResult"))
        news, call.output = news_of(call.output, snapshot), snapshot
        return [Say(self.book.call(native), "output", news)] if news else []

    def tool_ended(self, message: JSON) -> list[Output]:
        native = str(message.get("toolCallId"))
        call = self.calls.pop(native, None) or _Call(str(message.get("toolName")), {})
        text, failed = text_of_result(message.get("result")), bool(message.get("isError"))
        if call.question is None:
            return self._tool_never_asked(native, call, text, failed)
        return self.book.completed(native, _completed(call, text, failed))

    def _tool_never_asked(self, native: str, call: _Call, text: str, failed: bool) -> list[Output]:
        """Pi itself turned the call down (unknown tool, malformed input), or it got past the gate."""
        if self.turn is None:
            return []
        item = self.book.call(native)
        out: list[Output] = [Emit(self._requested(native, call, gated=False), item)]
        body = ToolCompleted(
            outcome="cancelled" if failed else "unknown",
            output=ToolOutput(text=text),
            reason="Pi refused the call before the gate." if failed else "",
        )
        out += self.book.completed(native, body)
        return out if failed else [*out, _bypassed(call.tool)]

    def message_started(self, message: JSON) -> list[Output]:
        role = _object(message.get("message")).get("role")
        if role == "assistant":
            self.answer += 1
        if self.turn and role in ("assistant", "user"):
            self.turn.stop, self.turn.error = None, ""
        return []

    def message_updated(self, message: JSON) -> list[Output]:
        event = _object(message.get("assistantMessageEvent"))
        stream, _, what = str(event.get("type")).partition("_")
        if stream not in ("text", "thinking") or self.turn is None:
            return []
        key = f"{self.answer}:{event.get('contentIndex')}"
        if what == "delta":
            self.blocks[key] = stream
            return self._say(key, stream, str(event.get("delta", "")))
        if what == "end" and key in self.blocks:
            del self.blocks[key]
            if stream == "thinking":
                return self.book.finish_reasoning(key)
            content = event.get("content")
            return self.book.finish(key, content if isinstance(content, str) else None)
        return []

    def _say(self, key: str, stream: str, delta: str) -> list[Output]:
        """On Responses each part of a reasoning ends with line breaks: kept only between two parts."""
        if stream == "text":
            return self.book.say(key, delta)
        text = self.breaks.pop(key, "") + delta
        whole = text.rstrip("\n")
        self.breaks[key] = text[len(whole) :]
        return self.book.say(key, whole, "reasoning")

    def message_ended(self, message: JSON) -> list[Output]:
        body = _object(message.get("message"))
        if body.get("role") != "assistant" or self.turn is None:
            return []
        self.turn.stop, self.turn.error = str(body.get("stopReason")), str(body.get("errorMessage") or "")
        whole = self.turn.stop not in ("aborted", "error")
        out: list[Output] = []
        for key, stream in self.blocks.items():
            if stream == "thinking":
                out += self.book.finish_reasoning(key)
            else:
                cut = "interrupted" if self.turn.interrupting else "lost"
                out += self.book.finish(key, status="complete" if whole else cut)
        self.blocks.clear()
        self.breaks.clear()
        return out + self._usage(body)

    def _usage(self, message: JSON) -> list[Output]:
        usage = _object(message.get("usage"))
        read, wrote = _count(usage, "cacheRead"), _count(usage, "cacheWrite")
        put, got = _count(usage, "input"), _count(usage, "output")
        if not read + wrote + put + got:
            return []
        body = UsageReported(
            call_id=self.book.new_id("call"),
            source="harness",
            scope="call",
            model=str(message.get("responseModel") or message.get("model") or "") or None,
            input_tokens=put,
            cache_read_tokens=read,
            cache_write_tokens=wrote,
            output_tokens=got,
            reasoning_tokens=_count(usage, "reasoning"),
        )
        if str(message.get("model")) in self.launch.prices:
            cost = _object(usage.get("cost")).get("total")
            if isinstance(cost, int | float):
                body = body.model_copy(update={"cost_nanousd": round(cost * 1e9), "basis": "harness"})
        return [Emit(body)]

    def run_started(self, _message: JSON) -> list[Output]:
        """An interrupt that came before the run began found nothing to end."""
        if self.turn and self.turn.interrupting:
            return [Send({"id": "abort", "type": "abort"})]
        return []

    def retrying(self, message: JSON) -> list[Output]:
        which = f"retry {message.get('attempt')} of {message.get('maxAttempts')}"
        detail = f"{message.get('errorMessage')} ({which})"
        return [Emit(NoticeRaised(code="retrying", level="warning", detail=detail))]

    def compacted(self, message: JSON) -> list[Output]:
        if result := _object(message.get("result")):
            return [Emit(ContextCompacted(summary=str(result.get("summary", "")))), *self._usage(result)]
        if error := message.get("errorMessage"):
            return [Emit(NoticeRaised(code="compaction_failed", level="warning", detail=str(error)))]
        return []

    def extension_failed(self, message: JSON) -> list[Output]:
        detail = f"Omnigent's gate inside Pi failed at {message.get('event')}: {message.get('error')}"
        return [Emit(NoticeRaised(code="gate_error", level="error", detail=detail))]

    # How a turn ends.

    def settled(self, _message: JSON) -> list[Output]:
        if self.turn is None or self.turn.settled:
            return []
        self.turn.settled = True
        if not self.turn.steers:
            return self._end_turn()
        return [] if self.turn.unanswered else self._drain()

    def _steer_answered(self, message_id: str, failed: str) -> list[Output]:
        if self.turn is None:
            return []
        self.turn.unanswered.discard(message_id)
        if failed:
            self.turn.steers.discard(message_id)
        return self._drain() if self.turn.settled and not self.turn.unanswered else []

    def _drain(self) -> list[Output]:
        """Steers came too late for the run. Pi would hold them for the next one; the session has them too."""
        return [
            self._command("omnigent-forget", self.token),
            Send({"id": "drained", "type": "clear_queue"}),
        ]

    def _end_turn(self, refused: str = "") -> list[Output]:
        turn, self.turn = self.turn, None
        self.calls.clear()
        self.blocks.clear()
        if turn is None:
            return []
        if turn.interrupting and turn.stop != "stop":
            return self.book.end(TurnInterrupted())
        if refused or turn.stop in ("error", "aborted"):
            detail = refused or turn.error or "Pi aborted the turn."
            return self.book.end(TurnFailed(code="agent_error", detail=detail))
        return self.book.end(TurnCompleted())

    def _exit(self, given: Exited) -> list[Output]:
        turn, self.turn = self.turn, None
        if turn and turn.interrupting:
            return self.book.end(TurnInterrupted(how="kill"))
        detail = f"Pi ended with exit code {given.code}."
        tail = given.stderr_tail
        return self.book.end(TurnFailed(code="agent_exited", detail=detail, stderr_tail=tail))


_HEARD: dict[str, Callable[[PiTranslator, JSON], list[Output]]] = {
    "response": PiTranslator.hear_response,
    "extension_ui_request": PiTranslator.hear_gate,
    "extension_error": PiTranslator.extension_failed,
    "agent_start": PiTranslator.run_started,
    "agent_settled": PiTranslator.settled,
    "message_start": PiTranslator.message_started,
    "message_update": PiTranslator.message_updated,
    "message_end": PiTranslator.message_ended,
    "tool_execution_start": PiTranslator.tool_started,
    "tool_execution_update": PiTranslator.tool_updated,
    "tool_execution_end": PiTranslator.tool_ended,
    "auto_retry_start": PiTranslator.retrying,
    "compaction_end": PiTranslator.compacted,
}


def _completed(call: _Call, text: str, failed: bool) -> ToolCompleted:
    output = ToolOutput(text=text if call.whole is None else call.whole)
    if call.verdict is None:
        return ToolCompleted(outcome="cancelled", output=output)
    if not call.verdict.allow:
        return ToolCompleted(outcome="denied", output=output, reason=call.verdict.reason)
    if failed and text.rstrip().endswith(("Command aborted", "Operation aborted")):
        return ToolCompleted(outcome="cancelled", output=output)
    code = exit_code_of(call.tool, text, failed)
    return ToolCompleted(outcome="error" if failed else "ok", output=output, exit_code=code)


def _bypassed(tool: str) -> Refuse:
    return Refuse("gate_bypassed", f"Pi ran {tool} without asking Omnigent's gate.")


def _message(kind: str, message_id: str, text: str, images: tuple[Image, ...]) -> Send:
    """`kind` is the RPC command, `prompt` or `steer`."""
    frame: JSON = {"id": f"{kind} {message_id}", "type": kind, "message": text}
    if images:
        frame["images"] = [
            {"type": "image", "data": image.data, "mimeType": image.media_type} for image in images
        ]
    return Send(frame)


def _text(content: tuple[Content, ...]) -> str:
    texts = [part.text for part in content if isinstance(part, TextPart)]
    files = [f"Attached file: {part.path}" for part in content if isinstance(part, FilePart)]
    return "\n".join([*texts, *files])


def _object(value: Any) -> JSON:
    return cast(JSON, value) if isinstance(value, dict) else {}


def _parse(text: object) -> JSON:
    try:
        return _object(json.loads(str(text)))
    except ValueError:
        return {}


def _count(usage: JSON, name: str) -> int:
    value = usage.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else 0
