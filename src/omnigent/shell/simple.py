"""A simple command on its way to become actions, and what carries it there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from omnigent.actions import Action, Exec, Net
from omnigent.shell.values import Said, Scope, Word

MOST_COMMANDS = 400
DEEPEST_TEXT = 6


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds a command."""

    stdin: Said | None = None
    """None: nothing that the text says."""
    background: bool = False
    own: bool = True
    """The whole's exit code is this command's own, unless another stands beside it."""
    depth: int = 0
    """Of shell texts and functions in one another."""


@dataclass(frozen=True, slots=True)
class Simple:
    """One simple command. A wrapper taken off it makes another."""

    raw: str
    words: tuple[Word, ...]
    scope: Scope
    around: Around
    sets: tuple[tuple[str, Word], ...] = ()
    plain: bool = True
    """No wrapper keeps it from being an everyday command."""
    doubt: str = ""


class Shell(Protocol):
    """What the running of simple commands needs of the walk through the text."""

    workspace: Path
    written: set[str]
    """Real paths of files the text has written so far."""

    def text(self, text: str, scope: Scope, around: Around) -> Said: ...

    def run(self, simple: Simple) -> Said: ...

    def ordinary(self, simple: Simple, program: str) -> Said:
        """A command that is neither built in nor a wrapper, under this name."""
        ...

    def call(self, name: str, simple: Simple) -> Said | None:
        """Runs a function of the text; None where there is none of this name."""
        ...

    def add(self, action: Action) -> None: ...

    def add_exec(self, action: Exec, around: Around) -> None: ...


@dataclass(slots=True)
class Effects:
    """What one ordinary command does beside running."""

    touches: list["Touch"] = field(default_factory=list["Touch"])
    nets: list[Net] = field(default_factory=list[Net])
    doubts: list[str] = field(default_factory=list[str])
    everyday: bool = True
    """False where its arguments take it out of the table of everyday commands."""
    repository: str = ""
    branches: tuple[str, ...] = ()
    flags: set[str] = field(default_factory=set[str])
    """Flags that other arguments stand for (`+branch` is a forced push)."""

    def read(self, *words: Word, recursive: bool = False, hidden: bool = True) -> None:
        self.touches += [Touch("read", word, recursive, hidden) for word in words]

    def write(self, *words: Word, recursive: bool = False) -> None:
        self.touches += [Touch("write", word, recursive) for word in words]

    def delete(self, *words: Word, recursive: bool = False) -> None:
        self.touches += [Touch("delete", word, recursive) for word in words]


@dataclass(frozen=True, slots=True)
class Touch:
    """A file to be read, written or removed."""

    kind: Literal["read", "write", "delete"]
    word: Word
    recursive: bool = False
    hidden: bool = True
    """A recursive read takes files whose names begin with a dot too."""
