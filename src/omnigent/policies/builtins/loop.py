"""Asks when an agent makes the same call over and over and nothing changes in between.

    - name: no-loops
      use: loop
      with: {times: 6, window: 24, then: ask}

The same call: the same actions, word for word. A person's message and a write that wasn't made before count
as change, so that edit, test, edit, test goes on for ever and test, test, test doesn't.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from omnigent.actions import Action
from omnigent.events import JSON, Event, MessageSubmitted, SessionForked, ToolRequested
from omnigent.policies.builtins._base import Builtin, Params, one
from omnigent.policies.contract import Facts, Opinion

_SEEN = frozenset({ToolRequested.KIND, MessageSubmitted.KIND, SessionForked.KIND})
"""Kinds of event whose bodies are worth reading."""
_SESSIONS = 20
"""Of a tree: those that called last are remembered."""


class LoopParams(Params):
    times: int = Field(default=6, ge=2, le=100)
    """The call that is asked about is the one of this number."""
    window: int = Field(default=24, ge=2, le=200)
    """Calls of the session that are looked back on."""
    then: Literal["ask", "pause", "deny"] = "ask"


class Loop(Builtin[LoopParams]):
    """Memory: session → `[tree_pos, digest]` of its latest calls since something changed."""

    NAME: ClassVar[str] = "loop"
    PARAMS: ClassVar[type[Params]] = LoopParams

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        if event.kind not in _SEEN:
            return memory
        match event.body:
            case ToolRequested() as call if _acts(call.actions):
                self._note(memory, event, call.actions)
            case MessageSubmitted():
                memory.pop(event.session_id, None)
            case SessionForked() as fork if fork.parent_id in memory:
                memory[event.session_id] = list(memory[fork.parent_id])
            case _:
                pass
        return memory

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        call = facts.call
        if facts.index or action.type == "model" or not _acts(call.actions):
            return None
        mine = _digest(call.actions)
        recent = facts.memory.get(facts.setting.session_id, ())
        earlier = [digest for pos, digest in recent if call.pos is None or pos < call.pos]
        times = earlier[-self.params.window :].count(mine) + 1
        if times < self.params.times:
            return None
        reason = f"The same call for the {times}th time with nothing changed in between: try another way."
        return one(self.params.then, reason, f"times={times}")

    def _note(self, memory: JSON, event: Event, actions: Sequence[Action]) -> None:
        digest = _digest(actions)
        # Taken out and put back: the sessions stand in the order of their latest calls.
        calls: list[list[Any]] = memory.pop(event.session_id, [])
        if _writes(actions) and all(digest != each for _, each in calls):
            calls = []
        calls.append([event.tree_pos, digest])
        memory[event.session_id] = calls[-self.params.window :]
        while len(memory) > _SESSIONS:
            del memory[next(iter(memory))]


def _acts(actions: Sequence[Action]) -> bool:
    return any(action.type != "message" for action in actions)


def _writes(actions: Sequence[Action]) -> bool:
    return any(action.type == "file.write" for action in actions)


def _digest(actions: Sequence[Action]) -> str:
    text = "\n".join(action.model_dump_json() for action in actions)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
