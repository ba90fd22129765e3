"""The policies of wider scopes than one session: of the server, of a user, of a project.

They hold because an owner applied them, by content: no file is read when a decision is made, and editing one
changes nothing. Each applied set is a `policy.changed` event in the house's own stream of the audit log,
whole, with its actor and its time; its item id names the set (`server`, `user:KEY`, `project:KEY`). The
rulebook is the fold of that stream.

Wider scopes bind narrower ones: a rule of a narrower scope stands beside one of the same name, it never takes
its place. Only the server's set may replace a default (by a rule of its name) or switch it off.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, cast

from omnigent.errors import Conflict, NotFound, Unprocessable
from omnigent.events import SYSTEM, Actor, Draft, Event, PolicyChanged, PolicyEntry, PolicyScope, canonical
from omnigent.log import Log
from omnigent.policies.engine import diff
from omnigent.policies.language import defaults, parse
from omnigent.policies.loading import rule_id

Scope = Literal["server", "user", "project"]
SCOPES: tuple[Scope, ...] = ("server", "user", "project")

HOUSE = "org_local"
"""The house's own stream."""
PRODUCER = "rulebook"
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Applied:
    """What an owner applied to one scope. `seq` is that of the event that says so; 0 before any."""

    scope: Scope
    key: str = ""
    entries: tuple[PolicyEntry, ...] = ()
    off: tuple[str, ...] = ()
    """Defaults that the server's set switches off."""
    seq: int = 0
    at: int = 0
    actor: Actor = SYSTEM


@dataclass(frozen=True, slots=True)
class Change:
    """What applying something comes to, by ids of rules (`scope.name`). `loosens`: something that was denied,
    paused or asked may then pass."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    loosens: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def json(self) -> dict[str, object]:
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": list(self.changed),
            "loosens": self.loosens,
        }


@dataclass(slots=True)
class Rulebook:
    """`await load()` once before anything else is asked."""

    log: Log
    """The audit log, which has the house's stream."""
    revision: int = 0
    """The seq of the newest change. When it has moved, `entries` may say something else."""
    _sets: dict[str, Applied] = field(default_factory=dict[str, Applied])
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(self) -> None:
        """Fold the stream, from where it was left."""
        try:
            head = await self.log.head(HOUSE)
        except NotFound:
            return
        after = self.revision
        while after < head:
            events = await self.log.read(HOUSE, after=after, limit=PAGE, kinds=(PolicyChanged.KIND,))
            self._fold(events)
            if len(events) < PAGE:
                return
            after = events[-1].seq

    def entries(self, workspace: str, owner: str) -> tuple[PolicyEntry, ...]:
        """What binds a session of this workspace and owner before its own rules: the defaults, the server's
        set, the user's, and those of every project that holds the workspace, the innermost first."""
        found = [*self.standing(), *self.set("server").entries, *self.set("user", owner).entries]
        found += self._projects(workspace)
        return tuple(found)

    def _projects(self, workspace: str) -> list[PolicyEntry]:
        """Two projects, one inside the other, may have rules of the same name: both bind, so the outer one's
        is told apart by its place."""
        found: dict[str, PolicyEntry] = {}
        for place in reversed(_outermost_first(workspace)):
            for entry in self.set("project", place).entries:
                name = entry.name if entry.name not in found else f"{entry.name}@{place}"
                found[name] = entry.model_copy(update={"name": name})
        return list(found.values())

    def standing(self) -> tuple[PolicyEntry, ...]:
        """The defaults that the server's set leaves on."""
        return _standing(self.set("server"))

    def set(self, scope: Scope, key: str = "") -> Applied:
        return self._sets.get(_name(scope, key)) or Applied(scope, key)

    def sets(self) -> list[Applied]:
        """Every set that was ever applied, the server's first."""
        return sorted(self._sets.values(), key=lambda one: (SCOPES.index(one.scope), one.key))

    def preview(self, scope: Scope, key: str, text: str, remove: Sequence[str] = ()) -> Change:
        """What `apply` would come to. Raises as it does."""
        return self._plan(scope, key, text, remove)[1]

    async def apply(
        self, scope: Scope, key: str, text: str, remove: Sequence[str] = (), actor: Actor = SYSTEM
    ) -> Change:
        """Put the rules of a YAML text into a set, each in the place of the one of its name, and take
        `remove` out; durable when it returns. What changes nothing is not recorded.

        `key` is the user's name or the project's absolute path, "" for the server. Raises `PolicyInvalid`,
        `Unprocessable` for a key that is none, `NotFound` for a name to remove that isn't there.
        """
        async with self._lock:
            planned, change = self._plan(scope, key, text, remove)
            if change:
                body = PolicyChanged(
                    policies=(*planned.entries, *map(_mark_off, planned.off)),
                    added=change.added,
                    removed=change.removed,
                    changed=change.changed,
                    loosens=change.loosens,
                )
                self._fold(await self._append(Draft(body, _name(scope, key), actor=actor)))
            return change

    async def _append(self, draft: Draft) -> list[Event]:
        try:
            return (await self.log.append(HOUSE, [draft], producer=PRODUCER)).events
        except NotFound:
            pass
        try:
            return (await self.log.create(HOUSE, [draft])).events
        except Conflict:  # somebody else's first word came between
            return (await self.log.append(HOUSE, [draft], producer=PRODUCER)).events

    def _plan(self, scope: Scope, key: str, text: str, remove: Sequence[str]) -> tuple[Applied, Change]:
        _check_key(scope, key)
        given = parse(text, f"the {scope}'s policies", scope) if text.strip() else ()
        old = self.set(scope, key)
        standing = _standing(old) if scope == "server" else ()
        remove = _named(remove, (*old.entries, *given, *standing), scope)
        off = _switched(old, given, remove)
        new = Applied(scope, key, _merged(old.entries, given, remove), off)
        return new, Change(*diff(_binding(old), _binding(new)))

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            body = event.body
            if not isinstance(body, PolicyChanged) or event.item_id is None:
                continue
            scope, _, key = event.item_id.partition(":")
            off = tuple(entry.name for entry in body.policies if _is_off(entry))
            entries = tuple(entry for entry in body.policies if not _is_off(entry))
            self._sets[event.item_id] = Applied(
                cast(Scope, scope), key, entries, off, event.seq, event.at, event.actor
            )
            self.revision = max(self.revision, event.seq)


