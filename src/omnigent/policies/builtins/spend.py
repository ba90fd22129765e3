"""Stops at an amount of money or tokens, before it is passed.

    - name: three-dollars
      use: spend
      with: {usd: 3.00, scope: family, then: pause}

`scope` is whose spending counts: this `session`, its `family` (the session, its children and forks), or all
that its owner spent today (`user_day`) or that was spent in its workspace this month (`project_month`), UTC.
`then` is `pause`, `ask`, or `{downgrade: MODEL}`. A price that isn't known makes a dollar limit ask.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from omnigent.actions import Action, Model
from omnigent.policies.builtins._base import Builtin, Params, one
from omnigent.policies.contract import Cap, CapScope, Facts, Opinion, Spend

NANO = 1_000_000_000
_SCOPES: dict[CapScope, str] = {
    "session": "this session",
    "family": "this session and its children and forks",
    "user_day": "its owner today",
    "project_month": "this project this month",
}


class Downgrade(Params):
    downgrade: str = Field(min_length=1)


class SpendParams(Params):
    usd: Annotated[float | None, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = None
    tokens: Annotated[int | None, Field(gt=0)] = None
    scope: CapScope = "family"
    then: Literal["pause", "ask"] | Downgrade = "pause"

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.usd is None) == (self.tokens is None):
            raise ValueError("needs exactly one limit, `usd` or `tokens`")
        return self


class SpendLimit(Builtin[SpendParams]):
    NAME: ClassVar[str] = "spend"
    PARAMS: ClassVar[type[Params]] = SpendParams

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        spent = facts.setting.spend.get(self.params.scope)
        if isinstance(action, Model):
            return self._model_call(action, spent or Spend())
        # Where the gateway meters, money is stopped there, and a tool call is told no spending.
        if spent is None or isinstance(self.params.then, Downgrade):
            return None
        return self._tool_call(spent)

    def _model_call(self, call: Model, spent: Spend) -> Opinion | None:
        if self._total(spent) >= self._limit:
            return self._stop(self._reached(spent, 0), call)
        if self.params.usd is not None and (call.estimate_nanousd is None or spent.unknown):
            return self._unpriced(call, spent)
        if self._total(spent) + self._estimate(call) > self._limit:
            return self._stop(self._reached(spent, self._estimate(call)), call)
        # A downgrade needs no cap: past the limit the call goes to another model, it isn't refused.
        if isinstance(self.params.then, Downgrade):
            return None
        return Opinion("allow", "", caps=(self._cap(),))

    def _tool_call(self, spent: Spend) -> Opinion | None:
        if self._total(spent) >= self._limit:
            return self._stop(self._reached(spent, 0), None)
        if self.params.usd is not None and spent.unknown:
            return one("ask", self._unknown(spent), f"unknown={spent.unknown}")
        return None

    def _unpriced(self, call: Model, spent: Spend) -> Opinion | None:
        if isinstance(self.params.then, Downgrade):
            return self._stop("The price isn't known", call)
        if call.estimate_nanousd is None:
            reason = f"The price of {call.model} isn't known, so {self._amount} can't be kept for certain."
            return one("ask", reason, f"price of {call.model} unknown")
        return one("ask", self._unknown(spent), f"unknown={spent.unknown}")

    def _stop(self, words: str, call: Model | None) -> Opinion | None:
        then = self.params.then
        if isinstance(then, Downgrade):
            if call is None or call.model == then.downgrade:
                return None
            return Opinion(
                "allow", f"{words}: {then.downgrade} answers instead.", words, model=then.downgrade
            )
        said = one(then, f"{words}; a person must raise the limit or let it go on.", words)
        return replace(said, money=True)

    def _cap(self) -> Cap:
        if self.params.usd is not None:
            return Cap(self.params.scope, self.id, nanousd=self._limit)
        return Cap(self.params.scope, self.id, tokens=self._limit)

    @property
    def _limit(self) -> int:
        usd, tokens = self.params.usd, self.params.tokens
        return round(usd * NANO) if usd is not None else tokens or 0

    def _total(self, spent: Spend) -> int:
        return spent.nanousd if self.params.usd is not None else spent.tokens

    def _estimate(self, call: Model) -> int:
        if self.params.usd is not None:
            return call.estimate_nanousd or 0
        return call.input_tokens + (call.max_output_tokens or 0)

    @property
    def _amount(self) -> str:
        usd = self.params.usd
        return f"the limit of ${usd:.2f}" if usd is not None else f"the limit of {self.params.tokens} tokens"

    def _reached(self, spent: Spend, estimate: int) -> str:
        total = self._total(spent)
        if self.params.usd is not None:
            used, more = f"${total / NANO:.2f}", f"up to ${estimate / NANO:.2f} more"
        else:
            used, more = f"{total} tokens", f"up to {estimate} more"
        call = f" and this call may cost {more}" if estimate else ""
        return f"{_SCOPES[self.params.scope].capitalize()} used {used} of {self._amount}{call}"

    def _unknown(self, spent: Spend) -> str:
        return f"The price of {spent.unknown} earlier call(s) isn't known: {self._amount} may be passed."
