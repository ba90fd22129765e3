"""What every built-in policy is made of: strict parameters, an id, no memory unless it says so."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from omnigent.actions import Action, Exec, Mcp, Net, Spawn
from omnigent.errors import PolicyInvalid
from omnigent.events import JSON, Event
from omnigent.policies.contract import Call, Decision, Facts, Opinion


class Params(BaseModel):
    """The `with:` of a rule. Unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Builtin[P: Params]:
    """A policy with parameters of type `P`. A subclass names itself, its parameters and its action types."""

    NAME: ClassVar[str]
    PARAMS: ClassVar[type[Params]]
    TYPES: ClassVar[frozenset[str] | None] = None

    id: str
    """The rule's name; whoever builds it from a rule sets it."""
    types: frozenset[str] | None

    def __init__(self, params: P) -> None:
        self.params = params
        self.id = f"builtin.{self.NAME}"
        self.types = self.TYPES

    @classmethod
    def build(cls, raw: JSON) -> Self:
        """From a rule's `with:`. `PolicyInvalid` names each wrong parameter; `parameter` in the facts is the
        first of them, as a path (`hosts.deny.0`)."""
        try:
            params = cls.PARAMS.model_validate(raw)
        except ValidationError as error:
            raise invalid(cls.NAME, cls.PARAMS, error) from error
        return cls(params)  # pyright: ignore[reportArgumentType]  # PARAMS is the class of P

    def empty(self) -> Any:
        return {}

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        return memory

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        raise NotImplementedError


def invalid(name: str, params: type[Params], error: ValidationError) -> PolicyInvalid:
    wrong = error.errors(include_url=False, include_input=False, include_context=False)
    paths = [".".join(str(part) for part in each["loc"]) for each in wrong]
    lines = [
        f"`{path}` {_words(each['type'], each['msg'])}" if path else _words(each["type"], each["msg"])
        for path, each in zip(paths, wrong, strict=True)
    ]
    return PolicyInvalid(
        f"{name}: {'; '.join(lines)}.",
        hint=f"{name} takes: {', '.join(params.model_fields)}.",
        parameter=paths[0],
    )


def _words(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "is no parameter of it"
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ").removeprefix("Input ")


def one(decision: Decision, reason: str, facts: str = "") -> Opinion:
    return Opinion(decision=decision, reason=reason, facts=facts)


def text_of(action: Action) -> str:
    """All that the model wrote into an action and that may leave with it."""
    match action:
        case Exec():
            return "\n".join((action.command, *action.argv, action.stdin or ""))
        case Net():
            return action.url
        case Mcp():
            return action.arguments
        case Spawn():
            return action.description
        case _:
            return ""


def earlier(call: Call, index: int, kind: str) -> int:
    """How many actions of this type stand before the one at `index` in its call."""
    return sum(action.type == kind for action in call.actions[:index])


def flag(action: Exec, *names: str) -> bool:
    """Whether one of these flags is set, long or short, with or without a value."""
    return any(each.partition("=")[0] in names for each in action.flags)


def writes_api(action: Exec) -> bool:
    """Of `gh api`: whether its request changes something. Fields without a method make it a POST."""
    methods = [each.partition("=")[2].upper() for each in action.flags if each.startswith(("method=", "X="))]
    if methods:
        return any(method not in ("GET", "HEAD") for method in methods)
    return flag(action, "f", "F", "field", "raw-field", "input")


def command_of(call: Call, index: int) -> Exec | None:
    """The command that the action at `index` comes from, where it comes from one."""
    return next((each for each in reversed(call.actions[:index]) if isinstance(each, Exec)), None)


def short(text: str, most: int = 60) -> str:
    """On one line, cut, for a sentence."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def seconds(text: str) -> int:
    """`90s`, `10m`, `2h`, `1d` in seconds. `ValueError` for anything else."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in _UNITS or int(number) == 0:
        raise ValueError(f"{text!r} is no duration: write 90s, 10m, 2h or 1d")
    return int(number) * _UNITS[unit]


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
