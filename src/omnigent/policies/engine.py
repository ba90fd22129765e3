"""The one decision: what all policies in force say to a call, the strictest of it.

Pure: a function of the call, the tree's state and the setting. Whatever can't be known or breaks is doubt,
and doubt asks. Nothing silences a deny or a pause; a person's grant silences an ask of the rules it names.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, cast

from omnigent.actions import Action, Exec, Model, Unknown
from omnigent.events import JSON, PolicyEntry, PolicyScope, canonical, sha256
from omnigent.policies.builtins.protect import Protect
from omnigent.policies.compiling import Subject
from omnigent.policies.contract import (
    STRICTNESS,
    Asked,
    Call,
    Cap,
    Decision,
    Opinion,
    Policy,
    Setting,
    Verdict,
)
from omnigent.policies.language import defaults as defaults
from omnigent.policies.loading import Loaded, rule_id
from omnigent.policies.loading import load as load
from omnigent.policies.patterns import pattern_matches as pattern_matches
from omnigent.policies.patterns import patterns as patterns
from omnigent.policies.reading import read
from omnigent.policies.rules import Limit, Rule
from omnigent.policies.state import TreeState, is_broken
from omnigent.policies.written import NANO, Watch, Written

DOUBT = "builtin.doubt"
BUDGET = "budget"
SCOPE_ORDER: tuple[PolicyScope, ...] = ("builtin", "server", "user", "project", "agent", "session")

_PROTECT = Protect()
_GUARDED = _PROTECT.types or frozenset[str]()
_NOBODY = "Nobody can be asked in this session."


@dataclass(frozen=True, slots=True)
class _Said:
    """One rule's opinion of one action of the call; -1: of the call as a whole."""

    rule: str
    action: int
    opinion: Opinion


@dataclass
class _Seen:
    """What a policy may read while it decides one action."""

    setting: Setting
    call: Call
    index: int
    state: TreeState
    subjects: "Sequence[Subject]"
    memory: Any = None
    matched: bool = False
    """Whether the rule's matcher is already known to hold, at least possibly."""

    @property
    def subject(self) -> Subject:
        return self.subjects[self.index]

    @property
    def tree(self) -> JSON:
        return self.state.tree(self.setting.session_id, before=self.call.pos, but=self.call.item_id)

    def times(self, watch: Watch, within: int | Literal["turn"] | None = None) -> int:
        mine = sum(watch.sees(subject) for subject in self.subjects[: self.index])
        total, recent = self.state.occurrences(watch, before=self.call.pos, but=self.call.item_id)
        if within is None:
            return mine + total
        if not recent:
            # Those that are remembered all came later; of the ones before only their number is known.
            return mine + total
        if within == "turn":
            began = self.state.turn(self.setting.session_id)
            return mine + sum(pos >= began for pos, _ in recent)
        return mine + sum(at > self.setting.at - within for _, at in recent)


def decide(call: Call, state: TreeState, setting: Setting) -> Verdict:
    """The strictest verdict over all rules and actions. A rewritten command or another model is decided once
    more; it may come out stricter than what was asked for, never milder."""
    said = _opinions(call, state, setting)
    if not said:
        return Verdict("allow")
    verdict = _combine(call, said, setting)
    if verdict.decision in ("deny", "pause"):
        return verdict
    if not any(each.opinion.command or each.opinion.model for each in said):
        return verdict
    changed, command, model, refused = _transformed(call, said, setting)
    if refused:
        return _combine(call, [*said, *refused], setting)
    if changed is None:
        return verdict
    again = _combine(changed, _opinions(changed, state, setting), setting)
    strictest = max(verdict, again, key=lambda each: STRICTNESS[each.decision])
    asked = verdict.asked if strictest is verdict else tuple(_asked_of(call, again))
    return replace(
        strictest,
        asked=asked,
        command=command,
        model=model,
        caps=again.caps,
        strip=tuple(sorted({*verdict.strip, *again.strip})),
        grant_ids=tuple(dict.fromkeys((*verdict.grant_ids, *again.grant_ids))),
        facts=tuple(dict.fromkeys((*verdict.facts, *again.facts))),
    )


