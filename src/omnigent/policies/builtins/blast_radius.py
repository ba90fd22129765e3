"""Asks before what reaches far: deletes of whole trees, rewritten history, publishing, the machine itself.

    - name: blast_radius
      use: blast_radius
      with: {build_dirs: [generated], publish: deny}

Each group is `ask`, `deny` or `allow`: `deletes` (trees outside build directories), `history` (git commands
that lose commits or work), `publish` (git push, packages, images, deployments, code hosts), `system`,
`database`, and `catastrophe` (the workspace or a home directory deleted, disks, shutdown), which is denied
unless told otherwise.
"""

import re
from typing import Any, ClassVar, Literal

from omnigent.actions import Action, Exec, FileWrite
from omnigent.events import JSON, Event, ToolCompleted, ToolRequested
from omnigent.policies.builtins._base import Builtin, Params, command_of, flag, one, writes_api
from omnigent.policies.builtins._blows import Group, blows, build_dirs, is_built
from omnigent.policies.contract import Facts, Opinion

Answer = Literal["ask", "deny", "allow"]
Reach = Group | Literal["deletes"]

_DATABASE_CLIENTS = frozenset(
    {
        "psql",
        "mysql",
        "mariadb",
        "sqlite3",
        "sqlite",
        "mongosh",
        "mongo",
        "sqlcmd",
        "clickhouse-client",
        "duckdb",
    }
)
_DROPS = re.compile(
    r"\bdrop\s+(table|database|schema|index|view|user|role|collection|column)\b|\btruncate\b"
    r"|\bdelete\s+from\s+[\w.\"`\[\]]+\s*(;|$|['\"])|\bdropDatabase\s*\(|\.drop\s*\(|\bdeleteMany\s*\(\s*\{\s*\}",
    re.IGNORECASE,
)
_DEVICE = re.compile(r"(?:^|=)/dev/(?:sd|hd|vd|xvd|nvme|mmcblk|disk|rdisk|mapper/|dm-|loop|mem|md)")
_AS_ROOT = re.compile(r"^\s*(?:\w+=\S*\s+)*(?:\S*/)?(?:sudo|doas|pkexec|su)\s")
_WILD = re.compile(r"[*?\[]")
_WHOLE = frozenset({".", "./", ":/", ":", ".."})
_LOOK_BACK = 50
"""Calls still running whose end is waited for."""


class BlastParams(Params):
    deletes: Answer = "ask"
    history: Answer = "ask"
    publish: Answer = "ask"
    system: Answer = "ask"
    database: Answer = "ask"
    catastrophe: Answer = "deny"
    build_dirs: tuple[str, ...] = ()
    """Names of directories, beside the usual ones, that may be deleted whole."""


class BlastRadius(Builtin[BlastParams]):
    """Memory: `pushed`, whether a push was asked for and no commit made since (amending asks then), and
    `open`, the calls that commit and haven't ended."""

    NAME: ClassVar[str] = "blast_radius"
    PARAMS: ClassVar[type[Params]] = BlastParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"exec", "file.write"})

    def __init__(self, params: BlastParams) -> None:
        super().__init__(params)
        self._build_dirs = build_dirs() | set(params.build_dirs)

    def empty(self) -> Any:
        return {"pushed": False, "open": []}

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        if event.kind not in (ToolRequested.KIND, ToolCompleted.KIND):
            return memory
        match event.body:
            case ToolRequested() as call if event.item_id:
                self._requested(memory, event.item_id, call)
            case ToolCompleted() as done if event.item_id in memory["open"]:
                memory["open"].remove(event.item_id)
                memory["pushed"] = memory["pushed"] and done.outcome != "ok"
            case _:
                pass
        return memory

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        match action:
            case FileWrite(change="delete", recursive=True):
                return self._deletion(action, facts)
            case FileWrite() if _DEVICE.search(action.real_path):
                return self._answer("catastrophe", f"Writing to {action.path} destroys a disk's contents.")
            case Exec():
                return self._command(action, facts)
            case _:
                return None

    def _deletion(self, action: FileWrite, facts: Facts) -> Opinion | None:
        path, workspace = action.real_path, str(facts.setting.session.get("workspace", ""))
        filtered = _is_filtered(facts)
        if not filtered and (_holds(path, workspace) or _is_top(path) or path.endswith("/.git")):
            reason = f"Deleting {action.path} would take away far more than this task made."
            return self._answer("catastrophe", reason)
        if action.in_workspace and is_built(path, workspace, self._build_dirs):
            return None
        where = "" if action.in_workspace else ", which lies outside the workspace"
        if filtered:
            return self._answer("deletes", f"It deletes what it finds in {action.path}{where}.")
        return self._answer(
            "deletes", f"It deletes {action.path} and all in it{where}; a person must allow it."
        )

    def _command(self, action: Exec, facts: Facts) -> Opinion | None:
        found = [self._answer(blow.group, blow.reason) for blow in blows(action)]
        found += [self._answer(group, reason) for group, reason in _further(action)]
        if _is_amend(action) and _is_pushed(facts):
            found.append(self._answer("history", "The commit it rewrites was pushed."))
        opinions = [each for each in found if each]
        # The most telling first: a deny, then in the order of the table.
        return next((each for each in opinions if each.decision == "deny"), opinions[0] if opinions else None)

    def _answer(self, group: Reach, reason: str) -> Opinion | None:
        answer: Answer = getattr(self.params, group)
        return None if answer == "allow" else one(answer, reason, f"group={group}")

    def _requested(self, memory: Any, item_id: str, call: ToolRequested) -> None:
        if any(_begins(action, "push") for action in call.actions):
            # As soon as it is asked for: whether it got through before it failed isn't known.
            memory["pushed"] = True
            memory["open"] = []
        elif any(map(_is_commit, call.actions)):
            memory["open"] = [*memory["open"][1 - _LOOK_BACK :], item_id]


