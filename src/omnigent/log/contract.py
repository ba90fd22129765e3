"""What every log promises: the `Log` protocol, its values, and the `Projector` it folds with.

`Log` is the contract; `LogSuite` in `omnigent.testing.log_suite` is its meaning, executable. Only `Session`
appends. Invariants every log keeps:

- **dense**: a session's `seq` is 1..n without a gap, a root's `tree_pos` likewise; both are assigned in the
  transaction that inserts, and an event becomes visible only after all lower seqs.
- **de-duplicated**: `(session_id, producer, producer_seq)` is unique. A batch sent again is trimmed to its
  unseen tail; one that starts above `last + 1` is refused with `Gap` and told where to restart.
- **fenced**: an append that carries an epoch other than the session's is refused with `Fenced`.
- **hash-chained**: `hash = sha256(prev_hash ‖ canonical(envelope))`, see `omnigent.events`.
- **projected**: the projector folds each event inside the append transaction; its rows carry `as_of_seq`.
- **remembered**: the tree projector, if there is one, folds each event of a root in `tree_pos` order, into
  one state per root. A fork, a root of its own, begins with its parent's tree as of the event it is cut at.
- **counted**: what a model call uses is in the ledger once, under the session that made it, from the append
  that tells of it on; deleting the session takes nothing out of it.
- **clock**: `at` never decreases within a session, whatever the system clock does.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from omnigent.events import JSON, Draft, Event
from omnigent.metering import Cap, CapScope, Spend

UsageBy = Literal["model", "day", "project", "harness", "user", "session", "provider"]


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """An idempotency key taken by a command: unique per `scope` (a session id, or `org:local`) for ever."""

    scope: str
    key: str
    request_sha256: str
    answer: JSON = field(default_factory=dict[str, Any])
    """What the first caller was told. The log adds `session_id` and `seq` (the head after the append) where
    the caller left them out."""


@dataclass(frozen=True, slots=True)
class Appended:
    events: list[Event]
    """Those newly stored (a re-sent batch may store none)."""
    last_seq: int
    acked: int
    """The producer's highest stored `producer_seq`."""
    replay: CommandRecord | None = None
    """Set when the command's key was taken before with the same request: nothing was appended, this is the
    record of the first time, and `last_seq` is that of its answer."""


@dataclass(frozen=True, slots=True)
class ItemRow:
    """A folded transcript item. `view_seq` is the seq that last changed it, `pos` the seq that created it."""

    item_id: str
    pos: int
    view_seq: int
    data: JSON


@dataclass(frozen=True, slots=True)
class Lease:
    """Which runner a session is with. Rows, not history: liveness is not a fact of the log."""

    session_id: str
    epoch: int
    run: str
    pid: int
    pid_started: int
    """Start time of the process in clock ticks since boot (field 22 of /proc/<pid>/stat): pids are reused."""
    token_sha256: str


@dataclass(frozen=True, slots=True)
class ListQuery:
    limit: int = 50
    cursor: str | None = None
    query: str | None = None
    """Case-insensitive substring of the title."""
    status: str | None = None
    harness: str | None = None
    parent: str | None = None
    archived: bool | None = False


class View(Protocol):
    """A session's folded state, as the projector keeps it. Opaque to the log but for these."""

    as_of_seq: int

    def dump(self) -> JSON:
        """A JSON value from which `Projector.load` makes an equal state."""
        ...

    def columns(self) -> JSON:
        """What lists filter and sort by: title, status, harness, parent_id, archived, updated_at, open."""
        ...


class Projector(Protocol):
    """The one fold. Pure: same events, same state and items. A log may call it from a thread of its own."""

    version: int
    """Rows of another version are folded anew from the log."""

    def empty(self) -> Any: ...

    def load(self, data: JSON) -> Any: ...

    def fold(self, view: Any, event: Event, item: Callable[[str], JSON | None]) -> dict[str, JSON]:
        """Apply one event to `view` in place; return the items it created or changed, by id.

        `item` reads an item as it stands before this event (None if there is none); the value is the
        caller's to change. Of its fields a log knows two: an approval or question (`type`) whose `status` is
        `open` waits for a person, and `Log.open_items` lists it.
        """
        ...


