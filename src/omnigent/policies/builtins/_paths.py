"""Lists of path patterns, in the language's own globs, matched against what a file action touches.

A pattern begins with `/`, with `~/`, with `**` (anywhere), or is relative to the workspace; `dir/**` names
the directory too. What is matched is the real path, and the path as the agent named it.
"""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from omnigent.actions import FileRead, FileWrite
from omnigent.policies import globs
from omnigent.policies.contract import Facts

FileAction = FileRead | FileWrite

_WILD = re.compile(r"[*?\[{]")
_WILDS = re.compile(r"[*?]|\[[^\]]*\]")
_ANY_NAME = re.compile(r"\*(\.\w+)?")
"""Names nothing, or an extension at most."""

CACHES = ("/.cargo/", "/.rustup/", "/.m2/", "/.cache/", "/.gradle/", "/.npm/", "/go/pkg/", "/site-packages/")
"""Of packages, below a home directory: what lies there was published."""


@dataclass(frozen=True, slots=True)
class Pattern:
    text: str
    """As it was written."""
    glob: str
    """Absolute, or beginning with `**`, or relative to the workspace."""

    @property
    def floating(self) -> bool:
        return self.glob.startswith("**")

    @property
    def relative(self) -> bool:
        return not self.glob.startswith(("/", "**"))

    def anchored(self, workspace: str) -> str:
        return globs.anchor(self.glob, workspace) if self.relative else self.glob


@dataclass(frozen=True, slots=True)
class Target:
    """What a file action touches: made once, shown to every list."""

    action: FileAction
    workspace: str
    names: tuple[tuple[str, str], ...]
    """Each path it goes by, and that path below the work tree it lies in."""


def target(action: FileAction, facts: Facts) -> Target:
    workspace = str(facts.setting.session.get("workspace", ""))
    roots = tuple(root for root in (workspace, *facts.setting.own) if root)
    named = globs.anchor(action.path, "") if action.path.startswith("~/") else action.path
    named = posixpath.normpath(posixpath.join(workspace or "/", named))
    paths = (action.real_path,) if named == action.real_path else (action.real_path, named)
    return Target(action, workspace, tuple((path, _within(path, roots)) for path in paths))


class Paths:
    """A list of patterns, ready to match. Whose home `~` is, is settled when it is made.

    With `hinted`, a shell's pattern has to hint at a name to touch it: `*.pe?` does at `*.pem`, while `*` and
    `*.py` hint at nothing that doesn't end so. Without, any that could match touches.
    """

    def __init__(self, patterns: Iterable[str], *, hinted: bool = False) -> None:
        self._hinted = hinted
        self._home = str(Path.home())
        self._patterns = tuple(_read(text) for text in patterns)
        self._floating = _sieve(each.glob for each in self._patterns if each.floating)
        self._anchored = _sieve(each.glob for each in self._patterns if each.glob.startswith("/"))
        self._sieved = not any(each.relative for each in self._patterns)

    def touched(self, target: Target) -> str | None:
        """The first pattern that the action certainly or possibly touches, as it was written."""
        action = target.action
        if self._sieved and not (action.glob or action.recursive or self._may_match(target.names)):
            return None
        for pattern in self._patterns:
            glob = pattern.anchored(target.workspace)
            if any(self._touches(pattern, glob, name[pattern.floating], action) for name in target.names):
                return pattern.text
        return None

    def cover(self, target: Target) -> bool:
        """Whether one pattern names all that the action touches, under each of its names."""
        return any(
            all(_covers(pattern, target.workspace, name, target.action) for name, _ in target.names)
            for pattern in self._patterns
        )

    def _may_match(self, names: tuple[tuple[str, str], ...]) -> bool:
        return any(self._anchored.match(full) or self._floating.search(below) for full, below in names)

    def _touches(self, pattern: Pattern, glob: str, name: str, action: FileAction) -> bool:
        if globs.glob(name, glob):
            return True
        if action.recursive:
            # A pattern that holds anywhere would be met by every directory. In the workspace the files at its
            # top are named beside it; elsewhere a home directory is what may hold them.
            if pattern.floating:
                return not action.in_workspace and self._is_home(name)
            return meet(glob, f"{name.rstrip('/')}/**")
        return action.glob and meet(glob, name, hinted=self._hinted)

    def _is_home(self, name: str) -> bool:
        below = f"{name.rstrip('/')}/"
        if f"{self._home}/".startswith(below) or below in ("/etc/", "/home/", "/root/", "/Users/"):
            return True
        return below.startswith(f"{self._home}/") and not any(cache in below for cache in CACHES)