def _is_pushed(facts: Facts) -> bool:
    """Whether the last commit is on a remote, as far as the session tree tells."""
    for earlier in reversed(facts.call.actions[: facts.index]):
        if _begins(earlier, "push"):
            return True
        if _is_commit(earlier):
            return False
    return facts.memory["pushed"]


def _is_filtered(facts: Facts) -> bool:
    """Whether it is `find` that deletes (or has it done), and not all it finds: the directory named is only
    where it looks."""
    command = command_of(facts.call, facts.index)
    return command is not None and any(
        isinstance(each, Exec)
        and each.program == "find"
        and each.command == command.command
        and not _NO_FILTERS.issuperset(flag.partition("=")[0] for flag in each.flags)
        for each in facts.call.actions[: facts.index]
    )


_NO_FILTERS = frozenset(
    {"delete", "depth", "mindepth", "maxdepth", "xdev", "mount", "print", "L", "H", "P"}
    | {"exec", "execdir", "ok", "r", "f", "rf", "fr", "recursive", "force"}
)


def _further(action: Exec) -> list[tuple[Reach, str]]:
    """What the table can't say: operands that matter."""
    found: list[tuple[Reach, str]] = []
    if _AS_ROOT.match(action.command):
        found.append(("system", "It runs as another user."))
    match action.program:
        case "git":
            found += _git(action)
        case "kill" if "-1" in action.argv[2:] or (action.argv[1:] and action.argv[1:] == ("-1",)):
            found.append(("catastrophe", "It ends every process of this user."))
        case "dd" | "tee" | "cp" | "cat" if any(
            _DEVICE.search(word) for word in action.argv if not word.startswith("if=")
        ):
            if action.program == "dd" and not any(word.startswith("of=/dev/") for word in action.argv):
                return found
            found.append(("catastrophe", "It overwrites a disk."))
        case "mv" if action.argv[-1:] == ("/dev/null",):
            found.append(("deletes", "Moved to /dev/null it is gone."))
        case "chmod" if flag(action, "R", "recursive") and _opens(action):
            found.append(("system", "It lets everyone write a whole tree."))
        case program if program in _DATABASE_CLIENTS and _DROPS.search(
            f"{' '.join(action.argv)}\n{action.stdin or ''}"
        ):
            found.append(("database", "It deletes data or tables from a database."))
        case "gh" if action.words[:1] == ("api",) and writes_api(action):
            found.append(("publish", "It changes what others see on the code host."))
        case _:
            pass
    return found


def _git(action: Exec) -> list[tuple[Group, str]]:
    if _begins(action, "push") and any(word.startswith(("+", ":")) for word in action.words[1:]):
        return [("history", "It rewrites or deletes what is on the remote.")]
    if _begins(action, "branch") and flag(action, "delete") and flag(action, "force"):
        return [("history", "It deletes a branch that may not be merged.")]
    whole = any(word in _WHOLE or word.endswith("/") or _WILD.search(word) for word in action.words[1:])
    restores = _begins(action, "restore") and (
        flag(action, "worktree", "W") or not flag(action, "staged", "S")
    )
    if whole and (restores or _begins(action, "checkout")):
        return [
            ("history", f"git {action.words[0]} of many paths throws away changes that aren't committed.")
        ]
    return []


def _opens(action: Exec) -> bool:
    return any(
        re.fullmatch(r"0?[0-7]?[0-7][0-7][2367]|[augo]*[ao][augo]*\+[rwxXst]*w[rwxXst]*", word)
        for word in action.argv[1:]
    )


def _begins(action: Action, word: str) -> bool:
    return isinstance(action, Exec) and action.program == "git" and action.words[:1] == (word,)


def _is_amend(action: Exec) -> bool:
    return _begins(action, "commit") and flag(action, "amend")


def _is_commit(action: Action) -> bool:
    return isinstance(action, Exec) and _begins(action, "commit") and not flag(action, "amend", "dry-run")


def _holds(path: str, workspace: str) -> bool:
    """Whether it is the workspace, all that lies in it, or what it lies in."""
    fixed = path[: found.start()].rpartition("/")[0] if (found := _WILD.search(path)) else path
    whole = found is None or path[len(fixed) :].strip("/") in ("*", "**", "**/*", ".*")
    return bool(workspace) and whole and f"{workspace}/".startswith(f"{fixed.rstrip('/')}/")


def _is_top(path: str) -> bool:
    """`/`, a directory of the system, or a home directory."""
    parts = [part for part in path.split("/") if part]
    return len(parts) < 2 or (
        len(parts) == 2 and parts[0] in ("home", "Users", "usr", "var", "etc", "System")
    )