class TreeState(Protocol):
    """What a tree's policies remember. Opaque to the log but for this."""

    def dump(self) -> Any:
        """A JSON value from which `TreeProjector.load` makes an equal state."""
        ...


class TreeProjector(Protocol):
    """The fold of a whole session tree. Pure, as `Projector` is, and called from the same thread."""

    version: int
    """States of another version are folded anew from the log."""

    def empty(self) -> Any: ...

    def load(self, data: Any) -> Any: ...

    def fold(self, state: Any, event: Event) -> None:
        """Apply one event to `state` in place. An imported tree may have gaps in its `tree_pos`."""
        ...


class Log(Protocol):
    """All methods raise `NotFound` for an unknown or deleted session. Page limits are at most 1,000.

    A log belongs to the event loop of its first call. A caller that is cancelled while it waits for an append
    doesn't know whether it was stored (send it again with the same `first` or command).
    """

    async def create(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        root_id: str | None = None,
        command: CommandRecord | None = None,
    ) -> Appended:
        """A new session with its first events; `Conflict` if the id is taken.

        `root_id` defaults to itself; else it names the session at the top of the tree (`NotFound`,
        `Malformed` if that one is not a top).
        """
        ...

    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        producer: str = "session",
        first: int | None = None,
        epoch: int | None = None,
        command: CommandRecord | None = None,
        expect_head: int | None = None,
        caps: Sequence[Cap] = (),
    ) -> Appended:
        """Append in one transaction, batched with others, durable when it returns.

        `first` is the `producer_seq` of the first draft; None takes the producer's next number. `expect_head`
        makes it a compare-and-set: any other head raises `Conflict` (`current` in its facts). With `command`,
        a key already taken with the same request appends nothing and answers with `replay`, before any other
        check; another request raises `KeyReused`. An imported session is read-only: `Conflict`.

        With `caps`, the `usage.reserved` among the drafts are stored only if what each cap's scope has
        settled and reserved, and their estimates, stay within it; else `OverBudget` (facts: `cap`) and
        nothing is stored. An unknown estimate counts nothing towards dollars, nor one a subscription pays.
        """
        ...

    async def fork(
        self,
        parent_id: str,
        at_seq: int,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        command: CommandRecord | None = None,
    ) -> Appended:
        """A session whose log begins as a reference to (parent, at_seq): constant time, nothing copied.

        Segments are flattened `(source, from, to)`, so a fork of a fork reads no chain. Its view and items
        are those of the prefix (the view at `at_seq` is folded from the nearest snapshot; items are read
        through the segments). `BadCursor` if `at_seq` is beyond the parent's head or below 1. Own events
        continue the parent's hash chain at `at_seq` and its clock; root, epoch and producers are new.
        """
        ...

    async def command(self, scope: str, key: str) -> CommandRecord | None:
        """The record of an idempotency key."""
        ...

    async def head(self, session_id: str) -> int: ...

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 200,
        kinds: Sequence[str] | None = None,
        newest: bool = False,
    ) -> list[Event]:
        """Ascending, after < seq < before: the first `limit` of them, or the last with `newest`."""
        ...

    async def read_tree(self, root_id: str, *, after: int = 0, limit: int = 200) -> list[Event]:
        """Events of all sessions of a tree with `tree_pos` > after (a fork is a tree of its own, without its
        prefix). A deleted session's events are still among them: what a tree's policies remember must not
        change because one of its sessions was hidden.
        """
        ...

    def follow(self, session_id: str, after: int = 0) -> AsyncIterator[list[Event]]:
        """From the past into live without gap or repeat, in batches, until the caller closes it.

        `BadCursor` if `after` is beyond the head (raised by the first step at the latest). A follower that
        doesn't drain holds only its cursor: it never slows an append or another follower. It ends when the
        session is deleted or the log closed.
        """
        ...

    async def view(self, session_id: str) -> Any:
        """The projector's state as of the head (a copy the caller may keep)."""
        ...

    async def tree(self, session_id: str) -> Any:
        """The tree projector's state at the end of the session's root (a copy the caller may keep).

        `LookupError` if the log was opened without a tree projector.
        """
        ...

    async def family(self, session_id: str) -> str:
        """Whom a budget binds together: the root's family, for a fork its parent's; an import has its own."""
        ...

    async def spend(self, session_id: str, at: int) -> dict[CapScope, Spend]:
        """Settled and reserved together: of the session, its family, its owner's day and its project's month.

        Day and month are those of `at` in UTC; the project is the workspace the session (for a fork, the
        session it comes from) was created with.
        """
        ...

    async def reserved(self, session_id: str) -> Sequence[str]:
        """The calls that were let out and not yet reported, oldest first."""
        ...

    async def usage(
        self, by: UsageBy, since: int | None = None, until: int | None = None, session_id: str | None = None
    ) -> Sequence[JSON]:
        """What was used (not: reserved), since <= at < until, per `by`, ascending by its `key`.

        `{key, calls, input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
        output_tokens, reasoning_tokens, cost_nanousd, unknown_calls, notional_nanousd}`: `cost_nanousd` is
        what was billed, None if nothing of it is priced; `unknown_calls` are those missing in it;
        `notional_nanousd` is what the calls paid by a subscription would have cost.
        """
        ...

    async def item(self, session_id: str, item_id: str) -> ItemRow | None: ...

    async def items(
        self, session_id: str, *, before: int | None = None, limit: int = 50, changed_after: int | None = None
    ) -> list[ItemRow]:
        """Newest first by `pos`, below `before`; with `changed_after` instead: ascending by `view_seq`.

        Items that share the last `pos` (or `view_seq`) of a page come all with it, so that the next page may
        start there: a page can be a few items longer than `limit`.
        """
        ...

    async def open_items(self) -> list[tuple[str, ItemRow]]:
        """(session_id, item) of every approval and question still open, oldest session first: the inbox.

        Only a session's own items: a fork inherits no open approval, and an imported or deleted session
        can't be answered.
        """
        ...

    async def take_epoch(self, session_id: str) -> int:
        """Bump the session's epoch: from now on every older epoch is fenced."""
        ...

    async def put_lease(self, lease: Lease) -> None:
        """Remember who holds the session; `Fenced` unless the lease has the session's epoch."""
        ...

    async def drop_lease(self, session_id: str, epoch: int) -> None:
        """Forget it if it is still this epoch's."""
        ...

    async def leases(self) -> list[Lease]: ...

    async def rebuild(self, session_id: str) -> None:
        """Fold the session anew from its events; the rows must come out the same. Blocks other writers."""
        ...

    async def import_events(self, events: Sequence[Event], *, command: CommandRecord | None = None) -> str:
        """Store an exported session as is (ids, seqs, times, hashes), read-only; unknown kinds included.

        The session's id is that of the last event; earlier ones may be of others (a fork's prefix). Same id
        and head: nothing to do. Same id, other head: `Conflict`. Not 1..n or a broken chain: `Malformed`.
        """
        ...

    async def delete(self, session_id: str) -> None:
        """Hide it at once: it no longer lists or reads, but forks keep their prefix."""
        ...

    async def close(self) -> None:
        """Finish what is queued, end the followers, release the home. Later calls raise `Draining`."""
        ...

    # The last, for its name hides the builtin from the annotations that follow.
    async def list(self, query: ListQuery) -> tuple[list[JSON], str | None]:
        """Views' `columns` plus id, newest first by `updated_at`; the next cursor or None.

        A page looks at a bounded number of sessions: with a rare filter it may be short, even empty, and yet
        have a next cursor.
        """
        ...