def _sieve(patterns: Iterable[str]) -> re.Pattern[str]:
    """One expression for many patterns, tried before each of them: it holds for all that one of them matches,
    and for a little more."""
    texts = ["/".join(map(_sieved, _split(glob.removesuffix("/**").removeprefix("**")))) for glob in patterns]
    flags = re.IGNORECASE | re.DOTALL if globs.FOLDED else re.DOTALL
    return re.compile(f"(?:^|/)(?:{'|'.join(texts)})(?:/|$)" if texts else r"(?!)", flags)


def _sieved(segment: str) -> str:
    if segment == "**":
        return ".*"
    parts = re.split(r"(\*|\?|[\[{].*)", segment)
    return "".join(_SIEVED.get(part[:1]) or re.escape(part) for part in parts)


_SIEVED = {"*": "[^/]*", "?": "[^/]", "[": ".*", "{": ".*"}


@lru_cache(maxsize=8192)
def meet(rule: str, shell: str, *, hinted: bool = False) -> bool:
    """Whether some path matches both a rule's pattern and a shell's."""
    if globs.FOLDED:
        rule, shell = rule.casefold(), shell.casefold()
    return any(
        _meet(_split(mine), _split(theirs), hinted)
        for mine in globs.expand(rule)
        for theirs in globs.expand(shell)
    )


def _read(text: str) -> Pattern:
    return Pattern(text, globs.anchor(text, "") if text.startswith("~") else text)


def _covers(pattern: Pattern, workspace: str, name: str, action: FileAction) -> bool:
    glob = pattern.anchored(workspace)
    if not (action.glob or action.recursive):
        return globs.glob(name, glob)
    wild = _WILD.search(name) if action.glob else None
    fixed = posixpath.dirname(name[: wild.start()]) if wild else name
    return glob.endswith("/**") and globs.glob(fixed, glob)


def _within(name: str, roots: tuple[str, ...]) -> str:
    """The path below the work tree it lies in: where that stands is no matter of a floating pattern."""
    root = next((each for each in roots if name.startswith(f"{each}/")), "")
    return name[len(root) :]


@lru_cache(maxsize=4096)
def _split(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


@lru_cache(maxsize=4096)
def _meet(rule: tuple[str, ...], shell: tuple[str, ...], hinted: bool) -> bool:
    if not rule or not shell:
        return all(part == "**" for part in rule or shell)
    if rule[0] == "**":
        return _meet(rule[1:], shell, hinted) or _meet(rule, shell[1:], hinted)
    if shell[0] == "**":
        # Not through hidden directories, so that every `**/*.py` isn't a look into them.
        hidden = hinted and rule[0].startswith(".") and len(rule) > 1
        return _meet(rule, shell[1:], hinted) or (not hidden and _meet(rule[1:], shell, hinted))
    return _parts_meet(rule[0], shell[0], hinted) and _meet(rule[1:], shell[1:], hinted)


def _parts_meet(rule: str, shell: str, hinted: bool) -> bool:
    if hinted and shell.startswith("*") and not _hints(rule, shell):
        return False
    return _texts_meet(_classless(rule), _classless(shell))


def _hints(rule: str, shell: str) -> bool:
    known = rule.replace("*", "")
    if _ANY_NAME.fullmatch(shell):
        extension = shell[1:]
        return bool(extension) and (known == extension or known.startswith(f"{extension}."))
    return any(len(chunk) > 1 and chunk in known for chunk in _WILDS.split(shell))


def _classless(part: str) -> str:
    return re.sub(r"\[[^\]]+\]", "?", part)


@lru_cache(maxsize=4096)
def _texts_meet(one: str, other: str) -> bool:
    if not one or not other:
        return set(one or other) <= {"*"}
    if one[0] == "*":
        return _texts_meet(one[1:], other) or _texts_meet(one, other[1:])
    if other[0] == "*":
        return _texts_meet(one, other[1:]) or _texts_meet(one[1:], other)
    return (one[0] == other[0] or "?" in (one[0], other[0])) and _texts_meet(one[1:], other[1:])
