"""From a rule's content to the policy it is, and the sets of rules in force."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from itertools import compress
from typing import Any, cast

from omnigent.actions import Action, Exec
from omnigent.errors import OmnigentError, PolicyInvalid
from omnigent.events import JSON, PolicyEntry, PolicyScope, canonical, sha256
from omnigent.policies import foreign
from omnigent.policies.builtins import BUILTINS
from omnigent.policies.builtins._base import Builtin
from omnigent.policies.compiling import Subject
from omnigent.policies.contract import Policy
from omnigent.policies.rules import Rule, Wrong, nearest, read_rule
from omnigent.policies.written import Watch, Written

GROUP = "omnigent.policies"
"""Where operators register Python functions: each makes a `Policy` of a rule's `with:`."""
FORGETS = ("name", "reason", "who", "expires")
"""What of a rule may change without its memory being another's."""


def load(entry: PolicyEntry) -> Policy:
    """The policy an entry is, with the id `scope.name`. Raises `PolicyInvalid`. Cached by content."""
    return _load(entry.name, entry.scope, entry.content)


def rule_id(name: str, scope: PolicyScope) -> str:
    return f"{scope}.{name}"


@lru_cache(maxsize=1024)
def _load(name: str, scope: PolicyScope, content: str) -> Policy:
    try:
        policy = make(read_rule(json.loads(content)))
    except Wrong as wrong:
        raise PolicyInvalid(f"{name}: {wrong.detail}", hint=wrong.hint) from wrong
    policy.id = rule_id(name, scope)
    return policy


def make(rule: Rule) -> Policy:
    """Raises `Wrong`, with the place in the rule."""
    if rule.use is None and rule.function is None:
        return _written(rule)
    try:
        made = (
            _builtin(rule.use, rule.given or {}) if rule.use else _function(rule.function or "", rule.given)
        )
    except PolicyInvalid as error:
        named = str(error.facts.get("parameter", ""))
        path = ("with", *(int(part) if part.isdigit() else part for part in named.split(".") if part))
        raise Wrong(path, error.detail, error.hint) from error
    if not (rule.who or rule.expires or rule.reason):
        return made
    if isinstance(made, Written):
        made.rule = replace(made.rule, who=rule.who, expires=rule.expires, reason=rule.reason)
        return made
    return Adjusted(made, rule)


def _written(rule: Rule) -> Policy:
    try:
        return Written(rule)
    except ValueError as error:
        raise Wrong((), f"It can't be compiled: {error}") from error


def _builtin(name: str, given: JSON) -> Policy:
    build = BUILTINS.get(name)
    if build is None:
        raise Wrong(("use",), f"There is no built-in policy {name!r}.", nearest(name, sorted(BUILTINS)))
    return build(given)


def _function(name: str, given: JSON | None) -> Policy:
    """Of an operator's own, found by its entry point alone: a rule names no file and no module."""
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        known = [point.name for point in entry_points(group=GROUP)]
        hint = nearest(name, known) if known else f"Nothing is installed in the entry-point group {GROUP}."
        raise Wrong(("function",), f"There is no policy function {name!r}.", hint)
    try:
        return foreign.load(found[0], given or {})
    except OmnigentError:
        raise
    except Exception as error:
        detail = f"The policy function {name!r} didn't start ({type(error).__name__}: {error})."
        raise Wrong(("function",), detail, "Look into the package that installs it.") from error


