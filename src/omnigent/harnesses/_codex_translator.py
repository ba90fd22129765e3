"""Codex's app-server, translated: one thread of our own, and those of its sub-agents.

JSON-RPC 2.0 without the `jsonrpc` field; `codex app-server generate-json-schema --experimental --out DIR`
writes the protocol.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from omnigent.events import (
    JSON,
    Carried,
    Content,
    ContextCompacted,
    FilePart,
    ImagePart,
    ItemUpdated,
    MessageDelivered,
    NoticeRaised,
    Option,
    Outcome,
    PlanEntry,
    PlanUpdated,
    Question,
    QuestionAsked,
    StartedHow,
    TextPart,
    ToolCompleted,
    ToolRequested,
    ToolStarted,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    UsageReported,
)
from omnigent.events import Output as ToolOutput
from omnigent.harnesses import (
    Answer,
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
    SetTimer,
    StartTurn,
    Steer,
    Tick,
    Verdict,
    _codex_history,
)
from omnigent.harnesses._book import Book
from omnigent.harnesses._codex_tools import (
    FEATURES,
    SWITCHED_OFF,
    Given,
    changes_of,
    given_agent,
    given_command,
    given_mcp,
    given_patch,
    output_of_mcp,
    rows,
    table,
)
from omnigent.history import Image
from omnigent.ids import NewId
from omnigent.processes import MARKER

TESTED: tuple[str, str] = ("0.163.0", "0.169.0")
"""The range the suite is run on, both ends included."""
PROVIDER = "omnigent"
KEY = "OMNIGENT_MODEL_KEY"
"""The variable with the placeholder; kept out of the shell that the agent uses."""

_OUTPUT_TOKENS = 10_000
"""To what Codex cuts a tool's output by itself."""
_SERVERS = "servers"
_SERVERS_SECONDS = 60.0
"""Seconds to wait for word of the MCP servers; Codex gives one up earlier."""
_CLEANING = "cleaning"
_CLEANING_SECONDS = 2.0
"""Seconds to wait for the last word on commands that an interrupt ended."""
_STILL_RUNNING = "It still runs in the background."
_QUIET = ("bubblewrap", "Project-local config")
"""Warnings about what was chosen so: no sandbox, no configuration of the workspace."""
_PLAN: dict[str, Literal["pending", "in_progress", "completed"]] = {
    "pending": "pending",
    "inProgress": "in_progress",
    "completed": "completed",
}

_Key = tuple[str, str, str]
"""Thread, turn, item: Codex passes the model's call id on, and models begin with `call_1` in every turn."""
_Done = Callable[[JSON | None, str], list["Output"]]
"""Called with the result of a request, or None and the error's text."""


@dataclass(slots=True)
class _Call:
    """A call that was put to the gate, from the request to its end."""

    item_id: str
    name: str
    """What the book calls it."""
    given: Given
    kind: str
    request: int | str
    parent: str | None
    turn_id: str | None
    open: bool = True
    """The gate has not decided."""
    output: str = ""


@dataclass(slots=True)
class _Question:
    request: int | str
    names: list[str]


