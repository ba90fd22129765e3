"""Claude Code's stream-JSON and control protocol as events (facts seen on claude 2.1.330).

The gate is a `PreToolUse` hook registered on the stdio by `initialize`: it is asked for every call of every
agent and sub-agent, in any permission mode, waits for a day, and blocks when it can't be answered.
`can_use_tool`, which some calls reach after it, is answered by what the hook decided.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast
from uuid import uuid5

from omnigent.actions import Exec
from omnigent.events import (
    JSON,
    Content,
    ContextCompacted,
    FilePart,
    ImagePart,
    MessageCompleted,
    MessageDelivered,
    MessageStarted,
    NoticeRaised,
    QuestionAsked,
    TextPart,
    ToolCompleted,
    ToolRequested,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    UsageReported,
)
from omnigent.harnesses import (
    Answer,
    Ask,
    Emit,
    Exited,
    Input,
    Interrupt,
    Launch,
    NativeRef,
    Opened,
    Output,
    Ping,
    Pong,
    Raw,
    Ready,
    Refuse,
    Send,
    SetModel,
    SetTimer,
    StartTurn,
    Steer,
    Tick,
    Verdict,
)
from omnigent.harnesses import _claude_history as transcripts
from omnigent.harnesses import _claude_tools as tools
from omnigent.harnesses._book import Book
from omnigent.harnesses._claude_tools import objects, text
from omnigent.history import History, Image
from omnigent.ids import NewId

HELD_SECONDS = 86_400
"""How long Claude waits for the hook; without an answer by then the call doesn't run."""

_HOOKS: JSON = {
    "PreToolUse": [
        {"matcher": None, "hookCallbackIds": ["gate"], "timeout": HELD_SECONDS, "onFailure": "block"}
    ]
}
_SERVERS = "servers"
_SERVERS_SECONDS = 0.1
"""How often to look whether the MCP servers are up."""
_REFUSED_KEY = (401, 403)
"""Claude retries these for minutes; no retry mends a key."""


def native_session(launch: Launch) -> str:
    """Claude's id of the session: the one to resume, or a new one that both sides of the start agree on."""
    return launch.native_ref or str(uuid5(transcripts.NAMESPACE, f"{launch.session_id}/{launch.run}"))


def seeded_history(launch: Launch) -> History | None:
    """The history to write down before the start, if there is any."""
    if launch.native_ref or not launch.history or not launch.history.entries:
        return None
    return launch.history


@dataclass(slots=True)
class _Sent:
    """A message on its way: known to Claude, not yet acknowledged."""

    message_id: str
    steer: bool


@dataclass(slots=True)
class _Held:
    """A call that waits at the gate: Claude's request, and what it would do."""

    request_id: str
    call: str
    tool: str
    input: JSON


@dataclass(slots=True)
class _Call:
    """Tokens of a model call that runs."""

    id: str
    model: str
    usage: JSON = field(default_factory=dict[str, object])


type _Ending = TurnCompleted | TurnFailed | TurnInterrupted


