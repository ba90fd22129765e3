"""Bounds how many calls a session tree may make in a while.

    - name: slowly
      use: rate
      with: {calls: 60, per: 1m, actions: [exec, net, mcp], then: ask}

A call counts once, however many actions it has, when it is requested; one that was denied counts too.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from omnigent.actions import Action
from omnigent.events import JSON, Event, ToolRequested, UsageReserved
from omnigent.policies.builtins._base import Builtin, Params, one, seconds
from omnigent.policies.contract import Facts, Opinion

Counted = Literal["exec", "file.read", "file.write", "net", "mcp", "model", "spawn", "unknown"]

_SLACK = 64
"""Calls requested at the same time as the one that is decided: they must not push earlier ones out."""


class RateParams(Params):
    calls: int = Field(gt=0, le=5000)
    per: str = "1m"
    actions: tuple[Counted, ...] = Field(default=("exec", "file.write", "net", "mcp", "spawn"), min_length=1)
    then: Literal["ask", "pause", "deny"] = "ask"

    @field_validator("per")
    @classmethod
    def _duration(cls, per: str) -> str:
        seconds(per)
        return per


class Rate(Builtin[RateParams]):
    """Memory: `[tree_pos, at]` of the latest calls that count, the oldest first."""

    NAME: ClassVar[str] = "rate"
    PARAMS: ClassVar[type[Params]] = RateParams

    def __init__(self, params: RateParams) -> None:
        super().__init__(params)
        self._counted = frozenset[str](params.actions)
        self.types: frozenset[str] | None = self._counted

    def empty(self) -> Any:
        return []

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        if event.kind not in (ToolRequested.KIND, UsageReserved.KIND) or not self._counts(event):
            return memory
        memory.append([event.tree_pos, event.at])
        del memory[: -(self.params.calls + _SLACK)]
        return memory

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        if action.type not in self._counted or any(
            a.type in self._counted for a in facts.call.actions[: facts.index]
        ):
            return None
        since = facts.setting.at - seconds(self.params.per) * 1000
        pos = facts.call.pos
        recent = sum(at > since and (pos is None or at_pos < pos) for at_pos, at in facts.memory)
        if recent < self.params.calls:
            return None
        reason = f"{recent} calls in {self.params.per}: at most {self.params.calls} may go without a person."
        return one(self.params.then, reason, f"calls={recent} per={self.params.per}")

    def _counts(self, event: Event) -> bool:
        match event.body:
            case ToolRequested() as call:
                return any(action.type in self._counted for action in call.actions)
            case UsageReserved():
                return "model" in self._counted
            case _:
                return False