def _asked_of(call: Call, again: Verdict) -> Iterable[Asked]:
    """What is asked of a rewritten call, at the places of the one that was proposed."""
    names = tuple(dict.fromkeys(name for asked in again.asked for name in asked.rule_ids))
    return (
        Asked(place, names) for place, action in enumerate(call.actions) if isinstance(action, Exec | Model)
    )


# ── Opinions ────────────────────────────────────────────────────────────────────────────────────────────


def _opinions(call: Call, state: TreeState, setting: Setting) -> list[_Said]:
    rules = state.rules(setting.session_id)
    workspace = str(setting.session.get("workspace") or state.workspace(setting.session_id))
    subjects = [Subject(action, workspace, setting.at) for action in call.actions]
    said = _doubts(call)
    for place, action in enumerate(call.actions):
        seen = _Seen(setting, call, place, state, subjects)
        subjects[place].session = lambda: setting.session
        subjects[place].state = lambda seen=seen: _facts_of_state(seen)
        if action.type in _GUARDED:
            _hear(_PROTECT.id, _PROTECT, action, seen, said)
        if setting.budget_nanousd is not None:
            _hear(BUDGET, _budget(setting.budget_nanousd), action, seen, said)
        for loaded, seen.matched in rules.of(subjects[place]):
            _hear_loaded(loaded, action, seen, said)
    return said


def _hear_loaded(loaded: Loaded, action: Action, seen: _Seen, said: list[_Said]) -> None:
    policy = loaded.policy
    if policy is None:
        said.append(_in_doubt(seen.index, f"The rule {loaded.id} can't be used: {loaded.broken}"))
        return
    if not isinstance(policy, Written):
        memory = seen.state.memory(loaded.memory)
        if is_broken(memory):
            said.append(_in_doubt(seen.index, f"The rule {loaded.id} lost what it remembered."))
            return
        seen.memory = policy.empty() if memory is None else memory
    _hear(loaded.id, policy, action, seen, said)


def _hear(name: str, policy: Policy, action: Action, seen: _Seen, said: list[_Said]) -> None:
    try:
        opinion = policy.decide(action, seen)
    except Exception as error:  # noqa: BLE001  a rule that breaks is doubt, whatever it broke on
        detail = f"{type(error).__name__}: {error}"[:200]
        said.append(_in_doubt(seen.index, f"The rule {name} couldn't decide ({detail})."))
        return
    if opinion is not None:
        said.append(_Said(name, seen.index, opinion))


def _in_doubt(place: int, reason: str) -> _Said:
    return _Said(DOUBT, place, Opinion("ask", reason))


def _doubts(call: Call) -> list[_Said]:
    """What isn't understood of the call itself."""
    named = f"{call.tool} " if call.tool else "This call "
    if not call.actions:
        return [_in_doubt(-1, f"{named}isn't understood.")]
    said = [
        _in_doubt(
            place, action.doubt or f"{getattr(action, 'tool', 'The tool')} isn't in the tool inventory."
        )
        for place, action in enumerate(call.actions)
        if action.doubt or isinstance(action, Unknown)
    ]
    if call.parsed != "full" and not said:
        said = [_in_doubt(place, f"{named}isn't fully understood.") for place in range(len(call.actions))]
    return said


@lru_cache(maxsize=64)
def _budget(nanousd: int) -> Written:
    rule = Rule(name=BUDGET, limits=(Limit(nanousd=nanousd),), scope="family", then="pause")
    return Written(rule)


def _facts_of_state(seen: _Seen) -> JSON:
    """`state` of the CEL context, without what a rule itself remembers. A scope whose spending isn't known is
    missing: who asks for it is in doubt."""
    spend = seen.setting.spend
    return {
        "spend_usd": {scope: each.nanousd / NANO for scope, each in spend.items()},
        "tokens": {scope: each.tokens for scope, each in spend.items()},
        **seen.tree,
    }


# ── The strictest of all ────────────────────────────────────────────────────────────────────────────────


