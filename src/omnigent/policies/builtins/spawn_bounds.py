"""Bounds the sub-agents of a session tree: how deep, how many, how many at once.

- name: few-agents
  use: spawn_bounds
  with: {depth: 2, count: 20, running: 4, then: deny}
"""

from typing import ClassVar, Literal

from pydantic import Field

from omnigent.actions import Action, Spawn
from omnigent.policies.builtins._base import Builtin, Params, earlier, one
from omnigent.policies.contract import Facts, Opinion


class SpawnParams(Params):
    depth: int = Field(default=3, ge=0)
    """Levels below the first session; 0: none at all."""
    count: int = Field(default=50, ge=0)
    """Sub-agents of the whole tree, ended ones too."""
    running: int = Field(default=8, ge=1)
    """At the same time."""
    then: Literal["ask", "deny", "pause"] = "ask"


class SpawnBounds(Builtin[SpawnParams]):
    NAME: ClassVar[str] = "spawn_bounds"
    PARAMS: ClassVar[type[Params]] = SpawnParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"spawn"})

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        if not isinstance(action, Spawn):
            return None
        # Those named before it in the same call are taken to run already.
        before = earlier(facts.call, facts.index, "spawn")
        tree, params = facts.tree, self.params
        depth, count = tree.get("depth", 0) + 1, tree.get("spawned", 0) + before + 1
        running = tree.get("running", 0) + before + 1
        seen = f"depth={depth} count={count} running={running}"
        if depth > params.depth:
            return one(params.then, f"Sub-agents may go {params.depth} level(s) deep at most.", seen)
        if count > params.count:
            return one(params.then, f"This would be sub-agent {count} of at most {params.count}.", seen)
        if running > params.running:
            return one(params.then, f"At most {params.running} sub-agents may run at the same time.", seen)
        return None