def _name(scope: Scope, key: str) -> str:
    return f"{scope}:{key}" if key else scope


def _check_key(scope: Scope, key: str) -> None:
    if scope == "server" and key:
        raise Unprocessable("The server's policies have no key.", hint="Leave `key` out.", path="key")
    if scope == "user" and not key:
        raise Unprocessable("Whose policies?", hint="Give the user's name as `key`.", path="key")
    if scope == "project" and not PurePath(key).is_absolute():
        raise Unprocessable(
            "Which project's policies?", hint="Give the workspace's absolute path as `key`.", path="key"
        )


def change_of(
    scope: PolicyScope, now: Sequence[PolicyEntry], text: str, remove: Sequence[str]
) -> tuple[tuple[PolicyEntry, ...], Change]:
    """What is in effect once the rules of one scope are changed, as `Rulebook.apply` changes them; those of
    other scopes stay. Raises `PolicyInvalid`, or `NotFound` for a name to remove that the scope doesn't have.
    """
    given = parse(text, f"the {scope}'s policies", scope) if text.strip() else ()
    own = [entry for entry in now if entry.scope == scope]
    remove = _named(remove, (*own, *given), scope)
    kept = [entry for entry in now if entry.scope != scope]
    new = (*kept, *_merged(own, given, remove))
    return new, Change(*diff(tuple(now), new))


def _merged(
    old: Iterable[PolicyEntry], given: Sequence[PolicyEntry], remove: Sequence[str]
) -> tuple[PolicyEntry, ...]:
    names = {*remove, *(entry.name for entry in given)}
    return (*(entry for entry in old if entry.name not in names), *given)


def _switched(old: Applied, given: Sequence[PolicyEntry], remove: Sequence[str]) -> tuple[str, ...]:
    """The defaults that are off afterwards."""
    names = {entry.name for entry in given}
    own = names | {entry.name for entry in old.entries}
    kept = [name for name in old.off if name not in names]
    return tuple(sorted({*kept, *(name for name in remove if name not in own)}))


def _named(remove: Sequence[str], there: Sequence[PolicyEntry], scope: PolicyScope) -> list[str]:
    """The names meant: as in the rules, or ids as verdicts tell them. Raises `NotFound`."""
    names = {rule_id(entry.name, entry.scope): entry.name for entry in there}
    known = set(names.values())
    for name in remove:
        if name not in known and name not in names:
            hint = f"There is {', '.join(sorted(known))}." if known else "It has none at all."
            raise NotFound(f"The {scope} has no policy {name!r}.", hint=hint)
    return [name if name in known else names[name] for name in remove]


def _standing(server: Applied) -> tuple[PolicyEntry, ...]:
    gone = {*server.off, *(entry.name for entry in server.entries)}
    return tuple(entry for entry in defaults() if entry.name not in gone)


def _binding(one: Applied) -> tuple[PolicyEntry, ...]:
    """What a set comes to: the server's has the defaults below it."""
    return (*_standing(one), *one.entries) if one.scope == "server" else one.entries


def _mark_off(name: str) -> PolicyEntry:
    """A default that is off, as the event's whole content holds it: no rule, so nobody may load it as one."""
    return PolicyEntry(name=name, scope="server", content=canonical({"name": name, "off": True}))


def _is_off(entry: PolicyEntry) -> bool:
    return json.loads(entry.content).get("off") is True


def _outermost_first(workspace: str) -> list[str]:
    path = PurePath(workspace)
    return [str(place) for place in (*reversed(path.parents), path)] if path.is_absolute() else []
