"""What an ordinary command does to files and the network, and which arguments take it out of the everyday."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omnigent.actions import net
from omnigent.shell import programs
from omnigent.shell.programs import Entry, Split
from omnigent.shell.repositories import git_effects, github_effects
from omnigent.shell.requests import (
    curl_effects,
    netcat_effects,
    remote_copy_effects,
    ssh_effects,
    wget_effects,
)
from omnigent.shell.simple import Effects, Shell, Simple
from omnigent.shell.values import Word

_SED_DANGER = re.compile(r"(^|[;{}\n\d$/!,~+ ])\s*[ewW]\b|(^|[;{}\n])\s*\d*,?\d*[rR]\s")
_AWK_DANGER = re.compile(r"\bsystem\b|\bgetline\b|\||>|/inet/|@load|@include|\bclose\b|\bfflush\b|ENVIRON")


@dataclass(frozen=True, slots=True)
class Case:
    """An ordinary command, taken apart."""

    shell: Shell
    simple: Simple
    program: str
    subs: tuple[str, ...]
    entry: Entry
    split: Split
    arguments: Sequence[Word]

    @property
    def operands(self) -> list[Word]:
        return [self.arguments[place] for place in self.split.operands]

    def has(self, *names: str) -> bool:
        return bool(self.split.names & set(names))


def effects_of(
    shell: Shell,
    simple: Simple,
    program: str,
    subs: tuple[str, ...],
    entry: Entry,
    split: Split,
    arguments: Sequence[Word],
) -> Effects:
    case = Case(shell, simple, program, subs, entry, split, arguments)
    effects = Effects()
    _files(case, effects)
    special = _SPECIAL.get(program)
    if special is not None:
        special(case, effects)
    _secrets_named(case, effects)
    return effects


def _secrets_named(case: Case, effects: Effects) -> None:
    """Whatever a program does with a file of secrets, naming it is taken for reading it."""
    if case.entry.operands == "text":
        return
    told = {touch.word.text for touch in effects.touches}
    named = [*case.operands, *(flag.value for flag in case.split.flags if flag.value is not None)]
    for place, word in enumerate(case.arguments):
        if place in case.split.harmless and word in named:
            named.remove(word)
    for word in named:
        text = word.text if word.known else word.pattern or ""
        if re.search(r"(^|[/=:@,])\.env[\w.*?\[\]-]*$", text) and " " not in text:
            path = re.split(r"[=:@,]", text)[-1]
            if path in told or text in told:
                continue
            effects.read(Word(path) if word.known else replace(word, pattern=path))


def _files(case: Case, effects: Effects) -> None:
    operands = case.operands
    recursive = case.has("recursive", "dereference-recursive", "archive")
    match case.entry.operands:
        case "read":
            effects.read(*operands, recursive=recursive)
        case "pattern-read":
            given = case.has("regexp", "file", "files", "expression")
            files = operands if given else operands[1:]
            if not files and (case.program == "rg" or recursive) and case.simple.around.stdin is None:
                files = [Word(".")]
            rg = case.program in ("rg", "ag", "ack")
            hidden = not rg or case.has("hidden", "unrestricted", "no-ignore", "u", "a")
            for file in files:
                effects.read(file, recursive=recursive or rg, hidden=hidden)
        case "write":
            effects.write(*operands, recursive=recursive)
        case "delete":
            effects.delete(*operands, recursive=recursive)
        case "copy":
            target = case.split.value("target-directory")
            sources, last = (operands, [target]) if target is not None else (operands[:-1], operands[-1:])
            if case.program in ("mv", "rename"):
                effects.delete(*sources)
            effects.read(*sources, recursive=recursive or case.program == "mv")
            effects.write(*last)
        case "script":
            effects.read(*operands[:1])
        case _:
            pass
    for flag in case.split.flags:
        if flag.value is not None and flag.name in case.entry.reads:
            effects.read(flag.value)
        if flag.value is not None and flag.name in case.entry.writes:
            effects.write(flag.value)


def _rm(case: Case, effects: Effects) -> None:
    if case.has("recursive", "dir"):
        effects.everyday = False


def _sed(case: Case, effects: Effects) -> None:
    scripts = [
        flag.value for flag in case.split.flags if flag.name == "expression" and flag.value is not None
    ]
    operands = case.operands
    files = operands if scripts or case.has("file") else operands[1:]
    scripts = scripts or operands[:1]
    effects.touches = []
    effects.read(*files)
    if case.has("in-place"):
        effects.write(*files)
    for script in scripts:
        if not script.known:
            continue
        if _SED_DANGER.search(_without_texts(script.text)) or _substitution_flags(script.text) & {"e", "w"}:
            effects.doubts.append("The sed script runs commands, or reads or writes files of its own.")
    if case.has("file"):
        effects.everyday = False


def _without_texts(script: str) -> str:
    """The script without the texts of its addresses and substitutions."""
    script = re.sub(r"s([/|#,:@!%])(?:\\.|(?!\1).)*\1(?:\\.|(?!\1).)*\1[gpiImM0-9]*", "s", script, flags=re.S)
    script = re.sub(r"\\?/(?:\\.|[^/\\])*/", "0", script)
    return re.sub(r"[aci]\\?\s*\n?[^\n]*", "", script) if re.match(r"[\d$,0/]*[aci]", script) else script


def _substitution_flags(script: str) -> set[str]:
    found = re.findall(r"s([/|#,:@!%])(?:\\.|(?!\1).)*\1(?:\\.|(?!\1).)*\1([a-zA-Z0-9]*)", script, flags=re.S)
    return {letter for _, flags in found for letter in flags}


def _awk(case: Case, effects: Effects) -> None:
    operands = case.operands
    given = case.has("file")
    program = None if given else operands[0] if operands else None
    for word in operands if given else operands[1:]:
        if not (word.known and re.match(r"[A-Za-z_]\w*=", word.text)):
            effects.read(word)
    if program is not None and program.known:
        bare = re.sub(r'"(\\.|[^"\\])*"|(?<![\w)\]])/(\\.|[^/\\\n])*/', "0", program.text).replace("||", "")
        if _AWK_DANGER.search(re.sub(r"[\w)\]$]\s*>=?\s*[\w($-]", "", bare)) or re.search(
            r"print[^;}]*>", bare
        ):
            effects.doubts.append("The awk program runs commands, or reads or writes files of its own.")
    if given:
        effects.everyday = False


def _find(case: Case, effects: Effects) -> None:
    words = case.arguments
    roots: list[Word] = []
    for word in words:
        if word.known and (word.text.startswith("-") or word.text in ("(", "!", ")")):
            break
        roots.append(word)
    texts = {word.text.lstrip("-") for word in words if word.known and word.text.startswith("-")}
    if texts & {"delete", "exec", "execdir", "ok", "okdir", "fprint", "fprintf", "fls", "fprint0"}:
        effects.everyday = not texts & {"delete", "fprint", "fprintf", "fls", "fprint0", "ok", "okdir"}
    if "delete" in texts:
        effects.delete(*(roots or [Word(".")]), recursive=True)
    for at, word in enumerate(words[:-1]):
        if word.text in ("-fprint", "-fprintf", "-fls", "-fprint0"):
            effects.write(words[at + 1])


def _dd(case: Case, effects: Effects) -> None:
    for word in case.operands:
        name, equals, value = word.text.partition("=")
        if equals and name in ("if", "of"):
            touched = replace(word, text=value, pattern=None) if word.known else word
            (effects.read if name == "if" else effects.write)(touched)


def _tar(case: Case, effects: Effects) -> None:
    operands, letters = case.operands, ""
    if case.arguments and case.arguments[0].known and not case.arguments[0].text.startswith("-"):
        letters = case.arguments[0].text
        operands = operands[1:]
    if "f" in letters and operands:
        archive, operands = operands[0], operands[1:]
    else:
        archive = case.split.value("file")
    if "I" in letters:
        effects.everyday = False
    creates = case.has("create", "append", "update") or set(letters) & set("cru")
    lists = case.has("list", "diff") or set(letters) & set("td")
    if archive is not None and archive.text != "-":
        (effects.write if creates else effects.read)(archive)
        if archive.known and re.match(r"[^/]+:", archive.text):
            effects.doubts.append("The archive is on another host.")
    where = case.split.value("directory") or Word(".")
    if creates and (case.has("files-from") or "T" in letters):
        effects.doubts.append("Which files are packed stands in a file.")
    if creates:
        effects.read(*operands, recursive=True)
    elif not lists:
        effects.write(where, recursive=True)


def _archive(case: Case, effects: Effects) -> None:
    operands = case.operands
    if case.program == "unzip":
        effects.read(*operands[:1])
        if not case.has("l", "t", "v", "Z", "p"):
            effects.write(case.split.value("d") or Word("."), recursive=True)
    else:
        effects.write(*operands[:1])
        effects.read(*operands[1:], recursive=case.has("recursive", "r"))


def _mv(case: Case, effects: Effects) -> None:
    """What is moved into a device is gone."""
    if any(touch.kind == "write" and touch.word.text.startswith("/dev/") for touch in effects.touches):
        effects.everyday = False


def _go(case: Case, effects: Effects) -> None:
    _packages(case, effects)
    if case.subs[:1] in (("install",), ("run",)) and any("@" in word.text for word in case.operands):
        effects.everyday = False


def _compose(case: Case, effects: Effects) -> None:
    """The merged configuration is printed with the values of the project's `.env` in it."""
    if case.subs[-1:] == ("config",) and not case.has(
        "services", "quiet", "q", "no-interpolate", "images", "volumes"
    ):
        root = case.simple.scope.cwd
        if root is None or (root / ".env").exists():
            effects.read(Word(".env"))


