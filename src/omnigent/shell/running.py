"""What a simple command runs: wrappers taken off, shell texts gone into, the rest told as `Exec`."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omnigent.actions import Exec, FileRead, FileWrite
from omnigent.shell import programs
from omnigent.shell.effects import effects_of
from omnigent.shell.output import output_of
from omnigent.shell.paths import file_actions, real_path
from omnigent.shell.programs import EMPTY, Entry, Flag, Split, Wrapper, take_apart
from omnigent.shell.simple import Effects, Shell, Simple
from omnigent.shell.snippets import node_reads, python_reads
from omnigent.shell.words import UNKNOWN, Said, Scope, Word

SHELLS = {"sh", "bash", "zsh", "dash", "ksh", "ash", "rbash", "mksh"}
_INSTALLED = re.compile(r"(/usr(/local)?)?/s?bin/[^/]+|/opt/homebrew/bin/[^/]+")
_LOCAL_TOOLS = re.compile(r"(.*/)?(node_modules/\.bin|\.?venv/bin|vendor/bin)/[^/]+")
_HOST = re.compile(r"(https?://)?(localhost|[\w-]+(\.[\w-]+)+)(:\d+)?/")
_SETS = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_ASKS_ONLY = {"help", "version", "V", "h", "v"}
_ASKS_ALWAYS = {"help", "version"}

_LOADED = re.compile(r"LD_\w+|DYLD_\w+|BASH_ENV|ENV|BASH_FUNC.*|PERL5\w+|RUBYOPT|RUBYLIB|PYTHONSTARTUP|PYTHONHOME|"
                     r"PROMPT_COMMAND|PS4|SHELLOPTS|BASHOPTS|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|GCONV_PATH|"
                     r"LESSOPEN|LESSCLOSE|SHELL|PYTHONINSPECT|PYTHONBREAKPOINT|NODE_PATH|npm_config_\w+|MAKEFLAGS|"
                     r"CARGO_BUILD_RUSTC\w*|RUSTC_WRAPPER|RUSTC_WORKSPACE_WRAPPER|GOFLAGS|"
                     r"\w*(_PROXY|_proxy)")  # fmt: skip
_RUN = re.compile(r"(GIT_)?(PAGER|EDITOR)|GIT_SEQUENCE_EDITOR|VISUAL|MANPAGER|BROWSER|FCEDIT|GH_PAGER")
_GIT_FINE = re.compile(r"GIT_(AUTHOR|COMMITTER)_\w+|GIT_TERMINAL_PROMPT|GIT_OPTIONAL_LOCKS|GIT_TRACE|GIT_MERGE_AUTOEDIT|"
                       r"GIT_LFS_SKIP_SMUDGE|GIT_PS1\w*")  # fmt: skip
_PAGERS = {
    "",
    "cat",
    "less",
    "more",
    "true",
    ":",
    "head",
    "never",
    "less -F",
    "less -R",
    "less -FRX",
    "vim",
    "vi",
    "nano",
}
_NODE_OPTION = re.compile(r"--(max-old-space-size|experimental-[\w-]+|no-warnings|trace-warnings|enable-source-maps|"
                          r"unhandled-rejections|no-deprecation)(=[\w.-]+)?|")  # fmt: skip


def value_doubt(name: str, word: Word, scope: Scope, workspace: Path) -> str:
    """A variable that makes later commands run something else is doubt."""
    if _LOADED.fullmatch(name):
        return f"{name} changes what commands run."
    if name == "PATH":
        return "" if word.known is False and _path_fine(word.text) else _path_doubt(word, scope, workspace)
    if _RUN.fullmatch(name):
        return "" if word.known and word.text in _PAGERS else f"{name} names a command to run."
    if name == "NODE_OPTIONS":
        fine = word.known and all(_NODE_OPTION.fullmatch(part) for part in word.text.split())
        return "" if fine else "NODE_OPTIONS loads code into node."
    if name.startswith("GIT_") and not _GIT_FINE.fullmatch(name):
        return f"{name} changes what git does."
    return ""


def _path_fine(written: str) -> bool:
    """Directories of installed programs, and the old value."""
    value = written.partition("=")[2] if written.startswith("PATH=") else written
    parts = [part for part in value.strip("\"'").split(":")]
    home = r"(\$HOME|\$\{HOME\}|~|/root|/home/[\w.-]+|\$\{?GOPATH\}?|\$\(go env GOPATH\))"
    fine = rf"\$PATH|\$\{{PATH\}}|{home}/[\w./-]*bin|/(usr|opt|bin|sbin)[\w./@-]*|(\.|\$PWD|\$\(pwd\)|/\S*)?/?(node_modules/\.bin|\.?venv/bin)"
    return all(re.fullmatch(fine, part) for part in parts) and any(
        "$PATH" in part or "${PATH}" in part for part in parts
    )


def _path_doubt(word: Word, scope: Scope, workspace: Path) -> str:
    if word.known and all(
        re.fullmatch(r"/(usr|opt|bin|sbin)[\w./@-]*", part) for part in word.text.split(":")
    ):
        return ""
    return "PATH changes which programs are found."


def run_command(shell: Shell, simple: Simple) -> Said:
    first = simple.words[0]
    if not first.known or not first.text:
        return _tell(shell, simple, "", doubt="Which command this runs isn't known before it runs.")
    sets = [value_doubt(name, word, simple.scope, shell.workspace) for name, word in simple.sets]
    simple = replace(simple, doubt=simple.doubt or next(filter(None, sets), ""))
    said = shell.call(first.text, simple)
    if said is not None:
        return said
    program = programs.main_name(first.text)
    if "/" in first.text and not _INSTALLED.fullmatch(first.text):
        return _script(shell, simple, program)
    own = _HANDLERS.get(program)
    if own is not None:
        return own(shell, simple)
    if program in SHELLS:
        return _shell(shell, simple)
    if program in programs.listed("interpreters"):
        return _interpreter(shell, simple, program)
    wrapper = programs.wrappers().get(program)
    if wrapper is not None:
        return _unwrap(shell, simple, program, wrapper, 1)
    return ordinary(shell, simple, program)


# Ordinary commands


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


def ordinary(shell: Shell, simple: Simple, program: str) -> Said:
    arguments = simple.words[1:]
    entry = programs.find(program)
    taken = arguments_of(entry, arguments)
    wrapper = programs.wrappers().get(" ".join((program, *taken.subs[:1])))
    if wrapper is not None and taken.subs:
        return _unwrap(shell, simple, program, wrapper, 1 + taken.base)
    effects = effects_of(
        shell, simple, program, taken.subs, taken.entry, taken.split, arguments[taken.base :]
    )
    addresses = program in ("curl", "wget")
    doubt = simple.doubt or taken.doubt or _unsure(taken, arguments, addresses=addresses)
    doubt = doubt or next(iter(effects.doubts), "")
    names = taken.split.names
    asks_only = (
        bool(names) and not taken.split.operands and names <= (_ASKS_ALWAYS if taken.subs else _ASKS_ONLY)
    )
    everyday = (
        entry is not None
        and taken.entry.everyday
        and not taken.stray
        and not _warned(taken)
        and effects.everyday
    )
    everyday = everyday or (
        asks_only and "/" not in simple.words[0].text and all(word.known for word in arguments)
    )
    _tell(shell, simple, program, doubt=doubt, taken=taken, effects=effects, everyday=everyday)
    return output_of(simple, program, taken.subs, taken.split, arguments[taken.base :])


def _warned(taken: Arguments) -> bool:
    return taken.split.abbreviated or bool(taken.split.names & taken.entry.never)


def _unsure(taken: Arguments, arguments: Sequence[Word], *, addresses: bool = False) -> str:
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


def _tell(
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


# Wrappers


def _unwrap(shell: Shell, simple: Simple, program: str, wrapper: Wrapper, base: int) -> Said:
    arguments = simple.words[base:]
    split = take_apart(wrapper.entry, arguments, until_operand=True)
    plain = (
        simple.plain and wrapper.plain and not (split.names & wrapper.entry.never) and not split.abbreviated
    )
    for flag in split.flags:
        if flag.name in wrapper.command_flags:
            return _shell_text(shell, simple, flag.value, plain=plain)
    at = split.operands[0] if split.operands else len(arguments)
    unknown = any(not word.tame for word in arguments[:at])
    sets = list(simple.sets)
    while wrapper.sets and at < len(arguments):
        found = _SETS.fullmatch(arguments[at].text if arguments[at].known else arguments[at].prefix)
        if not found:
            break
        value = Word(found[2]) if arguments[at].known else replace(arguments[at], text=arguments[at].text)
        sets.append((found[1], value))
        at += 1
    unknown = unknown or any(not word.tame for word in arguments[at : at + wrapper.skip])
    at += wrapper.skip
    if at < len(arguments) and arguments[at].known and arguments[at].text == "--":
        at += 1
    rest = arguments[at:]
    module = split.value("module") if program in ("uv", "coverage") else None
    if module is not None:
        rest = (Word("python"), Word("-m"), module, *rest)
    elif program in ("uv", "coverage", "poetry", "pdm") and rest and rest[0].text.endswith(".py"):
        rest = (Word("python"), *rest)
    doubt = simple.doubt or ("How this command is wrapped isn't known before it runs." if unknown else "")
    if not rest:
        taken = arguments_of(programs.find(program), simple.words[1:])
        everyday = program in programs.listed("alone")
        return _tell(shell, simple, program, doubt=doubt, taken=taken, everyday=everyday)
    inner = replace(simple, words=rest, sets=tuple(sets), plain=plain, doubt=doubt)
    if program in ("nohup", "setsid"):
        inner = replace(inner, around=replace(inner.around, own=False))
    if wrapper.script:
        return _joined_text(shell, inner)
    if program in ("npx", "bunx", "pnpm", "npm", "uv", "uvx", "pipx", "yarn") and rest[0].known:
        name = re.sub(r"(?<=.)@[\w.^~-]+$", "", rest[0].text)
        inner = replace(inner, words=(Word(name), *rest[1:]))
    return run_command(shell, inner)


def _joined_text(shell: Shell, simple: Simple) -> Said:
    if not all(word.known for word in simple.words):
        return _tell(shell, simple, "", doubt="Which command this runs isn't known before it runs.")
    text = " ".join(word.text for word in simple.words)
    return _shell_text(shell, simple, Word(text), plain=simple.plain)


def _shell_text(
    shell: Shell, simple: Simple, text: Word | None, *, plain: bool = True, args: tuple[Word, ...] = ()
) -> Said:
    """A text that another shell reads: it has our functions, but of our variables only what was exported."""
    if text is None or not text.known:
        return _tell(
            shell, simple, _program(simple), doubt="The text this shell runs isn't known before it runs."
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
        _tell(shell, simple, _program(simple), doubt=doubt, everyday=False)
    return shell.text(text.text, scope, simple.around)


def _program(simple: Simple) -> str:
    return programs.main_name(simple.words[0].text) if simple.words[0].known else ""


def _shell(shell: Shell, simple: Simple) -> Said:
    program, arguments = _program(simple), simple.words[1:]
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
            return _tell(shell, simple, program, doubt="The shell reads a start-up file of its own.")
        if not text.startswith("--"):
            command = command or ("c" in text and text[0] == "-")
            reads_stdin = reads_stdin or "s" in text
            at += len(re.findall("[oO]", text))
        at += 1
    rest = arguments[at:]
    if command:
        return _shell_text(shell, simple, rest[0] if rest else None, args=tuple(rest[2:]))
    if rest and not reads_stdin:
        return _script_file(shell, simple, program, rest[0])
    stdin = simple.around.stdin
    if stdin is None:
        return _tell(shell, simple, program)
    if stdin.text is None:
        return _tell(shell, simple, program, doubt="The text this shell runs isn't known before it runs.")
    inner = replace(simple, around=replace(simple.around, stdin=None))
    return _shell_text(shell, inner, Word(stdin.text), args=tuple(rest))


# Interpreters and scripts


def _script(shell: Shell, simple: Simple, program: str) -> Said:
    """A program named by its path that isn't where installed programs are."""
    path = simple.words[0].text
    if simple.scope.remote:
        return ordinary(shell, simple, program)
    if simple.scope.cwd is None and not path.startswith("/"):
        return _tell(shell, simple, program, doubt="Where this program lies isn't known.")
    real = real_path(path, simple.scope.cwd or Path("/"))
    if real in shell.written:
        return _tell(shell, simple, program, doubt="It runs a file that this command has just written.")
    written = os.path.normpath(os.path.join(simple.scope.cwd or "/", path))
    tool = _LOCAL_TOOLS.fullmatch(written) and Path(written).is_relative_to(shell.workspace)
    if tool or _INSTALLED.fullmatch(real):
        name = os.path.basename(path if tool else real)
        return run_command(shell, replace(simple, words=(Word(name), *simple.words[1:])))
    if programs.find(program) is not None or program in SHELLS or programs.wrappers().get(program):
        # A name that the table knows, from another place: a project's own (`./gradlew`), or anything.
        inside = Path(real).is_relative_to(shell.workspace)
        bare = replace(simple, plain=simple.plain and inside, words=(Word(program), *simple.words[1:]))
        return run_command(shell, bare) if program in SHELLS else ordinary(shell, bare, program)
    taken = arguments_of(None, simple.words[1:])
    doubt = _unsure(taken, simple.words[1:])
    inside = Path(real).is_relative_to(shell.workspace)
    return _tell(shell, simple, program, doubt=doubt, taken=taken, everyday=inside)


