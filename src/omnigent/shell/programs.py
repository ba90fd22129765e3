"""The table of programs (`programs.yaml`) and how it takes a command's arguments apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

import yaml

from omnigent.shell.values import Word

Takes = Literal["nothing", "value", "text", "attached"]
"""What a flag takes: a value (attached or the next word), one that can't do harm, or only an attached one."""

Operands = Literal["other", "text", "read", "write", "delete", "copy", "pattern-read", "script"]


@dataclass(frozen=True, slots=True)
class Flag:
    name: str
    value: Word | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Arguments taken apart. `operands` are places in the argument list, `text` those that can't do harm."""

    flags: tuple[Flag, ...] = ()
    operands: tuple[int, ...] = ()
    harmless: frozenset[int] = frozenset()
    abbreviated: bool = False
    """A long flag that the table doesn't know, but that may be short for one it warns of."""

    @property
    def names(self) -> set[str]:
        return {flag.name for flag in self.flags}

    def value(self, name: str) -> Word | None:
        return next((flag.value for flag in reversed(self.flags) if flag.name == name), None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A program, or a sub-command of one, with the flags of those above it."""

    everyday: bool = False
    operands: Operands = "other"
    never: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    short: dict[str, tuple[str, Takes]] = field(default_factory=dict[str, tuple[str, Takes]])
    long: dict[str, tuple[str, Takes]] = field(default_factory=dict[str, tuple[str, Takes]])
    single: bool = False
    """Long flags have one dash, and short ones aren't bundled."""
    sub: dict[str, "Entry"] = field(default_factory=dict[str, "Entry"])
    names: dict[str, str] = field(default_factory=dict[str, str])
    """Other names of its sub-commands."""
    bare: bool = False
    """Everyday without a sub-command too."""
    inherit: bool = True
    """Its flags may follow its sub-commands."""
    stops: bool = False
    """What follows the first operand isn't its own."""


EMPTY = Entry()


@cache
def _table() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("omnigent.shell") / "programs.yaml").read_text(encoding="utf-8")
    return cast(dict[str, Any], yaml.load(text, Loader=loader))


@cache
def _programs() -> dict[str, Entry]:
    programs = {name: _entry(row or {}, EMPTY) for name, row in _table()["programs"].items()}
    for name in str(_table()["everyday"]).split():
        programs.setdefault(name, Entry(everyday=True))
    for name in str(_table()["texts"]).split():
        programs.setdefault(name, Entry(everyday=True, operands="text"))
    return programs


@cache
def names() -> dict[str, str]:
    """Another name of a program → its main one."""
    return {alias: main for main, listed in _table()["names"].items() for alias in str(listed).split()}


@cache
def listed(key: str) -> frozenset[str]:
    """A list of words of the table."""
    return frozenset(str(_table()[key]).split())


@cache
def wrappers() -> dict[str, "Wrapper"]:
    return {name: _wrapper(row or {}) for name, row in _table()["wrappers"].items()}


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A program that runs the command in its arguments."""

    entry: Entry
    skip: int = 0
    """Operands before the command."""
    sets: bool = False
    """Takes NAME=VALUE before the command."""
    plain: bool = True
    """The command stays everyday under it."""
    script: bool = False
    """Its arguments, joined, are shell text."""
    command_flags: frozenset[str] = frozenset()
    """Flags whose value is shell text."""
    under: str = ""
    """The sub-command that runs a command (`uv run`)."""


def _wrapper(row: dict[str, Any]) -> Wrapper:
    return Wrapper(
        entry=_entry(row, EMPTY),
        skip=row.get("skip", 0),
        sets=row.get("sets", False),
        plain=row.get("plain", True),
        script=row.get("script", False),
        command_flags=frozenset(str(row.get("command", "")).split()),
    )


def _entry(row: dict[str, Any] | bool, above: Entry) -> Entry:
    if isinstance(row, bool):
        row = {"everyday": row}
    short, long = dict(above.short), dict(above.long)
    if not above.inherit:
        short, long = {}, {}
    for token in str(row.get("flags", "")).split():
        takes: Takes = "nothing"
        for suffix, kind in (("=?", "attached"), ("=", "value"), ("~", "text")):
            if token.endswith(suffix):
                token, takes = token.removesuffix(suffix), cast(Takes, kind)
                break
        first, _, other = token.partition("/")
        name = other or first
        for spelled in filter(None, (first, other)):
            (short if len(spelled) == 1 else long)[spelled] = (name, takes)
    made = Entry(
        everyday=row.get("everyday", False),
        operands=row.get("operands", "other"),
        never=above.never | frozenset(str(row.get("never", "")).split()),
        reads=above.reads | frozenset(str(row.get("reads", "")).split()),
        writes=above.writes | frozenset(str(row.get("writes", "")).split()),
        short=short,
        long=long,
        single=row.get("single", above.single),
        names={a: main for main, listed in row.get("names", {}).items() for a in str(listed).split()},
        bare=row.get("bare", False),
        inherit=row.get("inherit", True),
        stops=row.get("stops", False),
    )
    for names_, sub in row.get("sub", {}).items():
        for name in str(names_).split():
            made.sub[name] = _entry(sub or {}, made)
    for name in str(row.get("daily", "")).split():
        made.sub.setdefault(name, _entry({"everyday": True}, made))
    return made


def find(program: str) -> Entry | None:
    return _programs().get(program)


def main_name(argv0: str) -> str:
    """A program's main name: without its directory, its version and its aliases."""
    name = argv0.rpartition("/")[2]
    found = names().get(name, name)
    if found == name and name.startswith(
        ("python", "pip", "ruby", "node", "clang", "gcc", "g++", "lua", "php")
    ):
        bare = name.rstrip("0123456789.-")
        found = names().get(bare, bare) or name
    return found


