"""Shell texts, interpreters and scripts that a command runs."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omnigent.shell import programs
from omnigent.shell.effects import effects_of
from omnigent.shell.paths import real_path
from omnigent.shell.programs import EMPTY, Entry, take_apart
from omnigent.shell.simple import Effects, Shell, Simple
from omnigent.shell.snippets import node_reads, python_reads
from omnigent.shell.telling import arguments_of, program_of, tell, unsure, warned
from omnigent.shell.values import Said, Word

SHELLS = {"sh", "bash", "zsh", "dash", "ksh", "ash", "rbash", "mksh"}
INSTALLED = re.compile(r"(/usr(/local)?)?/s?bin/[^/]+|/opt/homebrew/bin/[^/]+")
_LOCAL_TOOLS = re.compile(r"(.*/)?(node_modules/\.bin|\.?venv/bin|vendor/bin)/[^/]+")
ASKS_ONLY = {"help", "version", "V", "h", "v"}


def joined_text(shell: Shell, simple: Simple) -> Said:
    if not all(word.known for word in simple.words):
        return tell(shell, simple, "", doubt="Which command this runs isn't known before it runs.")
    text = " ".join(word.text for word in simple.words)
    return shell_text(shell, simple, Word(text), plain=simple.plain)


def shell_text(
    shell: Shell, simple: Simple, text: Word | None, *, plain: bool = True, args: tuple[Word, ...] = ()
) -> Said:
    """A text that another shell reads: it has our functions, but of our variables only what was exported."""
    if text is None or not text.known:
        return tell(
            shell, simple, program_of(simple), doubt="The text this shell runs isn't known before it runs."
        )
    scope = simple.scope.copy()
    scope.args = args
    scope.split = True
    for name in scope.variables:
        if name != "HOME":
            scope.variables[name] = (Word(f"${name}", known=False, many=True),)
    for name, value in simple.sets:
        scope.variables[name] = (value,)
    if simple.doubt or not plain:
        doubt = simple.doubt
        tell(shell, simple, program_of(simple), doubt=doubt, everyday=False)
    return shell.text(text.text, scope, simple.around)


def run_shell(shell: Shell, simple: Simple) -> Said:
    program, arguments = program_of(simple), simple.words[1:]
    command, reads_stdin, at = False, False, 0
    while at < len(arguments):
        word = arguments[at]
        if not word.known:
            break
        text = word.text
        if text in ("--", "-"):
            at += 1
            break
        if not text.startswith(("-", "+")):
            break
        if text in ("--rcfile", "--init-file"):
            return tell(shell, simple, program, doubt="The shell reads a start-up file of its own.")
        if not text.startswith("--"):
            command = command or ("c" in text and text[0] == "-")
            reads_stdin = reads_stdin or "s" in text
            at += len(re.findall("[oO]", text))
        at += 1
    rest = arguments[at:]
    if command:
        return shell_text(shell, simple, rest[0] if rest else None, args=tuple(rest[2:]))
    if rest and not reads_stdin:
        return run_file(shell, simple, program, rest[0])
    stdin = simple.around.stdin
    if stdin is None:
        return tell(shell, simple, program)
    if stdin.text is None:
        return tell(shell, simple, program, doubt="The text this shell runs isn't known before it runs.")
    inner = replace(simple, around=replace(simple.around, stdin=None))
    return shell_text(shell, inner, Word(stdin.text), args=tuple(rest))


def run_path(shell: Shell, simple: Simple, program: str) -> Said:
    """A program named by its path that isn't where installed programs are."""
    path = simple.words[0].text
    if simple.scope.remote:
        return shell.ordinary(simple, program)
    if simple.scope.cwd is None and not path.startswith("/"):
        return tell(shell, simple, program, doubt="Where this program lies isn't known.")
    real = real_path(path, simple.scope.cwd or Path("/"))
    if real in shell.written:
        return tell(shell, simple, program, doubt="It runs a file that this command has just written.")
    written = posixpath.normpath(posixpath.join(simple.scope.cwd or "/", path))
    tool = _LOCAL_TOOLS.fullmatch(written) and Path(written).is_relative_to(shell.workspace)
    if tool or INSTALLED.fullmatch(real):
        name = posixpath.basename(path if tool else real)
        return shell.run(replace(simple, words=(Word(name), *simple.words[1:])))
    if programs.find(program) is not None or program in SHELLS or programs.wrappers().get(program):
        # A name that the table knows, from another place: a project's own (`./gradlew`), or anything.
        inside = Path(real).is_relative_to(shell.workspace)
        bare = replace(simple, plain=simple.plain and inside, words=(Word(program), *simple.words[1:]))
        return shell.run(bare) if program in SHELLS else shell.ordinary(bare, program)
    taken = arguments_of(None, simple.words[1:])
    doubt = unsure(taken, simple.words[1:])
    inside = Path(real).is_relative_to(shell.workspace)
    return tell(shell, simple, program, doubt=doubt, taken=taken, everyday=inside)


