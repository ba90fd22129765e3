"""The language of rules: YAML a person writes and reviews, checked before it is stored.

Everything that can be found then is an error that names its line, column and fix: unknown keys, wrong
types, CEL that doesn't compile, names no such field or gives no boolean, names used twice. docs/policies.md
has it all.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import yaml

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Message, Model, Net, Spawn, Unknown
from omnigent.errors import PolicyInvalid
from omnigent.events import JSON, PolicyEntry, PolicyScope, canonical
from omnigent.policies import cel
from omnigent.policies.builtins import DEFAULTS
from omnigent.policies.compiling import FUNCTIONS, NAMES, TYPES, NoAnswer, Subject, fields
from omnigent.policies.loading import load as load
from omnigent.policies.loading import make
from omnigent.policies.rules import SCOPES, Path, Rule, Wrong, nearest, read_rule

MOST_BYTES = 1_000_000
MOST_RULES = 500
MOST_NODES = 50_000
"""Values in a document, those that aliases stand for counted each time."""

SESSION_FIELDS = (
    "id", "harness", "model", "provider", "workspace", "owner", "sandbox", "labels", "billing",
)  # fmt: skip
STATE_FIELDS = ("spend_usd", "tokens", "spawned", "running", "depth", "sessions")

SAMPLES: dict[str, Action] = {
    "exec": Exec(command="git push", argv=("git", "push"), program="git", words=("push",), flags=("force",)),
    "file.read": FileRead(path="a", real_path="/w/a", in_workspace=True),
    "file.write": FileWrite(path="a", real_path="/w/a", in_workspace=True),
    "net": Net(url="https://example.org/a", host="example.org", path="/a", port=443),
    "mcp": Mcp(server="s", tool="t", arguments="{}"),
    "model": Model(wire="anthropic", provider="p", model="m", max_output_tokens=1, estimate_nanousd=1),
    "spawn": Spawn(description="d"),
    "message": Message(description="d"),
    "unknown": Unknown(tool="t"),
}
"""One action of each type: what an `if` is tried on."""


def parse(text: str, where: str, scope: PolicyScope) -> tuple[PolicyEntry, ...]:
    """The rules of a document; `where` names it in errors. `PolicyInvalid` has `line` and `column`."""
    document = _Document(text, where)
    raw = document.value
    if raw is None:
        return ()
    try:
        rules = _rules(raw)
        entries = [_entry(each, ("policies", place), scope) for place, each in enumerate(rules)]
        _check_names(entries)
    except Wrong as wrong:
        raise document.error(wrong) from wrong
    return tuple(entries)


@cache
def defaults() -> tuple[PolicyEntry, ...]:
    """The rules that are on for everyone."""
    return parse(DEFAULTS, "the defaults", "builtin")


def _rules(raw: object) -> list[object]:
    if not isinstance(raw, dict):
        raise Wrong((), "The document is no mapping.", "Begin with `policies:` and a list of rules below it.")
    document = cast(JSON, raw)
    for key in document:
        if key != "policies":
            raise Wrong((key,), f"There is no key {key!r} here.", nearest(key, ("policies",)), at_key=True)
    rules = document.get("policies")
    if rules is None:
        return []
    if not isinstance(rules, list):
        raise Wrong(("policies",), "`policies` is no list.", "Begin each rule with `- name: …`.")
    many = cast(list[object], rules)
    if len(many) > MOST_RULES:
        raise Wrong(("policies", MOST_RULES), f"More than {MOST_RULES} rules.", "Split or join some of them.")
    return many


def _entry(raw: object, path: Path, scope: PolicyScope) -> PolicyEntry:
    try:
        rule = read_rule(raw)
        make(rule)
        check_condition(rule)
    except Wrong as wrong:
        raise Wrong((*path, *wrong.path), wrong.detail, wrong.hint, at_key=wrong.at_key) from wrong
    return PolicyEntry(name=rule.name, scope=scope, content=canonical(raw))


def _check_names(entries: Iterable[PolicyEntry]) -> None:
    seen: dict[str, int] = {}
    for place, entry in enumerate(entries):
        if entry.name in seen:
            path = ("policies", place, "name")
            raise Wrong(path, f"Two rules are named {entry.name!r}.", "Give each a name of its own.")
        seen[entry.name] = place


# ── `if` ────────────────────────────────────────────────────────────────────────────────────────────────

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_FIELD = re.compile(r"\b(action|session|state)\s*\.\s*(\w+)")
_SCOPED = re.compile(r"\bstate\s*\.\s*(?:spend_usd|tokens)\s*\.\s*(\w+)")


def check_condition(rule: Rule) -> None:
    """What can be found of a wrong `if` before it is met. Raises `Wrong`."""
    if not rule.condition:
        return
    try:
        program = cel.program(rule.condition)
    except ValueError as error:
        raise _uncompiled(str(error)) from error
    for name in program.variables():
        if name not in NAMES:
            raise Wrong(("if",), f"There is no {name!r} in the context.", nearest(name, NAMES))
    types = sorted({TYPES[each.kind] for each in rule.when} if rule.when else SAMPLES)
    _check_fields(rule, types)
    for name in types:
        _try(rule, name)


def _uncompiled(text: str) -> Wrong:
    """The library's message, cut to what says something."""
    found = re.search(r"<input>:(\d+):(\d+): (.*)", text)
    if found is None:
        return Wrong(("if",), "This is no CEL.", text.splitlines()[0][:200])
    hint = f"At character {found[2]} of the expression: {found[3].partition(' expecting ')[0][:200]}."
    return Wrong(("if",), "This is no CEL.", hint)