def take_apart(entry: Entry, arguments: Sequence[Word], *, until_operand: bool = False) -> Split:
    """Flags in any spelling and order. `until_operand` stops at the first that is none, as wrappers do."""
    flags: list[Flag] = []
    operands: list[int] = []
    harmless: set[int] = set()
    abbreviated = False
    at = 0
    while at < len(arguments):
        word = arguments[at]
        text = word.text if word.known else word.prefix
        if word.known and text == "--":
            operands += range(at + 1, len(arguments))
            break
        if not text.startswith("-") or text == "-":
            if entry.stops and not until_operand:
                operands += range(at, len(arguments))
                break
            operands.append(at)
            if until_operand:
                break
            at += 1
            continue
        made, takes, short_for = _flags(entry, word, text)
        abbreviated = abbreviated or short_for
        last = made[-1]
        if takes in ("value", "text") and last.value is None:
            if at + 1 < len(arguments):
                made[-1] = Flag(last.name, arguments[at + 1])
                if takes == "text":
                    harmless.add(at + 1)
            at += 1
        elif takes == "text":
            harmless.add(at)
        flags += made
        at += 1
    return Split(tuple(flags), tuple(operands), frozenset(harmless), abbreviated)


def _flags(entry: Entry, word: Word, text: str) -> tuple[list[Flag], Takes, bool]:
    """The flags of one word, what the last one takes, and whether it may be short for a warned one."""
    if text.startswith("--") or entry.single:
        name, equals, value = text.lstrip("-").partition("=")
        found = entry.long.get(name) or entry.short.get(name)
        short_for = False
        if found is None and name:
            longer = {known for known in entry.long if known.startswith(name)}
            if len({entry.long[known] for known in longer}) == 1:
                found = entry.long[longer.pop()]
            short_for = len(longer) > 1 or (
                len(name) > 1 and any(warned.startswith(name) for warned in entry.never)
            )
        name, takes = found or (name, "nothing")
        attached = (Word(value) if word.known else _rest(word, value)) if equals else None
        return [Flag(name, attached)], ("nothing" if takes == "attached" else takes), short_for
    made: list[Flag] = []
    letters = text[1:]
    for place, letter in enumerate(letters):
        name, takes = entry.short.get(letter, (letter, "nothing"))
        rest = letters[place + 1 :]
        if takes in ("value", "text", "attached"):
            value = (Word(rest.removeprefix("=")) if word.known else _rest(word, rest)) if rest else None
            if not word.known and not rest and takes != "attached":
                value = Word(word.text, known=False)
            return [*made, Flag(name, value)], ("nothing" if takes == "attached" else takes), False
        if letter.isdigit():
            return [*made, Flag(letters[place:])], "nothing", False
        made.append(Flag(name))
    return made or [Flag("")], "nothing", False


def _rest(word: Word, known: str) -> Word:
    """What follows the flag in a word that isn't known."""
    return Word(word.text, known=False, atom=word.atom, pattern=None, prefix=known)


def canonical(program: str, entry: Entry, words: list[str]) -> tuple[Entry, list[str]]:
    """Follows the sub-commands at the head of `words`, aliases under their main names."""
    named = list(words)
    for place, word in enumerate(words):
        main = entry.names.get(word, word)
        if main not in entry.sub:
            break
        named[place] = main
        entry = entry.sub[main]
    return entry, named