def _link(case: Case, effects: Effects) -> None:
    """A link to a file is another name to read it by, so that it counts as reading it."""
    operands = case.operands
    effects.read(*(operands[:-1] or operands))
    effects.write(*operands[1:][-1:])


def _git(case: Case, effects: Effects) -> None:
    if case.subs == ("grep",) and case.has("no-index", "untracked"):
        effects.read(Word("."), recursive=True)
    git_effects(case.shell, case.simple, case.subs, case.split, case.operands, effects)


def _gh(case: Case, effects: Effects) -> None:
    github_effects(case.simple, case.subs, case.split, case.operands, effects)


def _curl(case: Case, effects: Effects) -> None:
    curl_effects(case.split, case.operands, effects)


def _wget(case: Case, effects: Effects) -> None:
    wget_effects(case.split, case.operands, effects)


def _remote_copy(case: Case, effects: Effects) -> None:
    remote_copy_effects(case.split, case.operands, effects)


def _netcat(case: Case, effects: Effects) -> None:
    netcat_effects(case.program, case.split, case.operands, effects)


def _ssh(case: Case, effects: Effects) -> None:
    ssh_effects(case.operands, effects)


def _packages(case: Case, effects: Effects) -> None:
    """A registry that is named, and packages by their address."""
    from_where = (
        "index-url",
        "extra-index-url",
        "index",
        "registry",
        "find-links",
        "default-index",
        "source",
    )
    for flag in case.split.flags:
        if flag.name in from_where and flag.value is not None:
            _address(flag.value, effects)
    for word in case.operands:
        found = re.search(r"(?:git\+)?(?:https?|ssh|git)://\S+", word.text)
        if found:
            _address(Word(found[0].removeprefix("git+")), effects)
        elif case.program in ("npm", "pnpm", "yarn", "bun") and re.match(
            r"(github|gitlab|bitbucket):", word.text
        ):
            host = {"github": "github.com", "gitlab": "gitlab.com", "bitbucket": "bitbucket.org"}
            _address(
                Word(f"https://{host[word.text.partition(':')[0]]}/{word.text.partition(':')[2]}"), effects
            )
    if case.has("global", "system", "break-system-packages", "user"):
        effects.everyday = False


