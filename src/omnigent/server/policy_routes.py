"""The routes of control: policies, what they say to recorded calls, the ledger and the audit."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.responses import Response

from omnigent.deciding import protected
from omnigent.errors import Malformed, OmnigentError, Unprocessable
from omnigent.events import JSON, Event, PolicyEntry, parse_event
from omnigent.hindsight import Judged, Trial, judge
from omnigent.log import UsageBy
from omnigent.policies.engine import effective
from omnigent.policies.language import parse
from omnigent.rulebook import Applied, Change, Rulebook, Scope, change_of
from omnigent.server import openapi as doc
from omnigent.server.answers import answer, read_model, read_union
from omnigent.server.auth import caller
from omnigent.server.explaining import explanation
from omnigent.server.recorded import lineage, recorded_events
from omnigent.server.room import room
from omnigent.server.rule_words import rule_json
from omnigent.sessions import OWNER

LARGEST_LOG = 256 * 1024 * 1024
"""Bytes of a recorded log to test rules on."""
LARGEST_FILE = 1024 * 1024
PROPOSED = ".omnigent/policies.yaml"
"""Where a project proposes rules. They bind nobody until an owner applies them."""

router = APIRouter(tags=["control"])

SessionId = Annotated[str, Path(description="A session's id (`ses_…`)")]
Moment = Annotated[int | None, Query(ge=0, description="UTC milliseconds")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChangePolicies(_Body):
    """`key`: the project's absolute path, the user's name (default: yours), or, to see what a change of its
    own rules would come to, the session's id. `policies` is YAML; each rule replaces the one of its name."""

    scope: Literal["server", "user", "project", "session"]
    key: str = ""
    policies: str = Field(default="", max_length=LARGEST_FILE)
    remove: tuple[str, ...] = ()


class CheckPolicies(_Body):
    policies: str = Field(max_length=LARGEST_FILE)


class TryPolicies(_Body):
    """Give `events` (a whole log, as `GET …/events` shows them) or `session_id`. `at` (UTC ms): as if every
    call were made then."""

    policies: str = Field(max_length=LARGEST_FILE)
    events: tuple[JSON, ...] | None = None
    session_id: str | None = None
    at: int | None = None


class Replay(_Body):
    """`policies`: rules that hold beside today's."""

    policies: str | None = Field(default=None, max_length=LARGEST_FILE)


BODIES = (ChangePolicies, CheckPolicies, TryPolicies, Replay)

_TRY = TypeAdapter(TryPolicies)


# What the rules are.


@router.get("/v1/policies", **doc.route("PolicyList"))
async def read_policies(
    request: Request,
    session: Annotated[str | None, Query(description="The rules in effect in this session")] = None,
    workspace: Annotated[str | None, Query(description="The project whose proposal is shown")] = None,
) -> Response:
    """With `session`: every rule in effect there. Without: what was applied, by scope. `proposed` says how
    the project's own file differs from what is applied."""
    caller(request, "read")
    book = room(request).sessions.rulebook
    if session is None:
        rows = _applied(book)
        place = workspace
    else:
        view = (await room(request).sessions.get(session)).view
        rows = [rule_json(entry) for entry in await _in_effect(request, session)]
        place = view.project
    proposed = None if place is None else await asyncio.to_thread(_proposed, book, place)
    return answer({"items": rows, "proposed": proposed, "next_cursor": None})


async def _in_effect(request: Request, session_id: str) -> tuple[PolicyEntry, ...]:
    """Raises `NotFound`."""
    sessions = room(request).sessions
    await sessions.get(session_id)
    return effective(await sessions.log.tree(session_id), session_id)


def _applied(book: Rulebook) -> list[JSON]:
    standing = book.standing()
    first: JSON = {"scope": "builtin", "key": "", "policies": [rule_json(entry) for entry in standing]}
    return [first | {"off": [], "at": None, "actor": None}, *map(_set_json, book.sets())]


def _set_json(one: Applied) -> JSON:
    return {
        "scope": one.scope,
        "key": one.key,
        "policies": [rule_json(entry) for entry in one.entries],
        "off": list(one.off),
        "at": one.at,
        "actor": one.actor.model_dump(),
    }


