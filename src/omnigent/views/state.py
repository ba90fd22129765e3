"""What the fold of a session comes to: its summary."""

from dataclasses import dataclass, field, fields
from typing import Literal

from omnigent.events import JSON

Status = Literal["starting", "idle", "running", "waiting", "paused", "lost", "closed"]


@dataclass(slots=True)
class SessionView:
    """What a session is at `as_of_seq`. Small by design: items live in rows of their own."""

    as_of_seq: int = 0
    tree_pos: int = 0
    session_id: str = ""
    root_id: str = ""
    title: str = ""
    harness: str = ""
    model: str | None = None
    provider: str | None = None
    billing: str = "unknown"
    credential: str = ""
    metering: str = "harness"
    workspace: str = ""
    project: str = ""
    """The workspace that the first session of its forks was made in: whose rules and budgets it is under."""
    approvals: str = "ask"
    sandbox: str = "host"
    owner: str = ""
    org: str = "local"
    parent_id: str | None = None
    forked_from: JSON | None = None
    created_at: int = 0
    updated_at: int = 0
    archived: bool = False
    closed: bool = False
    labels: dict[str, str] = field(default_factory=dict[str, str])
    status_since: int = 0
    status: Status = "idle"

    turn: JSON | None = None
    """The open turn: id, message_id, trigger, delivered, started_at, seq."""
    last_turn: JSON | None = None
    paused: JSON | None = None
    """The turn that waits to go on: turn_id, reason, rule_ids, detail, until."""
    run: JSON | None = None
    """The current start of the harness, from `harness.started`; None while no process runs."""
    native: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Per harness: its native session, and whether content from elsewhere has made it stale."""
    queue: list[JSON] = field(default_factory=list[JSON])
    """Messages and commands that wait, in seq order: id, type (message, switch, set_model), arguments."""
    steers: list[str] = field(default_factory=list[str])
    """Messages handed to the running turn and not yet acknowledged."""
    calls: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Open tool calls by item id: whether gated, whether and how decided, the digest of the vendor's call,
    and its place in the tree (`pos`)."""
    denials: dict[str, int] = field(default_factory=dict[str, int])
    """How often the open turn was denied a call of this digest."""
    texts: dict[str, str] = field(default_factory=dict[str, str])
    """Open streamed items: id → type."""
    approvals_open: dict[str, JSON] = field(default_factory=dict[str, JSON])
    questions_open: dict[str, JSON] = field(default_factory=dict[str, JSON])
    grants: list[JSON] = field(default_factory=list[JSON])
    """Bodies of `grant.added` in force, each with its `grant_id`. One that ran out stays until it is used or
    revoked: whoever decides compares `until`."""
    budget_nanousd: int | None = None
    reserved: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Model calls that left and whose usage isn't known yet: call id → the body of `usage.reserved`."""
    model_calls: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Model calls of the open turn that a person was asked about: id → status (held, allowed, denied) and
    reason."""
    policies: int = 0
    """How many are in effect."""
    policies_sha256: str = ""
    """Of those in effect, so that a change of the wider scopes is seen; "" while the defaults hold."""
    usage: dict[str, int] = field(default_factory=dict[str, int])
    cost_nanousd: int | None = None
    cost_partial: bool = False
    """Some call had no known cost, so the sum is a lower bound."""
    checkpoint: JSON | None = None
    safe_seq: int = 0
    """The last seq outside an open turn: where a fork is cut when none is named."""

    def dump(self) -> JSON:
        return {name: getattr(self, name) for name in _FIELDS}

    def columns(self) -> JSON:
        return {
            "title": self.title,
            "status": self.status,
            "harness": self.harness,
            "parent_id": self.parent_id,
            "archived": self.archived,
            "updated_at": self.updated_at,
            "open": bool(self.approvals_open or self.questions_open),
        }


_FIELDS = tuple(f.name for f in fields(SessionView))


def status_of(view: SessionView) -> Status:
    holds = {asked["hold"] for asked in view.approvals_open.values()}
    if "ask" in holds or view.questions_open:
        return "waiting"
    if holds or view.paused is not None:
        return "paused"
    if view.turn is not None:
        return "running" if view.run is not None else "starting"
    if view.closed:
        return "closed"
    return "starting" if view.queue else "idle"
