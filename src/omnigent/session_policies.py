"""The policies of one session: its own, with those of the wider scopes it stands in."""

from collections.abc import Sequence

from omnigent import commands
from omnigent import events as ev
from omnigent.errors import NotFound
from omnigent.events import Draft, PolicyEntry
from omnigent.house import House
from omnigent.policies import engine
from omnigent.policies.language import parse
from omnigent.views import SessionView


class SessionPolicies:
    def __init__(self, house: House, view: SessionView) -> None:
        self._house = house
        self._view = view
        self._revision = -1
        """Of the rulebook, when it was last compared."""

    async def refreshed(self) -> Draft | None:
        """What an owner applied to the wider scopes since this session last looked; None: nothing."""
        if self._revision == self._house.rulebook.revision:
            return None
        self._revision = self._house.rulebook.revision
        if not self._view.policies_sha256:
            return None  # a log from before policies were kept in it: the defaults hold, and stay
        before = await self._effective()
        after = (*self._wider(), *(entry for entry in before if entry.scope == "session"))
        return None if _same(before, after) else changed(before, after)

    async def changed(self, command: commands.SetPolicies) -> Draft:
        """The session's own, changed. Raises `PolicyInvalid`, `NotFound` for a name that isn't there."""
        before = await self._effective()
        new = parse(command.policies, "policies", "session") if command.policies.strip() else ()
        own = {entry.name: entry for entry in before if entry.scope == "session"}
        for name in command.remove:
            if own.pop(name, None) is None:
                wider = next((entry.scope for entry in before if entry.name == name), None)
                hint = f"It is of scope {wider}, and is removed there." if wider else ""
                raise NotFound(f"This session has no policy {name!r} of its own.", hint=hint)
        own |= {entry.name: entry for entry in new}
        after = (*(entry for entry in before if entry.scope != "session"), *own.values())
        return changed(before, after)

    async def _effective(self) -> tuple[PolicyEntry, ...]:
        view = self._view
        async with self._house.trees.of(view.root_id).at(view.session_id, view.tree_pos) as state:
            return engine.effective(state, view.session_id)

    def _wider(self) -> tuple[PolicyEntry, ...]:
        return self._house.rulebook.entries(self._view.project, self._view.owner)


def first(house: House, workspace: str, owner: str, own: str) -> Draft:
    """What a new session begins with. `own` is YAML text, "" for none. Raises `PolicyInvalid`."""
    entries = house.rulebook.entries(workspace, owner)
    if own.strip():
        entries = (*entries, *parse(own, "policies", "session"))
    return Draft(ev.PolicyChanged(policies=entries, added=tuple(entry.name for entry in entries)))


def changed(before: Sequence[PolicyEntry], after: Sequence[PolicyEntry]) -> Draft:
    added, removed, altered, loosens = engine.diff(before, after)
    body = ev.PolicyChanged(
        policies=tuple(after), added=added, removed=removed, changed=altered, loosens=loosens
    )
    return Draft(body)


def _same(before: Sequence[PolicyEntry], after: Sequence[PolicyEntry]) -> bool:
    def keys(entries: Sequence[PolicyEntry]) -> set[tuple[str, str, str]]:
        return {(entry.scope, entry.name, entry.content) for entry in entries}

    return keys(before) == keys(after)