def run_file(shell: Shell, simple: Simple, program: str, file: Word, at: int = 0) -> Said:
    """An interpreter and the file it runs."""
    effects = Effects()
    effects.read(file)
    doubt = ""
    inside = False
    if not file.known:
        doubt = "Which file this runs isn't known before it runs."
    elif simple.scope.cwd is None and not file.text.startswith("/"):
        doubt = "Where the file this runs lies isn't known."
    else:
        real = real_path(file.text, simple.scope.cwd or Path("/"))
        inside = Path(real).is_relative_to(shell.workspace)
        if real in shell.written:
            doubt = "It runs a file that this command has just written."
        if real.startswith(("/dev/", "/proc/")):
            doubt = "The program it runs comes from its input."
    taken = arguments_of(programs.find(program), simple.words[1:])
    doubt = doubt or unsure(taken, simple.words[1:])
    return tell(shell, simple, program, doubt=doubt, taken=taken, effects=effects, everyday=inside)


def interpret(shell: Shell, simple: Simple, program: str) -> Said:
    entry = programs.find(program) or EMPTY
    arguments = simple.words[1:]
    split = take_apart(entry, arguments, until_operand=True)
    if any(not word.tame for word in arguments[: split.operands[0] if split.operands else None]):
        return tell(shell, simple, program, doubt="What this interpreter runs isn't known before it runs.")
    if split.names <= {"c", "eval", "print"} and len(split.flags) == 1 and split.flags[0].value is not None:
        return _snippet(shell, simple, program, split.flags[0].value, arguments, entry)
    if split.names & entry.never or split.abbreviated:
        return tell(
            shell, simple, program, doubt=f"Code for {program} in the command itself isn't looked into."
        )
    module = split.value("module") if program == "python" else None
    if module is not None:
        return _module(shell, simple, arguments, module)
    if entry.sub and split.operands:
        word = arguments[split.operands[0]]
        if word.known and entry.names.get(word.text, word.text) in entry.sub:
            return shell.ordinary(simple, program)
    if split.operands and arguments[split.operands[0]].text != "-":
        return run_file(shell, simple, program, arguments[split.operands[0]])
    if split.names & {*ASKS_ONLY, "test"} and simple.around.stdin is None:
        return shell.ordinary(simple, program)
    stdin = simple.around.stdin
    doubt = "" if stdin is None and not split.operands else "The program it runs comes from its input."
    return tell(shell, simple, program, doubt=doubt, taken=arguments_of(entry, arguments))


def _snippet(
    shell: Shell, simple: Simple, program: str, code: Word, arguments: Sequence[Word], entry: Entry
) -> Said:
    """Inline code passes only where it does nothing but compute and print."""
    readers = {"python": python_reads, "node": node_reads}
    reads = readers[program](code.text) if program in readers and code.known else None
    doubt = f"Code for {program} in the command itself isn't looked into."
    if reads is not None and any(path.endswith((".py", ".js", ".json", ".mjs")) for path in shell.written):
        reads = None
    effects = Effects()
    effects.read(*(Word(path) for path in reads or []))
    taken = arguments_of(entry, arguments)
    return tell(
        shell, simple, program, doubt="" if reads is not None else doubt, taken=taken, effects=effects,
        everyday=reads is not None,
    )  # fmt: skip


def _module(shell: Shell, simple: Simple, arguments: Sequence[Word], module: Word) -> Said:
    """`python -m NAME …` is NAME with what follows."""
    place = next(
        at
        for at, word in enumerate(arguments)
        if word is module or (word.text.startswith("-") and "m" in word.text)
    )
    if arguments[place] is not module and place + 1 < len(arguments) and arguments[place + 1] is module:
        place += 1
    rest = arguments[place + 1 :]
    if not module.known:
        return tell(shell, simple, "python", doubt="Which module this runs isn't known before it runs.")
    name = programs.names().get(module.text, module.text)
    if programs.find(name) is not None or name in programs.wrappers():
        return shell.run(replace(simple, words=(Word(name), *rest)))
    entry = programs.find(f"python -m {name.partition('.')[0]}") or programs.find(f"python -m {name}")
    taken = arguments_of(entry, rest)
    doubt = unsure(taken, rest)
    cwd = simple.scope.cwd
    head = Path(cwd or "/", *name.split(".")[:1])
    local = (
        cwd is not None
        and head.is_relative_to(shell.workspace)
        and (head.is_dir() or head.with_suffix(".py").is_file())
    )
    source = Path(cwd or "/", "src", *name.split(".")[:1])
    local = local or (cwd is not None and source.is_dir())
    if str(head.with_suffix(".py")) in shell.written:
        doubt = "It runs a file that this command has just written."
    effects = effects_of(shell, simple, f"python -m {name}", (), taken.entry, taken.split, rest)
    everyday = (entry is not None and entry.everyday and not warned(taken) and effects.everyday) or local
    return tell(shell, simple, "python", doubt=doubt, effects=effects, everyday=everyday,
                 words=(name, *taken.words(rest)))  # fmt: skip