@dataclass(slots=True)
class CodexTranslator:
    launch: Launch
    new_id: NewId
    book: Book = field(init=False)
    model: str | None = field(init=False)
    thread: str = ""
    turns: dict[str, str] = field(default_factory=dict[str, str])
    """Threads with a turn running, ours and sub-agents'; the turn is "" until it is known."""
    _effort: str | None = None
    _version: str = ""
    _next: int = 0
    _waiting: dict[int, _Done] = field(default_factory=dict[int, _Done])
    _message_id: str | None = None
    _steers: dict[str, Steer] = field(default_factory=dict[str, Steer])
    _unsent: list[Steer] = field(default_factory=list[Steer])
    _interrupting: bool = False
    _ending: TurnCompleted | TurnFailed | TurnInterrupted | None = None
    _texts: set[str] = field(default_factory=set[str])
    _items: dict[_Key, JSON] = field(default_factory=dict[_Key, JSON])
    _calls: dict[_Key, _Call] = field(default_factory=dict[_Key, _Call])
    _agents: dict[str, str] = field(default_factory=dict[str, str])
    """Sub-agents' threads and the item that made them."""
    _met: set[str] = field(default_factory=set[str])
    """Threads that have had a turn."""
    _abandoned: set[_Key] = field(default_factory=set[_Key])
    """Calls that ended with their turn, whatever is told of them later."""
    _uncleaned: set[str] = field(default_factory=set[str])
    """Threads whose commands are being ended after an interrupt."""
    _questions: dict[str, _Question] = field(default_factory=dict[str, _Question])
    _totals: dict[str, JSON] = field(default_factory=dict[str, JSON])
    _reports: int = 0
    _said: set[str] = field(default_factory=set[str])
    _servers: dict[str, str] = field(default_factory=dict[str, str])
    """State of each MCP server as Codex tells it."""
    _kept: Ready | None = None
    """The handshake's end, kept back until the servers are up."""

    def __post_init__(self) -> None:
        self.book = Book(self.new_id)
        self.model = self.launch.model

    def step(self, given: Input) -> list[Output]:
        match given:
            case Opened():
                return self._open()
            case Raw(message):
                return self._receive(message)
            case StartTurn():
                return self._start_turn(given)
            case Steer():
                return self._steer(given)
            case Interrupt():
                return self._interrupt()
            case SetModel(model, effort):
                self.model, self._effort = model, effort
                return []
            case Verdict():
                return self._decide(given)
            case Answer():
                return self._answer(given)
            case Ping():
                return self._ask("thread/loaded/list", {}, lambda _result, _error: [Pong()])
            case Tick(timer) if timer == _SERVERS:
                return self._served()
            case Tick():
                return self._end(self._ending) if self._ending else []
            case Exited():
                return self._exit(given)

    # The wire: requests of ours, and what comes.

    def _ask(self, method: str, params: JSON, done: _Done) -> list[Output]:
        self._next += 1
        self._waiting[self._next] = done
        return [Send({"id": self._next, "method": method, "params": params})]

    def _receive(self, message: JSON) -> list[Output]:
        method, params = message.get("method"), message.get("params")
        known = cast(JSON, params) if isinstance(params, dict) else {}
        if isinstance(method, str):
            if "id" in message:
                return self._requested(message["id"], method, known)
            return self._notified(method, known)
        done = self._waiting.pop(message["id"], None) if isinstance(message.get("id"), int) else None
        if done is None:
            return []
        result, error = message.get("result"), message.get("error")
        if isinstance(error, dict):
            return done(None, str(table(cast(object, error)).get("message") or message["error"]))
        return done(cast(JSON, result) if isinstance(result, dict) else {}, "")

    # The handshake.

    def _open(self) -> list[Output]:
        client = {"name": "omnigent", "title": "Omnigent", "version": "1"}
        params: JSON = {"clientInfo": client, "capabilities": {"experimentalApi": True}}
        return self._ask("initialize", params, self._initialized)

    def _initialized(self, result: JSON | None, error: str) -> list[Output]:
        if result is None:
            return [Refuse("start_failed", f"Codex didn't start: {error}")]
        told = re.search(r"/(\d+\.\d+\.\d+\S*)", str(result.get("userAgent") or ""))
        self._version = told[1] if told else self.launch.binary.version
        params: JSON = {"cwd": str(self.launch.workspace), "includeLayers": True}
        return [
            Send({"method": "initialized"}),
            *self._ask("config/read", params, self._configured),
        ]

    def _configured(self, result: JSON | None, error: str) -> list[Output]:
        """Before a thread starts, since its MCP servers would start with it."""
        if result is None:
            return [Refuse("start_failed", f"Codex couldn't read its configuration: {error}")]
        for layer in rows(result.get("layers")):
            name = table(layer.get("name"))
            if name.get("type") == "project" and not layer.get("disabledReason"):
                return [self._unsupported(f"it honours {name.get('dotCodexFolder')}")]
        resumed = self.launch.native_ref is not None
        params: JSON = {
            "cwd": str(self.launch.workspace),
            "approvalPolicy": "untrusted",
            "approvalsReviewer": "user",
            "sandbox": "danger-full-access",
            "modelProvider": PROVIDER,
            "config": _thread_config(self.launch),
        }
        if self.launch.model:
            params["model"] = self.launch.model
        if self.launch.instructions:
            params["developerInstructions"] = self.launch.instructions
        if resumed:
            params |= {"threadId": self.launch.native_ref, "excludeTurns": True}
        return self._ask("thread/resume" if resumed else "thread/start", params, self._threaded)

    def _threaded(self, result: JSON | None, error: str) -> list[Output]:
        resumed = self.launch.native_ref is not None
        if result is None:
            code = "resume_failed" if resumed else "start_failed"
            return [Refuse(code, f"Codex couldn't {'resume' if resumed else 'start'} the thread: {error}")]
        if wrong := _ungated(result):
            return [self._unsupported(wrong)]
        self.thread = str(cast(JSON, result["thread"])["id"])
        self.model = self.launch.model or cast(str | None, result.get("model"))
        history = self.launch.history
        if resumed or history is None or not history.entries:
            return self._ready("native_resume" if resumed else "new")
        carried = _codex_history.carried(history)

        def seeded(result: JSON | None, error: str) -> list[Output]:
            if result is None:
                return [Refuse("start_failed", f"Codex didn't take the history: {error}")]
            return self._ready("seeded", carried)

        params: JSON = {"threadId": self.thread, "items": _codex_history.items_of(history)}
        return self._ask("thread/inject_items", params, seeded)

    def _ready(self, how: StartedHow, carried: Carried | None = None) -> list[Output]:
        self._kept = Ready(self.thread, self._version, self.model, how=how, carried=carried)
        return [SetTimer(_SERVERS, _SERVERS_SECONDS)] if self._waits_for_servers() else self._served()

    def _waits_for_servers(self) -> bool:
        return any(self._servers.get(each.name) in (None, "starting") for each in self.launch.mcp_servers)

    def _server_moved(self, params: JSON) -> list[Output]:
        name, state = str(params.get("name")), str(params.get("status"))
        if name not in [server.name for server in self.launch.mcp_servers]:
            return []
        self._servers[name] = state
        out: list[Output] = []
        if state in ("failed", "cancelled"):
            detail = f"The MCP server {name} didn't start: {params.get('error') or state}."
            out.append(Emit(NoticeRaised(code="mcp_server_failed", level="warning", detail=detail)))
        return out if self._waits_for_servers() else [*out, *self._served()]

    def _served(self) -> list[Output]:
        """The handshake is over. What started later would be swept away by an interrupt."""
        ready, self._kept = self._kept, None
        if ready is None:
            return []
        up = tuple(name for name, state in self._servers.items() if state == "ready")
        timer: list[Output] = [SetTimer(_SERVERS, None)] if self.launch.mcp_servers else []
        return [*timer, replace(ready, mcp_servers=up)]

    def _unsupported(self, wrong: str) -> Refuse:
        low, high = TESTED
        return Refuse(
            "unsupported_version",
            f"Codex {self._version} can't be held at the gate: {wrong}. Tested with {low} to {high}.",
        )

    # Turns.

    def _start_turn(self, given: StartTurn) -> list[Output]:
        self.book.begin(given.turn_id)
        self._message_id, self._interrupting, self._ending = given.message_id, False, None
        self.turns[self.thread] = ""
        params: JSON = {
            "threadId": self.thread,
            "clientUserMessageId": given.message_id,
            "input": _input_of(given.content, given.images),
        }
        if self.model:
            params["model"] = self.model
        if self._effort:
            params["effort"] = self._effort
        return self._ask("turn/start", params, self._turn_started)

    def _turn_started(self, result: JSON | None, error: str) -> list[Output]:
        if result is None:
            self.turns.pop(self.thread, None)
            return self._end(TurnFailed(code="agent_error", detail=error))
        return self._running(self.thread, str(table(result.get("turn")).get("id") or ""))

    def _running(self, thread: str, turn: str) -> list[Output]:
        """A turn's id became known."""
        if self.turns.get(thread) == turn or (thread == self.thread and self.book.turn_id is None):
            return []
        self.turns[thread] = turn
        self._met.add(thread)
        if thread != self.thread or self._interrupting:
            return []
        self._ending = None
        unsent, self._unsent = self._unsent, []
        return [output for steer in unsent for output in self._steer(steer)]

    def _steer(self, given: Steer) -> list[Output]:
        """Refused by Codex, or never taken, a message stays undelivered, and Codex has forgotten it."""
        turn = self.turns.get(self.thread)
        if turn == "" and not self._interrupting:
            self._unsent.append(given)
        if not turn or self._interrupting:
            return []
        self._steers[given.message_id] = given
        return self._put_in(self.thread, turn, given.message_id, _input_of(given.content, given.images))

    def _put_in(self, thread: str, turn: str, message_id: str, content: list[JSON]) -> list[Output]:
        params: JSON = {
            "threadId": thread,
            "expectedTurnId": turn,
            "clientUserMessageId": message_id,
            "input": content,
        }
        return self._ask("turn/steer", params, lambda _result, _error: [])

    def _interrupt(self) -> list[Output]:
        if self.book.turn_id is None:
            return []
        self._interrupting = True
        self._unsent.clear()
        return [output for thread in list(self.turns) for output in self._stop(thread)]

    def _stop(self, thread: str) -> list[Output]:
        if not (turn := self.turns.get(thread)):
            return []
        return self._ask("turn/interrupt", {"threadId": thread, "turnId": turn}, lambda _result, _error: [])

    def _turn_over(self, thread: str, turn: JSON) -> list[Output]:
        """A turn of a thread ended. Ours ends when the sub-agents it started have ended too."""
        if self.turns.get(thread) not in ("", turn.get("id")):
            return []
        self.turns.pop(thread, None)
        if thread == self.thread:
            self._ending = _end_of(turn)
        if self.turns or self._ending is None:
            return []
        if self._interrupting:
            return self._clean()
        return self._end(self._ending)

    def _clean(self) -> list[Output]:
        """Codex lets running commands go on after an interrupt; this ends them, and their items follow."""
        self._uncleaned = {self.thread, *self._agents}
        out: list[Output] = [SetTimer(_CLEANING, _CLEANING_SECONDS)]

        def cleaned(thread: str) -> _Done:
            def done(_result: JSON | None, _error: str) -> list[Output]:
                self._uncleaned.discard(thread)
                return self._end_if_clean()

            return done

        for thread in sorted(self._uncleaned):
            out += self._ask("thread/backgroundTerminals/clean", {"threadId": thread}, cleaned(thread))
        return out

    def _end_if_clean(self) -> list[Output]:
        running = any(not call.open and self.book.is_open(call.name) for call in self._calls.values())
        if self._ending is None or not self._interrupting or self.turns or self._uncleaned or running:
            return []
        return self._end(self._ending)

    def _end(self, body: TurnCompleted | TurnFailed | TurnInterrupted) -> list[Output]:
        """Close all that is open. A command that still runs has answered the model; its rest comes later.
        Of one that a script called nobody knows: the script's end may have ended it, even before it began."""
        out: list[Output] = [SetTimer(_CLEANING, None)] if self._interrupting else []
        for key, call in list(self._calls.items()):
            running = not call.open and call.kind == "commandExecution"
            if running and not isinstance(body, TurnInterrupted):
                outcome, reason = ("unknown", "") if key[2].startswith("exec-") else ("ok", _STILL_RUNNING)
                done = ToolCompleted(outcome=outcome, output=ToolOutput(text=call.output), reason=reason)
                out += self._completed(call, done)
            else:
                del self._calls[key]
                self._abandoned.add(key)
        self._questions.clear()
        self._steers.clear()
        self._unsent.clear()
        self._texts.clear()
        self._items.clear()
        self._uncleaned.clear()
        self.turns.clear()
        self._message_id, self._ending, self._interrupting = None, None, False
        return out + self.book.end(body)

    def _exit(self, given: Exited) -> list[Output]:
        if self._interrupting:
            return self._end(TurnInterrupted(how="kill"))
        detail = f"Codex ended with exit code {given.code}."
        return self._end(TurnFailed(code="agent_exited", detail=detail, stderr_tail=given.stderr_tail))

    # Requests of Codex: the gate, and questions.

    def _requested(self, request: int | str, method: str, params: JSON) -> list[Output]:
        key = (str(params.get("threadId")), str(params.get("turnId")), str(params.get("itemId")))
        workspace = self.launch.workspace
        match method:
            case "item/commandExecution/requestApproval":
                return self._put_to_gate(key, request, "commandExecution", given_command(params, workspace))
            case "item/fileChange/requestApproval":
                given = given_patch(self._items.get(key, {}), workspace)
                return self._put_to_gate(key, request, "fileChange", given)
            case "mcpServer/elicitation/request":
                return self._elicited(key, request, params)
            case "item/tool/requestUserInput":
                return self._questioned(request, params)
            case "item/permissions/requestApproval":
                return [Send({"id": request, "result": {"permissions": {}}})]
            case _:
                error = {"code": -32601, "message": f"{method} is not supported here"}
                return [Send({"id": request, "error": error})]

    def _put_to_gate(self, key: _Key, request: int | str, kind: str, given: Given) -> list[Output]:
        thread, turn, native = key
        out = self._woken(thread, turn)
        if (known := self._calls.get(key)) and self.book.is_open(known.name):
            out += self._completed(
                known, ToolCompleted(outcome="unknown", output=ToolOutput(text=known.output))
            )
        name = f"{'/'.join(key)}/{request}"
        item_id = self.book.call(name)
        call = _Call(item_id, name, given, kind, request, self._agents.get(thread), self.book.turn_id)
        self._calls[key] = call
        body = ToolRequested(
            tool=given.tool,
            title=given.title,
            actions=given.actions,
            parsed=given.parsed,
            raw=given.raw,
            native_id=native,
        )
        return [*out, Ask(item_id, body, call.parent)]

    def _decide(self, given: Verdict) -> list[Output]:
        found = next((pair for pair in self._calls.items() if pair[1].item_id == given.item_id), None)
        if found is None or not found[1].open:
            return []
        (thread, turn, _), call = found
        call.open = False
        out: list[Output] = []
        if not given.allow and given.reason:
            # Before the decline, so that it is there when the model is asked again: Codex puts it right
            # after the tool's result, which itself has no room for a reason. (A script in code mode yields
            # at it: the model hears of the deny at once, and waits for the script's other calls if it likes.)
            text = f"The gate denied `{call.given.title}`: {given.reason}"
            out += self._put_in(thread, turn, f"gate_{call.item_id}", [{"type": "text", "text": text}])
        out.append(Send({"id": call.request, "result": _verdict(call.kind, given.allow)}))
        if given.allow:
            return [*out, Emit(ToolStarted(), call.item_id, call.parent)]
        return out + self._completed(call, ToolCompleted(outcome="denied", reason=given.reason))

    def _elicited(self, key: _Key, request: int | str, params: JSON) -> list[Output]:
        """An MCP call asks by an elicitation that names no item: it is the open call of that server which
        has these arguments and was not asked for. What a server itself asks of a person is declined."""
        meta = table(params.get("_meta"))
        if meta.get("codex_approval_kind") != "mcp_tool_call":
            return [Send({"id": request, "result": {"action": "decline"}})]
        for place, item in self._items.items():
            if (
                place[:2] == key[:2]
                and place not in self._calls
                and item.get("type") == "mcpToolCall"
                and item.get("server") == params.get("serverName")
                and (item.get("arguments") or {}) == (meta.get("tool_params") or {})
                and meta.get("tool_name") in (None, item.get("tool"))
            ):
                return self._put_to_gate(place, request, "mcpToolCall", given_mcp(item))
        server, arguments = params.get("serverName"), meta.get("tool_params")
        item = {"server": server, "tool": meta.get("tool_name"), "arguments": arguments}
        return self._put_to_gate(
            (*key[:2], f"elicitation_{request}"), request, "mcpToolCall", given_mcp(item)
        )

    def _questioned(self, request: int | str, params: JSON) -> list[Output]:
        asked = rows(params.get("questions"))
        question_id = self.new_id("q")
        self._questions[question_id] = _Question(request, [str(question.get("id")) for question in asked])
        questions = tuple(
            Question(
                question=str(question.get("question") or ""),
                header=str(question.get("header") or ""),
                options=tuple(
                    Option(label=str(option.get("label")), description=str(option.get("description") or ""))
                    for option in rows(question.get("options"))
                ),
            )
            for question in asked
        )
        return [Emit(QuestionAsked(questions=questions), question_id)]

    def _answer(self, given: Answer) -> list[Output]:
        question = self._questions.pop(given.question_id, None)
        if question is None:
            return []
        answers: JSON = {}
        if not given.cancelled:
            answers = {
                name: {"answers": list(values)}
                for name, values in zip(question.names, given.values, strict=False)
            }
        return [Send({"id": question.request, "result": {"answers": answers}})]

    # What Codex tells.

    def _notified(self, method: str, params: JSON) -> list[Output]:
        thread = str(params.get("threadId") or "")
        item = table(params.get("item"))
        delta = str(params.get("delta") or "")
        match method:
            case "turn/started":
                turn = str(table(params.get("turn")).get("id") or "")
                out = self._woken(thread, turn) + self._running(thread, turn)
                # An interrupt is refused until the turn has really started.
                return out + (self._stop(thread) if self._interrupting else [])
            case "turn/completed":
                return self._turn_over(thread, table(params.get("turn")))
            case "item/started" | "item/completed":
                key = (thread, str(params.get("turnId")), str(item.get("id")))
                if method == "item/started":
                    return self._item_started(key, item)
                return self._item_over(key, item) + self._end_if_clean()
            case "item/agentMessage/delta" if thread == self.thread:
                return self._say(str(params.get("itemId")), delta, "text")
            case "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta" if thread == self.thread:
                return self._say(str(params.get("itemId")), delta, "reasoning")
            case "item/reasoning/summaryPartAdded" if thread == self.thread and params.get("summaryIndex"):
                return self._say(str(params.get("itemId")), "\n\n", "reasoning")
            case "item/commandExecution/outputDelta":
                return self._output((thread, str(params.get("turnId")), str(params.get("itemId"))), delta)
            case "thread/tokenUsage/updated":
                return self._usage(thread, params.get("turnId"), table(params.get("tokenUsage")))
            case "turn/plan/updated" if thread == self.thread:
                return [Emit(_plan_of(params))]
            case "thread/settings/updated":
                wrong = _ungated(table(params.get("threadSettings")))
                return [self._unsupported(wrong)] if wrong else []
            case "mcpServer/startupStatus/updated":
                return self._server_moved(params)
            case "error":
                return self._failed(thread, params)
            case "warning" | "configWarning" | "model/rerouted" | "guardianWarning":
                return self._warned(method, params)
            case _:
                return []

    def _woken(self, thread: str, turn: str) -> list[Output]:
        """Codex began a turn of its own accord (a sub-agent's news) while none was open here."""
        if self.book.turn_id is not None or not self.thread:
            return []
        if thread != self.thread and thread not in self._agents:
            return []
        turn_id = self.new_id("turn")
        self.book.begin(turn_id)
        self.turns[thread] = turn
        self._ending = None if thread == self.thread else TurnCompleted()
        return [Emit(TurnStarted(trigger="agent"), turn_id=turn_id)]

    def _say(self, native: str, delta: str, stream: str) -> list[Output]:
        if self.book.turn_id is None:
            return []
        self._texts.add(native)
        return self.book.say(native, delta, stream)

    def _item_started(self, key: _Key, item: JSON) -> list[Output]:
        thread = key[0]
        match item.get("type"):
            case "userMessage":
                return self._acknowledged(item.get("clientId"))
            case "commandExecution" | "fileChange" | "mcpToolCall":
                self._items[key] = item
                return []
            case "collabAgentToolCall" | "subAgentActivity" if thread == self.thread:
                return self._agent_called(key, item)
            case kind if kind in SWITCHED_OFF:
                return [self._unsupported(f"it used a tool that is switched off ({kind})")]
            case _:
                return []

    def _item_over(self, key: _Key, item: JSON) -> list[Output]:
        native, thread = key[2], key[0]
        match item.get("type"):
            case "agentMessage" if thread == self.thread and self.book.turn_id:
                text = str(item.get("text") or "")
                known = native in self._texts
                self._texts.discard(native)
                return self.book.finish(native, text) if text or known else []
            case "reasoning" if thread == self.thread and self.book.turn_id:
                self._texts.discard(native)
                parts = cast(list[str], item.get("summary") or item.get("content") or [])
                return self.book.finish_reasoning(native, "\n\n".join(parts))
            case "commandExecution" | "fileChange" | "mcpToolCall":
                return self._call_over(key, item)
            case "collabAgentToolCall" | "subAgentActivity" if thread == self.thread:
                return self._agent_answered(key, item)
            case "contextCompaction" if thread == self.thread:
                return [Emit(ContextCompacted())]
            case _:
                return []

    def _acknowledged(self, client_id: object) -> list[Output]:
        if client_id is not None and client_id == self._message_id:
            message_id, self._message_id = self._message_id, None
            return [Emit(MessageDelivered(as_="turn"), message_id)]
        if isinstance(client_id, str) and self._steers.pop(client_id, None):
            return [Emit(MessageDelivered(as_="steer"), client_id)]
        return []

    def _call_over(self, key: _Key, item: JSON) -> list[Output]:
        self._items.pop(key, None)
        if key in self._abandoned:
            return []
        call = self._calls.get(key)
        status = item.get("status")
        if call is None:
            # Never asked. One that was turned away or could not be run is no harm.
            ran = status == "completed" or isinstance(item.get("exitCode"), int)
            return [self._unsupported(f"it ran a {item.get('type')} without asking")] if ran else []
        del self._calls[key]
        outcome: Outcome = "ok" if status == "completed" else "denied" if status == "declined" else "error"
        match call.kind:
            case "commandExecution":
                code = item.get("exitCode")
                if self._interrupting and outcome == "error":
                    outcome = "cancelled"
                text = str(item.get("aggregatedOutput") or call.output)
                if outcome == "ok" and code:
                    outcome = "error"
                done = ToolCompleted(
                    outcome=outcome,
                    output=ToolOutput(text=text),
                    exit_code=code if isinstance(code, int) and code >= 0 else None,
                    duration_ms=_milliseconds(item),
                )
                return self._completed(call, done)
            case "fileChange":
                done = ToolCompleted(outcome=outcome, duration_ms=_milliseconds(item))
                changed = changes_of(item) if outcome == "ok" else []
                return [
                    *(Emit(change, call.item_id, call.parent) for change in changed),
                    *self._completed(call, done),
                ]
            case _:
                done = ToolCompleted(
                    outcome=outcome, output=output_of_mcp(item), duration_ms=_milliseconds(item)
                )
                return self._completed(call, done)

    def _completed(self, call: _Call, body: ToolCompleted) -> list[Output]:
        """The end of a call. One whose turn is over has had its end, but not all of its output."""
        if self.book.is_open(call.name):
            self.book.completed(call.name, body)
            return [Emit(body, call.item_id, call.parent)]
        if call.kind != "commandExecution" or call.turn_id == self.book.turn_id or not body.output.text:
            return []
        whole = ItemUpdated(stream="output", offset=0, text=body.output.text)
        return [Emit(whole, call.item_id, call.parent, call.turn_id)]

    def _output(self, key: _Key, delta: str) -> list[Output]:
        call = self._calls.get(key)
        if call is None:
            unasked = key in self._items and key not in self._abandoned
            return [self._unsupported("it ran a command without asking")] if unasked else []
        call.output += delta
        return [Say(call.item_id, "output", delta)] if self.book.is_open(call.name) and delta else []

    def _agent_called(self, key: _Key, item: JSON) -> list[Output]:
        if item.get("type") == "subAgentActivity" and item.get("kind") != "started":
            return []
        given = given_agent(item, self.launch.workspace)
        item_id = self.book.call("/".join(key))
        body = ToolRequested(
            tool=given.tool,
            title=given.title,
            actions=given.actions,
            parsed=given.parsed,
            raw=given.raw,
            native_id=key[2],
            gated=False,
        )
        return [Emit(body, item_id), Emit(ToolStarted(), item_id)]

    def _agent_answered(self, key: _Key, item: JSON) -> list[Output]:
        native = "/".join(key)
        if not self.book.is_open(native):
            return []
        made: list[object] = []
        if item.get("type") == "subAgentActivity":
            made = [item.get("agentThreadId")]
        elif item.get("tool") == "spawnAgent":
            made = cast(list[object], item.get("receiverThreadIds") or [])
        for thread in made:
            if isinstance(thread, str):
                self._agents[thread] = self.book.call(native)
                if thread not in self._met:
                    self.turns.setdefault(thread, "")
        outcome: Outcome = "error" if item.get("status") == "failed" else "ok"
        return self.book.completed(native, ToolCompleted(outcome=outcome))

    def _usage(self, thread: str, turn: object, usage: JSON) -> list[Output]:
        """Per model call. It is told again when a response was broken off, and that of an old turn after a
        resume."""
        total, last = table(usage.get("total")), table(usage.get("last"))
        known, self._totals[thread] = self._totals.get(thread), total
        if total == known or turn != self.turns.get(thread) or self.book.turn_id is None:
            return []
        self._reports += 1
        read, write = int(last.get("cachedInputTokens") or 0), int(last.get("cacheWriteInputTokens") or 0)
        body = UsageReported(
            call_id=f"{thread}:{self.book.turn_id}:{self._reports}",
            source="harness",
            scope="call",
            model=self.model if thread == self.thread else None,
            input_tokens=max(0, int(last.get("inputTokens") or 0) - read - write),
            cache_read_tokens=read,
            cache_write_tokens=write,
            output_tokens=int(last.get("outputTokens") or 0),
            reasoning_tokens=int(last.get("reasoningOutputTokens") or 0),
        )
        return [Emit(body, parent_item_id=self._agents.get(thread))]

    def _failed(self, thread: str, params: JSON) -> list[Output]:
        """A model call failed. The last failure ends the turn by itself; what was streamed of one that is
        made again is not its answer."""
        if not params.get("willRetry") or self.book.turn_id is None:
            return []
        out: list[Output] = []
        if thread == self.thread:
            for native in sorted(self._texts):
                out += self.book.finish(native, status="lost")
            self._texts.clear()
        error = table(params.get("error"))
        detail = ": ".join(str(error[key]) for key in ("message", "additionalDetails") if error.get(key))
        return [*out, Emit(NoticeRaised(code="retrying", level="warning", detail=detail))]

    def _warned(self, method: str, params: JSON) -> list[Output]:
        """Once each: Codex repeats some in every turn."""
        if method == "model/rerouted":
            text = (
                f"The provider answered with {params.get('toModel')} in place of {params.get('fromModel')}."
            )
        else:
            text = str(params.get("message") or params.get("summary") or "")
        if not text or text in self._said or any(word in text for word in _QUIET):
            return []
        self._said.add(text)
        return [Emit(NoticeRaised(code="agent_warning", level="info", detail=text))]


