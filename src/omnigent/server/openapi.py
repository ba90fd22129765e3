"""The published description of the API: what routes say of themselves, and the shapes of their answers.

Answers are made past FastAPI's response models, so their shapes are stated here, in types that only the
description uses.
"""

from typing import Any, Literal, NotRequired, TypedDict, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response

from omnigent import __version__
from omnigent.commands import Command
from omnigent.events import JSON, Actor
from omnigent.sessions import CreateSession, ForkSession, PatchSession

_SPEC = "x-omnigent"


class Usage(TypedDict):
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    cost_partial: bool


class Pending(TypedDict):
    approvals: int
    questions: int


class Turn(TypedDict):
    id: str
    message_id: str | None
    trigger: str


class LastTurn(TypedDict):
    id: str
    outcome: Literal["completed", "failed", "interrupted"]
    code: NotRequired[str]
    detail: NotRequired[str]


class Run(TypedDict):
    run: str | None
    harness: str
    version: str
    native_ref: str | None
    how: str


class ForkedFrom(TypedDict):
    session_id: str
    seq: int


class Budget(TypedDict):
    """Of the family: the session, its children and forks. `unknown_calls`: their price isn't in it."""

    cap_usd: float | None
    spent_usd: float
    reserved_usd: float
    unknown_calls: int


class Paused(TypedDict):
    """Why a turn waits to go on. `until` (UTC ms): it goes on by itself then."""

    reason: Literal["budget", "policy", "quota"]
    rule_ids: list[str]
    detail: str
    until: int | None


class GrantInfo(TypedDict):
    """An allow that reaches further than one call."""

    grant_id: str
    scope: Literal["once", "session", "pattern"]
    rule_ids: list[str]
    pattern: str
    title: str
    uses: int | None
    until: int | None


class Session(TypedDict):
    """Times are UTC milliseconds since 1970."""

    id: str
    title: str
    harness: str
    model: str | None
    provider: str | None
    billing: str
    workspace: str
    approvals: Literal["ask", "yes", "deny"]
    sandbox: str
    status: Literal["starting", "idle", "running", "waiting", "paused", "lost", "closed"]
    status_reason: str
    status_since: int
    last_seq: int
    usage: Usage
    budget: Budget | None
    paused: Paused | None
    policies: int
    grants: list[GrantInfo]
    pending: Pending
    queue_length: int
    turn: Turn | None
    last_turn: LastTurn | None
    owner: str
    role: str
    parent_id: str | None
    root_id: str
    forked_from: ForkedFrom | None
    run: Run | None
    capabilities: dict[str, bool]
    created_at: int
    updated_at: int
    archived: bool
    labels: dict[str, str]
    web_url: str


class SessionList(TypedDict):
    items: list[Session]
    next_cursor: str | None


class CommandAnswer(TypedDict):
    """`message_id` and `turn_id` for a prompt."""

    command_id: str
    seq: int
    state: Literal["accepted", "queued"]
    message_id: NotRequired[str]
    turn_id: NotRequired[str]


class Event(TypedDict):
    """The envelope and, by `kind`, the body (docs/events.md)."""

    v: int
    id: str
    session_id: str
    seq: int
    root_id: str
    tree_pos: int
    at: int
    observed_at: int
    turn_id: str | None
    item_id: str | None
    parent_item_id: str | None
    actor: Actor
    cause: str | None
    run: str | None
    producer: str
    producer_seq: int
    epoch: int | None
    kind: str
    body_sha256: str
    hash: str
    body: JSON


class EventPage(TypedDict):
    events: list[Event]
    next_after: int
    prev_before: int | None
    head_seq: int
    has_more: bool


class Item(TypedDict):
    """A folded transcript item; by `type` it has more fields. `view_seq` is the seq that last changed it."""

    id: str
    type: str
    pos: int
    view_seq: int
    turn_id: str | None
    actor: Actor
    created_at: int
    updated_at: int
    status: NotRequired[str]


