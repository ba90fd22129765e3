"""Asks when a secret stands in what is about to go out: a command, a request, the arguments of a tool.

    - name: secrets
      use: secrets
      with: {allow: [json web token], then: ask}

A secret is what has one of the published formats (tokens, keys, passwords in URLs), and what was redacted in
the call before it came here, its value being known. A prompt is redacted on its way in, and is not judged.
"""

import re
from typing import ClassVar, Literal

from omnigent.actions import Action
from omnigent.policies.builtins._base import Builtin, Params, one, text_of
from omnigent.policies.contract import Facts, Opinion
from omnigent.redaction import KNOWN, find

_MARK = re.compile(r"\[redacted(?:: (?P<name>[^\]]*))?\]")


class SecretParams(Params):
    allow: tuple[str, ...] = ()
    """Names of formats that may pass, as the reason tells them."""
    then: Literal["ask", "deny", "pause"] = "ask"


class Secrets(Builtin[SecretParams]):
    NAME: ClassVar[str] = "secrets"
    PARAMS: ClassVar[type[Params]] = SecretParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"exec", "net", "mcp", "spawn"})

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        text = text_of(action)
        marked = (found["name"] or KNOWN for found in _MARK.finditer(text)) if "[redacted" in text else ()
        names = [name for name in dict.fromkeys((*find(text), *marked)) if name not in self.params.allow]
        if not names:
            return None
        said = ", ".join(names)
        return one(
            self.params.then, f"It carries a secret ({said}) that would leave with it.", f"found: {said}"
        )
