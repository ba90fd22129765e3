"""A simple command told as an `Exec`, with the files and hosts it touches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from omnigent.actions import Exec, FileRead, FileWrite
from omnigent.shell import programs
from omnigent.shell.paths import file_actions
from omnigent.shell.programs import EMPTY, Entry, Flag, Split, take_apart
from omnigent.shell.simple import Effects, Shell, Simple
from omnigent.shell.values import UNKNOWN, Said, Word

_HOST = re.compile(r"(https?://)?(localhost|[\w-]+(\.[\w-]+)+)(:\d+)?/")


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments taken apart along the sub-commands of a program."""

    entry: Entry
    split: Split
    subs: tuple[str, ...]
    base: int
    """Where the last sub-command's own arguments begin."""
    doubt: str = ""
    stray: bool = False
    """A sub-command that the table doesn't have, or none where one is needed."""

    def words(self, arguments: Sequence[Word]) -> tuple[str, ...]:
        return (*self.subs, *(arguments[self.base + place].text for place in self.split.operands))


def arguments_of(entry: Entry | None, arguments: Sequence[Word]) -> Arguments:
    at, flags, subs = 0, list[Flag](), list[str]()
    here = entry or EMPTY
    while here.sub:
        head = take_apart(here, arguments[at:], until_operand=True)
        if not head.operands:
            return Arguments(
                here, replace(head, flags=(*flags, *head.flags)), tuple(subs), at, stray=not here.bare
            )
        word = arguments[at + head.operands[0]]
        if not word.known:
            rest = take_apart(here, arguments[at:])
            return Arguments(here, replace(rest, flags=(*flags, *rest.flags)), tuple(subs), at,
                             "Which sub-command this is isn't known before it runs.", stray=True)  # fmt: skip
        name = here.names.get(word.text, word.text)
        if name not in here.sub:
            rest = take_apart(here, arguments[at:])
            return Arguments(
                here, replace(rest, flags=(*flags, *rest.flags)), tuple(subs), at, stray=not here.bare
            )
        flags += head.flags
        at += head.operands[0] + 1
        here = here.sub[name]
        subs.append(name)
    split = take_apart(here, arguments[at:])
    return Arguments(here, replace(split, flags=(*flags, *split.flags)), tuple(subs), at)


def warned(taken: Arguments) -> bool:
    return taken.split.abbreviated or bool(taken.split.names & taken.entry.never)


def unsure(taken: Arguments, arguments: Sequence[Word], *, addresses: bool = False) -> str:
    """An argument that isn't known, where it may be a flag or anything else that matters.

    Of an address (`addresses`) the host is enough.
    """
    if taken.entry.operands == "text":
        return ""
    for place, word in enumerate(arguments):
        if addresses and not word.many and _HOST.match(word.prefix):
            continue
        if not word.tame and not (place >= taken.base and place - taken.base in taken.split.harmless):
            return f"The argument {word.text[:80]} isn't known before it runs."
    return ""


def tell(
    shell: Shell,
    simple: Simple,
    program: str,
    *,
    doubt: str = "",
    taken: Arguments | None = None,
    effects: Effects | None = None,
    everyday: bool = False,
    words: tuple[str, ...] | None = None,
) -> Said:
    """Adds the Exec and what it touches."""
    effects = effects or Effects()
    arguments = simple.words[1:]
    doubt = doubt or simple.doubt
    touched: list[tuple[str, str]] = []
    actions: list[FileRead | FileWrite] = []
    for touch in effects.touches:
        made, unsure = file_actions(touch, simple.scope, shell.workspace)
        doubt = doubt or unsure
        actions += made
        touched += [(touch.kind, action.real_path) for action in made]
    split = taken.split if taken else Split()
    stdin = simple.around.stdin
    scope = simple.scope
    if words is None:
        words = taken.words(arguments) if taken else tuple(word.text for word in arguments)
    shell.add_exec(
        Exec(
            command=simple.raw,
            argv=tuple(word.text for word in simple.words),
            unknown=tuple(place for place, word in enumerate(simple.words) if not word.known),
            program=program,
            words=words,
            flags=tuple(
                sorted({_shown(flag.name, flag.value) for flag in split.flags if flag.name} | effects.flags)
            ),
            cwd=str(scope.cwd) if scope.cwd is not None and not scope.remote else "",
            env_names=tuple(name for name, _ in simple.sets),
            stdin=stdin.text if stdin is not None else None,
            background=simple.around.background,
            everyday=everyday and simple.plain and not doubt and not scope.remote,
            repository=effects.repository,
            branches=effects.branches,
            doubt=doubt,
        ),
        simple.around,
    )
    for action in actions:
        shell.add(action)
    for kind, real in touched:
        if kind == "write":
            shell.written.add(real)
    for net in effects.nets:
        shell.add(net)
    return UNKNOWN


def _shown(name: str, value: Word | None) -> str:
    return name if value is None else f"{name}={value.text}"


def program_of(simple: Simple) -> str:
    return programs.main_name(simple.words[0].text) if simple.words[0].known else ""