class ItemPage(TypedDict):
    items: list[Item]
    view_seq: int
    next_before: int | None
    next_cursor: str | None


class Waiting(TypedDict):
    session_id: str
    session_title: str
    item: Item


class Inbox(TypedDict):
    items: list[Waiting]
    next_cursor: None


class HarnessInfo(TypedDict):
    name: str
    wires: list[str]
    versions: list[str]
    capabilities: dict[str, bool]
    installed: bool
    version: str | None
    source: NotRequired[str]
    in_range: NotRequired[bool]
    hint: NotRequired[str]


class HarnessList(TypedDict):
    items: list[HarnessInfo]
    next_cursor: None


class DeviceInfo(TypedDict):
    id: str
    name: str
    created_at: int
    last_seen: int | None
    revoked_at: int | None
    current: NotRequired[bool]


class DeviceList(TypedDict):
    items: list[DeviceInfo]
    next_cursor: None


class NewDevice(DeviceInfo):
    token: str


class RuleInfo(TypedDict):
    """A policy: `rule` as it was written, `description` in one line."""

    name: str
    scope: Literal["builtin", "server", "user", "project", "agent", "session"]
    rule: JSON
    description: str


class RuleList(TypedDict):
    items: list[RuleInfo]
    next_cursor: None


class PolicySet(TypedDict):
    """What an owner applied to one scope. `off`: defaults that it switches off."""

    scope: Literal["builtin", "server", "user", "project"]
    key: str
    policies: list[RuleInfo]
    off: list[str]
    at: int | None
    actor: Actor | None


class PolicyChange(TypedDict):
    """`loosens`: something that was denied, paused or asked may then pass."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    loosens: bool


class Proposed(PolicyChange):
    """A project's own file against what is applied; `commands` would apply it."""

    path: str
    differs: bool
    error: str | None
    commands: list[str]


class PolicyList(TypedDict):
    """With `session` the items are rules, else sets."""

    items: list[RuleInfo | PolicySet]
    proposed: Proposed | None
    next_cursor: None


class CallVerdict(TypedDict):
    """What rules say to a recorded call; `recorded` is what was said then, "" for a plain allow."""

    item_id: str
    session_id: str
    seq: int
    at: int
    kind: Literal["tool", "model"]
    title: str
    verdict: Literal["allow", "ask", "pause", "deny"]
    rule_ids: list[str]
    reason: str
    recorded: str


class VerdictList(TypedDict):
    items: list[CallVerdict]
    counts: dict[str, int]
    next_cursor: None


class EarlierCall(TypedDict):
    seq: int
    session_id: str
    at: int
    title: str


class RecordedVerdict(TypedDict):
    seq: int
    verdict: Literal["allow", "ask", "pause", "deny"]
    rule_ids: list[str]
    reason: str
    grant_ids: list[str]


class Explanation(CallVerdict):
    """`after`: the earlier calls that the deciding rules look back at. `rules` lacks those that are no entry:
    doubt, protection, the budget."""

    parsed: Literal["full", "partial", "opaque"]
    actions: list[JSON]
    rules: list[RuleInfo]
    facts: list[str]
    after: list[EarlierCall]
    recorded_verdict: RecordedVerdict | None
    approval: JSON | None


class UsageRow(TypedDict):
    """`cost_usd` is what was billed, null where no price is known; `unknown_calls` are those missing in it.
    `notional_usd` is what the calls paid by a subscription would have cost."""

    key: str
    calls: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    unknown_calls: int
    notional_usd: float | None


class UsageList(TypedDict):
    by: str
    items: list[UsageRow]
    next_cursor: None


class ChainCheck(TypedDict):
    """`broken_at`: the seq of the first event that isn't what was written."""

    events: int
    broken_at: int | None


class AuditCheck(TypedDict):
    """Null: there is none."""

    ok: bool
    session: ChainCheck | None
    audit: ChainCheck | None


class Draining(TypedDict):
    draining: bool


class Health(TypedDict):
    status: Literal["ok"]
    version: str