def _combine(call: Call, said: Sequence[_Said], setting: Setting) -> Verdict:
    grants = _Grants(call, setting)
    asks = [each for each in said if each.opinion.decision == "ask"]
    open_ = [each for each in asks if not grants.silence(each)]
    strict = [each for each in said if each.opinion.decision in ("deny", "pause")]
    facts = tuple(dict.fromkeys(_fact(each, call) for each in said))
    decision = _strictest(each.opinion.decision for each in (*strict, *open_))
    if decision == "allow":
        return _allow(said, tuple(grants.used), facts)
    unanswered = bool(open_) and setting.approvals == "deny" and decision != "deny"
    if unanswered:
        decision = "ask"  # which is a deny here, and stricter than a pause
    won = [each for each in (*strict, *open_) if each.opinion.decision == decision]
    names = tuple(dict.fromkeys(each.rule for each in won))
    reason = " ".join(dict.fromkeys(each.opinion.reason for each in won if each.opinion.reason))
    if unanswered:
        return Verdict("deny", names, f"{reason} {_NOBODY}", facts=facts)
    if decision != "ask":
        money = any(each.opinion.money for each in won)
        return Verdict(decision, names, reason, money=money, facts=facts)
    if setting.approvals == "yes":
        return _allow(said, tuple(grants.used), facts)
    return _ask(won, names, reason, facts)


def _strictest(decisions: Iterable[Decision]) -> Decision:
    strictest: Decision = "allow"
    for each in decisions:
        strictest = each if STRICTNESS[each] > STRICTNESS[strictest] else strictest
    return strictest


def _allow(said: Sequence[_Said], grant_ids: tuple[str, ...], facts: tuple[str, ...]) -> Verdict:
    caps: dict[Cap, None] = {}
    for each in said:
        caps |= dict.fromkeys(
            replace(cap, rule_id=each.rule) if cap.rule_id != each.rule else cap for cap in each.opinion.caps
        )
    strip = {tool for each in said for tool in each.opinion.strip}
    return Verdict("allow", grant_ids=grant_ids, caps=tuple(caps), strip=tuple(sorted(strip)), facts=facts)


def _ask(won: Sequence[_Said], names: tuple[str, ...], reason: str, facts: tuple[str, ...]) -> Verdict:
    by_action: dict[int, dict[str, None]] = {}
    for each in won:
        if each.action >= 0:
            by_action.setdefault(each.action, {})[each.rule] = None
    limits = [each.opinion.expires_seconds for each in won if each.opinion.expires_seconds is not None]
    return Verdict(
        "ask",
        names,
        reason,
        asked=tuple(Asked(place, tuple(rules)) for place, rules in sorted(by_action.items())),
        may_answer=_who([each.opinion.may_answer for each in won if each.opinion.may_answer is not None]),
        expires_seconds=min(limits, default=None),
        facts=facts,
    )


