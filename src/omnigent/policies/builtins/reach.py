"""Says which paths and hosts an agent may touch.

    - name: reach
      use: reach
      with:
        write: {allow: ["src/**", "tests/**"], otherwise: ask}
        hosts: {deny: ["*.internal.example"]}

`paths` is for reading and writing, `read` and `write` for one of them, `hosts` for requests. In each, what
`allow` names is an exception to all the rest; `deny` comes next, then `ask`, then (for paths) two lists that
ask unless told otherwise: `sensitive` (files that hold credentials) and `runs_later` (writes that let code
run later or change an agent's own rules: git hooks, CI workflows, shell start-up files, agents' settings).
`otherwise` is for what nothing names.
"""

from typing import ClassVar, Literal

from omnigent.actions import Action, FileRead, FileWrite, Net
from omnigent.policies.builtins._base import Builtin, Params, one
from omnigent.policies.builtins._hosts import METADATA, listed
from omnigent.policies.builtins._paths import FileAction, Paths, Target, target
from omnigent.policies.builtins._sensitive import NO_SECRETS, RUNS_LATER, SECRETS
from omnigent.policies.contract import Decision, Facts, Opinion

Listed = Literal["allow", "ask", "deny"]


class Lists(Params):
    allow: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    otherwise: Listed = "allow"


class ReachParams(Params):
    paths: Lists = Lists()
    read: Lists = Lists()
    write: Lists = Lists()
    hosts: Lists = Lists()
    sensitive: Listed = "ask"
    runs_later: Listed = "ask"


class Reach(Builtin[ReachParams]):
    NAME: ClassVar[str] = "reach"
    PARAMS: ClassVar[type[Params]] = ReachParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"file.read", "file.write", "net"})

    def __init__(self, params: ReachParams) -> None:
        super().__init__(params)
        self._paths = PathLists(params.paths)
        self._read, self._write = PathLists(params.read), PathLists(params.write)
        self._secrets, self._no_secrets = Paths(SECRETS, hinted=True), Paths(NO_SECRETS)
        self._runs_later = Paths(RUNS_LATER, hinted=True)

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        match action:
            case Net():
                return self._host(action)
            case FileRead() | FileWrite():
                return self._path(action, facts)
            case _:
                return None

    def _path(self, action: FileAction, facts: Facts) -> Opinion | None:
        own = self._read if isinstance(action, FileRead) else self._write
        touching = target(action, facts)
        if self._paths.allow.cover(touching) or own.allow.cover(touching):
            return None
        named = [each for lists in (self._paths, own) if (each := lists.decide(touching))]
        for then, pattern in sorted(named, key=lambda each: each[0] != "deny"):
            return _file(then, action, f"{pattern} is on its list", pattern)
        return self._by_kind(touching) or self._otherwise(action, own)

    def _by_kind(self, touching: Target) -> Opinion | None:
        action, sensitive, later = touching.action, self.params.sensitive, self.params.runs_later
        if sensitive != "allow" and (pattern := self._secrets.touched(touching)):
            exempt = self._no_secrets.cover(touching)
            if not exempt:
                return _file(sensitive, action, "it may hold credentials", pattern)
        if later != "allow" and isinstance(action, FileWrite):
            pattern = self._runs_later.touched(touching)
            if pattern:
                return _file(later, action, "what is written there runs later or changes the rules", pattern)
        return None

    def _otherwise(self, action: FileAction, own: "PathLists") -> Opinion | None:
        rests = {self._paths.otherwise, own.otherwise}
        then: Listed = "deny" if "deny" in rests else "ask" if "ask" in rests else "allow"
        return _file(then, action, "it is outside the paths that are allowed here", "otherwise")

    def _host(self, request: Net) -> Opinion | None:
        lists, host = self.params.hosts, request.host
        if listed(host, lists.allow):
            return None
        if listed(host, METADATA):
            return one("deny", f"{host} hands out this machine's cloud credentials.", f"host={host}")
        if listed(host, lists.deny):
            return _request("deny", host, "is on its list")
        if listed(host, lists.ask):
            return _request("ask", host, "is on its list")
        return _request(lists.otherwise, host or "that host", "isn't among the hosts allowed here")


class PathLists:
    """The three lists of one parameter, ready to match."""

    def __init__(self, lists: Lists) -> None:
        self.allow, self.otherwise = Paths(lists.allow), lists.otherwise
        self._deny, self._ask = Paths(lists.deny), Paths(lists.ask)

    def decide(self, touching: Target) -> tuple[Listed, str] | None:
        """The decision, and the pattern that gave it."""
        if pattern := self._deny.touched(touching):
            return "deny", pattern
        if pattern := self._ask.touched(touching):
            return "ask", pattern
        return None


def _file(then: Listed, action: FileAction, why: str, pattern: str) -> Opinion | None:
    doing = "Reading" if isinstance(action, FileRead) else _DOING[action.change]
    return _opinion(then, f"{doing} {action.path}", why, f"path={action.real_path} matches {pattern}")


def _request(then: Listed, host: str, why: str) -> Opinion | None:
    return _opinion(then, f"A request to {host}", f"the host {why}", f"host={host}")


def _opinion(then: Listed, what: str, why: str, facts: str) -> Opinion | None:
    ends: dict[Listed, tuple[Decision, str]] = {
        "ask": ("ask", f"{what} needs a person's yes: {why}."),
        "deny": ("deny", f"{what} isn't allowed: {why}."),
        "allow": ("allow", ""),
    }
    decision, reason = ends[then]
    return None if decision == "allow" else one(decision, reason, facts)


_DOING = {"write": "Writing", "delete": "Deleting"}
