"""A command's text read into actions: for patterns, edited commands and rewrites.

The shell's parser is loaded when the first rule needs it: a server whose rules name no command never does.
"""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from omnigent.actions import Action, Exec, Parsed


@cache
def _shell() -> Any:
    return importlib.import_module("omnigent.shell")


def canonical(words: list[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Program, words and flags of plain words, spelled as in `Exec`."""
    return _shell().canonical(words)


def read(text: str, cwd: str, workspace: str) -> tuple[tuple[Action, ...], Parsed]:
    """What a command would do there. Links and git's own files are looked at; nothing is run."""
    actions, parsed = _shell().understand(text, Path(cwd or workspace or "/"), Path(workspace or cwd or "/"))
    return tuple(actions), parsed


def commands(text: str) -> list[Exec]:
    """The commands of a text that are understood."""
    actions, _ = read(text, "/", "/")
    return [action for action in actions if isinstance(action, Exec) and not action.doubt]
