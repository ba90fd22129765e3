"""What `LogSuite` is made of: a clock, two small folds, drafts, and checks against a replay."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omnigent import events as ev
from omnigent.events import JSON, Draft, Event
from omnigent.log.contract import ItemRow, Log

DEADLINE = 20
"""Seconds any one wait may take."""


class Hands:
    """A clock that tests turn."""

    def __init__(self, at: int = 1_795_000_000_000) -> None:
        self.at = at

    def __call__(self) -> int:
        return self.at


@dataclass(slots=True)
class SuiteView:
    as_of_seq: int = 0
    title: str = ""
    archived: bool = False
    updated_at: int = 0
    kinds: dict[str, int] = field(default_factory=dict[str, int])
    open: list[str] = field(default_factory=list[str])

    def dump(self) -> JSON:
        return {
            "as_of_seq": self.as_of_seq,
            "title": self.title,
            "archived": self.archived,
            "updated_at": self.updated_at,
            "kinds": self.kinds,
            "open": self.open,
        }

    def columns(self) -> JSON:
        return {
            "title": self.title,
            "status": "waiting" if self.open else "idle",
            "harness": "claude",
            "parent_id": None,
            "archived": self.archived,
            "updated_at": self.updated_at,
        }


class SuiteProjector:
    """Counts kinds and keeps one item per item id: enough to see when a log folds wrongly."""

    version = 1

    def empty(self) -> SuiteView:
        return SuiteView()

    def load(self, data: JSON) -> SuiteView:
        return SuiteView(**data)

    def fold(self, view: SuiteView, event: Event, item: Callable[[str], JSON | None]) -> dict[str, JSON]:
        view.as_of_seq, view.updated_at = event.seq, event.at
        view.kinds[event.kind] = view.kinds.get(event.kind, 0) + 1
        body = event.body
        match body:
            case ev.SessionCreated(title=title) | ev.SessionForked(title=title):
                view.title = title
            case ev.SessionUpdated():
                view.archived = view.archived if body.archived is None else body.archived
            case _:
                pass
        changed: dict[str, JSON] = {}
        if isinstance(body, ev.SessionForked):
            # An event without an item id that changes items: those the prefix left open.
            for item_id in view.open:
                changed[item_id] = (item(item_id) or {}) | {"status": "cancelled"}
            view.open = []
        if event.item_id is not None:
            changed[event.item_id] = self._item(view, event, item(event.item_id))
        return changed

    def _item(self, view: SuiteView, event: Event, data: JSON | None) -> JSON:
        assert event.item_id is not None
        if data is None:
            is_approval = event.kind == "approval.requested"
            data = {"type": "approval" if is_approval else "message", "status": "new", "seqs": [], "text": ""}
            if is_approval:
                data["status"] = "open"
                view.open.append(event.item_id)
        if event.kind == "approval.resolved" and event.item_id in view.open:
            data["status"] = "resolved"
            view.open.remove(event.item_id)
        if isinstance(event.body, ev.MessageCompleted):
            data["text"] = ev.text_of(event.body.content)
        data["seqs"].append(event.seq)
        return data


def created(title: str = "a session") -> Draft:
    return Draft(
        ev.SessionCreated(
            title=title,
            harness="claude",
            model=None,
            provider=None,
            workspace="/work",
            approvals="ask",
            owner="me",
        )
    )


def forked(parent_id: str, at: Event, title: str = "a fork") -> Draft:
    return Draft(
        ev.SessionForked(
            parent_id=parent_id,
            at_seq=at.seq,
            parent_hash=at.hash,
            owner="me",
            title=title,
            harness="claude",
            model=None,
            provider=None,
            workspace="/work",
            approvals="ask",
        )
    )


def said(text: str, item_id: str | None = None) -> Draft:
    return Draft(ev.MessageCompleted(content=(ev.TextPart(text=text),)), item_id=item_id)


def asked(item_id: str) -> Draft:
    body = ev.ApprovalRequested(
        call_id="tc_1", actions=(), action_sha256="0" * 64, title="rm -rf x", reason="", expires_at=0
    )
    return Draft(body, item_id=item_id)


def resolved(item_id: str) -> Draft:
    return Draft(ev.ApprovalResolved(outcome="allowed"), item_id=item_id)


def updated(**changes: Any) -> Draft:
    return Draft(ev.SessionUpdated(**changes))


async def read_all(log: Log, session_id: str) -> list[Event]:
    found: list[Event] = []
    while page := await log.read(session_id, after=len(found), limit=1000):
        found += page
    return found


async def all_items(log: Log, session_id: str, limit: int = 50) -> list[ItemRow]:
    """By pages, newest first."""
    found: list[ItemRow] = []
    before: int | None = None
    while page := await log.items(session_id, before=before, limit=limit):
        found += page
        before = page[-1].pos
    return found


def replay(events: Sequence[Event]) -> tuple[JSON, dict[str, ItemRow]]:
    """The view and items that folding the events from nothing gives."""
    projector, items = SuiteProjector(), dict[str, ItemRow]()
    view = projector.empty()
    for event in events:
        changed = projector.fold(view, event, lambda key: _copy(items[key].data) if key in items else None)
        for item_id, data in changed.items():
            pos = items[item_id].pos if item_id in items else event.seq
            items[item_id] = ItemRow(item_id, pos, event.seq, data)
    return view.dump(), items


def _copy(data: JSON) -> JSON:
    return data | {"seqs": list(data["seqs"])}


async def check_folded(log: Log, session_id: str) -> None:
    """The stored view and items, however they are read, are those of a replay."""
    events = await read_all(log, session_id)
    view, items = replay(events)
    assert (await log.view(session_id)).dump() == view
    newest_first = sorted(items.values(), key=lambda row: (row.pos, row.item_id), reverse=True)
    assert await all_items(log, session_id, limit=7) == newest_first
    by_change = sorted(items.values(), key=lambda row: (row.view_seq, row.item_id))
    assert await log.items(session_id, changed_after=0, limit=1000) == by_change[:1000]
    middle = len(events) // 2
    assert await log.items(session_id, changed_after=middle, limit=1000) == [
        row for row in by_change if row.view_seq > middle
    ]
    for row in newest_first[:20]:
        assert await log.item(session_id, row.item_id) == row


def check_dense(events: Sequence[Event]) -> None:
    """1..n, chained, and never back in time."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert ev.verify(events) is None
    times = [event.at for event in events]
    assert times == sorted(times)