class ClaudeTranslator:
    """Calls are known by agent and vendor id together, as sub-agents may repeat each other's ids."""

    def __init__(self, launch: Launch, new_id: NewId, stored: Callable[[str], str | None]) -> None:
        self._launch = launch
        self._new_id = new_id
        self._stored = stored
        self._book = Book(new_id)
        self._running = False
        """Claude is between its `system/init` and its `result`."""
        self._sent: dict[str, _Sent] = {}
        self._attempts: dict[str, int] = {}
        self._waiting: list[Steer] = []
        """Steers kept back until a tool call makes sure that this turn takes them."""
        self._ending: _Ending | None = None
        """How the turn ends once it is known whether Claude goes on with a steer of its queue."""
        self._cancelling: set[str] = set()
        self._interrupting = False
        self._refused = ""
        """Why the model API won't answer, when the turn is cut short for it."""
        self._held: dict[str, _Held] = {}
        self._allowed: dict[str, tuple[str, JSON]] = {}
        self._denied: dict[str, str] = {}
        """Calls denied at the gate, and why. Some versions tell it only of the main agent's."""
        self._unanswered: set[str] = set()
        """Calls asked about and neither allowed nor denied, also when Claude waits no longer."""
        self._questions: dict[str, _Held] = {}
        self._mentioned: dict[str, tuple[str, JSON]] = {}
        self._agents: dict[str, str] = {}
        """Sub-agent's id → item id of the call that started it."""
        self._items: dict[str, str] = {}
        self._tasks: dict[str, str] = {}
        """Background tasks that run: id → type."""
        self._blocks: dict[int, str] = {}
        self._said: set[str] = set()
        """Keys of the blocks that have text so far."""
        self._call: _Call | None = None
        self._streamed: set[str] = set()
        self._counted: Counter[str] = Counter()
        """Tokens reported by call since the last `result`."""
        self._cost = 0.0
        """What this process has cost so far, in USD."""
        self._ready: Ready | None = None
        """Kept back until the MCP servers are up."""

    def step(self, given: Input) -> list[Output]:
        match given:
            case Opened():
                return [_control("hello", {"subtype": "initialize", "hooks": _HOOKS})]
            case Raw(message):
                return self._read(message)
            case StartTurn():
                return self._start(given)
            case Steer():
                return self._steer(given)
            case Verdict():
                return self._decide(given)
            case Answer():
                return self._answer(given)
            case Interrupt():
                self._interrupting = True
                return self._stop()
            case SetModel():
                return self._set_model(given)
            case Ping():
                return [_control("ping", {"subtype": "mcp_status"})]
            case Tick():
                return [_control(_SERVERS, {"subtype": "mcp_status"})]
            case Exited():
                return self._exit(given)

    # Commands.

    def _start(self, turn: StartTurn) -> list[Output]:
        out: list[Output] = []
        if self._book.turn_id is not None:  # one that Claude began by itself, unknown yet to who sent this
            out += self._close(TurnCompleted())
        self._book.begin(turn.turn_id)
        return [*out, self._say(turn.message_id, turn.content, turn.images, steer=False)]

    def _steer(self, steer: Steer) -> list[Output]:
        self._waiting.append(steer)
        return self._hand_over() if self._in_tool() else []

    def _in_tool(self) -> bool:
        return any(not key.partition("/")[0] and self._book.is_open(key) for key in self._items)

    def _hand_over(self) -> list[Output]:
        """Steers, now that a tool call is open: Claude takes them before its next model call."""
        steers, self._waiting = self._waiting, []
        return [self._say(each.message_id, each.content, each.images, steer=True) for each in steers]

    def _say(
        self, message_id: str, content: tuple[Content, ...], images: tuple[Image, ...], *, steer: bool
    ) -> Send:
        attempt = self._attempts.get(message_id, 0)
        self._attempts[message_id] = attempt + 1
        uuid = transcripts.planted_id(message_id, attempt)
        self._sent[uuid] = _Sent(message_id, steer)
        message = {"role": "user", "content": _blocks(content, images)}
        return Send(
            {
                "type": "user",
                "message": message,
                "parent_tool_use_id": None,
                "session_id": "default",
                "uuid": uuid,
            }
        )

    def _decide(self, verdict: Verdict) -> list[Output]:
        held = self._held.pop(verdict.item_id, None)
        if held is None:  # withdrawn meanwhile
            return []
        if not verdict.allow:
            self._denied[held.call] = verdict.reason
            self._unanswered.discard(held.call)
            return [_hook_answer(held.request_id, "deny", verdict.reason or "Denied.")]
        return [*self._allow(held, verdict.command), *self._book.released(verdict.item_id)]

    def _allow(self, held: _Held, command: str | None = None) -> list[Output]:
        given = held.input
        if command is not None:
            given = given | {"command": command}
        if held.tool == "Agent":
            # By default it would run on after the turn; a sub-agent belongs to the turn that started it.
            given = given | {"run_in_background": False}
        self._allowed[held.call] = (held.tool, given)
        self._unanswered.discard(held.call)
        changed = given if given is not held.input else None
        return [_hook_answer(held.request_id, "allow", "", changed)]

    def _answer(self, answer: Answer) -> list[Output]:
        held = self._questions.pop(answer.question_id, None)
        if held is None:
            return []
        if answer.cancelled:
            reply: JSON = {"behavior": "deny", "message": "Nobody answered the question."}
        else:
            reply = {"behavior": "allow", "updatedInput": tools.answered(held.input, answer.values)}
        return [_respond(held.request_id, reply)]

    def _stop(self) -> list[Output]:
        """Interrupt the turn, withdraw what waits, and end what runs in the background."""
        self._waiting.clear()
        stops: list[Output] = [
            _control(f"stop {task}", {"subtype": "stop_task", "task_id": task}) for task in self._tasks
        ]
        return [*stops, _control("interrupt", {"subtype": "interrupt", "cancel_queued": True})]

    def _set_model(self, change: SetModel) -> list[Output]:
        """By settings, as the control request `set_model` first tries the model with a call of its own."""
        settings: JSON = {"model": change.model}
        if change.effort:
            settings["effortLevel"] = change.effort
        return [_control("set_model", {"subtype": "apply_flag_settings", "settings": settings})]

    def _exit(self, gone: Exited) -> list[Output]:
        self._running = False
        if self._interrupting:
            return self._close(TurnInterrupted(how="kill"))
        detail = f"Claude Code ended with exit code {gone.code}."
        return self._close(TurnFailed(code="agent_exited", detail=detail, stderr_tail=gone.stderr_tail))

    # Frames.

    def _read(self, frame: JSON) -> list[Output]:
        match frame.get("type"):
            case "control_response":
                return self._responded(_object(frame, "response"))
            case "control_request":
                return self._requested(text(frame, "request_id"), _object(frame, "request"))
            case "control_cancel_request":
                return self._withdrawn(text(frame, "request_id"))
            case "command_lifecycle":
                return self._queue_moved(text(frame, "command_uuid"), text(frame, "state"))
            case "system":
                return self._system(frame)
            case "stream_event":
                return self._streaming(frame)
            case "assistant":
                return self._assistant(frame)
            case "user":
                return self._user(frame)
            case "result":
                return self._result(frame)
            case _:
                return []

    def _responded(self, response: JSON) -> list[Output]:
        request, body = text(response, "request_id"), _object(response, "response")
        failed = text(response, "error") if response.get("subtype") == "error" else ""
        kind, _, rest = request.partition(" ")
        match kind:
            case "hello":
                return self._greeted(body, failed)
            case "servers":
                return self._served(objects(body.get("mcpServers")))
            case "ping":
                return [Pong()]
            case "interrupt":
                return self._interrupted(body)
            case "cancel":
                return self._cancelled(rest, body.get("cancelled") is True)
            case "set_model" if failed:
                return [Emit(NoticeRaised(code="set_model_failed", level="warning", detail=failed))]
            case _:
                return []

    def _greeted(self, body: JSON, failed: str) -> list[Output]:
        version = text(body, "claude_code_version")
        if failed or body.get("hooks_applied") is False or body.get("hook_on_failure_supported") is not True:
            why = failed or "it doesn't confirm a PreToolUse hook with onFailure=block"
            return [Refuse("gate_not_held", f"Claude Code {version or 'of unknown version'}: {why}.")]
        launch = self._launch
        seeded = seeded_history(launch)
        how = "native_resume" if launch.native_ref else "seeded" if seeded else "new"
        ready = Ready(
            native_ref=native_session(launch),
            version=version,
            model=launch.model,
            tools=tools.OFFERED,
            how=how,
            carried=transcripts.carried(seeded) if seeded else None,
        )
        if not launch.mcp_servers:
            return [ready]
        self._ready = ready
        return [_control(_SERVERS, {"subtype": "mcp_status"})]

    def _served(self, servers: list[JSON]) -> list[Output]:
        """Ready once each server is up or given up (Claude waits 30 s for one)."""
        ready, states = self._ready, {text(server, "name"): server for server in servers}
        names = [server.name for server in self._launch.mcp_servers]
        if ready is None:
            return []
        if any(text(states.get(name, {}), "status") in ("", "pending") for name in names):
            return [SetTimer(_SERVERS, _SERVERS_SECONDS)]
        self._ready = None
        up = [name for name in names if text(states[name], "status") == "connected"]
        theirs = [
            f"mcp__{name}__{text(tool, 'name')}" for name in up for tool in objects(states[name].get("tools"))
        ]
        out: list[Output] = [replace(ready, tools=(*ready.tools, *theirs), mcp_servers=tuple(up))]
        for name in names:
            if name not in up:
                why = text(states[name], "error") or text(states[name], "status")
                detail = f"The MCP server {name} didn't start: {why}."
                out.append(Emit(NoticeRaised(code="mcp_server_failed", level="warning", detail=detail)))
        return out

    def _interrupted(self, body: JSON) -> list[Output]:
        """What Claude withdrew never ran; with nothing running there is no `result` to wait for."""
        for uuid in cast(list[object], body.get("cancelled") or []):
            self._sent.pop(str(uuid), None)
        if self._running or self._book.turn_id is None:
            self._interrupting = self._interrupting and self._book.turn_id is not None
            return []
        return self._close(TurnInterrupted())

    # The queue: a steer must run in this turn or not at all.

    def _queue_moved(self, uuid: str, state: str) -> list[Output]:
        if uuid in self._sent and state == "started":
            self._running = True
            if uuid in self._cancelling:
                return self._cancelled(uuid, gone=False)
        return []

    def _cancelled(self, uuid: str, gone: bool) -> list[Output]:
        """Claude withdrew a steer, or runs it: then the turn goes on."""
        if uuid not in self._cancelling:
            return []
        self._cancelling.discard(uuid)
        if gone:
            self._sent.pop(uuid, None)
        elif uuid in self._sent:
            self._ending = None
        if self._cancelling or self._ending is None:
            return []
        ending, self._ending = self._ending, None
        return self._close(ending)

    # Requests.

    def _requested(self, request_id: str, request: JSON) -> list[Output]:
        match text(request, "subtype"):
            case "hook_callback":
                return self._hooked(request_id, _object(request, "input"))
            case "can_use_tool":
                return self._permission(request_id, request)
            case other:
                return [_respond_error(request_id, f"Omnigent doesn't answer {other}.")]

    def _hooked(self, request_id: str, hook: JSON) -> list[Output]:
        tool, given, agent = text(hook, "tool_name"), _object(hook, "tool_input"), text(hook, "agent_id")
        call = _key(agent, text(hook, "tool_use_id"))
        held = _Held(request_id, call, tool, given)
        out = self._wake()
        item = self._items[call] = self._book.call(call)
        if not agent:  # before any answer, so that Claude has them when the call ends
            out += self._hand_over()
        parent = self._agents.get(agent)
        row = tools.TOOLS.get(tool)
        asked = self._describe(tool, given, text(hook, "tool_use_id"), Path(text(hook, "cwd") or "."))
        if row is not None and row.kind == "harmless":
            out.append(Emit(asked.model_copy(update={"gated": False}), item, parent))
            out += [*self._book.released(item), *self._allow(held)]
            if tool == "TodoWrite":
                out.append(Emit(tools.plan(given), item, parent))
        else:
            self._held[item] = held
            self._unanswered.add(call)
            out.append(Ask(item, asked, parent))
        return out

    def _describe(self, tool: str, given: JSON, native_id: str, cwd: Path) -> ToolRequested:
        workspace = self._launch.workspace
        actions, parsed = tools.understand(tool, given, workspace, workspace / cwd)
        return ToolRequested(
            tool=tool,
            title=tools.title(tool, given),
            actions=tuple(actions),
            parsed=parsed,
            raw=json.dumps(given, ensure_ascii=False),
            native_id=native_id,
            background=any(isinstance(action, Exec) and action.background for action in actions),
        )

    def _permission(self, request_id: str, request: JSON) -> list[Output]:
        """Only exactly what the hook allowed is allowed."""
        tool, given = text(request, "tool_name"), _object(request, "input")
        call = _key(text(request, "agent_id"), text(request, "tool_use_id"))
        if self._allowed.get(call) != (tool, given):
            return [
                _respond(request_id, {"behavior": "deny", "message": "Omnigent did not allow this call."})
            ]
        if tool != "AskUserQuestion":
            return [_respond(request_id, {"behavior": "allow", "updatedInput": given})]
        question = self._new_id("q")
        self._questions[question] = _Held(request_id, call, tool, given)
        body = QuestionAsked(questions=tools.questions(given), call_id=self._items.get(call))
        return [Emit(body, question)]

    def _withdrawn(self, request_id: str) -> list[Output]:
        """Claude no longer waits for this answer (an interrupt, a response that was thrown away)."""
        for table in (self._held, self._questions):
            for item in [item for item, held in table.items() if held.request_id == request_id]:
                del table[item]
        return []

    # What Claude says of itself.

    def _system(self, frame: JSON) -> list[Output]:
        match text(frame, "subtype"):
            case "init":
                self._running = True
                ref = text(frame, "session_id")
                return [NativeRef(ref)] if ref and ref != native_session(self._launch) else []
            case "api_retry":
                return self._retrying(frame)
            case "task_started":
                self._note_agent(text(frame, "task_id"), text(frame, "tool_use_id"))
                return []
            case "background_tasks_changed":
                self._tasks = {
                    text(task, "task_id"): text(task, "task_type") for task in objects(frame.get("tasks"))
                }
                return []
            case "task_notification" if frame.get("task_id") not in self._agents_in_turn():
                detail = text(frame, "summary") or text(frame, "status")
                return [Emit(NoticeRaised(code="background_ended", level="info", detail=detail))]
            case "compact_boundary":
                return [Emit(ContextCompacted())]
            case _:
                return []

    def _note_agent(self, agent: str, native: str) -> None:
        """Whose call started a sub-agent isn't told; the newest call of that id did."""
        items = [item for call, item in self._items.items() if call.endswith(f"/{native}")]
        if items:
            self._agents[agent] = items[-1]

    def _agents_in_turn(self) -> set[str]:
        """Sub-agents whose end is told by the result of their call."""
        return {agent for agent, item in self._agents.items() if self._book.native(item) is not None}

    def _retrying(self, frame: JSON) -> list[Output]:
        status, error = frame.get("error_status"), text(frame, "error") or "no answer"
        detail = f"{error} (HTTP {status})" if status else error
        if status in _REFUSED_KEY:
            if self._refused:
                return []
            self._refused = f"The model API refused the credential: {detail}."
            return [_control("interrupt", {"subtype": "interrupt", "cancel_queued": True})]
        tries = f"try {frame.get('attempt')} of {frame.get('max_retries')}"
        return [Emit(NoticeRaised(code="retrying", level="warning", detail=f"{detail}, {tries}"))]

    # The model's answer.

    def _wake(self) -> list[Output]:
        """Claude acts although nobody asked: a background task ended, or a sub-agent goes on in one."""
        if self._book.turn_id is not None:
            return []
        turn = self._new_id("turn")
        self._book.begin(turn)
        return [Emit(TurnStarted(trigger="agent"), turn_id=turn)]

    def _streaming(self, frame: JSON) -> list[Output]:
        if frame.get("parent_tool_use_id"):
            return []
        event = _object(frame, "event")
        index = cast(int, event.get("index") or 0)
        match text(event, "type"):
            case "message_start":
                message = _object(event, "message")
                self._call = _Call(text(message, "id"), text(message, "model"), _object(message, "usage"))
                self._streamed.add(self._call.id)
                self._blocks.clear()
                return self._wake()
            case "content_block_start":
                self._blocks[index] = text(_object(event, "content_block"), "type")
                return []
            case "content_block_delta":
                return self._delta(index, _object(event, "delta"))
            case "content_block_stop":
                return self._block_ended(index)
            case "message_delta":
                return self._call_ended(_object(event, "usage"))
            case _:
                return []

    def _delta(self, index: int, delta: JSON) -> list[Output]:
        match text(delta, "type"):
            case "text_delta" if said := text(delta, "text"):
                self._said.add(self._block(index))
                return self._book.say(self._block(index), said)
            case "thinking_delta" if thought := text(delta, "thinking"):
                self._said.add(self._block(index))
                return self._book.say(self._block(index), thought, "reasoning")
            case _:
                return []

    def _block(self, index: int) -> str:
        return f"{self._call.id if self._call else ''}/{index}"

    def _block_ended(self, index: int) -> list[Output]:
        kind, key = self._blocks.pop(index, ""), self._block(index)
        if key not in self._said:
            return []
        self._said.discard(key)
        return self._book.finish(key) if kind == "text" else self._book.finish_reasoning(key)

    def _call_ended(self, final: JSON) -> list[Output]:
        call, self._call = self._call, None
        if call is None:
            return []
        usage = call.usage | {key: value for key, value in final.items() if value is not None}
        report = _usage(call.id, call.model, usage)
        self._counted.update({name: getattr(report, name) for name in _TOKENS.values()})
        return [Emit(report)]

    def _assistant(self, frame: JSON) -> list[Output]:
        """A finished block. The main agent's were streamed; a sub-agent's come only here."""
        message, agent = _object(frame, "message"), text(frame, "agent_id")
        parent = self._agents.get(agent)
        out: list[Output] = []
        for block in objects(message.get("content")):
            if block.get("type") == "tool_use":
                call = _key(agent, text(block, "id"))
                self._mentioned[call] = (text(block, "name"), _object(block, "input"))
            said = text(block, "text") if block.get("type") == "text" else ""
            streamed = not agent and text(message, "id") in self._streamed
            if said and not streamed and not frame.get("is_api_error_message"):
                item = self._new_id("msg")
                out += [*self._wake(), Emit(MessageStarted(), item, parent)]
                out.append(Emit(MessageCompleted(content=(TextPart(text=said),)), item, parent))
        return out

    def _user(self, frame: JSON) -> list[Output]:
        if frame.get("isReplay") is True:
            return self._acknowledged(text(frame, "uuid"))
        agent = text(frame, "agent_id")
        metas = {text(meta, "id"): meta for meta in objects(frame.get("tool_result_meta"))}
        out: list[Output] = []
        for block in objects(_object(frame, "message").get("content")):
            if block.get("type") == "tool_result":
                native = text(block, "tool_use_id")
                meta = metas.get(native, {})
                out += self._tool_ended(agent, native, block, frame.get("tool_use_result"), meta)
        return out

    def _acknowledged(self, uuid: str) -> list[Output]:
        sent = self._sent.pop(uuid, None)
        if sent is None:
            return []
        if uuid in self._cancelling:
            self._cancelling.discard(uuid)
            self._ending = None
        return [Emit(MessageDelivered(as_="steer" if sent.steer else "turn"), sent.message_id)]

    def _tool_ended(self, agent: str, native: str, block: JSON, result: object, meta: JSON) -> list[Output]:
        call = _key(agent, native)
        out: list[Output] = []
        if not self._book.is_open(call):
            if call not in self._mentioned or self._book.turn_id is None:
                return []
            # Claude turned it down by itself (no such tool, bad input): it reached no gate and didn't run.
            tool, given = self._mentioned[call]
            asked = self._describe(tool, given, native, Path())
            item = self._items[call] = self._book.call(call)
            out.append(Emit(asked.model_copy(update={"gated": False}), item, self._agents.get(agent)))
        item = self._items[call]
        ended = tools.completed(block, result, meta, self._stored)
        if call in self._denied:
            ended = ToolCompleted(outcome="denied", reason=self._denied.pop(call))
        elif ended.outcome == "denied" and self._interrupting:
            ended = ToolCompleted(outcome="cancelled")
        elif call in self._unanswered and ended.outcome == "error":  # the hook's time passed: it did not run
            ended = ToolCompleted(outcome="cancelled", reason=ended.output.text)
        self._held.pop(item, None)
        self._unanswered.discard(call)
        for table in (self._mentioned, self._allowed):
            table.pop(call, None)
        out += self._book.completed(call, ended)
        changed = tools.file_changed(result) if ended.outcome == "ok" else None
        return [*out, Emit(changed, item)] if changed else out

    # The end of a turn.

    def _rest_of_usage(self, frame: JSON) -> list[Output]:
        """What Claude counted beside the calls reported: tokens of calls that weren't streamed, a sub-agent's
        above all, and the turn's cost. That is by Claude's list of prices, a guess for a model not in it."""
        models = _object(frame, "model_usage_since_last_result")
        total: Counter[str] = Counter()
        for counted in models.values():
            for theirs, ours in _TOKENS.items():
                total[ours] += int(cast(JSON, counted).get(theirs) or 0)
        rest = total - self._counted
        self._counted.clear()
        cost = frame.get("total_cost_usd")
        spent = cost - self._cost if isinstance(cost, int | float) else None
        self._cost += spent or 0
        if not rest and spent is None:
            return []
        model = next(iter(models)) if len(models) == 1 else None
        report = UsageReported(
            call_id=f"{text(frame, 'uuid')}/rest",
            source="harness",
            scope="turn",
            model=model,
            cost_nanousd=None if spent is None else max(0, round(spent * 1e9)),
            basis="harness",
        )
        return [Emit(report.model_copy(update=dict(rest)))]

    def _result(self, frame: JSON) -> list[Output]:
        self._running = False
        if self._book.turn_id is None:
            return []
        return [*self._rest_of_usage(frame), *self._turn_ended(frame)]

    def _turn_ended(self, frame: JSON) -> list[Output]:
        origin = text(_object(frame, "origin"), "kind")
        if origin == "task-notification" and any(not sent.steer for sent in self._sent.values()):
            return []  # of a turn of Claude's own; the one that was asked for comes next
        ending = self._ending_of(frame)
        late = [uuid for uuid, sent in self._sent.items() if sent.steer]
        if not late:
            return self._close(ending)
        self._ending = ending
        self._cancelling.update(late)
        return [
            _control(f"cancel {uuid}", {"subtype": "cancel_async_message", "message_uuid": uuid})
            for uuid in late
        ]

    def _ending_of(self, frame: JSON) -> _Ending:
        if self._refused:
            return TurnFailed(code="agent_error", detail=self._refused)
        if text(frame, "terminal_reason").startswith("aborted"):
            return TurnInterrupted()
        if frame.get("is_error") is not True and frame.get("subtype") == "success":
            return TurnCompleted()
        errors = "\n".join(str(error) for error in cast(list[object], frame.get("errors") or []))
        detail = text(frame, "result") or errors or text(frame, "subtype")
        return TurnFailed(code="agent_error", detail=detail)

    def _close(self, ending: _Ending) -> list[Output]:
        """The end of the open turn, and of all that was kept for it."""
        self._interrupting, self._refused, self._ending = False, "", None
        self._waiting.clear()
        self._cancelling.clear()
        self._sent = {uuid: sent for uuid, sent in self._sent.items() if not sent.steer}
        running = self._agents_running()
        for table in (self._held, self._allowed, self._denied, self._questions, self._mentioned):
            table.clear()
        self._agents = {agent: item for agent, item in self._agents.items() if agent in running}
        self._items.clear()
        self._unanswered.clear()
        self._streamed.clear()
        self._said.clear()
        self._blocks.clear()
        self._call = None
        return self._book.end(ending)

    def _agents_running(self) -> set[str]:
        return {task for task, kind in self._tasks.items() if kind == "local_agent"}


