"""Drafts become events: numbered, hashed, chained. Shared by every log, so that they hash the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from omnigent.errors import Malformed
from omnigent.events import (
    GENESIS,
    VERSION,
    AnyBody,
    Draft,
    Event,
    UnknownBody,
    canonical,
    chain,
    encode_body,
    sha256,
    verify,
)
from omnigent.ids import Prefix


@dataclass(slots=True)
class Numbers:
    """Where a session's chain stands: what the next event is numbered and hashed from."""

    session_id: str
    root_id: str
    seq: int = 0
    tree_pos: int = 0
    at: int = 0
    hash: str = GENESIS


def seal(
    drafts: Sequence[Draft],
    numbers: Numbers,
    *,
    now: int,
    new_id: Callable[[Prefix], str],
    producer: str,
    first: int,
    epoch: int | None,
) -> list[Event]:
    """The drafts as the next events; `numbers` is advanced. `Malformed` for a body that can't be one."""
    return [
        _seal_one(draft, numbers, now, new_id("evt"), producer, first + offset, epoch)
        for offset, draft in enumerate(drafts)
    ]


def _seal_one(
    draft: Draft,
    numbers: Numbers,
    now: int,
    event_id: str,
    producer: str,
    producer_seq: int,
    epoch: int | None,
) -> Event:
    body = draft.body
    if isinstance(body, UnknownBody):
        raise Malformed(f"unknown kind of event: {body.kind}", hint="only kinds of this version are written")
    try:
        body_text = canonical(encode_body(body))
        at = max(now, numbers.at)
        event = Event(
            v=VERSION,
            id=event_id,
            session_id=numbers.session_id,
            seq=numbers.seq + 1,
            root_id=numbers.root_id,
            tree_pos=numbers.tree_pos + 1,
            at=at,
            observed_at=at if draft.observed_at is None else draft.observed_at,
            turn_id=draft.turn_id,
            item_id=draft.item_id,
            parent_item_id=draft.parent_item_id,
            actor=draft.actor,
            cause=draft.cause,
            run=draft.run,
            producer=producer,
            producer_seq=producer_seq,
            epoch=epoch,
            kind=body.KIND,
            body_text=body_text,
            body_sha256=sha256(body_text),
            hash="",
            typed=[cast(AnyBody, body)],
        )
        digest = chain(numbers.hash, event.envelope())
    except ValueError as error:
        raise Malformed(f"{body.KIND} can't be stored: {error}") from error
    # The hash covers every other field, so it can only be set on the finished event.
    object.__setattr__(event, "hash", digest)
    numbers.seq, numbers.tree_pos, numbers.at, numbers.hash = event.seq, event.tree_pos, at, digest
    return event


def check_imported(events: Sequence[Event]) -> None:
    """`Malformed` unless the events are 1..n of an unbroken chain."""
    if not events:
        raise Malformed("nothing to import", hint="an export holds at least one event")
    for expected, event in enumerate(events, start=1):
        if event.seq != expected:
            raise Malformed(f"event {expected} is missing (found {event.seq})", hint="export it again")
    broken = verify(events)
    if broken is not None:
        raise Malformed(
            f"the hash chain is broken at event {broken}", hint="the file was changed; export again"
        )