def _who(named: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Those whom every rule that says so lets answer; the owner where they share nobody."""
    if not named:
        return ("owner",)
    return tuple(each for each in named[0] if all(each in rest for rest in named[1:])) or ("owner",)


def _fact(said: _Said, call: Call) -> str:
    opinion = said.opinion
    where = f" (action {said.action + 1})" if said.action >= 0 and len(call.actions) > 1 else ""
    return f"{said.rule}{where}: {opinion.decision}: {opinion.facts or opinion.reason or 'within its limit'}"


# ── Grants ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Grants:
    call: Call
    setting: Setting
    used: dict[str, None] = field(default_factory=dict[str, None])

    @cached_property
    def _call_digest(self) -> str:
        return digest(self.call.actions)

    def silence(self, said: _Said) -> bool:
        """Whether a grant answers this ask."""
        for grant in self.setting.grants:
            if said.rule in grant["rule_ids"] and self._in_force(grant) and self._covers(grant, said.action):
                self.used[str(grant.get("grant_id", ""))] = None
                return True
        return False

    def _in_force(self, grant: JSON) -> bool:
        until = grant.get("until")
        return until is None or until > self.setting.at

    def _covers(self, grant: JSON, place: int) -> bool:
        if grant["scope"] == "once":
            return grant.get("call_sha256") == self._call_digest
        if place < 0:
            return False
        action = self.call.actions[place]
        if grant["scope"] == "session":
            return action_digest(action) in grant.get("digests", ())
        return pattern_matches(
            grant.get("pattern", ""), action, str(self.setting.session.get("workspace", ""))
        )


def digest(actions: Sequence[Action]) -> str:
    """Names exactly this call's actions: what a grant for one call is bound to."""
    return sha256(canonical([action.model_dump(mode="json") for action in actions]))


def action_digest(action: Action) -> str:
    """Names exactly this action: what a grant for the session is bound to."""
    return sha256(canonical(action.model_dump(mode="json")))


# ── Transforms ──────────────────────────────────────────────────────────────────────────────────────────


def _transformed(
    call: Call, said: Sequence[_Said], setting: Setting
) -> tuple[Call | None, str | None, str | None, list[_Said]]:
    """The call as it would be instead, its command or model; or doubts, where it can't be had."""
    order = sorted((each for each in said if each.opinion.command or each.opinion.model), key=_order)
    if not order:
        return None, None, None, []
    command = model = None
    actions = list(call.actions)
    for each in order:
        action = actions[each.action]
        if each.opinion.model and isinstance(action, Model):
            model = each.opinion.model
            actions[each.action] = action.model_copy(update={"model": model})
        if each.opinion.command and isinstance(action, Exec):
            if not _is_alone(call):
                reason = "The command would be changed, but it isn't the whole call."
                return None, None, None, [_Said(each.rule, each.action, Opinion("ask", reason))]
            command = each.opinion.command.replace("{command}", command or action.command)
    if command is None:
        return replace(call, actions=tuple(actions)), None, model, []
    first = next(action for action in call.actions if isinstance(action, Exec))
    read_actions, parsed = read(command, first.cwd, str(setting.session.get("workspace", "")))
    return replace(call, actions=read_actions, parsed=parsed), command, model, []


def _is_alone(call: Call) -> bool:
    commands = [action for action in call.actions if isinstance(action, Exec)]
    return len(commands) == 1 and commands[0].sole and call.parsed == "full"


def _order(said: _Said) -> tuple[int, str, int]:
    scope, _, name = said.rule.partition(".")
    ranks: dict[str, int] = {each: place for place, each in enumerate(SCOPE_ORDER)}
    return ranks.get(scope, len(ranks)), name, said.action


# ── Sets of rules ───────────────────────────────────────────────────────────────────────────────────────


def effective(state: TreeState, session_id: str) -> tuple[PolicyEntry, ...]:
    """The rules in effect in a session: its own and those of the sessions above; the defaults where a log has
    none. `builtin.protect` and `builtin.doubt` are always beside them."""
    return state.effective(session_id)


def runs_foreign_code(state: TreeState, session_id: str) -> bool:
    """Whether an operator's own functions take part in a decision: they may be slow, ours are not."""
    return state.rules(session_id).foreign


def reads_spend(state: TreeState, session_id: str) -> bool:
    """Whether some rule looks at the spending of a tool call; without being told it would be in doubt."""
    return any(
        isinstance(loaded.policy, Written) and loaded.policy.reads_spend
        for loaded in state.rules(session_id).loaded
    )


def diff(
    old: Sequence[PolicyEntry], new: Sequence[PolicyEntry]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], bool]:
    """Ids of rules added, removed and changed, and whether something may now pass that was stopped before.

    A change doesn't loosen when only words changed (`reason`), or `then` became stricter. All else might.
    """
    before = {rule_id(entry.name, entry.scope): entry for entry in old}
    after = {rule_id(entry.name, entry.scope): entry for entry in new}
    added = tuple(name for name in after if name not in before)
    removed = tuple(name for name in before if name not in after)
    changed = tuple(name for name in after if name in before and after[name].content != before[name].content)
    loosens = bool(removed) or any(_loosens(before[name], after[name]) for name in changed)
    return added, removed, changed, loosens


def _loosens(old: PolicyEntry, new: PolicyEntry) -> bool:
    was, now = _content(old), _content(new)
    words = ("then", "reason")
    same = {k: v for k, v in was.items() if k not in words} == {
        k: v for k, v in now.items() if k not in words
    }
    return not same or _strictness(now) < _strictness(was)


def _content(entry: PolicyEntry) -> JSON:
    return cast(JSON, json.loads(entry.content))


def _strictness(rule: JSON) -> int:
    """Of a rule without `then` (a transform, a built-in), always the same."""
    then = rule.get("then")
    return next((rank for name, rank in STRICTNESS.items() if name == then), 0)
