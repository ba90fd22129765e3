"""Variables that make later commands run something else."""

import re
from pathlib import Path

from omnigent.shell.values import Scope, Word

_LOADED = re.compile(r"LD_\w+|DYLD_\w+|BASH_ENV|ENV|BASH_FUNC.*|PERL5\w+|RUBYOPT|RUBYLIB|"
                     r"PYTHONSTARTUP|PYTHONHOME|"
                     r"PROMPT_COMMAND|PS4|SHELLOPTS|BASHOPTS|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|GCONV_PATH|"
                     r"LESSOPEN|LESSCLOSE|SHELL|PYTHONINSPECT|PYTHONBREAKPOINT|NODE_PATH|"
                     r"npm_config_\w+|MAKEFLAGS|"
                     r"CARGO_BUILD_RUSTC\w*|RUSTC_WRAPPER|RUSTC_WORKSPACE_WRAPPER|GOFLAGS|"
                     r"\w*(_PROXY|_proxy)")  # fmt: skip
_RUN = re.compile(r"(GIT_)?(PAGER|EDITOR)|GIT_SEQUENCE_EDITOR|VISUAL|MANPAGER|BROWSER|FCEDIT|GH_PAGER")
_GIT_FINE = re.compile(r"GIT_(AUTHOR|COMMITTER)_\w+|GIT_TERMINAL_PROMPT|GIT_OPTIONAL_LOCKS|GIT_TRACE|"
                       r"GIT_MERGE_AUTOEDIT|"
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
_NODE_OPTION = re.compile(r"--(max-old-space-size|experimental-[\w-]+|no-warnings|trace-warnings|"
                          r"enable-source-maps|"
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
    parts = value.strip("\"'").split(":")
    home = r"(\$HOME|\$\{HOME\}|~|/root|/home/[\w.-]+|\$\{?GOPATH\}?|\$\(go env GOPATH\))"
    tools = r"((\.|\$PWD|\$\(pwd\))/)?(node_modules/\.bin|\.?venv/bin)"
    fine = rf"\$PATH|\$\{{PATH\}}|{home}/[\w./-]*bin|/(usr|opt|bin|sbin)[\w./@-]*|{tools}"
    return all(re.fullmatch(fine, part) for part in parts) and any(
        "$PATH" in part or "${PATH}" in part for part in parts
    )


def _path_doubt(word: Word, scope: Scope, workspace: Path) -> str:
    if word.known and all(
        re.fullmatch(r"/(usr|opt|bin|sbin)[\w./@-]*", part) for part in word.text.split(":")
    ):
        return ""
    return "PATH changes which programs are found."
