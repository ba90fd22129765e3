"""One rule, read from its JSON: strictly, every key and type known. What is wrong is told with its place.

`language` reads rules from YAML and puts line and column to it; `compiling` makes a policy of a `Rule`.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, cast, get_args

from omnigent.events import JSON
from omnigent.policies.contract import CapScope, Decision

Path = tuple[str | int, ...]
"""Where in the rule, by keys and places."""

Kind = Literal["exec", "read", "write", "delete", "net", "mcp", "model", "spawn", "message", "tool"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NET_KEYS = ("host", "method", "path", "port")
SCOPES: tuple[CapScope, ...] = get_args(CapScope)
DECISIONS = ("deny", "pause", "ask")
RULE_KEYS = (
    "name", "when", "after", "unless", "if", "count", "rate", "scope", "then", "rewrite", "downgrade",
    "who", "expires", "reason", "use", "with", "function",
)  # fmt: skip
MADE_KEYS = ("name", "use", "function", "with", "who", "expires", "reason")
"""What a rule may say beside `use` or `function`: the rest is the built-in's own."""
MOST_COUNT = 1000
"""How many earlier matches a rule may look back at."""

_DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


class Wrong(Exception):
    """A rule that can't be used: where, why, and the fix."""

    def __init__(self, path: Path, detail: str, hint: str = "", *, at_key: bool = False) -> None:
        """`at_key`: it is the key that is wrong, not the value."""
        super().__init__(detail)
        self.at_key = at_key
        self.path = path
        self.detail = detail
        self.hint = hint


@dataclass(frozen=True, slots=True)
class NetPattern:
    host: str = "*"
    methods: tuple[str, ...] = ()
    """Upper case; empty: any."""
    path: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """One thing an action may be. `pattern` "" of `spawn` and `message`: any."""

    kind: Kind
    pattern: str = ""
    net: NetPattern = NetPattern()


@dataclass(frozen=True, slots=True)
class Limit:
    """Of spending; exactly one is set."""

    nanousd: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    when: tuple[Alternative, ...] | None = None
    """None: every action."""
    limits: tuple[Limit, ...] = ()
    scope: CapScope = "family"
    after: tuple[Alternative, ...] = ()
    within: int | Literal["turn"] | None = None
    """ms."""
    unless: tuple[Alternative, ...] = ()
    condition: str = ""
    """The CEL of `if`."""
    count: int | None = None
    rate: tuple[int, int] | None = None
    """So many in so many ms."""
    then: Decision | None = None
    rewrite: str | None = None
    downgrade: str | None = None
    who: tuple[str, ...] | None = None
    expires: int | None = None
    """ms."""
    reason: str = ""
    use: str | None = None
    function: str | None = None
    given: JSON | None = None
    """The `with:` of `use` or `function`."""


def read_rule(raw: object) -> Rule:
    """Raises `Wrong`."""
    rule = _mapping(raw, ())
    if "name" not in rule:
        raise Wrong((), "A rule needs a `name`.", "Add `name: what-it-is-for`.")
    name = _text(rule["name"], ("name",))
    if not _NAME.fullmatch(name):
        raise Wrong(("name",), f"{name!r} is no name.", "Use letters, digits, `-`, `_` and `.`.")
    known = MADE_KEYS if "use" in rule or "function" in rule else RULE_KEYS
    _only(rule, known, (), "a rule with `use`" if known is MADE_KEYS else "a rule")
    return _made(rule, name) if known is MADE_KEYS else _plain(rule, name)


def _made(rule: JSON, name: str) -> Rule:
    if "use" in rule and "function" in rule:
        raise Wrong(("function",), "A rule has `use` or `function`, not both.", "Make two rules of it.")
    given = _mapping(rule["with"], ("with",)) if "with" in rule else {}
    return Rule(
        name=name,
        use=_optional(rule, "use", _text),
        function=_optional(rule, "function", _text),
        given=given,
        who=_optional(rule, "who", _who),
        expires=_optional(rule, "expires", duration),
        reason=_optional(rule, "reason", _text) or "",
    )


def _plain(rule: JSON, name: str) -> Rule:
    if "with" in rule:
        raise Wrong(("with",), "`with` gives a built-in its parameters.", "Name the built-in with `use:`.")
    when, limits = _when(rule["when"], ("when",)) if "when" in rule else (None, ())
    after, within = _after(rule["after"], ("after",)) if "after" in rule else ((), None)
    read = Rule(
        name=name,
        when=when,
        limits=limits,
        scope=cast(CapScope, _optional(rule, "scope", _one_of(SCOPES)) or "family"),
        after=after,
        within=within,
        unless=_alternatives(rule["unless"], ("unless",)) if "unless" in rule else (),
        condition=_optional(rule, "if", _text) or "",
        count=_optional(rule, "count", _count),
        rate=_optional(rule, "rate", _rate),
        then=cast(Decision | None, _optional(rule, "then", _one_of(DECISIONS))),
        rewrite=_optional(rule, "rewrite", _text),
        downgrade=_optional(rule, "downgrade", _text),
        who=_optional(rule, "who", _who),
        expires=_optional(rule, "expires", duration),
        reason=_optional(rule, "reason", _text) or "",
    )
    _check(read, rule)
    return read