class Problem(TypedDict):
    """RFC 9457. `code` is stable; further fields are facts for programs."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: NotRequired[str]
    allowed: NotRequired[list[str]]
    retry_after: NotRequired[float]


_SHAPES: dict[str, Any] = {
    shape.__name__: shape
    for shape in (
        AuditCheck, CommandAnswer, DeviceList, Draining, Event, EventPage, Explanation, HarnessList, Health,
        Inbox, ItemPage, NewDevice, PolicyChange, PolicyList, Problem, RuleList, Session, SessionList,
        UsageList, VerdictList,
    )
}  # fmt: skip
_BODIES: dict[str, Any] = {"Command": Command} | {
    model.__name__: model for model in (CreateSession, ForkSession, PatchSession)
}


def route(
    shape: str | None,
    *,
    body: str | None = None,
    key: bool = False,
    stream: bool = False,
    public: bool = False,
    binary_in: bool = False,
    binary_out: str | None = None,
) -> dict[str, Any]:
    """What a route tells the description: arguments of FastAPI's decorators.

    `shape` and `body` are names of schemas; `key`: it needs an `Idempotency-Key`; `stream`: it also answers
    `Accept: text/event-stream`.
    """
    spec = {
        "shape": shape,
        "body": body,
        "key": key,
        "stream": stream,
        "public": public,
        "binary_in": binary_in,
        "binary_out": binary_out,
    }
    return {"response_class": Response, "openapi_extra": {_SPEC: spec}}


def describe(app: FastAPI, *bodies: type[BaseModel]) -> JSON:
    """The OpenAPI 3.1 document of the application."""
    found = get_openapi(title="Omnigent", version=__version__, routes=app.routes)
    found["info"]["description"] = "Sessions of coding agents: one log each, followed by anyone who may."
    found["security"] = [{"bearer": []}]
    found["components"] = {
        "schemas": _schemas(_BODIES | {model.__name__: model for model in bodies}),
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    for methods in found["paths"].values():
        for operation in methods.values():
            _complete(operation, operation.pop(_SPEC))
    return found


def _schemas(bodies: dict[str, Any]) -> JSON:
    inputs = [(name, "validation", TypeAdapter(shape)) for name, shape in bodies.items()]
    outputs = [(name, "serialization", TypeAdapter(shape)) for name, shape in _SHAPES.items()]
    tops, rest = TypeAdapter.json_schemas(
        cast(Any, inputs + outputs), ref_template="#/components/schemas/{model}"
    )
    schemas: JSON = dict(rest.get("$defs", {}))
    for (name, _), schema in tops.items():
        schemas.setdefault(str(name), schema)
    return dict(sorted(schemas.items()))


def _complete(operation: JSON, spec: JSON) -> None:
    """State answers, body and headers. FastAPI has left out of `spec` what is None."""
    responses: JSON = operation["responses"]
    responses.pop("422", None)
    status = next(iter(responses))
    content: JSON = {}
    if "shape" in spec:
        content["application/json"] = _ref(spec["shape"])
    if "binary_out" in spec:
        content[spec["binary_out"]] = {"schema": {"type": "string", "format": "binary"}}
    if spec["stream"]:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses[status] = {"description": operation.get("summary", "")} | (
        {"content": content} if content else {}
    )
    responses["default"] = {
        "description": "A problem",
        "content": {"application/problem+json": _ref("Problem")},
    }
    if "body" in spec:
        operation["requestBody"] = {"required": True, "content": {"application/json": _ref(spec["body"])}}
    if spec["binary_in"]:
        zipped = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": zipped}
    if spec["key"]:
        operation.setdefault("parameters", []).append(_header("Idempotency-Key", required=True))
    if spec["stream"]:
        operation.setdefault("parameters", []).append(_header("Last-Event-ID", required=False))
    if spec["public"]:
        operation["security"] = []


def _ref(name: str) -> JSON:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _header(name: str, *, required: bool) -> JSON:
    return {"name": name, "in": "header", "required": required, "schema": {"type": "string"}}