def _ungated(settings: JSON) -> str:
    """What in a thread's settings keeps calls from being asked for; empty if nothing."""
    if (policy := settings.get("approvalPolicy")) != "untrusted":
        return f"its approval policy is {json.dumps(policy)}"
    if (reviewer := settings.get("approvalsReviewer", "user")) != "user":
        return f"approvals go to {json.dumps(reviewer)}"
    return ""


def _verdict(kind: str, allow: bool) -> JSON:
    if kind == "mcpToolCall":
        return {"action": "accept", "content": {}} if allow else {"action": "decline"}
    return {"decision": "accept" if allow else "decline"}


def _end_of(turn: JSON) -> TurnCompleted | TurnFailed | TurnInterrupted:
    match turn.get("status"):
        case "completed":
            return TurnCompleted()
        case "interrupted":
            return TurnInterrupted()
        case _:
            error = table(turn.get("error"))
            told = [str(error[key]) for key in ("message", "additionalDetails") if error.get(key)]
            return TurnFailed(code="agent_error", detail=": ".join(told) or "Codex gave no reason.")


def _input_of(content: tuple[Content, ...], images: tuple[Image, ...]) -> list[JSON]:
    left = iter(images)
    parts: list[JSON] = []
    for part in content:
        match part:
            case TextPart(text=text):
                parts.append({"type": "text", "text": text})
            case ImagePart():
                if image := next(left, None):
                    parts.append({"type": "image", "url": _codex_history.data_url(image)})
            case FilePart(path=path):
                parts.append({"type": "text", "text": path})
    return parts