def _check(read: Rule, rule: JSON) -> None:
    """What no single key shows."""
    outcomes = [key for key in ("then", "rewrite", "downgrade") if key in rule]
    if not outcomes:
        raise Wrong((), "The rule decides nothing.", "Add `then: deny`, `then: pause` or `then: ask`.")
    if len(outcomes) > 1:
        hint = "Keep one of them, or make two rules."
        raise Wrong((outcomes[1],), f"`{outcomes[0]}` and `{outcomes[1]}` don't go together.", hint)
    kinds = {each.kind for each in read.when} if read.when else set[Kind]()
    if read.rewrite is not None and kinds != {"exec"}:
        raise Wrong(("rewrite",), "`rewrite` changes commands.", "Give the rule `when: {exec: …}` alone.")
    if read.downgrade is not None and not (kinds == {"model"} or (not kinds and read.limits)):
        hint = "Give the rule `when: {model: …}` or `when: {spend_usd: …}`."
        raise Wrong(("downgrade",), "`downgrade` changes the model of a model call.", hint)
    if "scope" in rule and not read.limits:
        hint = "Add `spend_usd` or `tokens` to `when`, or take `scope` away."
        raise Wrong(("scope",), "`scope` says whose spending counts.", hint)
    for key in ("who", "expires"):
        if key in rule and read.then != "ask":
            raise Wrong((key,), f"`{key}` is for rules that ask.", "Write `then: ask`, or take it away.")


# ── Matchers ────────────────────────────────────────────────────────────────────────────────────────────


def _when(raw: object, path: Path) -> tuple[tuple[Alternative, ...] | None, tuple[Limit, ...]]:
    given = _mapping(raw, path)
    _only(given, (*KINDS, "spend_usd", "tokens"), path, "`when`")
    rest = {key: value for key, value in given.items() if key not in ("spend_usd", "tokens")}
    limits: list[Limit] = []
    if "spend_usd" in given:
        limits.append(Limit(nanousd=_money(given["spend_usd"], (*path, "spend_usd"))))
    if "tokens" in given:
        limits.append(Limit(tokens=_positive(given["tokens"], (*path, "tokens"))))
    if not rest and not limits:
        raise Wrong(path, "An empty `when` matches nothing.", "Leave `when` away to mean every action.")
    return (_alternatives(rest, path) if rest else None), tuple(limits)


def _after(raw: object, path: Path) -> tuple[tuple[Alternative, ...], int | Literal["turn"] | None]:
    given = _mapping(raw, path)
    _only(given, (*KINDS, "within"), path, "`after`")
    rest = {key: value for key, value in given.items() if key != "within"}
    within: int | Literal["turn"] | None = None
    if "within" in given:
        value = given["within"]
        within = "turn" if value == "turn" else duration(value, (*path, "within"))
    return _alternatives(rest, path), within


def _alternatives(raw: object, path: Path) -> tuple[Alternative, ...]:
    given = _mapping(raw, path)
    _only(given, KINDS, path, f"`{path[-1]}`")
    if not given:
        raise Wrong(path, f"`{path[-1]}` names no action.", f"Name one of {', '.join(KINDS)}.")
    found: list[Alternative] = []
    for key, value in given.items():
        many = cast(list[object], value) if isinstance(value, list) else [value]
        if not many:
            raise Wrong((*path, key), f"`{key}` has an empty list.", "Name at least one, or take it away.")
        for place, each in enumerate(many):
            where = (*path, key, place) if isinstance(value, list) else (*path, key)
            found.append(read_alternative(cast(Kind, key), each, where))
    return tuple(found)


def read_alternative(kind: Kind, value: object, path: Path = ()) -> Alternative:
    """One value of a matcher. Raises `Wrong`."""
    if kind == "net":
        return Alternative("net", net=_net(value, path))
    if kind in ("spawn", "message") and value is True:
        return Alternative(kind)
    text = _text(value, path)
    if kind == "exec" and _is_quoted_badly(text):
        raise Wrong(path, f"The quotes in {text!r} don't close.", 'Write it as in a shell: git commit -m "*"')
    return Alternative(kind, text)


def _is_quoted_badly(text: str) -> bool:
    return text.count('"') % 2 == 1 or text.count("'") % 2 == 1