def _proposed(book: Rulebook, workspace: str) -> JSON | None:
    """What the project's file would change. None: there is no such file."""
    path = FilePath(workspace) / PROPOSED
    try:
        with path.open("rb") as opened:
            data = opened.read(LARGEST_FILE + 1)
    except OSError:
        return None
    shown: JSON = {"path": str(path), "differs": True, "error": None, "commands": []}
    try:
        if len(data) > LARGEST_FILE:
            raise Unprocessable(f"{path} is too large for a policy file.")
        text = data.decode()
        given = {entry.name for entry in parse(text, str(path), "project")}
        gone = [entry.name for entry in book.set("project", workspace).entries if entry.name not in given]
        change = book.preview("project", workspace, text, gone)
    except (OmnigentError, UnicodeDecodeError) as error:
        detail = error.detail if isinstance(error, OmnigentError) else "It is not UTF-8 text."
        return shown | Change().json() | {"error": detail}
    commands = [f"omnigent policy add {PROPOSED} --scope project"] if change.added or change.changed else []
    commands += [f"omnigent policy rm {' '.join(gone)} --scope project"] if gone else []
    return shown | change.json() | {"differs": bool(change), "commands": commands}


# Changing them.


@router.put("/v1/policies", **doc.route("PolicyChange", body="ChangePolicies"))
async def change_policies(request: Request) -> Response:
    """Apply rules to a scope wider than a session, for all sessions in it, those that run included. A
    session's own are changed by its command `set_policies`."""
    actor = caller(request, "manage").actor
    wanted = await read_model(request, ChangePolicies)
    scope, key = _wider(wanted)
    change = await room(request).sessions.rulebook.apply(scope, key, wanted.policies, wanted.remove, actor)
    return answer(change.json())


@router.post("/v1/policies/diff", **doc.route("PolicyChange", body="ChangePolicies"))
async def diff_policies(request: Request) -> Response:
    """What a change would come to; nothing is changed."""
    caller(request, "read")
    wanted = await read_model(request, ChangePolicies)
    if wanted.scope != "session":
        scope, key = _wider(wanted)
        book = room(request).sessions.rulebook
        return answer(book.preview(scope, key, wanted.policies, wanted.remove).json())
    now = await _in_effect(request, wanted.key)
    return answer(change_of("session", now, wanted.policies, wanted.remove)[1].json())


def _wider(wanted: ChangePolicies) -> tuple[Scope, str]:
    match wanted.scope:
        case "session":
            raise Unprocessable(
                "A session's own policies are changed by its command.",
                hint="POST /v1/sessions/{id}/commands with type set_policies.",
                path="scope",
            )
        case "user":
            return "user", wanted.key or OWNER
        case "server" | "project":
            return wanted.scope, wanted.key


@router.post("/v1/policies/check", **doc.route("RuleList", body="CheckPolicies"))
async def check_policies(request: Request) -> Response:
    """Whether a YAML text can be used: its rules, or 422 `policy_invalid` with line and column."""
    caller(request, "read")
    wanted = await read_model(request, CheckPolicies)
    rules = [rule_json(entry) for entry in parse(wanted.policies, "policies", "session")]
    return answer({"items": rules, "next_cursor": None})


# What they say to what was recorded.


@router.post("/v1/policies/test", **doc.route("VerdictList", body="TryPolicies"))
async def try_policies(request: Request) -> Response:
    """What these rules alone say to each gated tool call and each model call of a recorded log."""
    caller(request, "read")
    wanted = await read_union(request, _TRY, LARGEST_LOG)
    rules = parse(wanted.policies, "policies", "session")
    if (wanted.events is None) == (wanted.session_id is None):
        raise Malformed("Give `events` or `session_id`.", path="events")
    trial = Trial(entries=rules, at=wanted.at, as_recorded=False)
    if wanted.session_id is not None:
        events = await recorded_events(room(request).sessions.log, wanted.session_id)
        trial = replace(trial, sessions=lineage(events, wanted.session_id))
    else:
        events = await asyncio.to_thread(_parsed, wanted.events or ())
    return answer(_verdicts(await asyncio.to_thread(_judged, events, trial)))


def _parsed(raw: tuple[JSON, ...]) -> list[Event]:
    events: list[Event] = []
    for place, one in enumerate(raw):
        try:
            events.append(parse_event(json.dumps(one)))
        except Malformed as error:
            raise Malformed(f"events.{place}: {error.detail}", hint=error.hint, path="events") from error
    return events


