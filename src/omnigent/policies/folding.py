"""The fold of a session tree's events into what policies remember, in `tree_pos` order.

**Happened** means allowed and not known to have failed. A call counts from its `tool.requested` on, unless
it was denied, or is held: then from the moment it is allowed. Known to have failed is one that was a single
simple command in the foreground and ended with an error and an exit code; then it never happened, for
`after`. For `count` and `rate` it happened all the same.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from omnigent.actions import Action, Exec, Mcp, Model, Net, Spawn, Unknown
from omnigent.events import (
    JSON,
    ApprovalDetached,
    ApprovalRequested,
    ApprovalResolved,
    Event,
    PolicyChanged,
    PolicyDecided,
    PolicyEntry,
    SessionCreated,
    SessionForked,
    ToolCompleted,
    ToolRequested,
    ToolStarted,
    UsageReserved,
    canonical,
)
from omnigent.policies.compiling import Subject
from omnigent.policies.contract import Policy
from omnigent.policies.loading import entry_key
from omnigent.policies.reading import read
from omnigent.policies.state import TreeState, is_broken
from omnigent.policies.written import Watch

VERSION = 2
MOST_PAST = 120
"""Distinct commands, hosts and MCP tools kept for rules that come later; the least recent are forgotten."""
MOST_OPEN = 1000
"""Calls of a tree that may be open; beyond, the oldest counts as happened."""
PAST_WORDS = 4
PAST_LETTERS = 80
"""How much of a command is kept: that many words, each no longer than this."""

_TURN_ENDS = frozenset({"turn.completed", "turn.failed", "turn.interrupted"})
_FOLLOWED = frozenset(
    {
        "session.created", "session.forked", "policy.changed", "tool.requested", "tool.started",
        "tool.completed", "policy.decided", "approval.requested", "approval.resolved", "approval.detached",
        "turn.started", "usage.reserved", *_TURN_ENDS,
    }
)  # fmt: skip


class TreeProjector:
    version = VERSION

    def empty(self) -> TreeState:
        return TreeState(
            {
                "pos": 0,
                "sessions": {},
                "entries": {},
                "calls": {},
                "approvals": {},
                "watched": {},
                "memory": {},
                "past": {},
                "spawned": 0,
            }
        )

    def load(self, data: Any) -> TreeState:
        return TreeState(data)

    def fold(self, state: TreeState, event: Event) -> None:
        state.data["pos"] = event.tree_pos
        if event.kind in _FOLLOWED:
            _follow(state, event)
        if remembering := state.everyone().remembering:
            tree = state.tree(event.session_id)
            for loaded in remembering:
                _observe(state, loaded.memory, cast(Policy, loaded.policy), event, tree)


def _observe(state: TreeState, key: str, policy: Policy, event: Event, tree: JSON) -> None:
    memory = state.data["memory"]
    held = memory.get(key)
    if is_broken(held):
        return
    try:
        memory[key] = policy.observe(policy.empty() if held is None else held, event, tree)
    except Exception as error:  # noqa: BLE001  the log must not stop at a policy that breaks; it is in doubt now
        memory[key] = {"broken": type(error).__name__}


def _follow(state: TreeState, event: Event) -> None:
    body = event.body
    match body:
        case SessionCreated():
            _join(state, event.session_id, body.parent_id, body.workspace)
        case SessionForked():
            _fork(state, event.session_id, body)
        case PolicyChanged():
            _change(state, event.session_id, body.policies)
        case ToolRequested():
            _request(state, event, body)
        case PolicyDecided() if event.item_id:
            _decided(state, event.item_id, body.verdict)
        case ApprovalRequested() if event.item_id:
            state.data["approvals"][event.item_id] = body.call_id
            _decided(state, body.call_id, "ask")
        case ApprovalResolved() if event.item_id:
            _resolve(state, event.item_id, body)
        case ApprovalDetached() if event.item_id:
            # The agent is gone: this call never runs, whatever is answered.
            _forget(state, state.data["approvals"].pop(event.item_id, ""))
        case ToolStarted() if event.item_id:
            _decided(state, event.item_id, "allow")
        case ToolCompleted() if event.item_id:
            _complete(state, event.item_id, body)
        case UsageReserved():
            _model_call(state, event, body)
        case _:
            _turn(state, event)


# ── Sessions and their policies ─────────────────────────────────────────────────────────────────────────


def _join(state: TreeState, session_id: str, parent_id: str | None, workspace: str) -> None:
    sessions = state.data["sessions"]
    above = sessions.get(parent_id)
    sessions[session_id] = {
        "parent": parent_id if above else None,
        "depth": above["depth"] + 1 if above else 0,
        "workspace": workspace,
        "policies": None,
        "turn": 0,
    }
    if above:
        state.data["spawned"] += 1
    _renew(state)


def _fork(state: TreeState, session_id: str, body: SessionForked) -> None:
    """The state is its parent's, as of the cut: its policies and what they remember stay, open calls end. Its
    own events are numbered anew, so that all that is remembered lies before them."""
    data = state.data
    kept = state.effective(body.parent_id) if body.parent_id in data["sessions"] else None
    for item_id in list(data["calls"]):
        _settle(state, item_id)
    data["approvals"].clear()
    data["sessions"] = {}
    for row in data["watched"].values():
        row["recent"] = [[0, at] for _, at in row["recent"]]
    for row in data["past"].values():
        row[0] = row[1] = 0
    _join(state, session_id, None, body.workspace)
    if kept is not None:
        _change(state, session_id, kept)


def _change(state: TreeState, session_id: str, policies: Iterable[PolicyEntry]) -> None:
    data = state.data
    if session_id not in data["sessions"]:
        _join(state, session_id, None, "")
    keys: list[str] = []
    for entry in policies:
        key = entry_key(entry)
        data["entries"][key] = [entry.name, entry.scope, entry.content]
        keys.append(key)
    data["sessions"][session_id]["policies"] = keys
    used = {key for row in data["sessions"].values() for key in row["policies"] or ()}
    data["entries"] = {key: row for key, row in data["entries"].items() if key in used}
    _renew(state)


def _renew(state: TreeState) -> None:
    """Rules came or went: who came learns what is known of the past, what nobody needs is dropped."""
    state.changed()
    data = state.data
    rules = state.everyone()
    data["watched"] = {
        key: data["watched"].get(key) or _learn(state, watch) for key, watch in rules.watches.items()
    }
    memories = {each.memory for each in rules.remembering}
    data["memory"] = {key: value for key, value in data["memory"].items() if key in memories}


def _learn(state: TreeState, watch: Watch) -> JSON:
    """What a rule would remember if it had been there before, as far as the distinct commands tell."""
    row: JSON = {"n": 0, "recent": []}
    for key, (_, last, at) in state.data["past"].items():
        if watch.sees(Subject(_known(json.loads(key)), "", at)):
            _remember(row, watch, last, at, 1)
    row["recent"].sort()
    for call in state.data["calls"].values():
        hits = sum(1 for action in call["acts"] if watch.sees(Subject(_known(action), "", call["at"])))
        if hits:
            call["hits"][watch.key] = hits
    return row


# ── Calls ───────────────────────────────────────────────────────────────────────────────────────────────


def _request(state: TreeState, event: Event, body: ToolRequested) -> None:
    if event.item_id is None:
        return
    call: JSON = {
        "session": event.session_id,
        "pos": event.tree_pos,
        "at": event.at,
        "ok": True,
        "background": body.background,
        "cwd": next((action.cwd for action in body.actions if isinstance(action, Exec)), ""),
        "spawns": sum(isinstance(action, Spawn) for action in body.actions),
    }
    _put(state, event.item_id, call, body.actions)


def _is_sole(actions: Sequence[Action]) -> bool:
    """Whether the call's exit code is that of its one command (whose files stand beside it)."""
    commands = [action for action in actions if isinstance(action, Exec)]
    return len(commands) == 1 and commands[0].sole and not commands[0].background


