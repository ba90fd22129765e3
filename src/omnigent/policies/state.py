"""What policies remember of a session tree, as they read it, and the rules in force there.

Kept small and independent of the log's length: per session its policies, the calls that are open, per watched
matcher when it last happened, per built-in its own memory, and the distinct commands so far (for rules that
come later). A dump is JSON; loading it and folding on (`folding.py`) gives the same as never having dumped.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from omnigent.events import JSON, PolicyEntry
from omnigent.policies.language import defaults
from omnigent.policies.loading import RuleSet, entry_key
from omnigent.policies.written import Watch


class TreeState:
    """`data` is what is dumped; the rest is made of it."""

    def __init__(self, data: JSON) -> None:
        self.data = data
        self._sets: dict[tuple[str, ...], RuleSet] = {}
        self._all: RuleSet | None = None
        self._known: dict[str, tuple[str, ...]] = {}

    @property
    def pos(self) -> int:
        """`tree_pos` of the last event folded."""
        return self.data["pos"]

    def dump(self) -> JSON:
        """The live data: write it down before the next fold."""
        return self.data

    # Policies in effect.

    def effective(self, session_id: str) -> tuple[PolicyEntry, ...]:
        return tuple(self._entry(key) for key in self._keys(session_id))

    def rules(self, session_id: str) -> RuleSet:
        return self._set(self._keys(session_id))

    def everyone(self) -> RuleSet:
        """The rules of all sessions of the tree: all of them remember."""
        if self._all is None:
            found = dict.fromkeys(
                key for session_id in self.data["sessions"] for key in self._keys(session_id)
            )
            self._all = self._set(tuple(found) or tuple(_defaults()))
        return self._all

    def changed(self) -> None:
        """Policies or sessions changed."""
        self._all = None
        self._known.clear()
        self._sets.clear()

    def _keys(self, session_id: str) -> tuple[str, ...]:
        """A session's own, and those of the sessions above it: a child can only tighten."""
        keys = self._known.get(session_id)
        if keys is None:
            keys = self._known[session_id] = self._gather(session_id)
        return keys

    def _gather(self, session_id: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        seen: set[str] = set()
        at: str | None = session_id
        while at is not None and at not in seen:
            seen.add(at)
            row = self.data["sessions"].get(at)
            own = None if row is None else row["policies"]
            at = None if row is None else row["parent"]
            if own is not None:
                found |= dict.fromkeys(own)
            elif at is None:
                found |= dict.fromkeys(_defaults())
        return tuple(found)

    def _set(self, keys: tuple[str, ...]) -> RuleSet:
        made = self._sets.get(keys)
        if made is None:
            made = self._sets[keys] = _rule_set(keys, tuple(self._entry(key) for key in keys))
        return made

    def _entry(self, key: str) -> PolicyEntry:
        row = self.data["entries"].get(key)
        if row is None:
            return _defaults()[key]
        return PolicyEntry(name=row[0], scope=row[1], content=row[2])

    # What policies may read.

    def workspace(self, session_id: str) -> str:
        row = self.data["sessions"].get(session_id)
        return row["workspace"] if row else ""

    def turn(self, session_id: str) -> int:
        """Where the session's turn began, in `tree_pos`."""
        row = self.data["sessions"].get(session_id)
        return row["turn"] if row else 0

    def memory(self, key: str) -> Any:
        return self.data["memory"].get(key)

    def tree(self, session_id: str, *, before: int | None = None, but: str = "") -> JSON:
        """`before` and `but`: without calls that were requested later, and without this one."""
        sessions = self.data["sessions"]
        row = sessions.get(session_id)
        open_ = [call["spawns"] for call in self._open(before, but) if call["spawns"]]
        return {
            "sessions": len(sessions),
            "depth": row["depth"] if row else 0,
            "running": sum(open_),
            "spawned": self.data["spawned"] + sum(open_),
        }

    def occurrences(self, watch: Watch, *, before: int | None, but: str) -> tuple[int, list[tuple[int, int]]]:
        """How often it happened, and the last times of it as (`tree_pos`, at)."""
        row = self.data["watched"].get(watch.key)
        recent = [(pos, at) for pos, at in row["recent"]] if row else []
        late = sum(1 for pos, _ in recent if before is not None and pos >= before)
        total = (row["n"] if row else 0) - late
        found = [each for each in recent if before is None or each[0] < before]
        for call in self._open(before, but):
            times = call["hits"].get(watch.key, 0)
            total += times
            found += [(call["pos"], call["at"])] * times
        return total, found

    def _open(self, before: int | None, but: str) -> Iterator[JSON]:
        for item_id, call in self.data["calls"].items():
            if call["ok"] and item_id != but and (before is None or call["pos"] < before):
                yield call


_SETS: dict[tuple[str, ...], RuleSet] = {}
_SETS_KEPT = 256


def _rule_set(keys: tuple[str, ...], entries: Sequence[PolicyEntry]) -> RuleSet:
    """Shared by all trees: a key names a content, and making a set loads fifty rules."""
    made = _SETS.pop(keys, None) or RuleSet(entries)
    _SETS[keys] = made
    if len(_SETS) > _SETS_KEPT:
        _SETS.pop(next(iter(_SETS)))
    return made


def _defaults() -> dict[str, PolicyEntry]:
    return {entry_key(entry): entry for entry in defaults()}


def is_broken(memory: Any) -> bool:
    """Whether a policy broke while it observed: what it knows can't be told any more."""
    return isinstance(memory, dict) and "broken" in memory
