"""What the rest of the house knows of policies: what goes in and comes out, and the `Policy` protocol.

Everything is pure. `TreeState` is the fold of a session tree's events in `tree_pos` order, `decide` is a
function of a call, that state and a `Setting`; neither looks at a clock, a file or the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from omnigent.actions import Action, Parsed
from omnigent.events import JSON, Approvals, Event
from omnigent.metering import Cap as Cap
from omnigent.metering import CapScope as CapScope
from omnigent.metering import Spend as Spend

Decision = Literal["allow", "ask", "pause", "deny"]
STRICTNESS: dict[Decision, int] = {"allow": 0, "ask": 1, "pause": 2, "deny": 3}


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be decided: a tool call or a model call."""

    item_id: str
    actions: tuple[Action, ...]
    parsed: Parsed = "full"
    tool: str = ""
    pos: int | None = None
    """`tree_pos` of its `tool.requested`: what was requested later doesn't count. None: everything does."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a decision depends on beside the fold of the tree."""

    session_id: str
    at: int
    """UTC ms."""
    approvals: Approvals = "ask"
    grants: Sequence[JSON] = ()
    """Bodies of `grant.added` in force in this session, each with its `grant_id`."""
    spend: Mapping[CapScope, Spend] = field(default_factory=dict[CapScope, Spend])
    """Empty for a tool call whose session is metered at the gateway: money is stopped there."""
    budget_nanousd: int | None = None
    """The session's own cap (`budget.changed`)."""
    session: JSON = field(default_factory=dict[str, Any])
    """For rules: id, harness, model, provider, workspace, owner, sandbox, labels, billing."""
    protected: tuple[str, ...] = ()
    """Paths nobody's agent may touch (Omnigent's home, vendors' log-ins); absolute, links resolved."""
    own: tuple[str, ...] = ()
    """Places inside the protected ones that are this agent's (a work tree, its scratch directory)."""
    api: str = ""
    """host:port of our own API."""
    pids: tuple[int, ...] = ()
    """Of processes no agent may end: the server's."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rules ask about one action of a call (its place in `Call.actions`)."""

    action: int
    rule_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The strictest of all rules over all actions. `reason` reaches the person and the model."""

    decision: Decision
    rule_ids: tuple[str, ...] = ()
    """Those that gave this decision."""
    reason: str = ""
    asked: tuple[Asked, ...] = ()
    """With `ask`: what is asked, and by whom; a grant answers all of it."""
    grant_ids: tuple[str, ...] = ()
    """With `allow`: the grants that silenced an ask."""
    may_answer: tuple[str, ...] = ("owner",)
    expires_seconds: int | None = None
    """None: the configuration's."""
    command: str | None = None
    """With `allow`: what is to run instead (`rewrite`)."""
    model: str | None = None
    """With `allow` of a model call: the model to ask instead (`downgrade`)."""
    strip: tuple[str, ...] = ()
    """With `allow` of a model call: hosted tools to cut out."""
    caps: tuple[Cap, ...] = ()
    """With `allow` of a model call: what the reservation must keep to."""
    money: bool = False
    """With `pause`: a limit on spending is reached, so that a raised one lets it go on."""
    facts: tuple[str, ...] = ()
    """For `explain` and the audit: one line per rule that said something, and from which facts."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one policy says to one action."""

    decision: Decision
    reason: str
    facts: str = ""
    may_answer: tuple[str, ...] | None = None
    expires_seconds: int | None = None
    command: str | None = None
    model: str | None = None
    caps: tuple[Cap, ...] = ()
    money: bool = False
    """It is about a limit on spending."""
    strip: tuple[str, ...] = ()
    """With `allow` of a model call: hosted tools to cut out."""


class Facts(Protocol):
    """What a policy may read while it decides one action (see docs/policies.md for the CEL names)."""

    @property
    def setting(self) -> Setting: ...

    @property
    def call(self) -> Call: ...

    @property
    def index(self) -> int:
        """The action's place in the call: those before it are taken to have happened."""
        ...

    @property
    def memory(self) -> Any:
        """The policy's own JSON, as its `observe` left it."""
        ...

    @property
    def tree(self) -> JSON:
        """Of the tree: `sessions`, `depth`, `running` sub-agents, `spawned`."""
        ...


class Policy(Protocol):
    """One rule. Made from its content by `policies.build`; built-ins and `function` policies are the same."""

    id: str
    types: frozenset[str] | None
    """Types of action it has an opinion on; None: all."""

    def empty(self) -> Any:
        """Its memory before anything happened: a JSON value, {} where it has none."""
        ...

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        """The memory after this event; may change and return the one given. Must not raise."""
        ...

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        """None: no opinion. What it raises is doubt."""
        ...
