"""Words that name files → file actions, patterns expanded where that is cheap and exact."""

import glob
import os
import posixpath
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Literal

from omnigent.actions import Action, FileRead, FileWrite
from omnigent.shell.simple import Touch
from omnigent.shell.values import Scope, Word, home_of

MOST_MATCHES = 64
_NOTHING = re.compile(r"/dev/(null|zero|stdin|stdout|stderr|tty|random|urandom|full|fd/.*)")
_SECRET_NAMES = (".env", ".env.local", ".env.production", ".envrc", ".netrc", ".npmrc", ".pypirc",
                 ".git-credentials", "id_rsa", "id_ed25519", "credentials", "credentials.json",
                 "secrets.yaml")  # fmt: skip
"""Examples: a pattern that fits one of them is told as a pattern beside the directory it is looked for in."""


def file_actions(touch: Touch, scope: Scope, workspace: Path) -> tuple[list[FileRead | FileWrite], str]:
    """The actions, and a doubt where it can't be told which files they are."""
    if scope.remote:
        return [], ""
    word = touch.word
    verb = {"read": "reads", "write": "writes", "delete": "removes"}[touch.kind]
    if not word.known and word.pattern is None and word.below is None:
        return [], f"Which file it {verb} isn't known before it runs."
    text = word.text if word.known else word.pattern or word.below or ""
    if scope.cwd is None and not text.startswith("/"):
        return [], f"Where the file it {verb} lies isn't known."
    made: list[FileRead | FileWrite] = []
    for path, real, pattern, recursive in _places(word, scope.cwd or Path("/"), touch):
        if not _NOTHING.fullmatch(path):
            made.append(_action(touch, path, real, workspace, pattern=pattern, recursive=recursive))
    if any(posixpath.basename(action.path).startswith("-") for action in made) and not word.known:
        return made, "A pattern matches a file whose name would be read as a flag."
    return made, ""


def tool_read(
    path: str, cwd: Path, workspace: Path, *, recursive: bool = False, hidden: bool = True
) -> list[Action]:
    """The reads of a tool whose argument is a path: `~` is expanded, links are followed,
    blanks at its ends are
    tried with and without. Raises ValueError for what can't be a path."""
    return [
        made
        for each in _spellings(path)
        for made in _tool_actions(Touch("read", Word(each), recursive, hidden), cwd, workspace)
    ]


def tool_write(path: str, cwd: Path, workspace: Path, *, delete: bool = False) -> list[Action]:
    touch: Literal["write", "delete"] = "delete" if delete else "write"
    return [
        made for each in _spellings(path) for made in _tool_actions(Touch(touch, Word(each)), cwd, workspace)
    ]


def _tool_actions(touch: Touch, cwd: Path, workspace: Path) -> list[Action]:
    return list(file_actions(touch, Scope(cwd), workspace.resolve())[0])


def _spellings(path: str) -> list[str]:
    if not path or "\0" in path:
        raise ValueError("not a path")
    spellings = dict.fromkeys([path, re.sub(r"[^\S ]", " ", path), path.strip()])
    return [_at_home(spelled) for spelled in spellings if spelled]


def _at_home(path: str) -> str:
    if not path.startswith("~"):
        return path
    name, slash, rest = path[1:].partition("/")
    home = home_of(name)
    return f"{home}{slash}{rest}" if home else path


def real_path(path: str, cwd: Path) -> str:
    return os.path.realpath(posixpath.join(cwd, path))


def _action(
    touch: Touch, path: str, real: str, workspace: Path, *, pattern: bool, recursive: bool
) -> FileRead | FileWrite:
    inside = Path(real).is_relative_to(workspace)
    if touch.kind == "read":
        return FileRead(path=path, real_path=real, in_workspace=inside, glob=pattern, recursive=recursive)
    change = "delete" if touch.kind == "delete" else "write"
    return FileWrite(
        path=path, real_path=real, in_workspace=inside, glob=pattern, recursive=recursive, change=change
    )


def _places(word: Word, cwd: Path, touch: Touch) -> Iterable[tuple[str, str, bool, bool]]:
    """path, real path, is it a pattern, and all below it."""
    if word.known:
        if not word.text:
            return
        real = real_path(word.text, cwd)
        yield word.text, real, False, touch.recursive
        if touch.recursive and touch.kind == "read" and touch.hidden:
            yield from _secrets_at(word.text, real)
        return
    if word.below is not None:
        real = real_path(word.below, cwd)
        yield word.below, real, False, True
        if touch.kind == "read" and touch.hidden and not word.visible:
            yield from _secrets_at(word.below, real)
        return
    pattern = word.pattern or ""
    head, deep, name = pattern.rpartition("/**/")
    if deep:
        yield head, real_path(head, cwd), False, True
        if could_be_secret(name):
            yield pattern, _real_pattern(pattern, cwd), True, touch.recursive
        return
    # As a shell does it: `*` passes over names that begin with a dot.
    matches = glob.iglob(pattern, root_dir=cwd)  # noqa: PTH207
    found = [] if word.atom else list(islice(matches, MOST_MATCHES + 1))
    if found and len(found) <= MOST_MATCHES:
        for match in found:
            yield match, real_path(match, cwd), False, touch.recursive
    if len(found) > MOST_MATCHES or not found or _may_be_hidden(pattern):
        yield pattern, _real_pattern(pattern, cwd), True, touch.recursive


def could_be_secret(name: str) -> bool:
    return any(fnmatchcase(secret, name) for secret in _SECRET_NAMES)


def _may_be_hidden(pattern: str) -> bool:
    return any(part.startswith(".") and re.search(r"[*?\[]", part) for part in pattern.split("/"))


def _real_pattern(pattern: str, cwd: Path) -> str:
    parts = pattern.split("/")
    fixed = next((place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    head = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    return posixpath.join(real_path(head, cwd), *parts[fixed:])


def _secrets_at(path: str, real: str) -> Iterable[tuple[str, str, bool, bool]]:
    """A recursive read takes the `.env` files at the top of the directory along."""
    try:
        with os.scandir(real) as entries:
            names = sorted(entry.name for entry in islice(entries, 2000) if entry.name.startswith(".env"))
    except OSError:
        return
    for name in names:
        where = posixpath.join(path, name)
        yield where, os.path.realpath(posixpath.join(real, name)), False, False