def _put(state: TreeState, item_id: str, call: JSON, actions: Sequence[Action]) -> None:
    workspace = state.workspace(call["session"])
    call["acts"] = [kept for action in actions if (kept := _kept(action)) is not None]
    call["sole"] = not call["background"] and _is_sole(actions)
    hits: dict[str, int] = {}
    watches = state.everyone().watches.values()
    for action in actions:
        subject = Subject(action, workspace, call["at"])
        for watch in watches:
            if watch.sees(subject):
                hits[watch.key] = hits.get(watch.key, 0) + 1
    call["hits"] = hits
    calls: dict[str, JSON] = state.data["calls"]
    calls[item_id] = call
    if len(calls) > MOST_OPEN:
        _settle(state, min(calls, key=lambda each: calls[each]["pos"]))


def _decided(state: TreeState, item_id: str, verdict: str) -> None:
    call = state.data["calls"].get(item_id)
    if call is None:
        return
    if verdict == "deny":
        _forget(state, item_id)
    else:
        call["ok"] = verdict == "allow"


def _resolve(state: TreeState, approval_id: str, body: ApprovalResolved) -> None:
    item_id = cast(str, state.data["approvals"].pop(approval_id, ""))
    call = cast(JSON | None, state.data["calls"].get(item_id))
    if call is None:
        return
    if body.outcome != "allowed":
        # A cancelled one may be decided anew (a pause that ended): it stays held until then.
        if body.outcome != "cancelled" or body.cancelled_by != "superseded":
            _forget(state, item_id)
        return
    call["ok"] = True
    if body.edited is not None:
        actions, _ = read(body.edited, call["cwd"], state.workspace(call["session"]))
        _put(state, item_id, call, actions)


