"""Says which kinds of action need a person's yes.

    - name: approve
      use: approve
      with: {exec: unusual, write: outside, net: unlisted, mcp: unlisted, hosts: [docs.acme.example]}

- `exec`: `unusual` asks for all but everyday commands (reading, building, testing), `all`, `none`.
- `write`, `read`: `outside` the workspace, `all`, `none`; `paths` are further places that count as inside.
- `net`: `unlisted` asks for hosts that are neither this machine nor in `hosts`; `all`, `none`. Package
  registries may be read, and code hosts be spoken to by git and ssh (a push asks for itself).
- `mcp`: `unlisted` asks for all but `tools` (`server/tool`, `*` is any); `all`, `none`.
- `hosted`: tools that run at the model's provider, out of this gate's sight: `all`, `none`, or `strip`, which
  cuts them out of the request.
"""

from fnmatch import fnmatchcase
from itertools import takewhile
from typing import ClassVar, Literal

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Model, Net, Spawn
from omnigent.policies.builtins._base import Builtin, Params, command_of, one, short
from omnigent.policies.builtins._blows import build_dirs, is_built
from omnigent.policies.builtins._hosts import CODE_HOSTS, REGISTRIES, is_local, listed
from omnigent.policies.builtins._paths import Paths, target
from omnigent.policies.contract import Decision, Facts, Opinion

_READING = frozenset({"GET", "HEAD", "OPTIONS", ""})


class ApproveParams(Params):
    exec: Literal["unusual", "all", "none"] = "unusual"
    write: Literal["outside", "all", "none"] = "outside"
    read: Literal["outside", "all", "none"] = "none"
    net: Literal["unlisted", "all", "none"] = "unlisted"
    mcp: Literal["unlisted", "all", "none"] = "unlisted"
    spawn: Literal["all", "none"] = "none"
    hosted: Literal["all", "none", "strip"] = "all"
    hosts: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    then: Literal["ask", "deny", "pause"] = "ask"


class Approve(Builtin[ApproveParams]):
    NAME: ClassVar[str] = "approve"
    PARAMS: ClassVar[type[Params]] = ApproveParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset(
        {"exec", "file.read", "file.write", "net", "mcp", "model", "spawn"}
    )

    def __init__(self, params: ApproveParams) -> None:
        super().__init__(params)
        self._inside = Paths(params.paths)

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        if isinstance(action, Model) and action.hosted and self.params.hosted == "strip":
            return Opinion("allow", "", f"cut out: {', '.join(action.hosted)}", strip=action.hosted)
        reason = self._reason(action, facts)
        then: Decision = self.params.then
        return one(then, reason, f"{action.type} isn't among what passes by itself") if reason else None

    def _reason(self, action: Action, facts: Facts) -> str | None:
        params = self.params
        match action:
            case Exec() if params.exec == "all" or (
                params.exec == "unusual" and not _is_usual(action, facts)
            ):
                return f"`{short(action.command)}` isn't an everyday command; a person must allow it."
            case FileWrite() if self._outside(params.write, action, facts):
                return f"Writing {action.path} needs a person's yes{_where(action)}."
            case FileRead() if self._outside(params.read, action, facts):
                return f"Reading {action.path} needs a person's yes{_where(action)}."
            case Net() if params.net == "all" or (
                params.net == "unlisted" and not self._known(action, facts)
            ):
                return f"A request to {action.host or 'a host that is not known'} needs a person's yes."
            case Mcp() if params.mcp == "all" or (params.mcp == "unlisted" and not self._listed(action)):
                return f"The tool {action.tool} of {action.server} needs a person's yes."
            case Spawn() if params.spawn == "all":
                return "Starting a sub-agent needs a person's yes."
            case Model() if action.hosted and params.hosted == "all":
                tools = ", ".join(action.hosted)
                return f"The provider would run {tools} itself, where no policy sees what it does."
            case _:
                return None

    def _outside(self, which: str, action: FileRead | FileWrite, facts: Facts) -> bool:
        if which == "all":
            return True
        if which != "outside" or action.in_workspace:
            return False
        # What is moved away is taken from the workspace, wherever it goes.
        return _takes_away(facts) or not self._inside.cover(target(action, facts))

    def _known(self, request: Net, facts: Facts) -> bool:
        if is_local(request.host) or listed(request.host, self.params.hosts):
            return True
        if request.host in REGISTRIES:
            return request.method.upper() in _READING
        if request.host not in CODE_HOSTS:
            return False
        command = command_of(facts.call, facts.index)
        reads = command is not None and command.program == "gh" and command.everyday
        return request.method == "" or (reads and request.method.upper() in _READING)

    def _listed(self, call: Mcp) -> bool:
        return any(fnmatchcase(f"{call.server}/{call.tool}", pattern) for pattern in self.params.tools)


def _is_usual(action: Exec, facts: Facts) -> bool:
    """Everyday, or an `rm` of nothing but what a build makes anew."""
    if action.everyday or action.doubt:
        return action.everyday
    if (
        action.argv[:1] != ("rm",)
        or action.unknown
        or action.env_names
        or not action.command.startswith("rm ")
    ):
        return False
    rest = facts.call.actions[facts.index + 1 :]
    targets = tuple(takewhile(lambda each: not isinstance(each, Exec), rest))
    workspace = str(facts.setting.session.get("workspace", ""))
    return bool(targets) and all(
        isinstance(each, FileWrite)
        and each.change == "delete"
        and each.in_workspace
        and not (each.glob or each.doubt)
        and is_built(each.real_path, workspace, build_dirs())
        for each in targets
    )


def _where(action: FileRead | FileWrite) -> str:
    return "" if action.in_workspace else ": it lies outside the workspace"


def _takes_away(facts: Facts) -> bool:
    """Whether the call removes something from the workspace."""
    return any(
        isinstance(each, FileWrite) and each.change == "delete" and each.in_workspace
        for each in facts.call.actions
    )
