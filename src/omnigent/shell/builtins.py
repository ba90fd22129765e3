"""Built-in commands of the shell that change what the shell knows."""

import re
from dataclasses import replace
from pathlib import Path

from omnigent.shell import programs
from omnigent.shell.paths import real_path
from omnigent.shell.programs import EMPTY, take_apart
from omnigent.shell.simple import Shell, Simple
from omnigent.shell.telling import program_of, tell
from omnigent.shell.texts import run_file
from omnigent.shell.values import Said, Word


def cd(shell: Shell, simple: Simple) -> Said:
    operands = [
        word for word in simple.words[1:] if not (word.known and re.fullmatch(r"-[LPe@]+|--", word.text))
    ]
    scope = simple.scope
    target = operands[0] if operands else Word(scope.home())
    tell(shell, simple, program_of(simple), everyday=True)
    if scope.remote:
        return Said("")
    if not target.known or target.text == "-" or (scope.cwd is None and not target.text.startswith("/")):
        scope.cwd = None
    elif target.text:
        scope.cwd = Path(real_path(target.text, scope.cwd or Path("/")))
    return Said("")


def popd(shell: Shell, simple: Simple) -> Said:
    simple.scope.cwd = None
    return tell(shell, simple, "popd", everyday=True)


def evaluate(shell: Shell, simple: Simple) -> Said:
    words = simple.words[1:]
    if not all(word.known for word in words):
        return tell(shell, simple, "eval", doubt="The text that is evaluated isn't known before it runs.")
    if simple.doubt:
        tell(shell, simple, "eval")
    return shell.text(" ".join(word.text for word in words), simple.scope, simple.around)


def source(shell: Shell, simple: Simple) -> Said:
    operands = [word for word in simple.words[1:] if word.text != "--"]
    if not operands:
        return tell(shell, simple, "source", doubt="What is sourced isn't known.")
    said = run_file(shell, simple, "source", operands[0])
    simple.scope.variables.clear()
    return said


def trap(shell: Shell, simple: Simple) -> Said:
    words = [word for word in simple.words[1:] if word.text != "--"]
    if len(words) > 1 and (not words[0].known or words[0].text not in ("", "-", "-p", "-l")):
        if not words[0].known:
            return tell(shell, simple, "trap", doubt="The text that is run later isn't known.")
        tell(shell, simple, "trap", everyday=True)
        return shell.text(words[0].text, simple.scope.copy(), replace(simple.around, own=False))
    return tell(shell, simple, "trap", everyday=True)


def set_arguments(shell: Shell, simple: Simple) -> Said:
    words = simple.words[1:]
    scope = simple.scope
    for place, word in enumerate(words):
        if word.known and word.text in ("--", "-"):
            scope.args = words[place + 1 :]
            break
        if not word.known or not word.text.startswith(("-", "+")):
            if place and words[place - 1].text[-1:] == "o":
                continue
            scope.args = words[place:]
            break
    if scope.args is not None and any(word.many for word in scope.args):
        scope.args = None
    return tell(shell, simple, "set", everyday=True)


def shift(shell: Shell, simple: Simple) -> Said:
    count = simple.words[1].text if len(simple.words) > 1 else "1"
    scope = simple.scope
    scope.args = scope.args[int(count) :] if scope.args is not None and count.isdigit() else None
    return tell(shell, simple, "shift", everyday=True)


def read(shell: Shell, simple: Simple) -> Said:
    """Its variables get what comes in: paths, where a command before it finds paths."""
    entry = programs.find("read") or EMPTY
    split = take_apart(entry, simple.words[1:])
    stdin = simple.around.stdin
    names = [simple.words[1 + place].text for place in split.operands]
    array = split.value("array")
    for name in [*names, *([array.text] if array is not None else [])]:
        simple.scope.variables[name] = (heard(name, stdin if len(names) == 1 else None),)
    return tell(shell, simple, "read", everyday=True)


def heard(name: str, stdin: Said | None) -> Word:
    if stdin is None or stdin.below is None:
        return Word(f"${name}", known=False, many=True)
    if stdin.pattern is not None:
        return Word(f"${name}", known=False, pattern=f"{stdin.below}/**/{stdin.pattern}")
    return Word(f"${name}", known=False, below=stdin.below, visible=stdin.visible)


def assigns(shell: Shell, simple: Simple) -> Said:
    """`mapfile`, `getopts`, `let`: they set variables that aren't followed."""
    for word in simple.words[1:]:
        name = re.match(r"[A-Za-z_]\w*", word.text)
        if word.known and name:
            simple.scope.variables[name[0]] = (Word(f"${name[0]}", known=False, many=True),)
    return tell(shell, simple, program_of(simple), everyday=True)


def printf(shell: Shell, simple: Simple) -> Said:
    words = simple.words[1:]
    if len(words) > 1 and words[0].text == "-v":
        simple.scope.variables[words[1].text] = (Word(f"${words[1].text}", known=False, many=True),)
        tell(shell, simple, "printf", everyday=True)
        return Said("")
    return shell.ordinary(simple, "printf")


def execute(shell: Shell, simple: Simple) -> Said:
    words = list(simple.words[1:])
    while words and words[0].known and words[0].text.startswith("-"):
        flag = words.pop(0).text
        if flag.endswith("a") and words:
            words.pop(0)
    if not words:
        return Said("")
    return shell.run(replace(simple, words=tuple(words)))