def _complete(state: TreeState, item_id: str, body: ToolCompleted) -> None:
    call = state.data["calls"].get(item_id)
    if call is None:
        return
    if body.outcome == "ok":
        call["ok"] = True
    failed = body.outcome == "error" and bool(body.exit_code) and call["sole"]
    if body.outcome == "denied":
        _forget(state, item_id)
    else:
        _settle(state, item_id, failed=failed)


def _turn(state: TreeState, event: Event) -> None:
    if event.kind in _TURN_ENDS:
        calls = state.data["calls"]
        for item_id in [each for each, call in calls.items() if call["session"] == event.session_id]:
            _settle(state, item_id)
    elif event.kind == "turn.started":
        row = state.data["sessions"].get(event.session_id)
        if row is not None:
            row["turn"] = event.tree_pos


def _forget(state: TreeState, item_id: str) -> None:
    """It never ran."""
    state.data["calls"].pop(item_id, None)
    _unlink(state, item_id)


def _unlink(state: TreeState, item_id: str) -> None:
    approvals = state.data["approvals"]
    for approval_id in [each for each, call_id in approvals.items() if call_id == item_id]:
        del approvals[approval_id]


def _settle(state: TreeState, item_id: str, *, failed: bool = False) -> None:
    """It is over: what is still held never ran; anything else happened, unless it is known to have failed."""
    call = state.data["calls"].pop(item_id)
    _unlink(state, item_id)
    if not call["ok"]:
        return
    state.data["spawned"] += call["spawns"]
    watches = state.everyone().watches
    for key, times in call["hits"].items():
        watch = watches.get(key)
        if watch is not None and (watch.failed_too or not failed):
            _remember(_row(state, key), watch, call["pos"], call["at"], times)
    if not failed:
        for action in call["acts"]:
            _note_past(state, action, call["pos"], call["at"])


def _row(state: TreeState, key: str) -> JSON:
    # A newer program's defaults may watch what this state was never told to.
    return cast(JSON, state.data["watched"].setdefault(key, {"n": 0, "recent": []}))


def _remember(row: JSON, watch: Watch, pos: int, at: int, times: int) -> None:
    row["n"] += times
    recent: list[list[int]] = row["recent"]
    recent += [[pos, at]] * times
    if len(recent) > 1 and recent[-1] < recent[-times - 1 if times < len(recent) else 0]:
        recent.sort()
    del recent[: -watch.keeps]


def _model_call(state: TreeState, event: Event, body: UsageReserved) -> None:
    watches = state.everyone().watches
    if not watches:
        return
    action = Model(wire="", provider=body.provider, model=body.model, input_tokens=body.input_tokens)
    subject = Subject(action, "", event.at)
    for key, watch in watches.items():
        if watch.sees(subject):
            _remember(_row(state, key), watch, event.tree_pos, event.at, 1)


# ── The past, in short ──────────────────────────────────────────────────────────────────────────────────


def _kept(action: Action) -> JSON | None:
    """What is kept of an action for rules that come later; files and notes aren't."""
    match action:
        case Exec(program=program) if program:
            words = [word[:PAST_LETTERS] for word in action.words[:PAST_WORDS]]
            flags = [flag for flag in action.flags if len(flag) <= PAST_LETTERS][:16]
            return {"type": "exec", "program": program[:PAST_LETTERS], "words": words, "flags": flags}
        case Net():
            return {"type": "net", "host": action.host, "method": action.method}
        case Mcp():
            return {"type": "mcp", "server": action.server, "tool": action.tool}
        case Spawn() | Unknown():
            return {"type": action.type, "tool": getattr(action, "tool", "")}
        case _:
            return None


def _known(kept: JSON) -> Action:
    match kept["type"]:
        case "exec":
            return Exec(
                command="", program=kept["program"], words=tuple(kept["words"]), flags=tuple(kept["flags"])
            )
        case "net":
            return Net(url="", host=kept["host"], method=kept["method"])
        case "mcp":
            return Mcp(server=kept["server"], tool=kept["tool"])
        case "spawn":
            return Spawn()
        case _:
            return Unknown(tool=kept["tool"])


def _note_past(state: TreeState, action: JSON, pos: int, at: int) -> None:
    past: dict[str, list[int]] = state.data["past"]
    key = canonical(action)
    first, last, seen = past.get(key) or (pos, pos, at)
    past[key] = [min(first, pos), max(last, pos), max(seen, at)]
    if len(past) > MOST_PAST:
        del past[min(past, key=lambda each: (past[each][1], each))]