def _address(word: Word, effects: Effects) -> None:
    if not word.known:
        effects.doubts.append("Which address this asks isn't known before it runs.")
        return
    from_path = re.match(r"[./~]", word.text)
    if from_path:
        effects.read(word)
    else:
        effects.nets.append(net(word.text))


def _targets(case: Case, effects: Effects) -> None:
    """Targets and scripts are the project's own; those named like a release or worse are not everyday."""
    for flag in case.split.flags:
        if flag.name == "file" and flag.value is not None and re.match(r"-$|/dev/|/proc/", flag.value.text):
            effects.doubts.append("The rules it follows come from its input.")
    for word in case.operands:
        if case.program == "make" and re.match(r"\w+[:+?]?=", word.text):
            name = re.split(r"[:+?]?=", word.text)[0]
            if name in ("SHELL", "MAKEFLAGS", ".SHELLFLAGS"):
                effects.everyday = False
            continue
        _target(word, effects)


def _scripts(case: Case, effects: Effects) -> None:
    for word in case.operands[:1]:
        _target(word, effects)


def _target(word: Word, effects: Effects) -> None:
    parts = set(re.split(r"[^a-z]+", word.text.lower()))
    if not word.known or parts & programs.listed("alarming"):
        effects.everyday = False


def _package_program(case: Case, effects: Effects) -> None:
    if case.subs[:1] in (("run",), ("run-script",), ("task",)):
        _scripts(case, effects)
    else:
        _packages(case, effects)


