"""Programs that run a command of their own arguments with something put into it, or somewhere else."""

import re
from collections.abc import Sequence
from dataclasses import replace

from omnigent.shell import programs
from omnigent.shell.builtins import heard
from omnigent.shell.programs import EMPTY, take_apart
from omnigent.shell.simple import Shell, Simple
from omnigent.shell.telling import arguments_of, program_of, tell
from omnigent.shell.texts import joined_text
from omnigent.shell.values import UNKNOWN, Said, Word


def xargs(shell: Shell, simple: Simple) -> Said:
    """Its command with what comes in behind it, or in the place of the replacement."""
    entry = programs.wrappers()["xargs"].entry
    arguments = simple.words[1:]
    split = take_apart(entry, arguments, until_operand=True)
    rest = arguments[split.operands[0] :] if split.operands else (Word("echo"),)
    stdin = simple.around.stdin
    added = _arriving(stdin)
    if split.value("arg-file") is not None or any(
        not word.tame for word in arguments[: len(arguments) - len(rest)]
    ):
        added = (Word("…", known=False, many=True),)
    replaced = split.value("replace")
    if replaced is not None or "i" in split.names:
        mark = replaced.text if replaced is not None else "{}"
        values = added if len(added) <= 8 else (Word("…", known=False, many=True),)
        said = UNKNOWN
        for value in values:
            words = tuple(_put(word, mark, value) for word in rest)
            said = shell.run(_inside(simple, words))
        return said
    return shell.run(_inside(simple, (*rest, *added)))


def _inside(simple: Simple, words: tuple[Word, ...]) -> Simple:
    return replace(simple, words=words, around=replace(simple.around, stdin=None, own=False))


def _arriving(stdin: Said | None) -> tuple[Word, ...]:
    if stdin is None:
        return ()
    if stdin.text is not None and not re.search(r"['\"\\]", stdin.text):
        return tuple(Word(word) for word in stdin.text.split())
    return (replace(heard("…", stdin), text="…", many=True),)


def _put(word: Word, mark: str, value: Word) -> Word:
    if not word.known or mark not in word.text:
        return word
    if value.known:
        return Word(word.text.replace(mark, value.text))
    if word.text == mark:
        return replace(value, text=word.text)
    return Word(word.text, known=False, prefix=word.text.partition(mark)[0])


def parallel(shell: Shell, simple: Simple) -> Said:
    words = list(simple.words[1:])
    told = replace(simple, around=replace(simple.around, own=False))
    tell(shell, told, "parallel", doubt="What parallel makes of its arguments isn't looked into.")
    while words and words[0].known and words[0].text.startswith("-"):
        words.pop(0)
    if words:
        more = Word("…", known=False, many=True)
        shell.run(_inside(simple, (*words, more)))
    return UNKNOWN


def ssh(shell: Shell, simple: Simple) -> Said:
    said = shell.ordinary(simple, "ssh")
    entry = programs.find("ssh") or EMPTY
    split = take_apart(entry, simple.words[1:], until_operand=True)
    rest = simple.words[1:][split.operands[0] + 1 :] if split.operands else ()
    _elsewhere(shell, simple, rest)
    return said


def _elsewhere(shell: Shell, simple: Simple, rest: Sequence[Word]) -> None:
    """Commands on another machine: told, but their files aren't ours."""
    if not rest:
        return
    scope = simple.scope.copy()
    scope.remote = True
    inner = replace(simple, words=tuple(rest), scope=scope, around=replace(simple.around, own=False), sets=())
    joined_text(shell, inner)


def containers(shell: Shell, simple: Simple) -> Said:
    program = program_of(simple)
    taken = arguments_of(programs.find(program), simple.words[1:])
    said = shell.ordinary(simple, program)
    if taken.subs[-1:] in (("exec",), ("run",)) and program != "kubectl" and taken.subs[0] != "buildx":
        own = simple.words[1 + taken.base :]
        split = take_apart(taken.entry, own, until_operand=True)
        rest = own[split.operands[0] + 1 :] if split.operands else ()
        _inner_command(shell, simple, rest)
    elif program == "kubectl" and "--" in [word.text for word in simple.words]:
        texts = [word.text for word in simple.words]
        _inner_command(shell, simple, simple.words[texts.index("--") + 1 :])
    return said


def _inner_command(shell: Shell, simple: Simple, rest: Sequence[Word]) -> None:
    if rest:
        scope = simple.scope.copy()
        scope.remote = True
        shell.run(
            replace(
                simple, words=tuple(rest), scope=scope, around=replace(simple.around, own=False), sets=()
            ),
        )


def find(shell: Shell, simple: Simple) -> Said:
    """The commands behind `-exec` run with the files that are found."""
    said = shell.ordinary(simple, "find")
    words = simple.words[1:]
    roots: list[Word] = []
    for word in words:
        if word.text[:1] in ("-", "(", "!") and word.known:
            break
        roots.append(word)
    found = said if said.below is not None else UNKNOWN
    at = 0
    while at < len(words):
        if words[at].text not in ("-exec", "-execdir", "-ok", "-okdir"):
            at += 1
            continue
        end = next((k for k in range(at + 1, len(words)) if words[k].text in (";", "+")), len(words))
        value = replace(heard("{}", found), text="{}", many=words[min(end, len(words) - 1)].text == "+")
        inner = tuple(_put(word, "{}", value) for word in words[at + 1 : end])
        if inner:
            shell.run(_inside(simple, inner))
        at = end + 1
    return said
