"""Rules become CEL: one context, one semantics, for the matchers of the language and for `if` alike.

The context of one action: `action` (the fields of its type, and `flag_names`), `session`, `state`, `at`; the
functions `glob(path, pattern)`, `like(name, pattern)`, `reaches(pattern)` and `within(pattern)`.
docs/policies.md describes them. It is built once per action, and only what some rule reads of it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from omnigent.actions import Action, Exec, FileRead, FileWrite
from omnigent.events import JSON, canonical, sha256
from omnigent.policies import cel, globs
from omnigent.policies.patterns import command, flag_names
from omnigent.policies.rules import Alternative, Kind, NetPattern

if TYPE_CHECKING:
    from cel import Context, Program

TYPES: dict[Kind, str] = {
    "exec": "exec",
    "read": "file.read",
    "write": "file.write",
    "delete": "file.write",
    "net": "net",
    "mcp": "mcp",
    "model": "model",
    "spawn": "spawn",
    "message": "message",
    "tool": "unknown",
}
NAMES = ("action", "session", "state", "at")
FUNCTIONS = ("glob", "like", "reaches", "within")


class NoAnswer(Exception):
    """An expression didn't give true or false: doubt."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """What an action may be. `possibly` also holds where a request's path or method isn't known."""

    certainly: str
    possibly: str
    types: frozenset[str]
    programs: frozenset[str] | None
    """Of commands, where only these can match."""

    def fits(self, action: Action) -> bool:
        """Whether it is worth asking."""
        if action.type not in self.types:
            return False
        return self.programs is None or not isinstance(action, Exec) or action.program in self.programs


def match(alternatives: Iterable[Alternative], *, strictly: bool = False) -> Matcher:
    """CEL of any of these. `strictly`: of exceptions, which must not hold for what only might match."""
    alternatives = tuple(alternatives)
    certain = [_source(each, strictly=strictly, unknown=False) for each in alternatives]
    possible = [_source(each, strictly=strictly, unknown=True) for each in alternatives]
    programs = {_program(each) for each in alternatives if each.kind == "exec"}
    return Matcher(
        " || ".join(certain),
        " || ".join(possible),
        frozenset(TYPES[each.kind] for each in alternatives),
        None if None in programs else frozenset(name for name in programs if name is not None),
    )


def _program(alternative: Alternative) -> str | None:
    name = command(alternative.pattern).program
    return None if "*" in name else name


def _source(alternative: Alternative, *, strictly: bool, unknown: bool) -> str:
    terms = [f"action.type == {_text(TYPES[alternative.kind])}"]
    match alternative.kind:
        case "exec":
            terms += _command_terms(alternative.pattern, strictly=strictly)
        case "read" | "write" | "delete":
            function = "within" if strictly else "reaches"
            terms.append(f"{function}({_text(alternative.pattern)})")
            if alternative.kind == "delete":
                terms.append('action.change == "delete"')
        case "net":
            terms += _net_terms(alternative.net, unknown=unknown)
        case "mcp":
            pattern = alternative.pattern if "/" in alternative.pattern else f"{alternative.pattern}/*"
            terms.append(f'like(action.server + "/" + action.tool, {_text(pattern)})')
        case "model":
            name = _text(alternative.pattern)
            terms.append(
                f'(like(action.model, {name}) || like(action.provider + "/" + action.model, {name}))'
            )
        case "tool":
            terms.append(f"like(action.tool, {_text(alternative.pattern)})")
        case "spawn" | "message":
            if alternative.pattern:
                terms.append(f"like(action.description, {_text(alternative.pattern)})")
    return " && ".join(terms)


def _command_terms(pattern: str, *, strictly: bool) -> list[str]:
    wanted = command(pattern)
    terms: list[str] = []
    if wanted.program != "*":
        terms.append(_is("action.program", wanted.program))
    if wanted.path and strictly:
        terms.append(f"action.command.startsWith({_text(wanted.path)})")
    if wanted.words:
        terms.append(f"size(action.words) >= {len(wanted.words)}")
        terms += [_is(f"action.words[{i}]", word) for i, word in enumerate(wanted.words) if word != "*"]
    for flag in wanted.flags:
        terms.append(f"{_text(flag)} in action.{'flags' if '=' in flag else 'flag_names'}")
    return terms


def _is(value: str, wanted: str) -> str:
    return f"like({value}, {_text(wanted)})" if "*" in wanted else f"{value} == {_text(wanted)}"


def _net_terms(wanted: NetPattern, *, unknown: bool) -> list[str]:
    terms = [f"like(action.host, {_text(wanted.host)})"] if wanted.host != "*" else []
    if wanted.methods:
        known = f"action.method in [{', '.join(map(_text, wanted.methods))}]"
        terms.append(f'(action.method == "" || {known})' if unknown else known)
    if wanted.path:
        known = f"glob(action.path, {_text(wanted.path)})"
        terms.append(f'(action.path == "" || {known})' if unknown else known)
    if wanted.port is not None:
        known = f"action.port == {wanted.port}"
        terms.append(f"(action.port == null || {known})" if unknown else known)
    return terms


