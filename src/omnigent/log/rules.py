"""What every log refuses and answers alike: the wording of the contract, shared by its implementations."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omnigent.errors import BadCursor, Conflict, Draining, Fenced, Gap, KeyReused, NotFound
from omnigent.events import JSON, Draft, Event
from omnigent.log.contract import Appended, CommandRecord, ItemRow, ListQuery

MAX_PAGE = 1000


def page_limit(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE))


def closed() -> Draining:
    return Draining("the log is closed", hint="start the server again")


def no_session(session_id: str) -> NotFound:
    return NotFound(f"no session {session_id}", hint="`omnigent list` shows those there are")


def taken(session_id: str) -> Conflict:
    return Conflict(f"session {session_id} exists already", current={"session_id": session_id})


def refuse_append(
    session_id: str, imported: bool, head: int, epoch: int, given_epoch: int | None, expect_head: int | None
) -> None:
    """`Conflict` for an imported session or an unexpected head, `Fenced` for an epoch not the session's."""
    if imported:
        raise Conflict(
            f"{session_id} is imported and read-only", hint="fork it to go on", current={"head": head}
        )
    if given_epoch is not None and given_epoch != epoch:
        raise Fenced(f"epoch {given_epoch} of {session_id} is over (it is {epoch})", current={"epoch": epoch})
    if expect_head is not None and expect_head != head:
        raise Conflict(f"{session_id} is at {head}, not {expect_head}", current={"head": head})


def refuse_fork(parent_id: str, at_seq: int, head: int) -> None:
    if not 1 <= at_seq <= head:
        raise BadCursor(f"{parent_id} has no event {at_seq}", hint=f"fork at 1 to {head}", head=head)


def refuse_cursor(session_id: str, after: int, head: int) -> None:
    if not 0 <= after <= head:
        raise BadCursor(f"{session_id} ends at {head}, before {after}", hint="read from the start", head=head)


def refuse_other_head(last: Event, head: int, head_hash: str) -> None:
    """`Conflict` unless the session known by this id has the same head as the imported one."""
    if (head, head_hash) != (last.seq, last.hash):
        raise Conflict(
            f"another {last.session_id} is here already, at event {head}",
            current={"head": head, "hash": head_hash},
        )


def unseen(drafts: Sequence[Draft], first: int | None, last: int) -> Sequence[Draft]:
    """What the producer has not sent before; `Gap` if it skipped a number."""
    if first is None:
        return drafts
    if first > last + 1:
        raise Gap(f"event {last + 1} was never sent (got {first})", expected=last + 1)
    return drafts[last + 1 - first :]


def replay_of(command: CommandRecord, known: CommandRecord | None) -> Appended | None:
    """The first answer if the key was taken by the same request; `KeyReused` if by another."""
    if known is None:
        return None
    if known.request_sha256 != command.request_sha256:
        raise KeyReused(f"key {command.key} was used for another request", hint="use a fresh Idempotency-Key")
    return Appended([], int(known.answer.get("seq", 0)), 0, known)


def answered(command: CommandRecord, session_id: str, seq: int) -> CommandRecord:
    """The record with what is known only now."""
    return replace(command, answer={"session_id": session_id, "seq": seq} | command.answer)


def is_waiting(item: JSON) -> bool:
    """Whether the item waits for a person."""
    return item.get("status") == "open" and item.get("type") in ("approval", "question")


def by_pos(row: ItemRow) -> int:
    return row.pos


def by_view_seq(row: ItemRow) -> int:
    return row.view_seq


def copy_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def first_groups(rows: Sequence[ItemRow], limit: int, key: Callable[[ItemRow], int]) -> list[ItemRow]:
    """The first `limit` rows and those that share the last one's key."""
    end = min(limit, len(rows))
    while 0 < end < len(rows) and key(rows[end]) == key(rows[end - 1]):
        end += 1
    return list(rows[:end])


@dataclass(frozen=True, slots=True)
class Listed:
    """A session as lists show it."""

    session_id: str
    columns: JSON

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands in a list: newest first by this."""
        return int(self.columns.get("updated_at", 0)), self.session_id

    def json(self) -> JSON:
        return self.columns | {"id": self.session_id}

    def cursor(self) -> str:
        return "{}.{}".format(*self.place)

    def matches(self, query: ListQuery) -> bool:
        columns = self.columns
        if query.archived is not None and bool(columns.get("archived")) is not query.archived:
            return False
        if query.query and query.query.casefold() not in str(columns.get("title", "")).casefold():
            return False
        wanted = (("status", query.status), ("harness", query.harness), ("parent_id", query.parent))
        return all(value is None or columns.get(name) == value for name, value in wanted)


def parse_cursor(cursor: str | None) -> tuple[int, str] | None:
    """The place a list's cursor names; `BadCursor` for anything else."""
    if cursor is None:
        return None
    updated_at, _, session_id = cursor.partition(".")
    if not updated_at.isdigit() or not session_id:
        raise BadCursor("not a cursor of this list", hint="pass `next_cursor` as it came, or none")
    return int(updated_at), session_id
