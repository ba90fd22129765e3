"""The table of commands that reach far (`blows.yaml`), by program; and the directories a build makes anew."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

import yaml

from omnigent.actions import Exec

Group = Literal["history", "publish", "system", "database", "catastrophe"]


@dataclass(frozen=True, slots=True)
class Blow:
    """A row of the table: its head says what the columns mean."""

    group: Group
    reason: str
    words: tuple[tuple[str, ...], ...]
    flags: frozenset[str]
    unless: frozenset[str]

    def hits(self, words: tuple[str, ...], flags: frozenset[str]) -> bool:
        if self.words and not any(words[: len(each)] == each for each in self.words):
            return False
        if self.flags and not self.flags & flags:
            return False
        return self.unless.isdisjoint(flags) and self.unless.isdisjoint(words)


def blows(action: Exec) -> list[Blow]:
    """The rows that hold for a command, in the order of the table."""
    program, words = "mkfs" if action.program.startswith("mkfs.") else action.program, action.words
    if program in _INTERPRETERS and words:
        program, words = words[0].rpartition("/")[2], words[1:]
    rows = _table().get(program, ())
    flags = frozenset(each.partition("=")[0] for each in action.flags) if rows else frozenset[str]()
    return [row for row in rows if row.hits(words, flags)]


_INTERPRETERS = frozenset({"python", "php", "ruby", "perl", "node", "bun", "deno"})
"""Of a script that is known by its name (`python manage.py flush`) the script is the program."""


@cache
def build_dirs() -> frozenset[str]:
    return frozenset(_data()["build_dirs"].split())


def is_built(path: str, workspace: str, names: frozenset[str]) -> bool:
    """Whether a path lies in a directory (or is one) that a build makes anew."""
    parts = path.removeprefix(workspace).strip("/").split("/") if workspace else [path.rpartition("/")[2]]
    return any(part in names or part.endswith(".egg-info") for part in parts)


@cache
def _table() -> dict[str, tuple[Blow, ...]]:
    table: dict[str, tuple[Blow, ...]] = {}
    for row in _data()["rows"]:
        for program in row["programs"].split():
            table[program] = (*table.get(program, ()), _blow(row))
    return table


@cache
def _data() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files(__package__ or "") / "blows.yaml").read_text(encoding="utf-8")
    return cast(dict[str, Any], yaml.load(text, Loader=loader))


def _blow(row: dict[str, Any]) -> Blow:
    words = [tuple(each.split()) for each in row.get("words", "").split(",") if each.strip()]
    if above := row.get("of", "").split():
        words = [(first, *rest) for first in above for rest in words]
    return Blow(
        row["group"],
        row["reason"],
        tuple(words),
        frozenset(row.get("flags", "").split()),
        frozenset(row.get("unless", "").split()),
    )
