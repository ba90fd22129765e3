"""The scripted agent: our own program (`omnigent.testing.scripted_agent`), whose protocol is nearly ours.

The smallest whole adapter: to write another, start here.
"""

import json
import sys
from pathlib import Path
from typing import cast

from omnigent import shell
from omnigent.actions import Action, Parsed, Unknown
from omnigent.events import (
    JSON,
    Carried,
    Content,
    MessageDelivered,
    NoticeRaised,
    Option,
    Question,
    QuestionAsked,
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
    Answer,
    Ask,
    Binary,
    Capabilities,
    Emit,
    Exited,
    Input,
    Interrupt,
    Launch,
    Opened,
    Output,
    Ping,
    Pong,
    ProcessSpec,
    Raw,
    Ready,
    Say,
    Send,
    SetModel,
    StartTurn,
    Steer,
    Tick,
    ToolRow,
    Translator,
    Verdict,
    Wire,
)
from omnigent.harnesses._book import Book
from omnigent.history import AssistantMessage, History, Image, ToolCall, UserMessage
from omnigent.ids import NewId
from omnigent.shell.paths import tool_read, tool_write
from omnigent.testing import scripted_agent

_SEEDED = "seeded"


def _run(given: JSON, workspace: Path) -> tuple[list[Action], Parsed]:
    background = bool(given.get("background"))
    return shell.understand(given["command"], workspace, workspace, background=background)


def _type(given: JSON, workspace: Path) -> tuple[list[Action], Parsed]:
    return shell.typed(given["chars"], f"session {given['session_id']}", workspace, workspace)


def _read(given: JSON, workspace: Path) -> tuple[list[Action], Parsed]:
    return tool_read(given["path"], workspace, workspace), "full"


def _write(given: JSON, workspace: Path) -> tuple[list[Action], Parsed]:
    return tool_write(given["path"], workspace, workspace), "full"


TOOLS = {
    "bash": ToolRow("gated", _run),
    "write_stdin": ToolRow("gated", _type),
    "read": ToolRow("gated", _read),
    "write": ToolRow("gated", _write),
    "edit": ToolRow("gated", _write),
    "AskUserQuestion": ToolRow("harmless"),
}


class Scripted:
    name = "scripted"
    capabilities = Capabilities(
        streams_text=True,
        streams_reasoning=True,
        live_output=True,
        asks_before_tools=True,
        rewrites=True,
        deny_reason=True,
        gate_fails_closed=True,
        reports_usage=True,
        interrupts=True,
        steers=True,
        sets_model=True,
        resumes=True,
        seeds_history=True,
        images=True,
        asks_questions=True,
        background_commands=True,
        types_into_processes=True,
    )
    wires: tuple[Wire, ...] = ("anthropic-messages",)
    tools = TOOLS
    versions = (scripted_agent.VERSION, scripted_agent.VERSION)

    def locate(self, home: Path) -> Binary:
        argv = (sys.executable, "-I", "-S", str(Path(scripted_agent.__file__).resolve()))
        return Binary(self.name, argv, scripted_agent.VERSION, "builtin", in_range=True)

    def prepare(self, launch: Launch) -> ProcessSpec:
        state = launch.private / "transcripts"
        state.mkdir(parents=True, exist_ok=True)
        if launch.history is not None and launch.native_ref is None:
            lines = "".join(json.dumps(message) + "\n" for message in _messages(launch.history))
            (state / f"{_SEEDED}-{launch.run.replace(':', '-')}.jsonl").write_text(lines)
        environment = {"SCRIPTED_BASE_URL": launch.gateway_url, "SCRIPTED_KEY": launch.placeholder}
        return ProcessSpec(
            (*launch.binary.argv, str(state)), launch.environment | environment, launch.workspace
        )

    def translator(self, launch: Launch, new_id: NewId) -> Translator:
        return _Translator(launch, new_id)

    def holds(self, native_ref: str, private: Path, message_id: str, text: str) -> bool:
        path = private / "transcripts" / f"{native_ref}.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return any(message_id in json.loads(line).get("id", "").split(",") for line in lines)