_TOKENS = {
    "inputTokens": "input_tokens",
    "cacheReadInputTokens": "cache_read_tokens",
    "cacheCreationInputTokens": "cache_write_tokens",
    "outputTokens": "output_tokens",
}
"""Claude's name for a kind of tokens in its totals → ours."""


def _usage(call_id: str, model: str, usage: JSON) -> UsageReported:
    def tokens(name: str, of: JSON = usage) -> int:
        value = of.get(name)
        return value if isinstance(value, int) else 0

    return UsageReported(
        call_id=call_id,
        source="harness",
        scope="call",
        model=model or None,
        input_tokens=tokens("input_tokens"),
        cache_read_tokens=tokens("cache_read_input_tokens"),
        cache_write_tokens=tokens("cache_creation_input_tokens"),
        output_tokens=tokens("output_tokens"),
        reasoning_tokens=tokens("thinking_tokens", _object(usage, "output_tokens_details")),
        basis="harness",
    )


def _blocks(content: tuple[Content, ...], images: tuple[Image, ...]) -> list[JSON]:
    """A message as blocks of the Messages API; `images` are the bytes of its image parts, in order."""
    bytes_of = iter(images)
    blocks: list[JSON] = []
    for part in content:
        match part:
            case TextPart(text=words) if words:
                blocks.append({"type": "text", "text": words})
            case FilePart(path=path):
                blocks.append({"type": "text", "text": f"Attached file: {path}"})
            case ImagePart() if image := next(bytes_of, None):
                blocks.append(transcripts.image_block(image))
            case _:
                pass
    if blocks and text(blocks[0], "text").startswith("/"):
        # Else Claude takes it for a command of its own, and the model never sees it.
        blocks[0] = blocks[0] | {"text": " " + text(blocks[0], "text")}
    return blocks


def _key(agent: str, native: str) -> str:
    return f"{agent}/{native}"


def _object(value: JSON, key: str) -> JSON:
    found = value.get(key)
    return cast(JSON, found) if isinstance(found, dict) else {}


def _control(request_id: str, request: JSON) -> Send:
    return Send({"type": "control_request", "request_id": request_id, "request": request})


def _respond(request_id: str, response: JSON) -> Send:
    body: JSON = {"subtype": "success", "request_id": request_id, "response": response}
    return Send({"type": "control_response", "response": body})


def _respond_error(request_id: str, error: str) -> Send:
    body: JSON = {"subtype": "error", "request_id": request_id, "error": error}
    return Send({"type": "control_response", "response": body})


def _hook_answer(request_id: str, decision: str, reason: str, changed: JSON | None = None) -> Send:
    answer: JSON = {
        "hookEventName": "PreToolUse",
        "permissionDecision": decision,
        "permissionDecisionReason": reason,
    }
    if changed is not None:
        answer["updatedInput"] = changed
    return _respond(request_id, {"hookSpecificOutput": answer})