def _textual(case: Case, effects: Effects) -> None:
    """Interactive ones that run commands from their arguments (`less +!sh`)."""
    if any(word.known and word.text.startswith("+") for word in case.arguments):
        effects.everyday = False


def _tail(case: Case, effects: Effects) -> None:
    """`tail +5`: a count, not a file."""
    effects.touches = [touch for touch in effects.touches if not re.fullmatch(r"\+\d+", touch.word.text)]


def _server(case: Case, effects: Effects) -> None:
    """Serving files to everyone on the network isn't everyday."""
    for flag in case.split.flags:
        if flag.name in ("bind", "host") and flag.value is not None and flag.value.text in ("0.0.0.0", "::"):
            effects.everyday = False


def _tokens(case: Case, effects: Effects) -> None:
    for flag in case.split.flags:
        if flag.name in ("rawfile", "slurpfile") and flag.value is not None:
            effects.doubts.append("Which file jq reads isn't told.")
    operands = case.operands
    effects.read(*(operands if case.has("from-file", "null-input") else operands[1:]))


_SPECIAL: dict[str, Callable[[Case, Effects], None]] = {
    "rm": _rm, "rmdir": _rm, "sed": _sed, "awk": _awk, "find": _find, "dd": _dd, "tar": _tar, "zip": _archive,
    "unzip": _archive, "ln": _link, "git": _git, "gh": _gh, "curl": _curl, "wget": _wget, "scp": _remote_copy,
    "rsync": _remote_copy, "sftp": _remote_copy, "nc": _netcat, "socat": _netcat, "telnet": _netcat,
    "ssh": _ssh,
    "ping": _netcat, "dig": _netcat, "nslookup": _netcat, "host": _netcat, "ftp": _netcat,
    "make": _targets, "just": _targets, "task": _targets, "rake": _targets, "mage": _targets,
    "gulp": _targets,
    "grunt": _targets, "nox": _targets, "ninja": _targets, "mix": _scripts, "gradle": _targets,
    "mvn": _targets,
    "npm": _package_program, "pnpm": _package_program, "yarn": _package_program, "bun": _package_program,
    "deno": _package_program, "composer": _package_program, "poe": _scripts, "hatch": _package_program,
    "pdm": _package_program, "pip": _packages, "uv": _packages, "poetry": _packages, "pipenv": _packages,
    "gem": _packages, "cargo": _packages, "go": _go, "mv": _mv, "docker": _compose,
    "docker-compose": _compose, "podman": _compose, "less": _textual, "more": _textual, "view": _textual,
    "tail": _tail, "python -m http.server": _server, "jq": _tokens, "yq": _tokens,
}  # fmt: skip
