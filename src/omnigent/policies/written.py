"""A rule of the language as a `Policy`: what it matches, what it remembers, what it then says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

from omnigent.actions import Action, Exec, Model
from omnigent.events import JSON, Event
from omnigent.policies.compiling import Matcher, NoAnswer, Subject, key_of, match
from omnigent.policies.contract import Cap, Facts, Opinion, Spend
from omnigent.policies.rules import Alternative, Limit, Rule

NANO = 1_000_000_000
_SCOPES = {
    "session": "this session",
    "family": "this session, its children and forks",
    "user_day": "its owner today",
    "project_month": "this project this month",
}


@dataclass(frozen=True, slots=True)
class Watch:
    """What the tree's state has to remember for a rule: when actions like these happened."""

    key: str
    matcher: Matcher | None
    """None: every action."""
    unless: Matcher | None
    keeps: int
    """How many of the last times, each with its moment."""
    failed_too: bool
    """Whether what is known to have failed counts."""

    def sees(self, subject: Subject) -> bool:
        """What raises here counts as seen: a doubt must not make a rule forget."""
        action = subject.action
        try:
            if self.matcher and not (self.matcher.fits(action) and subject.holds(self.matcher.possibly)):
                return False
            unless = self.unless
            return not (
                unless and not action.doubt and unless.fits(action) and subject.holds(unless.certainly)
            )
        except Exception:  # noqa: BLE001  the fold must not stop at a rule
            return True


class Earlier(Protocol):
    """How often a watched thing happened before the action that is decided."""

    def times(self, watch: Watch, within: int | Literal["turn"] | None = None) -> int:
        """`within` ms, or since the session's turn began."""
        ...


class Seen(Facts, Earlier, Protocol):
    """What the engine shows a rule, beside what every policy may read."""

    @property
    def subject(self) -> Subject: ...

    @property
    def matched(self) -> bool:
        """Whether the rule's matcher is already known to hold, at least possibly."""
        ...


