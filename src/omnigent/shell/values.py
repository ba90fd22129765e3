"""What a shell knows: the values of words and variables, and what commands say."""

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from tree_sitter import Node

from omnigent.shell.grammar import Source

_ATOMS = set("?#$!") | {"RANDOM", "SECONDS", "LINENO", "UID", "EUID", "PPID", "BASHPID", "EPOCHSECONDS"}


@dataclass(frozen=True, slots=True)
class Word:
    """`text` is the value where it is known, else what was written."""

    text: str
    known: bool = True
    pattern: str | None = None
    """Not known, but it matches this pattern (each word it becomes does)."""
    below: str | None = None
    """Not known, but it is one or more paths below this directory."""
    atom: bool = False
    """Not known, but without dash, slash, blank or wildcard: a number, a date, a commit."""
    many: bool = False
    """It may become several words, or none."""
    visible: bool = False
    """With `below`: no file whose name begins with a dot."""
    prefix: str = ""
    """What an unknown word certainly begins with."""

    @property
    def tame(self) -> bool:
        """Whatever it becomes, it is no flag and no command."""
        return self.known or self.atom or self.pattern is not None or self.below is not None


@dataclass(frozen=True, slots=True)
class Said:
    """What a command writes to its output, or gets on its input."""

    text: str | None = None
    atom: bool = False
    below: str | None = None
    pattern: str | None = None
    """With `below`: the names are like this."""
    visible: bool = False
    """With `below`: no file whose name begins with a dot."""


UNKNOWN = Said()


@dataclass(slots=True)
class Scope:
    """What a shell knows while it runs. A subshell gets a copy."""

    cwd: Path | None
    variables: dict[str, tuple[Word, ...]] = field(default_factory=dict[str, tuple[Word, ...]])
    functions: dict[str, tuple[Source, Node]] = field(default_factory=dict[str, tuple[Source, Node]])
    args: tuple[Word, ...] | None = None
    """`$1` and on; None where they aren't known."""
    split: bool = True
    """Words are split at blanks, as usual (IFS wasn't touched)."""
    remote: bool = False
    """On another host or in a container: its files aren't ours."""

    def copy(self) -> "Scope":
        return replace(self, variables=dict(self.variables), functions=dict(self.functions))

    def home(self) -> str:
        known = self.variables.get("HOME")
        if known is None:
            return str(Path.home())
        return known[0].text if len(known) == 1 and known[0].known else ""

    def value(self, name: str) -> tuple[Word, ...] | None:
        """The value of a variable, None where it isn't known."""
        if name in self.variables:
            return self.variables[name]
        if name in _ATOMS:
            return (Word(f"${name}", known=False, atom=True, pattern="*"),)
        if name == "PWD" and self.cwd is not None:
            return (Word(str(self.cwd)),)
        if name == "HOME":
            return (Word(self.home()),)
        if name == "TMPDIR":
            return (Word(os.environ.get("TMPDIR", "/tmp").rstrip("/") or "/"),)
        if name in ("@", "*"):
            return self.args
        if name.isdigit() and name != "0" and self.args is not None:
            return self.args[int(name) - 1 : int(name)] or (Word(""),)
        return None


def changed(word: Word, operation: str) -> Word:
    """`${name OPERATION}` of a known value; of an unknown one what stays certain."""
    if operation[:2] in (":-", ":=", ":?", ":+") or operation[0] in "-=?+":
        plus = operation.lstrip(":")[:1] == "+"
        if word.known and not plus and (word.text or operation[0] != ":"):
            return word
        return Word(word.text, known=False)
    if not word.known:
        if operation[0] in "#%" and (word.pattern is not None or word.below is not None):
            where = word.below or posixpath.dirname(word.pattern or "")
            fixed = re.split(r"[*?\[]", where)[0]
            return Word(
                word.text, known=False, below=fixed.rpartition("/")[0] if fixed != where else fixed or "."
            )
        return replace(word, known=False, pattern=None, below=None, atom=False)
    text = _operated(word.text, operation)
    return Word(word.text, known=False) if text is None else Word(text)


def _operated(text: str, operation: str) -> str | None:
    cases: dict[str, Callable[[str], str]] = {
        "^^": str.upper, ",,": str.lower,
        "^": lambda value: value[:1].upper() + value[1:], ",": lambda value: value[:1].lower() + value[1:],
    }  # fmt: skip
    if operation in cases:
        return cases[operation](text)
    cut = re.fullmatch(r":\s*(\d+)(?::\s*(\d+))?", operation)
    if cut:
        return text[int(cut[1]) :][: int(cut[2]) if cut[2] else None]
    if any(char in operation for char in "$`'\"\\"):
        return None
    swap = re.fullmatch(r"(//?)([^/*?\[#%]+)(?:/([^/&]*))?", operation)
    if swap:
        return text.replace(swap[2], swap[3] or "", -1 if swap[1] == "//" else 1)
    trim = re.fullmatch(r"(##?|%%?)(.*)", operation)
    if trim:
        return _trimmed(text, trim[1], trim[2])
    return None


def _trimmed(text: str, how: str, pattern: str) -> str:
    lengths = range(len(text) + 1)
    if how in ("##", "%%"):
        lengths = reversed(lengths)
    for length in lengths:
        part, rest = (
            (text[:length], text[length:])
            if how[0] == "#"
            else (text[len(text) - length :], text[: len(text) - length])
        )
        if fnmatchcase(part, pattern):
            return rest
    return text


def home_of(name: str) -> str:
    """The home of a user by name, of our own without one; "" where there is none."""
    if not re.fullmatch(r"([a-z_][\w-]*)?", name):
        return ""
    try:
        return str(Path(f"~{name}").expanduser())
    except RuntimeError:
        return ""