class Adjusted:
    """A built-in or function whose rule says who may answer, how long, or why."""

    def __init__(self, policy: Policy, rule: Rule) -> None:
        self.id = policy.id
        self.types = policy.types
        self.policy = policy
        self._rule = rule
        self.empty = policy.empty
        self.observe = policy.observe

    def decide(self, action: Action, facts: Any) -> Any:
        said = self.policy.decide(action, facts)
        if said is None:
            return None
        rule = self._rule
        return replace(
            said,
            reason=rule.reason or said.reason,
            may_answer=rule.who or said.may_answer,
            expires_seconds=said.expires_seconds if rule.expires is None else max(1, rule.expires // 1000),
        )


# ── Sets of rules ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Loaded:
    """`policy` None: it can't be used (`broken` says why), and every action is in doubt."""

    id: str
    memory: str
    """The key of what it remembers."""
    policy: Policy | None
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rules that may have an opinion on actions of one type and program."""

    always: tuple[Loaded, ...]
    """Those that have to be asked."""
    matched: tuple[Loaded, ...]
    """Those whose matchers `source` puts into one list, so that one evaluation tells which to ask."""
    source: str

    def of(self, subject: Subject) -> Iterator[tuple[Loaded, bool]]:
        """Each with whether its matcher is already known to hold."""
        yield from ((each, False) for each in self.always)
        if not self.matched:
            return
        try:
            held = subject.which(self.source)
        except Exception:  # noqa: BLE001  one of them breaks: each is asked, and says so itself
            yield from ((each, False) for each in self.matched)
            return
        yield from ((each, True) for each in compress(self.matched, held))


class RuleSet:
    """Rules in force together, found by the type of action and a command's program."""

    def __init__(self, entries: Sequence[PolicyEntry]) -> None:
        self.loaded = tuple(_loaded(entry) for entry in entries)
        self.watches = _watches(self.loaded)
        self.remembering = tuple(each for each in self.loaded if _remembers(each.policy))
        self.foreign = any('"function":' in entry.content for entry in entries)
        """Whether an operator's own code is among them: it may be slow."""
        self._found: dict[tuple[str, str], Candidates] = {}

    def of(self, subject: Subject) -> Iterator[tuple[Loaded, bool]]:
        """Those that have something to say to this action, or may have; see `Candidates.of`."""
        action = subject.action
        program = action.program if isinstance(action, Exec) else ""
        found = self._found.get((action.type, program))
        if found is None:
            found = _candidates([each for each in self.loaded if _may_speak(each, action)])
            if len(self._found) < _PROGRAMS_KEPT:
                self._found[action.type, program] = found
        return found.of(subject)


def _candidates(loaded: Sequence[Loaded]) -> Candidates:
    matchers = {each: each.policy.matcher for each in loaded if isinstance(each.policy, Written)}
    matched = tuple(each for each in loaded if matchers.get(each) is not None)
    sources = [f"({matcher.possibly})" for matcher in matchers.values() if matcher is not None]
    always = tuple(each for each in loaded if matchers.get(each) is None)
    return Candidates(always, matched, f"[{', '.join(sources)}]")


_PROGRAMS_KEPT = 4096


def _remembers(policy: Policy | None) -> bool:
    if policy is None or isinstance(policy, Written):
        return False
    inner = policy.policy if isinstance(policy, Adjusted) else policy
    return not (isinstance(inner, Builtin) and type(inner).observe is Builtin.observe)  # pyright: ignore


def _may_speak(loaded: Loaded, action: Action) -> bool:
    policy = loaded.policy
    if isinstance(policy, Written):
        return policy.matcher is None or policy.matcher.fits(action)
    return policy is None or policy.types is None or action.type in policy.types


def _watches(loaded: Sequence[Loaded]) -> dict[str, Watch]:
    found: dict[str, Watch] = {}
    for each in loaded:
        for watch in each.policy.watches if isinstance(each.policy, Written) else ():
            known = found.get(watch.key)
            if known is None or known.keeps < watch.keeps:
                found[watch.key] = watch
    return found


def _loaded(entry: PolicyEntry) -> Loaded:
    name = rule_id(entry.name, entry.scope)
    try:
        return Loaded(name, memory_key(entry), load(entry))
    except Exception as error:  # noqa: BLE001  a rule that can't be used is doubt, not a dead session
        detail = error.detail if isinstance(error, OmnigentError) else type(error).__name__
        return Loaded(name, "", None, detail)


@lru_cache(maxsize=1024)
def _memory_key(content: str) -> str:
    rule = cast(JSON, json.loads(content))
    return sha256(canonical({key: value for key, value in rule.items() if key not in FORGETS}))[:16]


def memory_key(entry: PolicyEntry) -> str:
    """Names what a rule remembers: the same for the same rule under another name or reason."""
    return _memory_key(entry.content)


def entry_key(entry: PolicyEntry) -> str:
    return _entry_key(entry.name, entry.scope, entry.content)


@lru_cache(maxsize=1024)
def _entry_key(name: str, scope: str, content: str) -> str:
    return sha256(canonical([name, scope, content]))[:16]
