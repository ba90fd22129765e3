"""Patterns of commands, and the patterns a person may grant (`exec: npm run *`, `read: docs/**`)."""

import shlex
from dataclasses import dataclass
from functools import lru_cache

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Model, Net
from omnigent.policies.globs import anchor, covers, glob, like
from omnigent.policies.reading import canonical
from omnigent.policies.rules import KINDS, NetPattern, Wrong, read_alternative


@dataclass(frozen=True, slots=True)
class Command:
    """`exec: "git push --force *"`: a program, the words that its arguments begin with, a set of flags."""

    program: str
    """As it stands in `Exec.program`."""
    words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    open: bool = False
    """It ended in `*`."""
    path: str = ""
    """The program as it was written, where that is a path."""


@lru_cache(maxsize=2048)
def command(text: str) -> Command:
    """Taken apart and named as the shell's own parser does it."""
    words = [word for word in shlex.split(text) if word]
    if not words:
        raise Wrong((), "An empty command.", "Name a program.")
    is_open = len(words) > 1 and words[-1] == "*"
    if is_open:
        words.pop()
    program, found, flags = canonical(words)
    named = words[0] if "*" in words[0] else program
    return Command(named, found, flags, is_open, words[0] if "/" in words[0] else "")


def flag_names(action: Exec) -> list[str]:
    """The flags without their values."""
    return [flag.partition("=")[0] for flag in action.flags]


# ── Grants ──────────────────────────────────────────────────────────────────────────────────────────────


def pattern_matches(pattern: str, action: Action, workspace: str = "") -> bool:
    """Whether a granted pattern surely covers the action. What is in doubt is covered by none.

    Stricter than a rule's `when`, which has to catch what might match: a command has exactly these words and
    flags, unless the pattern ends in `*`; it sets no variables and comes from no path of its own; a file is
    the one that links lead to; a pattern or a tree of files lies wholly inside.
    """
    kind, colon, text = pattern.partition(":")
    kind, text = kind.strip(), text.strip()
    if not colon or not text or action.doubt or kind not in KINDS:
        return False
    match action:
        case Exec() if kind == "exec":
            return _grants_command(text, action)
        case FileRead() if kind == "read":
            return _grants_path(text, action, workspace)
        case FileWrite() if kind == "write" or (kind == "delete" and action.change == "delete"):
            return _grants_path(text, action, workspace)
        case Net() if kind == "net":
            return _grants_host(text, action)
        case Mcp() if kind == "mcp":
            return like(f"{action.server}/{action.tool}", text if "/" in text else f"{text}/*")
        case Model() if kind == "model":
            return like(action.model, text) or like(f"{action.provider}/{action.model}", text)
        case _:
            return action.type == kind == "spawn" and text in ("true", "*")


def _grants_command(text: str, action: Exec) -> bool:
    try:
        wanted = command(text)
    except (Wrong, ValueError):
        return False
    if action.program != wanted.program or not _starts_as(action, wanted.path):
        return False
    if "*" in wanted.program or action.env_names or action.unknown or action.stdin is not None:
        return False
    words, flags = action.words, set(action.flags)
    if not wanted.open and (len(words) != len(wanted.words) or flags != set(wanted.flags)):
        return False
    begins = len(words) >= len(wanted.words) and all(map(like, words, wanted.words))
    return begins and set(wanted.flags) <= flags


def _starts_as(action: Exec, path: str) -> bool:
    """Whether it is started by this path; "": by no path at all, so that it is the one everybody means."""
    argv0 = action.argv[0] if action.argv else ""
    if path:
        return action.command == path or action.command.startswith(f"{path} ")
    return bool(argv0) and "/" not in argv0 and f"/{argv0}" not in action.command


def _grants_path(text: str, action: FileRead | FileWrite, workspace: str) -> bool:
    if not text.startswith(("/", "~", "**")) and not workspace:
        return False
    pattern = anchor(text, workspace)
    if action.recursive or action.glob:
        return covers(pattern, action.real_path)
    return glob(action.real_path, pattern)


def _grants_host(text: str, action: Net) -> bool:
    try:
        alternative = read_alternative("net", text)
    except Wrong:
        return False
    return bool(action.host) and host_matches(alternative.net, action)


def host_matches(wanted: NetPattern, action: Net) -> bool:
    return like(action.host, wanted.host) and wanted.port in (None, action.port)


_SPEAKS_ANYTHING = frozenset(
    {
        "bash", "sh", "zsh", "fish", "dash", "ksh", "python", "python3", "node", "perl", "ruby",
        "php", "eval", "exec", "sudo", "doas", "env", "xargs", "rm", "ssh", "docker", "podman",
        "find", "awk", "sed", "curl", "wget", "nc", "dd", "chmod", "chown", "kill",
    }
)  # fmt: skip
"""Programs of which no open pattern is suggested: a prefix of theirs says little of what they do."""


def patterns(action: Action) -> tuple[str, ...]:
    """What a person might grant instead of this one action, the narrowest first. Each covers the action."""
    found = [pattern for pattern in _suggested(action) if pattern_matches(pattern, action)]
    return tuple(dict.fromkeys(found))


def _suggested(action: Action) -> list[str]:
    match action:
        case Exec():
            return _suggested_commands(action)
        case FileRead():
            return [f"read: {action.real_path}", f"read: {_parent(action.real_path)}/**"]
        case FileWrite():
            return [f"write: {action.real_path}", f"write: {_parent(action.real_path)}/**"]
        case Net():
            return [f"net: {action.host}"]
        case Mcp():
            return [f"mcp: {action.server}/{action.tool}", f"mcp: {action.server}/*"]
        case Model():
            return [f"model: {action.model}"]
        case _:
            return ["spawn: true"] if action.type == "spawn" else []


def _suggested_commands(action: Exec) -> list[str]:
    if not action.argv or any("\n" in word for word in action.argv):
        return []
    whole = f"exec: {shlex.join(action.argv)}"
    if action.program in _SPEAKS_ANYTHING or not action.words:
        return [whole]
    depth = 2 if len(action.words) > 1 and action.words[0] in ("run", "exec") else 1
    stem = [action.argv[0], *action.words[:depth]]
    if not all(word.replace("-", "").replace(":", "").replace("_", "").isalnum() for word in stem[1:]):
        return [whole]
    return [whole, f"exec: {shlex.join(stem)} *"]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern one can grant."""
    kind, colon, rest = text.partition(":")
    if not colon or kind.strip() not in KINDS or not rest.strip():
        return False
    if kind.strip() == "exec":
        try:
            command(rest.strip())
        except (Wrong, ValueError):
            return False
    return True
