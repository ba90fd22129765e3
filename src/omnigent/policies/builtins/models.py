"""Says which models may be asked.

    - name: our-models
      use: models
      with: {allow: ["claude-*", "gpt-5*"], deny: ["*-opus-*"], then: deny}

Names are compared without case; `*` stands for any text. With `then: {downgrade: MODEL}` that model answers
in place of one that may not; MODEL itself is always allowed.
"""

from fnmatch import fnmatchcase
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from omnigent.actions import Action, Model
from omnigent.policies.builtins._base import Builtin, Params, one
from omnigent.policies.builtins.spend import Downgrade
from omnigent.policies.contract import Facts, Opinion


class ModelParams(Params):
    allow: tuple[str, ...] = ()
    """Empty: every model that `deny` doesn't name."""
    deny: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    """Empty: every provider."""
    then: Literal["deny", "ask", "pause"] | Downgrade = "deny"

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.allow or self.deny or self.providers):
            raise ValueError("needs `allow`, `deny` or `providers`")
        return self


class Models(Builtin[ModelParams]):
    NAME: ClassVar[str] = "models"
    PARAMS: ClassVar[type[Params]] = ModelParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"model"})

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        if not isinstance(action, Model):
            return None
        why = self._refuses(action)
        then = self.params.then
        if why is None or (isinstance(then, Downgrade) and then.downgrade == action.model):
            return None
        if isinstance(then, Downgrade):
            return Opinion("allow", f"{why} {then.downgrade} answers instead.", why, model=then.downgrade)
        return one(then, f"{why} {self._others()}", f"model={action.model} provider={action.provider}")

    def _refuses(self, call: Model) -> str | None:
        params = self.params
        if params.providers and call.provider not in params.providers:
            return f"The provider {call.provider} isn't one of {', '.join(params.providers)}."
        if _any(params.deny, call.model):
            return f"The model {call.model} isn't to be used here."
        if params.allow and not _any(params.allow, call.model):
            return f"The model {call.model} isn't on the list of models to use here."
        return None

    def _others(self) -> str:
        allowed = ", ".join(self.params.allow)
        return f"Choose one of: {allowed}." if allowed else "Choose another model."


def _any(patterns: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model.lower(), pattern.lower()) for pattern in patterns)
