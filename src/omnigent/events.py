"""Every fact a session can hold: one closed union of bodies, one envelope, one canonical form.

A session is an append-only log of these events. Bodies are immutable, hold no floats (money is integer
nano-USD, durations integer milliseconds, times UTC milliseconds since 1970) and are shaped as upserts by
item id, so that late output is natural and several viewers can fold the same log.

Writing is strict and closed; reading is tolerant: a kind this version doesn't know is kept as `UnknownBody`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omnigent.actions import Action, Parsed
from omnigent.errors import Malformed

VERSION = 1
"""The envelope's version, `v`."""

GENESIS = "0" * 64
"""What stands for the previous hash before a session's first event."""

JSON = dict[str, Any]


class Actor(BaseModel):
    """Who did it. `id` is a device's or policy's name, a harness, or `omnigent` itself; `via` is the face."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["person", "agent", "policy", "system"]
    id: str
    via: Literal["cli", "tui", "web", "mobile", "api", "mcp", "acp", "runner"]


SYSTEM = Actor(kind="system", id="omnigent", via="runner")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Body(_Value):
    """What happened. Each subclass is one `kind`."""

    KIND: ClassVar[str]


# ── Values inside bodies ────────────────────────────────────────────────────────────────────────────────


class TextPart(_Value):
    type: Literal["text"] = "text"
    text: str


class ImagePart(_Value):
    """`blob` is the sha256 of the image's bytes in the blob store; `size` in bytes."""

    type: Literal["image"] = "image"
    media_type: str
    blob: str
    size: int


class FilePart(_Value):
    type: Literal["file"] = "file"
    path: str
    blob: str | None = None


Content = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]

ItemStatus = Literal["complete", "interrupted", "lost"]
"""How a streamed item ended; its text is always what is known of it."""

Trigger = Literal["prompt", "queue", "steer", "agent", "child", "resume"]
Delivery = Literal["turn", "steer"]
When = Literal["auto", "queue", "steer", "now"]
Approvals = Literal["ask", "yes", "deny"]
Outcome = Literal["ok", "error", "denied", "cancelled", "unknown"]
Billing = Literal["metered", "subscription", "unknown"]
Stream = Literal["text", "reasoning", "output"]
PolicyScope = Literal["builtin", "server", "user", "project", "agent", "session"]
Paused = Literal["budget", "policy", "quota"]
"""Why a turn is paused. `budget`: a cap; `policy`: another rule; `quota`: the provider's, until its reset."""
Metering = Literal["gateway", "harness"]
"""Who counts a run's model calls: our gateway, or (where traffic can't pass it) the harness itself."""
StartedHow = Literal["new", "native_resume", "native_fork", "seeded", "preamble"]


class Output(_Value):
    """A tool's output. Over 32 KiB `text` is its head and `tail` its end, and `blob` names all of it."""

    text: str = ""
    tail: str = ""
    size: int = 0
    """Bytes of the whole output in UTF-8."""
    truncated: bool = False
    blob: str | None = None
    images: tuple[ImagePart, ...] = ()


class Carried(_Value):
    """What a switch or a seeded start took along, and what it left."""

    how: Literal["seeded", "preamble", "none"]
    messages: int = 0
    tool_calls: int = 0
    images: int = 0
    dropped: tuple[str, ...] = ()
    """One line per thing left behind, for people."""


class Option(_Value):
    label: str
    description: str = ""


class Question(_Value):
    question: str
    header: str = ""
    options: tuple[Option, ...] = ()
    multiple: bool = False


class PlanEntry(_Value):
    text: str
    status: Literal["pending", "in_progress", "completed"]


class Grant(_Value):
    """How far an allow reaches. `session`: exactly these actions, until the session ends. `pattern`: what
    the pattern matches, as in a rule's `when` (`exec: npm run *`, `read: docs/**`, `net: api.github.com`)."""

    scope: Literal["once", "session", "pattern"] = "once"
    pattern: str = ""
    until: int | None = None
    """UTC ms; None: as long as the session."""


class PolicyEntry(_Value):
    """One policy in effect, by content: it stays in force whatever becomes of the file it came from."""

    name: str
    scope: PolicyScope
    content: str
    """The rule as canonical JSON text (a rule may hold a number with a fraction, a body may not)."""


# ── The session ─────────────────────────────────────────────────────────────────────────────────────────