def _check_fields(rule: Rule, types: list[str]) -> None:
    bare = _STRINGS.sub('""', rule.condition)
    remembered = [name for name in ("after", "count", "rate") if getattr(rule, name)]
    known = {
        "action": sorted({name for each in types for name in fields(SAMPLES[each])}),
        "session": SESSION_FIELDS,
        "state": (*STATE_FIELDS, *remembered),
    }
    for name, key in _FIELD.findall(bare):
        if key not in known[name]:
            of = f" of {' and '.join(types)}" if name == "action" else ""
            raise Wrong(("if",), f"`{name}`{of} has no field {key!r}.", nearest(key, known[name]))
    for key in _SCOPED.findall(bare):
        if key not in SCOPES:
            raise Wrong(("if",), f"{key!r} is no scope of spending.", nearest(key, SCOPES))


def _try(rule: Rule, type_: str) -> None:
    """Evaluate it once on a sample."""
    earlier = {name: True for name in ("after", "count", "rate") if getattr(rule, name)}
    try:
        sample_subject(SAMPLES[type_]).holds(rule.condition, earlier)
    except KeyError as error:
        # A label that isn't there is found at run time only.
        if not ("labels" in rule.condition and str(error.args[0]) not in fields(SAMPLES[type_])):
            hint = f"Guard it: has(action.{error.args[0]}) && …"
            raise Wrong(("if",), f"An action of type {type_} has no {error.args[0]!r}.", hint) from error
    except NoAnswer as error:
        raise Wrong(
            ("if",), f"This {error}.", "Compare with something: `==`, `>`, `.startsWith(…)`."
        ) from error
    except IndexError:
        # How long a list is depends on the action: met at run time, it is doubt.
        return
    except RuntimeError as error:
        detail = str(error).splitlines()[0]
        functions = f"The functions of CEL, and {', '.join(FUNCTIONS)}."
        hint = functions if "Undefined" in detail else "Look at the types of both sides."
        raise Wrong(("if",), f"It can't be evaluated: {detail[:200]}", hint) from error
    except (TypeError, ValueError) as error:
        raise Wrong(("if",), f"It can't be evaluated: {error}", "Look at the types of both sides.") from error


def sample_subject(action: Action) -> Subject:
    def session() -> JSON:
        return dict.fromkeys(SESSION_FIELDS, "") | {"labels": {}}

    def state() -> JSON:
        spend = {"spend_usd": dict.fromkeys(SCOPES, 0.0), "tokens": dict.fromkeys(SCOPES, 0)}
        return spend | {"spawned": 0, "running": 0, "depth": 0, "sessions": 1}

    return Subject(action, "/w", 0, session, state)


# ── YAML with places ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Spot:
    line: int
    column: int


class _Document:
    """A YAML text as JSON, with the place of every key and value."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._keys: dict[Path, _Spot] = {}
        self._values: dict[Path, _Spot] = {(): _Spot(1, 1)}
        if len(text.encode()) > MOST_BYTES:
            raise self._at(_Spot(1, 1), "The document is larger than 1 MB.", "Split it.")
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.value: object = None if node is None else self._read(node, (), 0)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            spot = _Spot(mark.line + 1, mark.column + 1) if mark else _Spot(1, 1)
            raise self._at(spot, f"This is no YAML: {error.problem or error.context}.", _YAML_HINT) from error
        except yaml.YAMLError as error:
            raise self._at(_Spot(1, 1), f"This is no YAML: {error}.", _YAML_HINT) from error

    def error(self, wrong: Wrong) -> PolicyInvalid:
        spot = self._keys.get(wrong.path) if wrong.at_key else None
        return self._at(spot or self._find(wrong.path), wrong.detail, wrong.hint)

    def _find(self, path: Path) -> _Spot:
        """The value; of what isn't there, what it is missing in."""
        while path and path not in self._values:
            path = path[:-1]
        return self._values[path]

    def _at(self, spot: _Spot, detail: str, hint: str) -> PolicyInvalid:
        place = f"{self._where}:{spot.line}:{spot.column}"
        return PolicyInvalid(f"{place}: {detail}", hint=hint, line=spot.line, column=spot.column)

    def _read(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._values[path] = _Spot(node.start_mark.line + 1, node.start_mark.column + 1)
        if depth > 20 or len(self._values) > MOST_NODES:
            raise self._at(self._values[path], "This is too large or nested too deeply.", "Write it flatter.")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            items = cast(list[yaml.Node], node.value)
            return [self._read(each, (*path, place), depth + 1) for place, each in enumerate(items)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> JSON:
        found: JSON = {}
        for key_node, value_node in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
            spot = _Spot(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise self._at(spot, "A key is no text.", "Write `key: value`.")
            if key in found:
                raise self._at(spot, f"The key {key!r} stands here twice.", "Keep one of them.")
            found[key] = self._read(value_node, (*path, key), depth + 1)
            self._keys[(*path, key)] = spot
        return found

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        if not node.tag.startswith("tag:yaml.org,"):
            hint = f'Put a text that begins with `!` in quotes: "{node.tag}…".'
            raise self._at(self._values[path], f"YAML reads {node.tag!r} as a tag.", hint)
        value = _scalar_loader().construct_object(node)
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float) and value == value and abs(value) != float("inf"):
            return value
        # A date, bytes: in a rule these can only have been meant as text.
        return str(node.value)


def _scalar_loader() -> Any:
    return yaml.SafeLoader("")


_YAML_HINT = "Look at the indentation and the quotes around here."
