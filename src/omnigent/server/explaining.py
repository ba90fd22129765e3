"""Why a call was decided as it was: the rule, the facts, and the earlier events it looks back at."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from omnigent import events as ev
from omnigent.errors import NotFound
from omnigent.events import JSON, Event, PolicyEntry, canonical
from omnigent.hindsight import Judged, Trial, judge
from omnigent.log import Log
from omnigent.policies.loading import rule_id
from omnigent.policies.rules import duration
from omnigent.server.recorded import recorded_events
from omnigent.server.rule_words import rule_json

PAGE = 1000
_PROBE = "looks-back"


async def explanation(log: Log, audit: Log, session_id: str, item_id: str, trial: Trial) -> JSON:
    """`trial` has what is protected. Raises `NotFound` for what is no tool call, model call or approval of
    the session."""
    approval = await _approval(log, session_id, item_id)
    call_id = str(approval["call_id"]) if approval else item_id
    events = await recorded_events(log, session_id)
    trial = replace(trial, items=frozenset((call_id,)))
    found = await asyncio.to_thread(_explained, events, trial, session_id, call_id, approval)
    return found | {"audited": await _audited(audit, session_id, call_id)}


async def _audited(audit: Log, session_id: str, call_id: str) -> JSON | None:
    """The last verdict that the full audit has of the call, with the facts as they were then."""
    after, found = 0, None
    try:
        while page := await audit.read(session_id, after=after, limit=PAGE, kinds=(ev.AuditDecided.KIND,)):
            for event in page:
                if isinstance(body := event.body, ev.AuditDecided) and body.call_id == call_id:
                    found = event.at, body
            after = page[-1].seq
    except NotFound:
        return None
    if found is None:
        return None
    at, body = found
    kept = ev.encode_body(body)
    return {"at": at, **{name: kept[name] for name in ("verdict", "rule_ids", "facts", "grant_ids")}}


async def _approval(log: Log, session_id: str, item_id: str) -> JSON | None:
    """The approval that is meant, or the one the call waited for."""
    row = await log.item(session_id, item_id)
    if row is not None and row.data["type"] != "approval":
        asked = row.data.get("approval_id")
        row = await log.item(session_id, asked) if asked else None
    return row.data if row else None


def _explained(
    events: list[Event], trial: Trial, session_id: str, call_id: str, approval: JSON | None
) -> JSON:
    judged = next(iter(judge(events, trial)), None)
    if judged is None:
        raise NotFound(
            f"No rule was asked about {call_id!r} in this session.",
            hint="Name a gated tool call (tc_…), a model call (call_…) or an approval (ap_…) of it.",
        )
    verdict = judged.verdict
    deciding = [entry for entry in judged.effective if rule_id(entry.name, entry.scope) in verdict.rule_ids]
    return judged.json() | {
        "session_id": session_id,
        "parsed": judged.call.parsed,
        "actions": [action.model_dump(mode="json") for action in judged.call.actions],
        "rules": [rule_json(entry) for entry in deciding],
        "facts": list(verdict.facts),
        "after": _looked_back(events, judged, deciding),
        "recorded_verdict": _recorded(events, call_id),
        "approval": approval and _approval_json(approval),
    }


def _recorded(events: Sequence[Event], call_id: str) -> JSON | None:
    """The verdict as it was written down then. None: it was a plain allow."""
    for event in events:
        if event.item_id == call_id and isinstance(body := event.body, ev.PolicyDecided):
            return {
                "seq": event.seq,
                "verdict": body.verdict,
                "rule_ids": list(body.rule_ids),
                "reason": body.reason,
                "grant_ids": list(body.grant_ids),
            }
    return None


def _approval_json(approval: JSON) -> JSON:
    names = ("id", "status", "by", "reason", "grant", "edited", "expires_at")
    return {name: approval.get(name) for name in names}


def _looked_back(events: list[Event], judged: Judged, deciding: Sequence[PolicyEntry]) -> list[JSON]:
    """The earlier calls that an `after` of the deciding rules speaks of and that count: they ran, and aren't
    known to have failed."""
    before = _up_to(events, judged.event)
    ends = _ends(before)
    found: dict[str, JSON] = {}
    for entry in deciding:
        probe, within = _probe(entry)
        if probe is None:
            continue
        for one in judge(before, Trial(entries=(probe,), as_recorded=False)):
            counts = ends.get(one.call.item_id) != "no" and _is_within(one.event, judged.event, within)
            if counts and rule_id(probe.name, probe.scope) in one.verdict.rule_ids:
                at = {"seq": one.event.seq, "session_id": one.event.session_id, "at": one.event.at}
                found[one.event.id] = at | {"title": one.title}
    return list(found.values())


def _is_within(event: Event, last: Event, within: object) -> bool:
    """Whether the event is as near as the rule's `within` wants it."""
    if within == "turn":
        return event.session_id == last.session_id and event.turn_id == last.turn_id
    return within is None or last.at - event.at <= duration(within)


def _probe(entry: PolicyEntry) -> tuple[PolicyEntry | None, object]:
    """A rule that asks about exactly what another one's `after` speaks of, and how long that reaches back."""
    after = cast(JSON, json.loads(entry.content)).get("after")
    if not isinstance(after, dict):
        return None, None
    given = cast(JSON, after)
    when = {key: value for key, value in given.items() if key != "within"}
    rule = {"name": _PROBE, "when": when, "then": "ask"}
    return PolicyEntry(name=_PROBE, scope=entry.scope, content=canonical(rule)), given.get("within")


def _up_to(events: list[Event], last: Event) -> list[Event]:
    """The events before a call was requested."""
    return events[: next(place for place, event in enumerate(events) if event.id == last.id)]


def _ends(events: Sequence[Event]) -> dict[str, str]:
    """Calls that don't count: denied, or held and not allowed, or the one simple command of a call that is
    known to have failed."""
    ends: dict[str, str] = {}
    asked: dict[str, str] = {}
    sole: set[str] = set()
    for event in events:
        item, body = event.item_id or "", event.body
        match body:
            case ev.ToolRequested():
                if len(body.actions) == 1 and getattr(body.actions[0], "sole", False) and not body.background:
                    sole.add(item)
            case ev.PolicyDecided():
                ends[item] = "yes" if body.verdict == "allow" else "no"
            case ev.ApprovalRequested():
                asked[item] = body.call_id
            case ev.ApprovalResolved() if item in asked:
                ends[asked[item]] = "yes" if body.outcome == "allowed" else "no"
            case ev.ToolCompleted() if item in sole and body.outcome == "error" and body.exit_code:
                ends[item] = "no"
            case _:
                pass
    return ends