class SessionCreated(Body):
    KIND = "session.created"
    title: str
    harness: str
    model: str | None
    provider: str | None
    workspace: str
    approvals: Approvals
    owner: str
    org: str = "local"
    sandbox: str = "host"
    billing: Billing = "unknown"
    credential: str = ""
    """What will pay for its model calls, by name (see `harness.started`)."""
    parent_id: str | None = None
    labels: dict[str, str] = {}


class SessionUpdated(Body):
    """Only what changed is set."""

    KIND = "session.updated"
    title: str | None = None
    archived: bool | None = None
    labels: dict[str, str] | None = None


class SessionForked(Body):
    """The first event of a fork's own. All before it is the parent's prefix, unchanged."""

    KIND = "session.forked"
    parent_id: str
    at_seq: int
    parent_hash: str
    owner: str
    title: str
    harness: str
    model: str | None
    provider: str | None
    workspace: str
    approvals: Approvals
    share_workspace: bool = False


class SessionClosed(Body):
    """Prompts are refused until it is reopened (`resume`)."""

    KIND = "session.closed"


class SessionReopened(Body):
    KIND = "session.reopened"


# ── The harness ─────────────────────────────────────────────────────────────────────────────────────────


class HarnessStarted(Body):
    """An agent process is up and has answered its handshake.

    `native_ref` is the vendor's own session id or file; `covers_seq` the last seq whose content that native
    session holds at this moment. `capabilities` are those of the adapter, by name.
    """

    KIND = "harness.started"
    harness: str
    version: str
    native_ref: str | None
    covers_seq: int
    model: str | None
    provider: str | None
    billing: Billing = "unknown"
    credential: str = ""
    """What pays and where it is sent, by name and never by value: `env ANTHROPIC_API_KEY at
    api.anthropic.com`."""
    metering: Metering = "harness"
    sandbox: str = "host"
    capabilities: dict[str, bool] = {}
    tools: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] = ()
    how: StartedHow = "new"
    carried: Carried | None = None


class HarnessUpdated(Body):
    """The native session's id or file became known, or changed."""

    KIND = "harness.updated"
    native_ref: str


class HarnessExited(Body):
    KIND = "harness.exited"
    reason: Literal[
        "closed", "idle", "switched", "crashed", "runner_lost", "grace_expired", "failed_to_start"
    ]
    exit_code: int | None = None
    stderr_tail: str = ""


class HarnessChanged(Body):
    """A switch took effect: from here the session's turns run on `to`."""

    KIND = "harness.changed"
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)
    from_: str = Field(validation_alias="from", serialization_alias="from")
    to: str
    model: str | None
    provider: str | None
    carried: Carried


class ModelChanged(Body):
    KIND = "model.changed"
    model: str
    provider: str | None = None
    effort: str | None = None


# ── Turns ───────────────────────────────────────────────────────────────────────────────────────────────


class TurnStarted(Body):
    """Committed before the message is handed to the agent, so that no hand-over goes unrecorded."""

    KIND = "turn.started"
    trigger: Trigger
    message_id: str | None = None


class TurnCompleted(Body):
    KIND = "turn.completed"


class TurnFailed(Body):
    """`code` is stable (`agent_error`, `agent_exited`, `runner_lost`, `stalled`, `start_failed`, …)."""

    KIND = "turn.failed"
    code: str
    detail: str
    stderr_tail: str = ""


class TurnInterrupted(Body):
    KIND = "turn.interrupted"
    how: Literal["protocol", "kill"] = "protocol"


class TurnPaused(Body):
    """The turn stopped where it was and goes on with `resume`, in the same native session. The agent's
    process may end meanwhile. `until` (UTC ms): it goes on by itself then."""

    KIND = "turn.paused"
    reason: Paused
    rule_ids: tuple[str, ...] = ()
    detail: str = ""
    until: int | None = None


class TurnResumed(Body):
    """A paused turn goes on: the next turn's message tells the agent to continue."""

    KIND = "turn.resumed"


# ── Messages ────────────────────────────────────────────────────────────────────────────────────────────


class MessageSubmitted(Body):
    """A person's (or parent agent's) message entered the session. Its item id is the message's id."""

    KIND = "message.submitted"
    content: tuple[Content, ...]
    when: When = "auto"


