"""What an ordinary command writes to its output, where that can be told without running it."""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from omnigent.shell.programs import Split
from omnigent.shell.simple import Simple
from omnigent.shell.values import UNKNOWN, Said, Scope, Word

_ATOMS = {
    "date",
    "nproc",
    "whoami",
    "uname",
    "hostname",
    "wc",
    "arch",
    "getconf",
    "tput",
    "mktemp",
    "seq",
    "expr",
}
_GIT_ATOMS = {"rev-parse", "describe", "merge-base", "rev-list", "hash-object", "write-tree"}
_FILTERS = {"sort", "uniq", "head", "tail", "grep", "cat", "tee"}
_ECHO_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def output_of(
    simple: Simple, program: str, subs: tuple[str, ...], split: Split, arguments: Sequence[Word]
) -> Said:
    operands = [arguments[place] for place in split.operands]
    match program:
        case "echo":
            return _echoed(simple.words[1:])
        case "printf":
            return _printed(operands)
        case "pwd":
            return Said(str(simple.scope.cwd)) if simple.scope.cwd is not None else UNKNOWN
        case "dirname" | "basename":
            return _part(program, operands)
        case "true" | "false" | ":" | "mkdir" | "touch" | "rm" | "cp" | "mv" | "test" | "sleep":
            return Said("")
        case "find" | "fd":
            return _found(simple, operands) if program == "find" else _here(simple.scope)
        case "ls":
            return _here(simple.scope)
        case "rg" if split.names & {"files", "files-with-matches"}:
            hidden = split.names & {"hidden", "unrestricted", "no-ignore"}
            return replace(_here(simple.scope), visible=not hidden)
        case "rg":
            return UNKNOWN
        case "id":
            return Said(atom=True)
        case "git":
            return _git(simple.scope, subs, split, operands)
        case _ if program in _ATOMS and simple.scope.cwd is not None:
            return Said(atom=True) if program != "mktemp" else Said(below=os.environ.get("TMPDIR", "/tmp"))
        case "grep" if split.names & {"files-with-matches", "files-without-match"} and len(operands) > 1:
            return _here(simple.scope) if all(_local(word) for word in operands[1:]) else UNKNOWN
        case _ if program in _FILTERS:
            return _filtered(simple, program, operands)
        case _:
            return UNKNOWN


def _filtered(simple: Simple, program: str, operands: Sequence[Word]) -> Said:
    stdin = simple.around.stdin
    if stdin is None or (operands and program in ("sort", "uniq", "cat")):
        return UNKNOWN
    if stdin.below is not None or stdin.atom:
        return stdin
    return stdin if program in ("cat", "tee") else UNKNOWN


def _local(word: Word) -> bool:
    return word.known and not word.text.startswith(("/", "~")) and ".." not in word.text


def _here(scope: Scope) -> Said:
    return Said(below=".") if scope.cwd is not None else UNKNOWN


def _echoed(arguments: Sequence[Word]) -> Said:
    words = list(arguments)
    newline, escapes = "\n", False
    while words and words[0].known and re.fullmatch(r"-[neE]+", words[0].text):
        flag = words.pop(0).text
        newline = "" if "n" in flag else newline
        escapes = "e" in flag or (escapes and "E" not in flag)
    if not all(word.known for word in words):
        return Said(atom=True) if len(words) == 1 and words[0].atom else UNKNOWN
    text = " ".join(word.text for word in words)
    if "\\" in text and escapes:
        return _unescaped(text + newline)
    return Said(text + newline)


