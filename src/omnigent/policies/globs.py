"""Patterns of paths and names: everywhere the same.

In a path `*` stands for any text within one segment, `**` for any number of segments (none too), `?` for one
character, `[abc]` for one of these, `{a,b}` for either. In a name (`like`) `*` stands for any text. Paths are
compared without case where the file system does so.
"""

import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

FOLDED = sys.platform == "darwin"
"""Whether paths that differ in case alone are the same."""
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 64
"""Alternatives a pattern's braces may make; beyond, a brace stands for any text."""
_FLAGS = re.DOTALL | (re.IGNORECASE if FOLDED else 0)


def like(text: str, pattern: str) -> bool:
    """Whether a name matches, without case."""
    return _like(pattern).fullmatch(text) is not None


def glob(path: str, pattern: str) -> bool:
    """Whether a path, taken literally, matches."""
    return _path(pattern).fullmatch(path) is not None


@lru_cache(maxsize=4096)
def anchor(pattern: str, workspace: str) -> str:
    """The pattern for whole paths: `~` is the person's home, a relative one begins at the workspace. Without
    a workspace a relative one is looked for anywhere."""
    if pattern == "~" or pattern.startswith("~/"):
        return str(Path.home()) + pattern[1:]
    if pattern.startswith(("/", "**")):
        return pattern
    rest = pattern.removeprefix("./")
    return f"{workspace.rstrip('/')}/{rest}" if workspace else f"**/{rest}"


def may_meet(pattern: str, other: str) -> bool:
    """Whether some path matches both patterns; may say yes of two that only nearly meet, never wrongly no."""
    if FOLDED:
        pattern, other = pattern.casefold(), other.casefold()
    mine, theirs = _segments(pattern), _segments(other)
    return any(_meet(a, b) for a in mine for b in theirs)


def covers(pattern: str, other: str) -> bool:
    """Whether surely every path that matches `other` matches `pattern`."""
    if ".." in other.split("/"):
        return False
    if pattern == other:
        return True
    base = pattern.removesuffix("/**")
    if base == pattern or _is_wild(base):
        return False
    return f"{_fold(other)}/".startswith(f"{_fold(base)}/")


def _fold(text: str) -> str:
    return text.casefold() if FOLDED else text


def _is_wild(text: str) -> bool:
    return any(sign in text for sign in "*?[{")


@lru_cache(maxsize=2048)
def _like(pattern: str) -> re.Pattern[str]:
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.compile(".*".join(parts), re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=2048)
def _path(pattern: str) -> re.Pattern[str]:
    texts = (_regex(each) for each in expand(pattern))
    return re.compile("|".join(f"(?:{text})" for text in texts), _FLAGS)


def _regex(pattern: str) -> str:
    segments = [part for part in pattern.split("/") if part]
    made, glue = "", "/" if pattern.startswith("/") else ""
    for place, segment in enumerate(segments):
        if segment != "**":
            made += glue + _segment(segment)
            glue = "/"
        elif place == len(segments) - 1:
            # It also stands for the directory itself: what happens to that happens to all below.
            made += f"(?:{glue}.*)?"
        else:
            made += f"(?:{glue}[^/]+)*" if glue else "/?(?:[^/]+/)*"
    return made or "/?"


def _segment(segment: str) -> str:
    made = ""
    for token in _tokens(segment):
        made += (
            "[^/]*"
            if token == "*"
            else "[^/]"
            if token == "?"
            else token
            if len(token) > 1
            else re.escape(token)
        )
    return made


def _tokens(segment: str) -> list[str]:
    """`*`, `?`, a character, or a class `[…]` as the regular expression writes it."""
    found: list[str] = []
    place = 0
    while place < len(segment):
        sign = segment[place]
        end = segment.find("]", place + 2) if sign == "[" else -1
        if end > 0:
            inside = segment[place + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            found.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            place = end
        elif not (sign == "*" and found and found[-1] == "*"):
            found.append(sign)
        place += 1
    return found


def expand(pattern: str) -> list[str]:
    """The patterns that its braces stand for."""
    done, open_ = list[str](), [pattern]
    while open_:
        each = open_.pop()
        found = _BRACES.search(each)
        if found is None:
            done.append(each)
        elif len(done) + len(open_) > _MOST:
            done.append(_BRACES.sub("*", each))
        else:
            open_ += [each[: found.start()] + part + each[found.end() :] for part in found[1].split(",")]
    return done


@lru_cache(maxsize=4096)
def _segments(pattern: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(part for part in each.split("/") if part) for each in expand(pattern))


@lru_cache(maxsize=8192)
def _meet(mine: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Whether two lists of segments have a path in common; `**` takes any number of the other's."""
    reached = {(0, 0)}
    open_ = [(0, 0)]
    while open_:
        i, j = open_.pop()
        if i == len(mine) and j == len(theirs):
            return True
        for step in _steps(mine, theirs, i, j):
            if step not in reached:
                reached.add(step)
                open_.append(step)
    return False


def _steps(mine: Sequence[str], theirs: Sequence[str], i: int, j: int) -> list[tuple[int, int]]:
    a = mine[i] if i < len(mine) else None
    b = theirs[j] if j < len(theirs) else None
    steps: list[tuple[int, int]] = []
    if a == "**":
        steps.append((i + 1, j))
    if b == "**":
        steps.append((i, j + 1))
    if a == "**" and b is not None:
        steps.append((i, j + 1))
    if b == "**" and a is not None:
        steps.append((i + 1, j))
    if a is not None and b is not None and "**" not in (a, b) and _meet_segment(a, b):
        steps.append((i + 1, j + 1))
    return steps


@lru_cache(maxsize=8192)
def _meet_segment(mine: str, theirs: str) -> bool:
    if mine == theirs:
        return True
    if not _is_wild(mine) and not _is_wild(theirs):
        return False
    a, b = _tokens(mine), _tokens(theirs)
    row = {0}
    row = _stars(b, row)
    for token in a:
        row = _stars(b, _advance(token, b, row))
        if not row:
            return False
    return len(b) in row


def _advance(token: str, other: Sequence[str], row: set[int]) -> set[int]:
    """Where in `other` one may stand after one more token of ours."""
    if token == "*":
        return set(range(min(row), len(other) + 1))
    return {
        j + (other[j] != "*")
        for j in row
        if j < len(other)
        and (other[j] in ("*", "?", token) or token == "?" or len(token) > 1 or len(other[j]) > 1)
    }


def _stars(other: Sequence[str], row: set[int]) -> set[int]:
    """With the places after stars, which may stand for nothing."""
    out = set(row)
    for j in sorted(row):
        while j < len(other) and other[j] == "*":
            j += 1
            out.add(j)
    return out