class MessageQueued(Body):
    KIND = "message.queued"


class MessageEdited(Body):
    """A message still in the queue got new content."""

    KIND = "message.edited"
    content: tuple[Content, ...]


class MessageDelivered(Body):
    """The agent acknowledged the message, or its native transcript was found to hold it."""

    KIND = "message.delivered"
    as_: Delivery = Field(validation_alias="as", serialization_alias="as")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class MessageCancelled(Body):
    KIND = "message.cancelled"


class MessageFailed(Body):
    """`delivery_unknown`: handed over, never acknowledged, not found; never sent again by itself."""

    KIND = "message.failed"
    code: Literal["delivery_unknown", "not_delivered", "rejected"]
    detail: str = ""


class MessageStarted(Body):
    """The agent began to answer."""

    KIND = "message.started"


class MessageCompleted(Body):
    KIND = "message.completed"
    content: tuple[Content, ...]
    status: ItemStatus = "complete"


class ReasoningCompleted(Body):
    KIND = "reasoning.completed"
    text: str
    status: ItemStatus = "complete"


class ItemUpdated(Body):
    """A checkpoint of a long item: `text` belongs at `offset` (code points) of its `stream`."""

    KIND = "item.updated"
    stream: Stream
    offset: int
    text: str


# ── Tool calls and the gate ─────────────────────────────────────────────────────────────────────────────


class ToolRequested(Body):
    """The agent wants to use a tool. `gated`: it waits for a verdict; else its row says why not (`harmless`).

    `raw` is the vendor's input as JSON text, exactly as it came; `native_id` the vendor's id, which vendors
    reuse after a restart, a fork or a switch.
    """

    KIND = "tool.requested"
    tool: str
    title: str
    actions: tuple[Action, ...]
    parsed: Parsed
    raw: str
    native_id: str
    gated: bool = True
    background: bool = False


class ToolStarted(Body):
    """The verdict was allow and the call was released to the agent."""

    KIND = "tool.started"


class ToolCompleted(Body):
    KIND = "tool.completed"
    outcome: Outcome
    output: Output = Output()
    exit_code: int | None = None
    duration_ms: int | None = None
    reason: str = ""


class PolicyDecided(Body):
    """A verdict that is not a plain allow, on the tool call of this item id."""

    KIND = "policy.decided"
    verdict: Literal["allow", "ask", "pause", "deny"]
    rule_ids: tuple[str, ...]
    reason: str
    grant_ids: tuple[str, ...] = ()
    """Grants that turned an ask into this allow; one of scope `once` is used up by it."""
    action: Action | None = None
    """Of a model call, which has no `tool.requested`."""