class Written:
    """Made from a `Rule`. Its memory is kept by the tree's state, one per watched matcher."""

    def __init__(self, rule: Rule) -> None:
        self.id = rule.name
        self.rule = rule
        self.matcher = match(rule.when) if rule.when else None
        self.types = self.matcher.types if self.matcher else None
        self._unless = match(rule.unless, strictly=True) if rule.unless else None
        self._after = _watch(rule.after, (), failed_too=False) if rule.after else None
        self._own = None
        if rule.count or rule.rate:
            keeps = max(rule.count or 0, rule.rate[0] if rule.rate else 0)
            self._own = _watch(rule.when or (), rule.unless, failed_too=True, keeps=keeps)

    @property
    def watches(self) -> Iterator[Watch]:
        yield from (watch for watch in (self._after, self._own) if watch)

    @property
    def source(self) -> str:
        """The rule's condition as one CEL expression: for people, and for `explain`."""
        terms = [self.matcher.certainly] if self.matcher else []
        terms += [f"!({self._unless.certainly})"] if self._unless else []
        terms += [f"state.{name}" for name in ("after", "count", "rate") if getattr(self.rule, name)]
        terms += [self.rule.condition] if self.rule.condition else []
        return " && ".join(f"({term})" for term in terms) or "true"

    @property
    def reads_spend(self) -> bool:
        """Whether it looks at the spending of a tool call."""
        limits = bool(self.rule.limits) and self.matcher is not None
        return limits or "spend_usd" in self.rule.condition or "state.tokens" in self.rule.condition

    def empty(self) -> Any:
        return {}

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        return memory

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        seen = cast(Seen, facts)
        subject = seen.subject
        certain = self._matches(action, seen)
        if certain is None:
            return None
        if self._excepted(action, subject):
            return None
        earlier = self._earlier(seen)
        if not all(earlier.values()):
            return None
        if self.rule.condition and not subject.holds(self.rule.condition, earlier):
            return None
        if self.rule.limits:
            return self._spend(action, seen)
        return self._say(action, seen, earlier, certain=certain)

    def _matches(self, action: Action, seen: Seen) -> bool | None:
        """Whether it surely matches; None: it doesn't."""
        matcher = self.matcher
        if matcher is None:
            return True
        if not matcher.fits(action):
            return None
        if matcher.possibly == matcher.certainly:
            return True if seen.matched or seen.subject.holds(matcher.certainly) else None
        if seen.subject.holds(matcher.certainly):
            return True
        return False if seen.subject.holds(matcher.possibly) else None

    def _excepted(self, action: Action, subject: Subject) -> bool:
        unless = self._unless
        return bool(unless and not action.doubt and unless.fits(action) and subject.holds(unless.certainly))

    def _earlier(self, seen: Seen) -> dict[str, bool]:
        found: dict[str, bool] = {}
        rule = self.rule
        if self._after:
            found["after"] = seen.times(self._after, rule.within) > 0
        if self._own and rule.count:
            found["count"] = seen.times(self._own) >= rule.count
        if self._own and rule.rate:
            found["rate"] = seen.times(self._own, rule.rate[1]) >= rule.rate[0]
        return found

    def _say(self, action: Action, seen: Seen, earlier: Mapping[str, bool], *, certain: bool) -> Opinion:
        facts = _facts(action, earlier)
        if not certain:
            reason = "It isn't known which request this makes: only its host is."
            return self._opinion("ask", self.rule.reason or reason, facts)
        return self._opinion(
            self.rule.then or "allow", self.rule.reason or self._default_reason(action), facts
        )

    def _default_reason(self, action: Action) -> str:
        words = {"deny": "isn't allowed", "ask": "needs a person's approval", "pause": "pauses the turn"}
        what = words.get(self.rule.then or "", "is changed")
        return f"{describe(action)} {what} by the rule {self.rule.name}."

    def _opinion(self, decision: Any, reason: str, facts: str) -> Opinion:
        rule = self.rule
        seconds = None if rule.expires is None else max(1, rule.expires // 1000)
        return Opinion(
            decision, reason, facts, may_answer=rule.who, expires_seconds=seconds,
            command=rule.rewrite, model=rule.downgrade,
        )  # fmt: skip

    # Money and tokens.

    def _spend(self, action: Action, seen: Seen) -> Opinion | None:
        found = [each for limit in self.rule.limits if (each := self._limit(limit, action, seen))]
        stops = [each for each in found if each.decision != "allow" or each.model]
        if stops:
            return max(stops, key=lambda each: each.decision == self.rule.then)
        caps = tuple(cap for each in found for cap in each.caps)
        return Opinion("allow", "", caps=caps) if caps else None

    def _limit(self, limit: Limit, action: Action, seen: Seen) -> Opinion | None:
        spent = seen.setting.spend.get(self.rule.scope)
        if not isinstance(action, Model):
            # Where the gateway meters, money is stopped there, and a tool call is told no spending.
            if spent is None and self.matcher is not None:
                raise NoAnswer("asks for spending that isn't told of a tool call")
            if spent is None or self.rule.downgrade:
                return None
            return self._reached(limit, spent) if _total(limit, spent) >= _most(limit) else None
        spent = spent or Spend()
        if _total(limit, spent) >= _most(limit):
            return self._reached(limit, spent)
        estimate = action.input_tokens + (action.max_output_tokens or 0)
        if limit.nanousd is not None:
            if action.estimate_nanousd is None or spent.unknown:
                return self._unpriced(action, spent)
            estimate = action.estimate_nanousd
        if _total(limit, spent) + estimate > _most(limit):
            return self._reached(limit, spent, estimate)
        if self.rule.downgrade:
            return None
        cap = Cap(self.rule.scope, self.id, nanousd=limit.nanousd, tokens=limit.tokens)
        return Opinion("allow", "", caps=(cap,))

    def _reached(self, limit: Limit, spent: Spend, estimate: int = 0) -> Opinion | None:
        have, most = _amount(limit, _total(limit, spent)), _amount(limit, _most(limit))
        more = f" and the call may use {_amount(limit, estimate)}" if estimate else ""
        reason = f"{_SCOPES[self.rule.scope].capitalize()} used {have} of {most}{more}."
        facts = f"{self.rule.scope} used={have} limit={most} call={_amount(limit, estimate)}"
        return replace(
            self._opinion(self.rule.then or "allow", self.rule.reason or reason, facts), money=True
        )

    def _unpriced(self, call: Model, spent: Spend) -> Opinion:
        if call.estimate_nanousd is None:
            reason = f"The price of {call.model} isn't known, so a limit in dollars can't be kept."
        else:
            reason = (
                f"{spent.unknown} earlier calls have no known price, so a limit in dollars can't be kept."
            )
        if self.rule.downgrade:
            return self._opinion("allow", reason, "price unknown")
        return Opinion(
            "ask", reason, f"price unknown; unknown calls={spent.unknown}", may_answer=self.rule.who
        )


def describe(action: Action) -> str:
    """In a few words, for reasons."""
    text = {
        "exec": "command",
        "file.read": "path",
        "file.write": "path",
        "net": "url",
        "model": "model",
        "unknown": "tool",
    }.get(action.type)
    if action.type == "mcp":
        return f"{action.server}/{action.tool}"
    value = str(getattr(action, text)) if text else f"This {action.type}"
    return value if len(value) <= 80 else f"{value[:77]}…"


def _facts(action: Action, earlier: Mapping[str, bool]) -> str:
    named = action.command if isinstance(action, Exec) else describe(action)
    return ", ".join([f"{action.type} {named[:200]}", *(f"{name} holds" for name in earlier)])


def _watch(
    alternatives: tuple[Alternative, ...],
    unless: tuple[Alternative, ...],
    *,
    failed_too: bool,
    keeps: int = 0,
) -> Watch:
    return Watch(
        key_of(alternatives, "unless", *unless, failed_too),
        match(alternatives) if alternatives else None,
        match(unless, strictly=True) if unless else None,
        max(keeps, 16),
        failed_too,
    )


def _total(limit: Limit, spent: Spend) -> int:
    return spent.tokens if limit.nanousd is None else spent.nanousd


def _most(limit: Limit) -> int:
    return (limit.tokens or 0) if limit.nanousd is None else limit.nanousd


def _amount(limit: Limit, value: int) -> str:
    return f"{value} tokens" if limit.nanousd is None else f"${value / NANO:.2f}"
