"""What rules say to calls that were recorded: to test them, to replay a session, to explain one decision.

The recorded facts stay as they were: a call that really ran counts as having run, whatever the rules tried
here say to it. Spending is what these events tell, so that sums over a user's day or a project's month are
those of the log at hand. Pure: events in, verdicts out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from omnigent import events as ev
from omnigent.actions import Model
from omnigent.events import JSON, Event, PolicyEntry
from omnigent.ids import as_text
from omnigent.metering import CapScope, Spend
from omnigent.policies import engine
from omnigent.policies.contract import Call, Setting, Verdict
from omnigent.policies.folding import TreeProjector
from omnigent.policies.state import TreeState
from omnigent.views import SessionProjector, SessionView

_PROJECTOR = SessionProjector()
_TREES = TreeProjector()


@dataclass(frozen=True, slots=True)
class Trial:
    """What to judge by."""

    entries: tuple[PolicyEntry, ...] | None = None
    """These rules in every session from its beginning; None: those recorded as in effect."""
    at: int | None = None
    """UTC ms: as if every call were made then. None: when it was."""
    as_recorded: bool = True
    """With the session's own approvals mode, grants and budget; else as a session that asks and has none."""
    sessions: frozenset[str] | None = None
    """Judge only the calls of these."""
    items: frozenset[str] | None = None
    """Judge only these calls."""
    protected: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    api: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A recorded call, what the rules say to it, and what was said then ("" for a plain allow)."""

    event: Event
    call: Call
    kind: str
    title: str
    verdict: Verdict
    recorded: str
    effective: tuple[PolicyEntry, ...]

    def json(self) -> JSON:
        return {
            "item_id": self.call.item_id,
            "session_id": self.event.session_id,
            "seq": self.event.seq,
            "at": self.event.at,
            "kind": self.kind,
            "title": self.title,
            "verdict": self.verdict.decision,
            "rule_ids": list(self.verdict.rule_ids),
            "reason": self.verdict.reason,
            "recorded": self.recorded,
        }


def judge(events: Sequence[Event], trial: Trial) -> Iterator[Judged]:
    """Every gated tool call and every model call, in the order they were made.

    `events` are a whole tree in `tree_pos` order, before it for a fork those of the tree it was cut from.
    """
    bench = _Bench(trial, _said(events))
    for event in _ruled(events, trial.entries):
        yield from bench.take(event)


def _said(events: Sequence[Event]) -> dict[str, str]:
    """The first verdict recorded of each call that wasn't a plain allow."""
    found: dict[str, str] = {}
    for event in events:
        if isinstance(body := event.body, ev.PolicyDecided) and event.item_id:
            found.setdefault(event.item_id, body.verdict)
    return found


def _ruled(events: Sequence[Event], entries: tuple[PolicyEntry, ...] | None) -> Iterator[Event]:
    """The events, with `entries` in effect from the beginning instead of what was recorded."""
    for place, event in enumerate(events):
        if entries is None or event.kind != ev.PolicyChanged.KIND:
            yield event
        if entries is not None and place == 0:
            yield _with_body(event, ev.PolicyChanged(policies=entries))


def _with_body(event: Event, body: ev.AnyBody) -> Event:
    text = ev.canonical(ev.encode_body(body))
    return replace(
        event, kind=body.KIND, body_text=text, item_id=None, turn_id=None, typed=[cast(Any, body)], wire=[]
    )


@dataclass(slots=True)
class _Ledger:
    """What model calls have used and set aside, by session, day and month, as the events tell it."""

    open: dict[str, tuple[int | None, int, tuple[str, ...]]] = field(
        default_factory=dict[str, tuple[int | None, int, tuple[str, ...]]]
    )
    sums: dict[str, Spend] = field(default_factory=dict[str, Spend])

    def reserve(self, event: Event, body: ev.UsageReserved) -> None:
        tokens = body.input_tokens + (body.max_output_tokens or 0)
        keys = _keys(event)
        self.open[body.call_id] = (body.estimate_nanousd, tokens, keys)
        self._add(keys, body.estimate_nanousd, tokens)

    def settle(self, event: Event, body: ev.UsageReported) -> None:
        if held := self.open.pop(body.call_id, None):
            self._add(held[2], held[0], held[1], sign=-1)
        tokens = body.input_tokens + body.cache_read_tokens + body.cache_write_tokens + body.output_tokens
        if body.billing == "subscription":
            self._add(_keys(event), 0, tokens, notional=body.cost_nanousd or 0)
        else:
            self._add(_keys(event), body.cost_nanousd, tokens)

    def _add(
        self, keys: tuple[str, ...], nanousd: int | None, tokens: int, *, sign: int = 1, notional: int = 0
    ) -> None:
        for key in keys:
            old = self.sums.get(key, Spend())
            self.sums[key] = Spend(
                nanousd=old.nanousd + sign * (nanousd or 0),
                tokens=old.tokens + sign * tokens,
                unknown=old.unknown + (sign if nanousd is None else 0),
                notional=old.notional + notional,
            )

    def spend(self, event: Event) -> dict[CapScope, Spend]:
        scopes: tuple[CapScope, ...] = ("session", "family", "user_day", "project_month")
        return {scope: self.sums.get(key, Spend()) for scope, key in zip(scopes, _keys(event), strict=True)}