class PolicyChanged(Body):
    """The policies in effect from here on, whole: `policies` replaces what was before."""

    KIND = "policy.changed"
    policies: tuple[PolicyEntry, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    loosens: bool = False
    """Whether something that was denied, paused or asked may now pass."""


class BudgetChanged(Body):
    """The cap on the family's spending, in nano-USD; None lifts it."""

    KIND = "budget.changed"
    cap_nanousd: int | None


class GrantAdded(Body):
    """A person's allow that reaches further than one call. Its item id is the grant's id. It silences the
    asks of `rule_ids` for an action whose digest is in `digests` or that `pattern` matches; nothing else.

    `uses` 1 is the grant left by answering for an agent that was gone: the same call, proposed again, uses
    it up.
    """

    KIND = "grant.added"
    scope: Literal["once", "session", "pattern"]
    rule_ids: tuple[str, ...]
    digests: tuple[str, ...] = ()
    """Of single actions."""
    call_sha256: str = ""
    """Of a whole call, for a grant of scope `once`."""
    pattern: str = ""
    title: str = ""
    uses: int | None = None
    until: int | None = None


class GrantRevoked(Body):
    KIND = "grant.revoked"


class AccessRefused(Body):
    """Somebody asked for what only a person may do, from inside an agent, or with an agent's credential."""

    KIND = "access.refused"
    what: str
    """The request, without its body: `POST /v1/sessions/…/commands resolve`."""
    reason: str
    pid: int | None = None
    program: str = ""


class ApprovalRequested(Body):
    """`call_id` is the tool call's item id; `expires_at` the moment it turns into a deny."""

    KIND = "approval.requested"
    call_id: str
    actions: tuple[Action, ...]
    action_sha256: str
    title: str
    reason: str
    rule_ids: tuple[str, ...] = ()
    may_answer: tuple[str, ...] = ("owner",)
    options: tuple[str, ...] = ("allow", "allow_session", "deny")
    expires_at: int
    hold: Literal["ask", "pause"] = "ask"
    """`pause`: a rule stopped the turn here; `resume` or a changed budget lets the call be decided anew."""
    asked: tuple[int, ...] = ()
    """Places in `actions` of those that are asked about; the others would pass."""
    patterns: tuple[str, ...] = ()
    """Patterns that would cover it from now on, the narrowest first: shown, and theirs to edit."""
    edit: str = ""
    """The command as it may be edited before it is allowed; "" where the harness can't take another."""
    command: str | None = None
    """What a rule puts in the place of the command: this is what runs if it is allowed."""


class ApprovalDetached(Body):
    """Its agent is gone, the approval stays open. Answering it starts the agent again, which proposes the
    call anew; an allow is remembered for that."""

    KIND = "approval.detached"


class ApprovalResolved(Body):
    """`cancelled_by` says what ended a cancelled one; `reason` reaches the model when denied."""

    KIND = "approval.resolved"
    outcome: Literal["allowed", "denied", "expired", "cancelled"]
    cancelled_by: Literal["interrupted", "switched", "closed", "superseded", "lost"] | None = None
    grant: Grant = Grant()
    edited: str | None = None
    """The command that runs instead of the one proposed."""
    reason: str = ""


class QuestionAsked(Body):
    """The agent asks the person. Its item id is the question's id."""

    KIND = "question.asked"
    questions: tuple[Question, ...]
    call_id: str | None = None


class QuestionAnswered(Body):
    """`values`: one list of chosen labels or free text per question."""

    KIND = "question.answered"
    outcome: Literal["answered", "cancelled"]
    values: tuple[tuple[str, ...], ...] = ()


# ── Meters, files, notices ──────────────────────────────────────────────────────────────────────────────


class UsageReserved(Body):
    """A model call was let out of the gateway; `estimate_nanousd` is set aside until its usage is reported.

    None: the price is unknown. Without `bounded` the estimate is of the input alone.
    """

    KIND = "usage.reserved"
    call_id: str
    model: str
    provider: str
    input_tokens: int = 0
    max_output_tokens: int | None = None
    estimate_nanousd: int | None = None
    bounded: bool = False


class UsageReported(Body):
    """Tokens of one completed model call (or of a turn, where the harness tells no more).

    `input_tokens` excludes cache reads and writes; `output_tokens` includes `reasoning_tokens`;
    `cache_write_tokens` includes `cache_write_1h_tokens`. `cost_nanousd` null means unknown, never zero;
    with `basis` `harness` it is told with the whole turn, in a report of scope `turn`. With `billing`
    `subscription` the cost is what the same tokens would cost at list price: nothing was billed. `estimate`:
    the call was broken off and its tokens are counted from what was seen.
    """

    KIND = "usage.reported"
    call_id: str
    source: Literal["gateway", "harness"]
    scope: Literal["call", "turn"]
    model: str | None = None
    provider: str | None = None
    credential: str = ""
    harness: str = ""
    billing: Billing = "unknown"
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int | None = None
    basis: Literal["provider", "harness", "table", "estimate", "unknown"] = "unknown"
    outcome: Literal["ok", "aborted", "error", "lost"] = "ok"


class FileChanged(Body):
    KIND = "file.changed"
    path: str
    change: Literal["added", "modified", "deleted"]
    diff: str = ""


class PlanUpdated(Body):
    KIND = "plan.updated"
    entries: tuple[PlanEntry, ...]


class NoticeRaised(Body):
    """Something a person should know. `code` is stable (`stalled`, `garbage`, `retrying`, …)."""

    KIND = "notice.raised"
    code: str
    level: Literal["info", "warning", "error"]
    detail: str
    until: int | None = None
    """UTC ms, where it ends by itself (a quota's reset)."""


class WorkspaceCheckpointed(Body):
    """The work tree after a turn that changed it: `tree` is a commit kept by a hidden ref of the repo."""

    KIND = "workspace.checkpointed"
    head: str
    tree: str


class CommandQueued(Body):
    """A command that takes its place in the queue behind messages (`switch`, `set_model`). Its item id is the
    command's id; `arguments` are the command without its key."""

    KIND = "command.queued"
    arguments: JSON


class CommandEnded(Body):
    """A queued command was carried out, or couldn't be."""

    KIND = "command.ended"
    outcome: Literal["done", "failed", "cancelled"]
    detail: str = ""


class ContextCompacted(Body):
    """The harness summarised its own context; from here its native session begins with `summary`."""

    KIND = "context.compacted"
    summary: str = ""


class AuditDecided(Body):
    """Every verdict, plain allows too. Only in the audit log, never in a session's."""

    KIND = "audit.decided"
    call_id: str
    actions: tuple[Action, ...]
    verdict: Literal["allow", "ask", "pause", "deny"]
    rule_ids: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    """One line per rule that said something, and from which facts."""
    grant_ids: tuple[str, ...] = ()


class AuditDropped(Body):
    """So many facts came faster than the audit log could write them, or it failed. Only in the audit log."""

    KIND = "audit.dropped"
    events: int


class UnknownBody(Body):
    """A kind written by a newer version: kept, shown raw, never written by this one."""

    KIND = "unknown"
    kind: str
    raw: JSON


AnyBody = (
    SessionCreated
    | SessionUpdated
    | SessionForked
    | SessionClosed
    | SessionReopened
    | HarnessStarted
    | HarnessUpdated
    | HarnessExited
    | HarnessChanged
    | ModelChanged
    | TurnStarted
    | TurnCompleted
    | TurnFailed
    | TurnInterrupted
    | TurnPaused
    | TurnResumed
    | MessageSubmitted
    | MessageQueued
    | MessageEdited
    | MessageDelivered
    | MessageCancelled
    | MessageFailed
    | MessageStarted
    | MessageCompleted
    | ReasoningCompleted
    | ItemUpdated
    | ToolRequested
    | ToolStarted
    | ToolCompleted
    | PolicyDecided
    | PolicyChanged
    | BudgetChanged
    | GrantAdded
    | GrantRevoked
    | AccessRefused
    | ApprovalRequested
    | ApprovalDetached
    | ApprovalResolved
    | QuestionAsked
    | QuestionAnswered
    | UsageReserved
    | UsageReported
    | FileChanged
    | PlanUpdated
    | NoticeRaised
    | WorkspaceCheckpointed
    | CommandQueued
    | CommandEnded
    | ContextCompacted
    | UnknownBody
)
"""What a session's log holds. The audit log holds `AUDIT` beside some of them."""

AUDIT: tuple[type[Body], ...] = (AuditDecided, AuditDropped)

BODIES: dict[str, type[Body]] = {
    body.KIND: body for body in (*AnyBody.__args__, *AUDIT) if body is not UnknownBody
}
"""The closed table: kind → body class."""


def decode_body(kind: str, body: JSON) -> AnyBody:
    """The typed body, or `UnknownBody` for a kind or shape this version doesn't know."""
    cls = BODIES.get(kind)
    if cls is None:
        return UnknownBody(kind=kind, raw=body)
    try:
        return cast(AnyBody, cls.model_validate(body))
    except ValidationError:
        return UnknownBody(kind=kind, raw=body)


def encode_body(body: Body) -> JSON:
    """The body as plain JSON values."""
    if isinstance(body, UnknownBody):
        return body.raw
    return body.model_dump(mode="json")


_compact = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def canonical(value: Any) -> str:
    """RFC 8785 JSON text: the one form that is hashed. `ValueError` for NaN or half a surrogate pair."""
    if _is_plain(value):
        text = _compact(value)
        if text.isascii() or _is_utf8(text):
            return text
    return rfc8785.dumps(value).decode()


def _is_plain(value: Any) -> bool:
    """Whether the standard encoder's text is the RFC's: no floats, exact integers, ASCII keys."""
    # Those are the only places where the two differ: the RFC writes numbers as ECMAScript does and sorts
    # keys by UTF-16 unit. The standard encoder is written in C and some twenty times as fast.
    kind = cast(type[Any], type(value))
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -(2**53) < value < 2**53
    if kind is dict:
        return all(type(key) is str and key.isascii() and _is_plain(value[key]) for key in value)
    return (kind is list or kind is tuple) and all(map(_is_plain, value))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Draft:
    """An event before the log numbers it."""

    body: Body
    item_id: str | None = None
    parent_item_id: str | None = None
    turn_id: str | None = None
    actor: Actor = SYSTEM
    cause: str | None = None
    """The command that led to it."""
    run: str | None = None
    """Which start of the harness produced it."""
    observed_at: int | None = None
    """When the producer saw it (UTC ms); the log's own clock sets `at`."""


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event: the envelope plus the exact body text that was hashed."""

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
    body_text: str
    body_sha256: str
    hash: str
    typed: list[AnyBody] = field(default_factory=list[AnyBody], compare=False, repr=False)
    """The body once decoded, or the one the event was made from."""
    wire: list[str] = field(default_factory=list[str], compare=False, repr=False)
    """`json_text` once made: two hundred followers share it."""

    @property
    def body(self) -> AnyBody:
        """The typed body, decoded once."""
        if not self.typed:
            self.typed.append(decode_body(self.kind, json.loads(self.body_text)))
        return self.typed[0]

    def envelope(self) -> JSON:
        """The envelope that is hashed: all but `hash` and `body`."""
        return {
            "v": self.v,
            "id": self.id,
            "session_id": self.session_id,
            "seq": self.seq,
            "root_id": self.root_id,
            "tree_pos": self.tree_pos,
            "at": self.at,
            "observed_at": self.observed_at,
            "turn_id": self.turn_id,
            "item_id": self.item_id,
            "parent_item_id": self.parent_item_id,
            "actor": {"kind": self.actor.kind, "id": self.actor.id, "via": self.actor.via},
            "cause": self.cause,
            "run": self.run,
            "producer": self.producer,
            "producer_seq": self.producer_seq,
            "epoch": self.epoch,
            "kind": self.kind,
            "body_sha256": self.body_sha256,
        }

    def json_text(self) -> str:
        """The wire and export form: envelope, hash and body, the body byte for byte as hashed."""
        if not self.wire:
            envelope = self.envelope() | {"hash": self.hash}
            head = json.dumps(envelope, ensure_ascii=False, separators=(",", ":"))
            self.wire.append(f'{head[:-1]},"body":{self.body_text}}}')
        return self.wire[0]


def chain(prev_hash: str, envelope: JSON) -> str:
    """`sha256(prev_hash ‖ canonical envelope)`, both as text; hex."""
    return sha256(prev_hash + canonical(envelope))


def verify(events: Sequence[Event], prev_hash: str = GENESIS) -> int | None:
    """The seq of the first event that breaks the chain or whose body doesn't match, or None.

    An erased body (`{"redacted": …}`) matches: `body_sha256` still is that of the text that stood there.
    """
    for event in events:
        body_holds = sha256(event.body_text) == event.body_sha256 or is_erased(event.body_text)
        if not body_holds or chain(prev_hash, event.envelope()) != event.hash:
            return event.seq
        prev_hash = event.hash
    return None


def is_erased(body_text: str) -> bool:
    """Whether the body was replaced by a mark of its erasure; `body` then decodes to an `UnknownBody`."""
    return body_text.startswith('{"redacted":{') and set(json.loads(body_text)) == {"redacted"}


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streaming item. Not an event: no seq, no hash, never stored or exported."""

    item_id: str
    stream: Stream
    offset: int
    """Code points from the item's start in this stream."""
    text: str

    def json(self) -> JSON:
        return {"item_id": self.item_id, "stream": self.stream, "offset": self.offset, "text": self.text}


def parse_event(text: str) -> Event:
    """An event from its `json_text` (export, import). Unknown kinds are kept. `Malformed` if it is none."""
    try:
        raw = json.loads(text, parse_int=_exact)
        body = raw.pop("body")
        return Event(**raw | {"actor": Actor.model_validate(raw["actor"]), "body_text": canonical(body)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        detail = f"not an event of this format: {type(error).__name__}"
        raise Malformed(detail, hint="export it again, with this version or a newer one") from error


def _exact(digits: str) -> int | float:
    """An integer; beyond 2^53 it was a float (the RFC writes 1e20 with all its digits)."""
    number = int(digits)
    return number if -(2**53) < number < 2**53 else float(digits)


def text_of(content: tuple[Content, ...]) -> str:
    """The text parts of a message, joined."""
    return "\n".join(part.text for part in content if isinstance(part, TextPart))
