"""Asks (or denies) when one thing comes after another, anywhere in the session tree.

    - name: send-after-secrets
      use: sequence
      with: {first: {read: "**/customers/**"}, next: {net: "*"}, within: 1h, then: deny}

`first` and `next` are written like a rule's `when`. `first` holds once it was allowed and isn't known to have
failed; `within` (a duration, or `turn`) lets it be forgotten; `unless` names what of `next` may pass.
"""

from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from omnigent.errors import PolicyInvalid
from omnigent.events import JSON
from omnigent.policies.builtins._base import Params, invalid
from omnigent.policies.rules import Wrong, read_rule
from omnigent.policies.written import Written


class SequenceParams(Params):
    first: dict[str, Any]
    next: dict[str, Any]
    unless: dict[str, Any] | None = None
    within: str | None = None
    then: Literal["ask", "deny", "pause"] = "ask"


class Sequence(Written):
    """The same as a rule with `after` and `when`, which is what it is made into."""

    NAME: ClassVar[str] = "sequence"

    @classmethod
    def build(cls, raw: JSON) -> "Sequence":
        try:
            params = SequenceParams.model_validate(raw)
        except ValidationError as error:
            raise invalid(cls.NAME, SequenceParams, error) from error
        try:
            return cls(read_rule(_rule(params)))
        except Wrong as wrong:
            named = ".".join(str(_NAMES.get(part, part)) for part in wrong.path)
            detail = f"sequence: `{named}`: {wrong.detail}"
            raise PolicyInvalid(detail, hint=wrong.hint, parameter=named) from wrong


_NAMES: dict[str | int, str] = {"after": "first", "when": "next"}


def _rule(params: SequenceParams) -> JSON:
    within = {"within": params.within} if params.within else {}
    rule: JSON = {
        "name": Sequence.NAME,
        "when": params.next,
        "after": params.first | within,
        "then": params.then,
    }
    return rule | ({"unless": params.unless} if params.unless else {})