@router.post("/v1/sessions/{session_id}/replay", **doc.route("VerdictList", body="Replay"))
async def replay_session(request: Request, session_id: SessionId) -> Response:
    """What today's rules would have said to each gated tool call and each model call of the session, with its
    own approvals mode, grants and budget."""
    caller(request, "read")
    wanted = await read_model(request, Replay)
    sessions = room(request).sessions
    view = (await sessions.get(session_id)).view
    own = [entry for entry in await _in_effect(request, session_id) if entry.scope == "session"]
    given = parse(wanted.policies, "policies", "session") if wanted.policies else ()
    rules = _stacked(sessions.rulebook.entries(view.project, view.owner), own, given)
    events = await recorded_events(sessions.log, session_id)
    trial = replace(_trial(request, session_id), entries=rules, sessions=lineage(events, session_id))
    return answer(_verdicts(await asyncio.to_thread(_judged, events, trial)))


def _stacked(
    wider: tuple[PolicyEntry, ...], own: list[PolicyEntry], given: tuple[PolicyEntry, ...]
) -> tuple[PolicyEntry, ...]:
    names = {entry.name for entry in given}
    return (*wider, *(entry for entry in own if entry.name not in names), *given)


def _trial(request: Request, session_id: str) -> Trial:
    """As the session itself is judged: its own mode, grants and budget, and what nobody's agent may touch."""
    home = room(request).sessions.home
    return Trial(
        protected=protected(home, FilePath.home()),
        own=(str(home / "run" / session_id),),
        api=urlsplit(request.app.state.url or str(request.base_url)).netloc,
    )


def _judged(events: list[Event], trial: Trial) -> list[Judged]:
    return list(judge(events, trial))


def _verdicts(judged: list[Judged]) -> JSON:
    rows = [one.json() for one in judged]
    counts = {name: sum(row["verdict"] == name for row in rows) for name in ("allow", "ask", "pause", "deny")}
    return {"items": rows, "counts": counts, "next_cursor": None}


@router.get("/v1/sessions/{session_id}/explain", **doc.route("Explanation"))
async def explain_item(
    request: Request,
    session_id: SessionId,
    item: Annotated[
        str, Query(description="A tool call (`tc_…`), model call (`call_…`) or approval (`ap_…`)")
    ],
) -> Response:
    """Which rule decided a call, from which facts, and which earlier events it looks back at."""
    caller(request, "read")
    sessions = room(request).sessions
    await sessions.get(session_id)
    await sessions.audit.flush()
    trial = _trial(request, session_id)
    return answer(await explanation(sessions.log, sessions.audit.log, session_id, item, trial))


# The ledger and the audit.


@router.get("/v1/usage", **doc.route("UsageList"))
async def read_usage(
    request: Request,
    by: UsageBy = "model",
    since: Moment = None,
    until: Moment = None,
    session: Annotated[str | None, Query(description="Only this session")] = None,
) -> Response:
    """What model calls used, since ≤ their time < until. `cost_usd` null: nothing of it is priced."""
    caller(request, "read")
    if session is not None:
        await room(request).sessions.get(session)
    rows = await room(request).sessions.log.usage(by, since, until, session)
    return answer({"by": by, "items": [_usage_json(row) for row in rows], "next_cursor": None})


def _usage_json(row: JSON) -> JSON:
    """Money in dollars, as everywhere in the API."""
    shown = {name: value for name, value in row.items() if not name.endswith("_nanousd")}
    for name in ("cost", "notional"):
        nano: int | None = row[f"{name}_nanousd"]
        shown[f"{name}_usd"] = None if nano is None else nano / 1e9
    return shown


@router.get("/v1/sessions/{session_id}/audit", **doc.route(None, binary_out="application/jsonl"))
async def export_audit(request: Request, session_id: SessionId) -> Response:
    """The session's log and its full audit, one line each: `{"log": "session" | "audit", "event": …}`.
    `org_local` is the house itself: what was applied to wider scopes, and refusals that name no session."""
    caller(request, "read")
    data = await room(request).sessions.audit.export(session_id)
    name = f'attachment; filename="{session_id}.audit.jsonl"'
    return Response(data, headers={"Content-Disposition": name}, media_type="application/jsonl")


@router.get("/v1/sessions/{session_id}/audit/verify", **doc.route("AuditCheck"))
async def verify_audit(request: Request, session_id: SessionId) -> Response:
    """Whether both chains are whole; the first event that isn't, where they aren't."""
    caller(request, "read")
    return answer(await room(request).sessions.audit.verify(session_id))