class _Translator:
    def __init__(self, launch: Launch, new_id: NewId) -> None:
        self.launch = launch
        self.new_id = new_id
        self.book = Book(new_id)
        self.interrupting = False
        self.questions: dict[str, str] = {}
        """Our question id → the agent's."""

    def step(self, given: Input) -> list[Output]:
        match given:
            case Raw(message):
                return self.hear(message)
            case Opened():
                return [Send(self.hello())]
            case StartTurn(turn_id, message_id, content, images):
                self.book.begin(turn_id)
                blocks = _blocks(content, images)
                return [Send({"type": "prompt", "id": message_id, "content": blocks})]
            case Steer(message_id, content, images):
                return [Send({"type": "steer", "id": message_id, "content": _blocks(content, images)})]
            case Interrupt():
                self.interrupting = self.book.turn_id is not None
                return [Send({"type": "interrupt"})]
            case SetModel(model):
                return [Send({"type": "set_model", "model": model})]
            case Verdict():
                return self.decide(given)
            case Answer(question_id, values, cancelled):
                native = self.questions.pop(question_id, "")
                lists = [list(chosen) for chosen in values]
                return [Send({"type": "answer", "id": native, "values": lists, "cancelled": cancelled})]
            case Ping():
                return [Send({"type": "ping"})]
            case Exited(code, stderr_tail):
                return self.exited(code, stderr_tail)
            case Tick():
                return []

    def exited(self, code: int, stderr_tail: str) -> list[Output]:
        if self.interrupting:
            return self.book.end(TurnInterrupted(how="kill"))
        detail = f"The agent ended with code {code}."
        return self.book.end(TurnFailed(code="agent_exited", detail=detail, stderr_tail=stderr_tail))

    def hello(self) -> JSON:
        seeded = f"{_SEEDED}-{self.launch.run.replace(':', '-')}" if self.launch.history is not None else None
        return {
            "type": "hello",
            "model": self.launch.model or "scripted-model",
            "resume": self.launch.native_ref or seeded,
            "instructions": self.launch.instructions,
        }

    def decide(self, verdict: Verdict) -> list[Output]:
        native = self.book.native(verdict.item_id)
        if native is None:
            return []
        told: JSON = {"type": "verdict", "call": native, "allow": verdict.allow, "reason": verdict.reason}
        answer = Send(told if verdict.command is None else told | {"command": verdict.command})
        return [*self.book.released(verdict.item_id), answer] if verdict.allow else [answer]

    def hear(self, it: JSON) -> list[Output]:
        match it.get("type"):
            case "ready":
                return [self.ready(it)]
            case "taken":
                return [Emit(MessageDelivered(as_=it["as"]), it["id"])]  # pyright: ignore[reportCallIssue]
            case "delta":
                return self.book.say(it["item"], it["text"], it["stream"])
            case "item_done":
                finish = self.book.finish if it["stream"] == "text" else self.book.finish_reasoning
                return finish(it["item"], it["text"])
            case "call":
                return [self.ask(it)]
            case "output":
                return [Say(self.book.call(it["call"]), "output", it["text"])]
            case "call_done":
                return self.book.completed(it["call"], _completed(it))
            case "question":
                return [self.question(it)]
            case "usage":
                return [self.usage(it)]
            case "retrying":
                return [Emit(NoticeRaised(code="retrying", level="warning", detail=it["detail"]))]
            case "turn_end":
                return self.end(it)
            case "pong":
                return [Pong()]
            case _:
                return []

    def ready(self, it: JSON) -> Ready:
        launch = self.launch
        seeded = launch.history if launch.native_ref is None else None
        return Ready(
            native_ref=it["ref"],
            version=it["version"],
            model=it["model"],
            tools=tuple(it["tools"]),
            how="native_resume" if launch.native_ref else "seeded" if seeded else "new",
            carried=_carried(seeded) if seeded else None,
        )

    def ask(self, it: JSON) -> Ask:
        given = cast(JSON, json.loads(it["input"]))
        actions, parsed = _actions(it["tool"], given, self.launch.workspace)
        body = ToolRequested(
            tool=it["tool"],
            title=str(given.get("command") or given.get("path") or given.get("chars") or it["tool"])[:200],
            actions=tuple(actions),
            parsed=parsed,
            raw=it["input"],
            native_id=it["call"],
            background=bool(given.get("background")),
        )
        return Ask(self.book.call(it["call"]), body)

    def question(self, it: JSON) -> Emit:
        question_id = self.new_id("q")
        self.questions[question_id] = it["id"]
        return Emit(
            QuestionAsked(questions=tuple(_question(asked) for asked in it["questions"])), question_id
        )

    def usage(self, it: JSON) -> Emit:
        return Emit(
            UsageReported(
                call_id=self.new_id("call"),
                source="harness",
                scope="call",
                model=it["model"],
                input_tokens=it["input"],
                cache_read_tokens=it["cache_read"],
                cache_write_tokens=it["cache_write"],
                output_tokens=it["output"],
            )
        )

    def end(self, it: JSON) -> list[Output]:
        self.interrupting = False
        match it["outcome"]:
            case "completed":
                return self.book.end(TurnCompleted())
            case "interrupted":
                return self.book.end(TurnInterrupted())
            case _:
                return self.book.end(TurnFailed(code="agent_error", detail=it["detail"]))