def _net(value: object, path: Path) -> NetPattern:
    if isinstance(value, str):
        return NetPattern(_host(value, path))
    given = _mapping(value, path, "a host, or a mapping with `host`, `method`, `path`, `port`")
    _only(given, NET_KEYS, path, "`net`")
    if not given:
        raise Wrong(path, "An empty `net` matches nothing.", 'Write `net: "*"` for every request.')
    methods = _texts(given["method"], (*path, "method")) if "method" in given else ()
    return NetPattern(
        host=_host(_text(given["host"], (*path, "host")), (*path, "host")) if "host" in given else "*",
        methods=tuple(method.upper() for method in methods),
        path=_text(given["path"], (*path, "path")) if "path" in given else "",
        port=_positive(given["port"], (*path, "port")) if "port" in given else None,
    )


def _host(text: str, path: Path) -> str:
    if "/" in text or ":" in text.strip("[]").replace("::", ""):
        hint = "Write the host alone (`*.example.org`); `path` and `port` are keys of their own."
        raise Wrong(path, f"{text!r} is no host name.", hint)
    return text.lower().rstrip(".")


# ── Values ──────────────────────────────────────────────────────────────────────────────────────────────


def duration(value: object, path: Path = ()) -> int:
    """ms of a text like `90s`, `1h`, `2d`. Raises `Wrong`."""
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise Wrong(path, f"{value!r} is no length of time.", "Write a number and s, m, h or d, like 30m.")
    return int(found[1]) * _UNITS[found[2]]


def _rate(value: object, path: Path) -> tuple[int, int]:
    text = _text(value, path)
    number, slash, rest = text.partition("/")
    if not slash or not number.strip().isdigit() or not 1 <= int(number) <= MOST_COUNT:
        hint = f"Write so many per so long, like 30/1m (at most {MOST_COUNT})."
        raise Wrong(path, f"{text!r} is no rate.", hint)
    return int(number), duration(rest if rest.strip()[:1].isdigit() else f"1{rest.strip()}", path)


def _count(value: object, path: Path) -> int:
    number = _positive(value, path)
    if number > MOST_COUNT:
        raise Wrong(path, f"{number} is too many.", f"Count up to {MOST_COUNT}.")
    return number


def _money(value: object, path: Path) -> int:
    """Nano-USD."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong(path, f"{value!r} is no amount.", "Write dollars as a number, like 3.00.")
    nano = Decimal(str(value)) * 1_000_000_000
    if not nano.is_finite() or not 0 < nano <= 10**18:
        raise Wrong(path, f"{value!r} is no amount to spend.", "Write dollars above 0, like 3.00.")
    return int(nano)


def _positive(value: object, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Wrong(path, f"{value!r} is no whole number above 0.", "Write digits without quotes.")
    return value


def _who(value: object, path: Path) -> tuple[str, ...]:
    texts = _texts(value, path)
    for place, text in enumerate(texts):
        if not text.strip():
            raise Wrong((*path, place), "An empty name can answer nothing.", "Write `owner`.")
    return texts


def _texts(value: object, path: Path) -> tuple[str, ...]:
    if isinstance(value, list):
        many = cast(list[object], value)
        if not many:
            raise Wrong(path, "An empty list.", "Name at least one, or take the key away.")
        return tuple(_text(each, (*path, place)) for place, each in enumerate(many))
    return (_text(value, path),)


def _text(value: object, path: Path) -> str:
    if not isinstance(value, str):
        raise Wrong(
            path, f"{value!r} is no text.", "Put it in quotes." if value is not None else "Write a value."
        )
    if not value.strip():
        raise Wrong(path, "An empty text.", "Write a value, or take the key away.")
    return value


def _one_of(allowed: Sequence[str]) -> Callable[[object, Path], str]:
    def read(value: object, path: Path) -> str:
        text = _text(value, path)
        if text not in allowed:
            raise Wrong(path, f"{text!r} isn't one of {', '.join(allowed)}.", nearest(text, allowed))
        return text

    return read


def _optional[T](given: JSON, key: str, read: Callable[[object, Path], T]) -> T | None:
    return read(given[key], (key,)) if key in given else None


def _mapping(value: object, path: Path, wanted: str = "a mapping") -> JSON:
    if not isinstance(value, dict):
        raise Wrong(
            path, f"{value!r} stands where {wanted} belongs.", "Write `{key: value}` or indent it below."
        )
    return cast(dict[str, Any], value)


def _only(given: Mapping[str, object], known: Sequence[str], path: Path, what: str) -> None:
    for key in given:
        if key not in known:
            raise Wrong((*path, key), f"{what} has no key {key!r}.", nearest(key, known), at_key=True)


def nearest(word: str, known: Sequence[str]) -> str:
    """The fix for a word that isn't known."""
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(known)}."
