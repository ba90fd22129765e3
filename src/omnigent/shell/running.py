"""What a simple command runs: wrappers taken off, shell texts gone into, the rest told."""

import re
from collections.abc import Callable
from dataclasses import replace

from omnigent.shell import builtins, carriers, programs
from omnigent.shell.effects import effects_of
from omnigent.shell.environment import value_doubt
from omnigent.shell.output import output_of
from omnigent.shell.programs import Wrapper, take_apart
from omnigent.shell.simple import Shell, Simple
from omnigent.shell.telling import arguments_of, program_of, tell, unsure, warned
from omnigent.shell.texts import (
    ASKS_ONLY,
    INSTALLED,
    SHELLS,
    interpret,
    joined_text,
    run_path,
    run_shell,
    shell_text,
)
from omnigent.shell.values import Said, Word

_SETS = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_ASKS_ALWAYS = {"help", "version"}


def run_command(shell: Shell, simple: Simple) -> Said:
    first = simple.words[0]
    if not first.known or not first.text:
        return tell(shell, simple, "", doubt="Which command this runs isn't known before it runs.")
    sets = [value_doubt(name, word, simple.scope, shell.workspace) for name, word in simple.sets]
    simple = replace(simple, doubt=simple.doubt or next(filter(None, sets), ""))
    if "/" not in first.text and any(real.endswith(f"/{first.text}") for real in shell.written):
        return tell(shell, simple, first.text, doubt="This command has just written a file of this name.")
    said = shell.call(first.text, simple)
    if said is not None:
        return said
    program = programs.main_name(first.text)
    if "/" in first.text and not INSTALLED.fullmatch(first.text):
        return run_path(shell, simple, program)
    own = _HANDLERS.get(program)
    if own is not None:
        return own(shell, simple)
    if program in SHELLS:
        return run_shell(shell, simple)
    if program in programs.listed("interpreters"):
        return interpret(shell, simple, program)
    wrapper = programs.wrappers().get(program)
    if wrapper is not None:
        return _unwrap(shell, simple, program, wrapper, 1)
    return ordinary(shell, simple, program)


def ordinary(shell: Shell, simple: Simple, program: str) -> Said:
    arguments = simple.words[1:]
    entry = programs.find(program)
    taken = arguments_of(entry, arguments)
    if program == "uv" and taken.subs[:1] == ("pip",):
        at = next(place for place, word in enumerate(simple.words) if word.text == "pip")
        return run_command(shell, replace(simple, words=simple.words[at:]))
    wrapper = programs.wrappers().get(" ".join((program, *taken.subs[:1])))
    if wrapper is not None and taken.subs:
        return _unwrap(shell, simple, program, wrapper, 1 + taken.base)
    effects = effects_of(
        shell, simple, program, taken.subs, taken.entry, taken.split, arguments[taken.base :]
    )
    addresses = program in ("curl", "wget")
    doubt = simple.doubt or taken.doubt or unsure(taken, arguments, addresses=addresses)
    doubt = doubt or next(iter(effects.doubts), "")
    names = taken.split.names
    asks_only = (
        bool(names) and not taken.split.operands and names <= (_ASKS_ALWAYS if taken.subs else ASKS_ONLY)
    )
    everyday = (
        entry is not None
        and taken.entry.everyday
        and not taken.stray
        and not warned(taken)
        and effects.everyday
    )
    everyday = everyday or (
        asks_only and "/" not in simple.words[0].text and all(word.known for word in arguments)
    )
    tell(shell, simple, program, doubt=doubt, taken=taken, effects=effects, everyday=everyday)
    return output_of(simple, program, taken.subs, taken.split, arguments[taken.base :])


def _unwrap(shell: Shell, simple: Simple, program: str, wrapper: Wrapper, base: int) -> Said:
    arguments = simple.words[base:]
    split = take_apart(wrapper.entry, arguments, until_operand=True)
    plain = (
        simple.plain and wrapper.plain and not (split.names & wrapper.entry.never) and not split.abbreviated
    )
    for flag in split.flags:
        if flag.name in wrapper.command_flags:
            return shell_text(shell, simple, flag.value, plain=plain)
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
        return tell(shell, simple, program, doubt=doubt, taken=taken, everyday=everyday)
    inner = replace(simple, words=rest, sets=tuple(sets), plain=plain, doubt=doubt)
    if program in ("nohup", "setsid"):
        inner = replace(inner, around=replace(inner.around, own=False))
    if wrapper.script:
        return joined_text(shell, inner)
    if program in ("npx", "bunx", "pnpm", "npm", "uv", "uvx", "pipx", "yarn") and rest[0].known:
        name = re.sub(r"(?<=.)@[\w.^~-]+$", "", rest[0].text)
        inner = replace(inner, words=(Word(name), *rest[1:]))
    return run_command(shell, inner)


def _command(shell: Shell, simple: Simple) -> Said:
    """`command NAME …` passes functions by; `command -v NAME` only looks."""
    words = list(simple.words[1:])
    looks = False
    while words and words[0].known and words[0].text.startswith("-"):
        flag = words.pop(0).text
        looks = looks or "v" in flag or "V" in flag
    if looks or not words:
        return tell(shell, simple, program_of(simple), everyday=True)
    scope = simple.scope.copy()
    scope.functions = {}
    if words[0].text in _HANDLERS:
        scope = simple.scope
    return run_command(shell, replace(simple, words=tuple(words), scope=scope))


_HANDLERS: dict[str, Callable[[Shell, Simple], Said]] = {
    "cd": builtins.cd, "pushd": builtins.cd, "popd": builtins.popd, "eval": builtins.evaluate,
    "source": builtins.source, ".": builtins.source, "trap": builtins.trap,
    "set": builtins.set_arguments, "shift": builtins.shift, "read": builtins.read,
    "mapfile": builtins.assigns, "readarray": builtins.assigns, "getopts": builtins.assigns,
    "let": builtins.assigns, "printf": builtins.printf, "exec": builtins.execute, "command": _command,
    "builtin": _command,
    "xargs": carriers.xargs, "parallel": carriers.parallel, "ssh": carriers.ssh,
    "docker": carriers.containers, "podman": carriers.containers,
    "kubectl": carriers.containers, "find": carriers.find,
}  # fmt: skip