def _text(value: str) -> str:
    """As a CEL string."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


# ── The context of one action ───────────────────────────────────────────────────────────────────────────


@dataclass
class Subject:
    """One action as rules see it. `session` and `state` are asked for only when a rule reads them."""

    action: Action
    workspace: str = ""
    at: int = 0
    """UTC ms."""
    session: Callable[[], JSON] = field(default=dict[str, Any])
    state: Callable[[], JSON] = field(default=dict[str, Any])
    _context: "Context | None" = None
    _added: set[str] = field(default_factory=set[str])
    _earlier: Mapping[str, Any] | None = None
    _named: tuple[str, ...] | None = None

    def holds(self, source: str, earlier: Mapping[str, Any] | None = None) -> bool:
        """Raises what the evaluation raises (`KeyError` for a missing field), `NoAnswer` for no boolean.
        `earlier` is added to `state`: what only this rule remembers."""
        answer = self._evaluate(source, earlier)
        if answer is True or answer is False:
            return answer
        raise NoAnswer(f"gave {type(answer).__name__}, not true or false")

    def which(self, source: str) -> list[bool]:
        """Of an expression that is a list: what holds. Raises as `holds` does."""
        answers = self._evaluate(source, None)
        if not all(answer is True or answer is False for answer in answers):
            raise NoAnswer("gave something that is neither true nor false")
        return answers

    def _evaluate(self, source: str, earlier: Mapping[str, Any] | None) -> Any:
        program, needs = _compiled(source)
        if self._context is None:
            self._context = cel.context()
        if not needs <= self._added:
            self._add(needs - self._added)
        if "state" in needs:
            self._set_state(earlier or {})
        return program.execute(self._context)

    def _add(self, needs: frozenset[str]) -> None:
        assert self._context is not None
        self._added |= needs
        for name in needs:
            match name:
                case "session":
                    self._context.add_variable("session", self.session())
                case "at":
                    self._context.add_variable("at", datetime.fromtimestamp(self.at / 1000, UTC))
                case "reaches":
                    self._context.add_function(name, self._reaches)
                case "within":
                    self._context.add_function(name, self._within)
                case "glob" | "like":
                    self._context.add_function(name, _FUNCTIONS[name])
                case _:
                    pass
        if any(name.startswith("action") for name in needs):
            self._context.add_variable("action", self._fields())

    def _fields(self) -> JSON:
        """Those that are read: to convert them all costs as much as the rest of a decision."""
        if "action" in self._added:
            return fields(self.action)
        names = [name.removeprefix("action.") for name in self._added if name.startswith("action.")]
        made = {name: getattr(self.action, name) for name in names if name in type(self.action).model_fields}
        if "flag_names" in names and isinstance(self.action, Exec):
            made["flag_names"] = flag_names(self.action)
        return made

    def _set_state(self, earlier: Mapping[str, Any]) -> None:
        assert self._context is not None
        if self._earlier is None or self._earlier != earlier:
            self._context.add_variable("state", self.state() | dict(earlier))
            self._earlier = earlier

    def _reaches(self, pattern: object) -> bool | None:
        action = self.action
        if not isinstance(action, FileRead | FileWrite) or not isinstance(pattern, str):
            return None
        wanted = globs.anchor(pattern, self.workspace)
        return any(_meets(path, wanted, action) for path in self._paths(action))

    def _paths(self, action: FileRead | FileWrite) -> tuple[str, ...]:
        """Where links lead, and as it was named."""
        if self._named is None:
            named = action.path if action.path.startswith("/") else globs.anchor(action.path, self.workspace)
            self._named = (action.real_path,) if named == action.real_path else (action.real_path, named)
        return self._named

    def _within(self, pattern: object) -> bool | None:
        action = self.action
        if not isinstance(action, FileRead | FileWrite) or not isinstance(pattern, str):
            return None
        wanted = globs.anchor(pattern, self.workspace)
        if action.glob or action.recursive:
            return globs.covers(wanted, action.real_path)
        return globs.glob(action.real_path, wanted)


def _meets(path: str, wanted: str, action: FileRead | FileWrite) -> bool:
    if globs.glob(path, wanted) or (action.glob and globs.may_meet(wanted, path)):
        return True
    return action.recursive and globs.may_meet(wanted, f"{path.rstrip('/')}/**")


_FIELD = re.compile(r"\baction\b(?:\s*\.\s*(\w+))?")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')


@lru_cache(maxsize=4096)
def _compiled(source: str) -> tuple["Program", frozenset[str]]:
    """And what it reads of the context: variables, functions, `action.FIELD` (`action`: all its fields)."""
    program = cel.program(source)
    needs = {name for name in program.variables() if name in NAMES and name != "action"}
    needs |= {name for name in program.functions() if name in FUNCTIONS}
    if "action" in program.variables():
        named = _FIELD.findall(_STRING.sub("", source))
        needs |= {f"action.{name}" for name in named} if all(named) else {"action"}
    return program, frozenset(needs)


# A function that raises is printed by the library; null, which is no boolean, ends as doubt all the same.


def _glob(path: object, pattern: object) -> bool | None:
    return globs.glob(path, pattern) if isinstance(path, str) and isinstance(pattern, str) else None


def _like(text: object, pattern: object) -> bool | None:
    return globs.like(text, pattern) if isinstance(text, str) and isinstance(pattern, str) else None


_FUNCTIONS = {"glob": _glob, "like": _like}


def fields(action: Action) -> JSON:
    """The `action` of the context."""
    made = dict(action)
    if isinstance(action, Exec):
        made["flag_names"] = flag_names(action)
    return made


def key_of(alternatives: Iterable[Alternative], *rest: object) -> str:
    """Names a matcher by its content."""
    return sha256(canonical([*(repr(each) for each in alternatives), *map(str, rest)]))[:16]