def _keys(event: Event) -> tuple[str, ...]:
    """Of the sums an event belongs to, in the order of the scopes."""
    day = as_text(event.at)[:10]
    return f"session {event.session_id}", "family", f"day {day}", f"month {day[:7]}"


@dataclass(slots=True)
class _Bench:
    """The folds that a decision depends on, kept along the log."""

    trial: Trial
    said: Mapping[str, str]
    tree: TreeState = field(default_factory=_TREES.empty)
    ledger: _Ledger = field(default_factory=_Ledger)
    views: dict[str, SessionView] = field(default_factory=dict[str, SessionView])
    items: dict[str, JSON] = field(default_factory=dict[str, JSON])
    seen: set[str] = field(default_factory=set[str])
    """Model calls that were judged."""

    def take(self, event: Event) -> Iterator[Judged]:
        view = self._view(event)
        body = event.body
        if self._counts(body, view):
            yield from self._model(event, view)
        self.items |= _PROJECTOR.fold(view, event, self.items.get)
        _TREES.fold(self.tree, event)
        if isinstance(body, ev.ToolRequested) and body.gated and self._wanted(event, event.item_id):
            call = Call(event.item_id or event.id, body.actions, body.parsed, body.tool, event.tree_pos)
            spend = {} if view.run is not None and view.metering == "gateway" else self.ledger.spend(event)
            yield self._judged(event, call, "tool", body.title, view, spend)
        if isinstance(body, ev.UsageReserved):
            self.ledger.reserve(event, body)
        elif isinstance(body, ev.UsageReported) and self._counts(body, view):
            self.ledger.settle(event, body)

    def _view(self, event: Event) -> SessionView:
        """The event's session, which for a fork begins with what its parent was."""
        known = self.views.get(event.session_id)
        if known is None:
            body = event.body
            parent = self.views.get(body.parent_id) if isinstance(body, ev.SessionForked) else None
            known = _PROJECTOR.load(parent.dump()) if parent else _PROJECTOR.empty()
            self.views[event.session_id] = known
        return known

    @staticmethod
    def _counts(body: ev.AnyBody, view: SessionView) -> bool:
        """Whether the event tells of a model call that is in the ledger."""
        match body:
            case ev.UsageReserved():
                return True
            case ev.UsageReported():
                return body.source == "gateway" or view.metering == "harness"
            case ev.PolicyDecided():
                return isinstance(body.action, Model)
            case _:
                return False

    def _model(self, event: Event, view: SessionView) -> Iterator[Judged]:
        """A model call is judged once, where the log first tells of it: before it is counted."""
        body = event.body
        match body:
            case ev.PolicyDecided(action=Model() as action):
                call_id = event.item_id or event.id
            case ev.UsageReserved():
                call_id, action = body.call_id, _reserved(body)
            case ev.UsageReported():
                call_id, action = body.call_id, _reported(body, view)
            case _:
                return
        if call_id in self.seen or not self._wanted(event, call_id):
            return
        self.seen.add(call_id)
        call = Call(call_id, (action,), "full", "model", event.tree_pos)
        yield self._judged(event, call, "model", f"ask {action.model}", view, self.ledger.spend(event))

    def _wanted(self, event: Event, item_id: str | None) -> bool:
        trial = self.trial
        mine = trial.sessions is None or event.session_id in trial.sessions
        return mine and (trial.items is None or item_id in trial.items)

    def _judged(
        self,
        event: Event,
        call: Call,
        kind: str,
        title: str,
        view: SessionView,
        spend: Mapping[CapScope, Spend],
    ) -> Judged:
        verdict = engine.decide(call, self.tree, self._setting(event, view, spend))
        recorded = self.said.get(call.item_id, "")
        effective = engine.effective(self.tree, event.session_id)
        return Judged(event, call, kind, title, verdict, recorded, effective)

    def _setting(self, event: Event, view: SessionView, spend: Mapping[CapScope, Spend]) -> Setting:
        trial = self.trial
        at = event.at if trial.at is None else trial.at
        names = ("harness", "model", "provider", "workspace", "owner", "sandbox", "labels", "billing")
        grants = [grant for grant in view.grants if grant["until"] is None or grant["until"] > at]
        return Setting(
            session_id=event.session_id,
            at=at,
            approvals=cast(ev.Approvals, view.approvals) if trial.as_recorded else "ask",
            grants=grants if trial.as_recorded else (),
            spend=spend,
            budget_nanousd=view.budget_nanousd if trial.as_recorded else None,
            session={"id": event.session_id, **{name: getattr(view, name) for name in names}},
            protected=trial.protected,
            own=(view.workspace, *trial.own),
            api=trial.api,
        )


def _reserved(body: ev.UsageReserved) -> Model:
    return Model(
        wire="",
        provider=body.provider,
        model=body.model,
        input_tokens=body.input_tokens,
        max_output_tokens=body.max_output_tokens,
        estimate_nanousd=body.estimate_nanousd,
        bounded=body.bounded,
    )


def _reported(body: ev.UsageReported, view: SessionView) -> Model:
    """A call that the log knows only from its usage: its real cost stands for the estimate."""
    return Model(
        wire="",
        provider=body.provider or view.provider or "",
        model=body.model or view.model or "",
        input_tokens=body.input_tokens + body.cache_read_tokens + body.cache_write_tokens,
        max_output_tokens=body.output_tokens,
        estimate_nanousd=body.cost_nanousd,
        bounded=True,
    )
