"""Asks when a secret stands in what is about to go out: a command, a request, the arguments of a tool.

    - name: secrets
      use: secrets
      with: {then: ask}

A secret is what `omnigent.secrets` knows by its published format (tokens, keys, passwords in URLs), and what
it took out of the call already because it knew the value. A prompt is redacted on its way in, not judged.
"""

from typing import ClassVar, Literal

from omnigent.actions import Action
from omnigent.policies.builtins._base import Builtin, Params, one, text_of
from omnigent.policies.contract import Facts, Opinion
from omnigent.secrets import REDACTED, find

_MARK = REDACTED.rstrip("]")


class SecretParams(Params):
    allow: tuple[str, ...] = ()
    """Names of formats that may pass (`jwt`)."""
    then: Literal["ask", "deny", "pause"] = "ask"


class Secrets(Builtin[SecretParams]):
    NAME: ClassVar[str] = "secrets"
    PARAMS: ClassVar[type[Params]] = SecretParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"exec", "net", "mcp", "spawn"})

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        text = text_of(action)
        found = [name for name in find(text) if name not in self.params.allow]
        if not found and _MARK in text:
            found = ["known secret"]
        if not found:
            return None
        names = ", ".join(dict.fromkeys(found))
        reason = f"It carries a secret ({names}) that would leave with it."
        return one(self.params.then, reason, f"found: {names}")