def _plan_of(params: JSON) -> PlanUpdated:
    steps = rows(params.get("plan"))
    return PlanUpdated(
        entries=tuple(
            PlanEntry(text=str(step.get("step") or ""), status=_PLAN.get(str(step.get("status")), "pending"))
            for step in steps
        )
    )


def _milliseconds(item: JSON) -> int | None:
    told = item.get("durationMs")
    return told if isinstance(told, int) else None


def _thread_config(launch: Launch) -> JSON:
    """What goes with each thread, above any file."""
    provider: JSON = {
        "name": "Omnigent",
        "base_url": launch.gateway_url,
        "wire_api": "responses",
        "env_key": KEY,
        "request_max_retries": 2,
        "stream_max_retries": 4,
    }
    config: JSON = {
        "model_providers": {PROVIDER: provider},
        "features": FEATURES,
        "web_search": "disabled",
        "shell_environment_policy": {"exclude": [KEY, "CODEX_HOME"]},
        "suppress_unstable_features_warning": True,
    }
    if launch.mcp_servers:
        # Codex gives them little of its own environment; by the marker they are found after a crash.
        marker = {name: launch.environment[name] for name in (MARKER,) if name in launch.environment}
        config["mcp_servers"] = {
            server.name: {
                "command": server.command[0],
                "args": list(server.command[1:]),
                "env": server.environment | marker,
                "startup_timeout_sec": 30,
            }
            for server in launch.mcp_servers
        }
    if launch.history and (tokens := _codex_history.longest_output(launch.history)) > _OUTPUT_TOKENS:
        # Else Codex would cut what it is seeded with. Its shell has a limit of its own.
        config["tool_output_token_limit"] = tokens
    return config