def _script_file(shell: Shell, simple: Simple, program: str, file: Word, at: int = 0) -> Said:
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
    doubt = doubt or _unsure(taken, simple.words[1:])
    return _tell(shell, simple, program, doubt=doubt, taken=taken, effects=effects, everyday=inside)


def _interpreter(shell: Shell, simple: Simple, program: str) -> Said:
    entry = programs.find(program) or EMPTY
    arguments = simple.words[1:]
    split = take_apart(entry, arguments, until_operand=True)
    if any(not word.tame for word in arguments[: split.operands[0] if split.operands else None]):
        return _tell(shell, simple, program, doubt="What this interpreter runs isn't known before it runs.")
    if split.names <= {"c", "eval", "print"} and len(split.flags) == 1 and split.flags[0].value is not None:
        return _snippet(shell, simple, program, split.flags[0].value, arguments, entry)
    if split.names & entry.never or split.abbreviated:
        return _tell(
            shell, simple, program, doubt=f"Code for {program} in the command itself isn't looked into."
        )
    module = split.value("module") if program == "python" else None
    if module is not None:
        return _module(shell, simple, arguments, module)
    if entry.sub and split.operands:
        word = arguments[split.operands[0]]
        if word.known and entry.names.get(word.text, word.text) in entry.sub:
            return ordinary(shell, simple, program)
    if split.operands and arguments[split.operands[0]].text != "-":
        return _script_file(shell, simple, program, arguments[split.operands[0]])
    if split.names & {*_ASKS_ONLY, "test"} and simple.around.stdin is None:
        return ordinary(shell, simple, program)
    stdin = simple.around.stdin
    doubt = "" if stdin is None and not split.operands else "The program it runs comes from its input."
    return _tell(shell, simple, program, doubt=doubt, taken=arguments_of(entry, arguments))


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
    return _tell(
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
        return _tell(shell, simple, "python", doubt="Which module this runs isn't known before it runs.")
    name = programs.names().get(module.text, module.text)
    if programs.find(name) is not None or name in programs.wrappers():
        return run_command(shell, replace(simple, words=(Word(name), *rest)))
    entry = programs.find(f"python -m {name.partition('.')[0]}") or programs.find(f"python -m {name}")
    taken = arguments_of(entry, rest)
    doubt = _unsure(taken, rest)
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
    everyday = (entry is not None and entry.everyday and not _warned(taken) and effects.everyday) or local
    return _tell(shell, simple, "python", doubt=doubt, effects=effects, everyday=everyday,
                 words=(name, *taken.words(rest)))  # fmt: skip


# Built-in commands of the shell


def _cd(shell: Shell, simple: Simple) -> Said:
    operands = [
        word for word in simple.words[1:] if not (word.known and re.fullmatch(r"-[LPe@]+|--", word.text))
    ]
    scope = simple.scope
    target = operands[0] if operands else Word(scope.home())
    _tell(shell, simple, _program(simple), everyday=True)
    if scope.remote:
        return Said("")
    if not target.known or target.text == "-" or (scope.cwd is None and not target.text.startswith("/")):
        scope.cwd = None
    elif target.text:
        scope.cwd = Path(real_path(target.text, scope.cwd or Path("/")))
    return Said("")


def _popd(shell: Shell, simple: Simple) -> Said:
    simple.scope.cwd = None
    return _tell(shell, simple, "popd", everyday=True)


def _eval(shell: Shell, simple: Simple) -> Said:
    words = simple.words[1:]
    if not all(word.known for word in words):
        return _tell(shell, simple, "eval", doubt="The text that is evaluated isn't known before it runs.")
    if simple.doubt:
        _tell(shell, simple, "eval")
    return shell.text(" ".join(word.text for word in words), simple.scope, simple.around)


def _source(shell: Shell, simple: Simple) -> Said:
    operands = [word for word in simple.words[1:] if word.text != "--"]
    if not operands:
        return _tell(shell, simple, "source", doubt="What is sourced isn't known.")
    said = _script_file(shell, simple, "source", operands[0])
    simple.scope.variables.clear()
    return said


def _trap(shell: Shell, simple: Simple) -> Said:
    words = [word for word in simple.words[1:] if word.text != "--"]
    if len(words) > 1 and (not words[0].known or words[0].text not in ("", "-", "-p", "-l")):
        if not words[0].known:
            return _tell(shell, simple, "trap", doubt="The text that is run later isn't known.")
        _tell(shell, simple, "trap", everyday=True)
        return shell.text(words[0].text, simple.scope.copy(), replace(simple.around, own=False))
    return _tell(shell, simple, "trap", everyday=True)


def _set(shell: Shell, simple: Simple) -> Said:
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
    return _tell(shell, simple, "set", everyday=True)


def _shift(shell: Shell, simple: Simple) -> Said:
    count = simple.words[1].text if len(simple.words) > 1 else "1"
    scope = simple.scope
    scope.args = scope.args[int(count) :] if scope.args is not None and count.isdigit() else None
    return _tell(shell, simple, "shift", everyday=True)


def _read(shell: Shell, simple: Simple) -> Said:
    """Its variables get what comes in: paths, where a command before it finds paths."""
    entry = programs.find("read") or EMPTY
    split = take_apart(entry, simple.words[1:])
    stdin = simple.around.stdin
    names = [simple.words[1 + place].text for place in split.operands]
    array = split.value("array")
    for name in [*names, *([array.text] if array is not None else [])]:
        simple.scope.variables[name] = (_heard(name, stdin if len(names) == 1 else None),)
    return _tell(shell, simple, "read", everyday=True)


def _heard(name: str, stdin: Said | None) -> Word:
    if stdin is None or stdin.below is None:
        return Word(f"${name}", known=False, many=True)
    if stdin.pattern is not None:
        return Word(f"${name}", known=False, pattern=f"{stdin.below}/**/{stdin.pattern}")
    return Word(f"${name}", known=False, below=stdin.below, visible=stdin.visible)


def _assigns(shell: Shell, simple: Simple) -> Said:
    """`mapfile`, `getopts`, `let`: they set variables that aren't followed."""
    for word in simple.words[1:]:
        name = re.match(r"[A-Za-z_]\w*", word.text)
        if word.known and name:
            simple.scope.variables[name[0]] = (Word(f"${name[0]}", known=False, many=True),)
    return _tell(shell, simple, _program(simple), everyday=True)


def _printf(shell: Shell, simple: Simple) -> Said:
    words = simple.words[1:]
    if len(words) > 1 and words[0].text == "-v":
        simple.scope.variables[words[1].text] = (Word(f"${words[1].text}", known=False, many=True),)
        _tell(shell, simple, "printf", everyday=True)
        return Said("")
    return ordinary(shell, simple, "printf")


def _exec(shell: Shell, simple: Simple) -> Said:
    words = list(simple.words[1:])
    while words and words[0].known and words[0].text.startswith("-"):
        flag = words.pop(0).text
        if flag.endswith("a") and words:
            words.pop(0)
    if not words:
        return Said("")
    return run_command(shell, replace(simple, words=tuple(words)))


def _command(shell: Shell, simple: Simple) -> Said:
    """`command NAME …` passes functions by; `command -v NAME` only looks."""
    words = list(simple.words[1:])
    looks = False
    while words and words[0].known and words[0].text.startswith("-"):
        flag = words.pop(0).text
        looks = looks or "v" in flag or "V" in flag
    if looks or not words:
        return _tell(shell, simple, _program(simple), everyday=True)
    scope = simple.scope.copy()
    scope.functions = {}
    if words[0].text in _HANDLERS:
        scope = simple.scope
    return run_command(shell, replace(simple, words=tuple(words), scope=scope))


def _xargs(shell: Shell, simple: Simple) -> Said:
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
            said = run_command(shell, _inside(simple, words))
        return said
    return run_command(shell, _inside(simple, (*rest, *added)))


def _inside(simple: Simple, words: tuple[Word, ...]) -> Simple:
    return replace(simple, words=words, around=replace(simple.around, stdin=None, own=False))


def _arriving(stdin: Said | None) -> tuple[Word, ...]:
    if stdin is None:
        return ()
    if stdin.text is not None and not re.search(r"['\"\\]", stdin.text):
        return tuple(Word(word) for word in stdin.text.split())
    heard = _heard("…", stdin)
    return (replace(heard, text="…", many=True),)


def _put(word: Word, mark: str, value: Word) -> Word:
    if not word.known or mark not in word.text:
        return word
    if value.known:
        return Word(word.text.replace(mark, value.text))
    if word.text == mark:
        return replace(value, text=word.text)
    return Word(word.text, known=False, prefix=word.text.partition(mark)[0])


def _parallel(shell: Shell, simple: Simple) -> Said:
    words = [word for word in simple.words[1:]]
    told = replace(simple, around=replace(simple.around, own=False))
    _tell(shell, told, "parallel", doubt="What parallel makes of its arguments isn't looked into.")
    while words and words[0].known and words[0].text.startswith("-"):
        words.pop(0)
    if words:
        more = Word("…", known=False, many=True)
        run_command(shell, _inside(simple, (*words, more)))
    return UNKNOWN


def _ssh(shell: Shell, simple: Simple) -> Said:
    said = ordinary(shell, simple, "ssh")
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
    _joined_text(shell, inner)


def _containers(shell: Shell, simple: Simple) -> Said:
    program = _program(simple)
    taken = arguments_of(programs.find(program), simple.words[1:])
    said = ordinary(shell, simple, program)
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
        run_command(
            shell,
            replace(
                simple, words=tuple(rest), scope=scope, around=replace(simple.around, own=False), sets=()
            ),
        )


def _find(shell: Shell, simple: Simple) -> Said:
    """The commands behind `-exec` run with the files that are found."""
    said = ordinary(shell, simple, "find")
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
        value = replace(_heard("{}", found), text="{}", many=words[min(end, len(words) - 1)].text == "+")
        inner = tuple(_put(word, "{}", value) for word in words[at + 1 : end])
        if inner:
            run_command(shell, _inside(simple, inner))
        at = end + 1
    return said


_HANDLERS: dict[str, Callable[[Shell, Simple], Said]] = {
    "cd": _cd, "pushd": _cd, "popd": _popd, "eval": _eval, "source": _source, ".": _source, "trap": _trap,
    "set": _set, "shift": _shift, "read": _read, "mapfile": _assigns, "readarray": _assigns, "getopts": _assigns,
    "let": _assigns, "printf": _printf, "exec": _exec, "command": _command, "builtin": _command,
    "xargs": _xargs, "parallel": _parallel, "ssh": _ssh, "docker": _containers, "podman": _containers,
    "kubectl": _containers, "find": _find,
}  # fmt: skip