def _actions(tool: str, given: JSON, workspace: Path) -> tuple[list[Action], Parsed]:
    row = TOOLS.get(tool)
    try:
        return row.actions(given, workspace) if row and row.actions else ([Unknown(tool=tool)], "opaque")
    except (KeyError, TypeError, ValueError, OSError):
        return [Unknown(tool=tool)], "opaque"


def _completed(it: JSON) -> ToolCompleted:
    output = ToolOutput(text=it["output"], size=len(it["output"].encode()))
    return ToolCompleted(outcome=it["outcome"], output=output, exit_code=it["exit_code"], reason=it["reason"])


def _question(asked: JSON) -> Question:
    options = tuple(
        Option(label=option["label"], description=option.get("description", ""))
        for option in asked.get("options", [])
    )
    return Question(question=asked["question"], header=asked.get("header", ""), options=options)


def _blocks(content: tuple[Content, ...], images: tuple[Image, ...]) -> list[JSON]:
    texts = [{"type": "text", "text": part.text} for part in content if isinstance(part, TextPart)]
    return [*(_image(image) for image in images), *texts]


def _image(image: Image) -> JSON:
    source = {"type": "base64", "media_type": image.media_type, "data": image.data}
    return {"type": "image", "source": source}


def _messages(history: History) -> list[JSON]:
    """The history as Messages API messages: each call ends an answer, and its result is what comes next."""
    messages: list[JSON] = []

    def add(role: str, block: JSON) -> None:
        if block["type"] == "text" and not block["text"].strip():
            return
        if not messages and role == "assistant":
            messages.append({"role": "user", "content": [{"type": "text", "text": "(begun elsewhere)"}]})
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"].append(block)
        else:
            messages.append({"role": role, "content": [block]})

    for entry in history.entries:
        match entry:
            case UserMessage(text=text, images=images):
                for block in [*(_image(image) for image in images), {"type": "text", "text": text}]:
                    add("user", block)
            case AssistantMessage(text=text):
                add("assistant", {"type": "text", "text": text})
            case ToolCall():
                call_id, given = entry.call_id, json.loads(entry.input)
                add("assistant", {"type": "tool_use", "id": call_id, "name": entry.tool, "input": given})
                add("user", scripted_agent.result_block(call_id, entry.output, error=entry.outcome != "ok"))
    return messages


def _carried(history: History) -> Carried:
    calls = sum(isinstance(entry, ToolCall) for entry in history.entries)
    images = sum(len(entry.images) for entry in history.entries if isinstance(entry, UserMessage))
    return Carried(how="seeded", messages=len(history.entries) - calls, tool_calls=calls, images=images)