def _printed(operands: Sequence[Word]) -> Said:
    if not operands or not all(word.known for word in operands):
        return UNKNOWN
    form, values = operands[0].text, [word.text for word in operands[1:]]
    if "%" not in form.replace("%%", ""):
        return _unescaped(form.replace("%%", "%"))
    if set(re.findall(r"%(.)", form)) != {"s"} or not values:
        return UNKNOWN
    count = form.count("%s")
    text = ""
    for start in range(0, len(values), count):
        chunk = values[start : start + count]
        chunk += [""] * (count - len(chunk))
        pieces = form.split("%s")
        unescaped = [_unescaped(piece).text for piece in pieces]
        if any(piece is None for piece in unescaped):
            return UNKNOWN
        text += "".join((piece or "") + value for piece, value in zip(unescaped, [*chunk, ""], strict=True))
    return Said(text)


def _unescaped(text: str) -> Said:
    """Only the plainest escapes; any other is not told."""
    if re.search(r"\\(?![nt\\])", text):
        return UNKNOWN
    return Said(re.sub(r"\\([nt\\])", lambda found: _ECHO_ESCAPES[found[1]], text))


def _part(program: str, operands: Sequence[Word]) -> Said:
    if not operands:
        return UNKNOWN
    word = operands[0]
    if not word.known:
        if word.pattern is not None or word.below is not None:
            return Said(
                below=word.below or re.split(r"[*?\[]", word.pattern or "")[0].rpartition("/")[0] or "."
            )
        return UNKNOWN
    if program == "dirname":
        return Said(posixpath.dirname(word.text.rstrip("/")) or ".")
    name = posixpath.basename(word.text.rstrip("/"))
    if len(operands) > 1 and operands[1].known:
        name = name.removesuffix(operands[1].text)
    return Said(name)


def _found(simple: Simple, operands: Sequence[Word]) -> Said:
    """`find ROOT… -name PATTERN`: paths below one root."""
    words = simple.words[1:]
    roots: list[Word] = []
    for word in words:
        if word.known and (word.text.startswith("-") or word.text in ("(", "!", ")")):
            break
        roots.append(word)
    names = [words[at + 1] for at, word in enumerate(words[:-1]) if word.text in ("-name", "-iname")]
    printed = any(word.text in ("-printf", "-fprintf", "-fprint") for word in words)
    if simple.scope.cwd is None or printed or len(roots) > 1 or (roots and not roots[0].known):
        return UNKNOWN
    root = roots[0].text.rstrip("/") or "/" if roots else "."
    negated = any(word.text in ("!", "-not", "-o", "-or") for word in words)
    pattern = names[0].text if len(names) == 1 and names[0].known and not negated else None
    return Said(below=root, pattern=pattern)


def _git(scope: Scope, subs: tuple[str, ...], split: Split, operands: Sequence[Word]) -> Said:
    sub = subs[0] if subs else ""
    if scope.cwd is None:
        return UNKNOWN
    if sub == "rev-parse" and "show-toplevel" in split.names:
        return Said(str(repository_root(scope.cwd) or scope.cwd))
    if sub == "ls-files" and len(operands) == 1 and operands[0].known and "*" in operands[0].text:
        return Said(below=".", pattern=operands[0].text.rpartition("/")[2])
    named = "name-only" in split.names or (sub == "grep" and "files-with-matches" in split.names)
    if sub == "ls-files" or named:
        return Said(below=".", visible="others" not in split.names and _ignores_secrets(scope.cwd))
    if sub in _GIT_ATOMS or (sub == "branch" and "show-current" in split.names):
        return Said(atom=True)
    return UNKNOWN


def _ignores_secrets(cwd: Path) -> bool:
    """The project keeps `.env` out of git, so that it isn't among the tracked files."""
    root = repository_root(cwd)
    try:
        lines = (root / ".gitignore").read_text(errors="replace").splitlines() if root is not None else []
    except OSError:
        return False
    return any(
        fnmatchcase(".env", line.strip().strip("/")) for line in lines if line.strip() not in ("", "*")
    )


def repository_root(cwd: Path) -> Path | None:
    """The directory at or above `cwd` with a `.git` in it."""
    return next((each for each in (cwd, *cwd.parents) if (each / ".git").exists()), None)