async def collect(batches: AsyncIterator[list[Event]], until: int) -> list[Event]:
    """What a follower sees up to the event `until`."""
    found: list[Event] = []
    async for batch in batches:
        found += batch
        if found[-1].seq >= until:
            break
    return found


async def busy_session(log: Log, session_id: str, events: int = 300, seed: int = 1) -> None:
    """Messages rewritten long after they began, approvals opened and closed, in batches of one to nine."""
    dice = random.Random(seed)
    drafts = [created()]
    asks: list[str] = []
    for number in range(events - 1):
        roll = dice.random()
        if roll < 0.1:
            asks.append(f"ap_{number}")
            drafts.append(asked(asks[-1]))
        elif roll < 0.2 and asks:
            drafts.append(resolved(asks.pop(dice.randrange(len(asks)))))
        else:
            drafts.append(said(f"text {number}", f"msg_{dice.randrange(number // 4 + 1)}"))
    await log.create(session_id, drafts[:1])
    start = 1
    while start < len(drafts):
        end = start + dice.randrange(1, 10)
        await log.append(session_id, drafts[start:end])
        start = end


@dataclass(slots=True)
class SuiteMemory:
    """Depends on every event and on their order."""

    kinds: dict[str, int] = field(default_factory=dict[str, int])
    digest: str = ""
    last: int = 0

    def dump(self) -> JSON:
        return {"kinds": self.kinds, "digest": self.digest, "last": self.last}


class SuiteTrees:
    """A tree projector: enough to see when a log folds a tree wrongly."""

    version = 1

    def empty(self) -> SuiteMemory:
        return SuiteMemory()

    def load(self, data: JSON) -> SuiteMemory:
        return SuiteMemory(**data)

    def fold(self, state: SuiteMemory, event: Event) -> None:
        state.kinds[event.kind] = state.kinds.get(event.kind, 0) + 1
        state.digest = hashlib.sha256(f"{state.digest} {event.hash}".encode()).hexdigest()
        state.last = event.tree_pos


def too_large_a_number() -> Draft:
    body = ev.UsageReported(call_id="call_1", source="gateway", scope="call", input_tokens=2**60)
    return Draft(body)


def raw_event(
    session_id: str,
    seq: int,
    prev_hash: str,
    body: ev.Body,
    *,
    root_id: str | None = None,
    tree_pos: int | None = None,
    item_id: str | None = None,
) -> Event:
    """An event as another program would have stored it."""
    text = ev.canonical(ev.encode_body(body))
    kind = body.kind if isinstance(body, ev.UnknownBody) else body.KIND
    event = Event(
        v=1,
        id=f"evt_{session_id}_{seq}",
        session_id=session_id,
        seq=seq,
        root_id=root_id or session_id,
        tree_pos=seq if tree_pos is None else tree_pos,
        at=1_700_000_000_000 + seq,
        observed_at=1_700_000_000_000,
        turn_id=None,
        item_id=item_id,
        parent_item_id=None,
        actor=ev.SYSTEM,
        cause=None,
        run=None,
        producer="session",
        producer_seq=seq,
        epoch=None,
        kind=kind,
        body_text=text,
        body_sha256=ev.sha256(text),
        hash="",
    )
    return replace(event, hash=ev.chain(prev_hash, event.envelope()))


def with_body(event: Event, body_text: str) -> Event:
    """The event with its body exchanged after the fact."""
    return replace(event, body_text=body_text, typed=[], wire=[])
