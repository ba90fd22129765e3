"""The two corpora, at the level of actions: every evasion stands out, and everyday commands don't.

The entries are data (`tests/corpus/`); a rule that lists them would be no rule.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from omnigent import shell
from omnigent.actions import Action, Exec, FileRead, FileWrite, Net, Parsed, Unknown
from omnigent.events import JSON
from omnigent.harnesses import _claude_tools, _codex_tools, _pi_tools, scripted

CORPUS = Path(__file__).parent.parent / "corpus"
LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
REGISTRIES = {
    "registry.npmjs.org",
    "pypi.org",
    "files.pythonhosted.org",
    "crates.io",
    "proxy.golang.org",
    "rubygems.org",
}
MOST_ASKS = 2

type Understood = tuple[Sequence[Action], Parsed]

CONFIG = """\
[remote "origin"]
    url = git@github.com:acme/app.git
[branch "main"]
    remote = origin
"""
FILES = (
    "README.md", ".env", ".env.local", "src/main.py", "src/app.ts", "src/lib.rs", "src/util.py",
    "tests/test_main.py",
    "package.json", "pyproject.toml", "Makefile", "Cargo.toml", "go.mod", "docs/index.md", "scripts/build.sh",
    "manage.py", "list", "a.tar", "build/out.js",
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as agents meet them: a repository with a remote, sources, and secrets."""
    root = tmp_path_factory.mktemp("home") / "ws"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x\n")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text(CONFIG)
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (root / ".gitignore").write_text("node_modules\n.env\n.env.*\n")
    (root / "link-to-env").symlink_to(".env")
    return root


@pytest.fixture(scope="module")
def evaded(workspace: Path) -> list[tuple[JSON, Understood]]:
    return [(entry, understood(entry, workspace)) for entry in evasions()]


def load(name: str) -> Any:
    return yaml.safe_load((CORPUS / name).read_text(encoding="utf-8"))


@cache
def evasions() -> list[JSON]:
    return cast(list[JSON], load("evasions.yaml")["entries"])


@cache
def everyday() -> list[tuple[str, str]]:
    groups = cast(dict[str, list[str]], load("everyday.yaml")["entries"])
    return [(group, text) for group, texts in groups.items() for text in texts]


def through_a_tool(tool: str, given: JSON, workspace: Path) -> Understood:
    harness, _, name = tool.partition("/")
    match harness:
        case "claude-code":
            return _claude_tools.understand(name, given, workspace, workspace)
        case "codex" if name == "mcp":
            raise AssertionError(tool)
        case "codex":
            actions = _codex_tools.TOOLS[name].actions
            assert actions
            return actions(given, workspace)
        case "pi":
            return _pi_tools.actions_of(name, given, workspace)
        case _:
            actions = scripted.TOOLS[name].actions
            assert actions
            return actions(given, workspace)


def understood(entry: JSON, workspace: Path) -> Understood:
    match entry["via"]:
        case "shell":
            return shell.understand(entry["text"], workspace, workspace)
        case "stdin":
            return shell.typed(entry["text"], "session 1", workspace, workspace)
        case _:
            return through_a_tool(entry["tool"], entry["input"], workspace)


# What stands out


def uncertain(actions: Sequence[Action], parsed: Parsed) -> bool:
    return (
        parsed != "full"
        or not actions
        or any(action.doubt or isinstance(action, Unknown) for action in actions)
    )


def unusual(action: Action) -> bool:
    return isinstance(action, Exec) and not action.everyday


def elsewhere(action: Action) -> bool:
    return isinstance(action, Net) and action.host not in LOOPBACK | REGISTRIES


def sensitive(action: Action) -> bool:
    """Reads or moves a file that holds secrets; a pattern counts if it fits one."""
    if not isinstance(action, FileRead | FileWrite):
        return False
    name = Path(action.real_path).name
    if action.glob and fnmatchcase(".env", name):
        return True
    return (
        name.casefold().startswith(".env")
        or "/.ssh/" in action.real_path
        or action.real_path == "/etc/shadow"
    )


def removal(action: Action) -> bool:
    return isinstance(action, FileWrite) and (
        (action.change == "delete" and action.recursive) or not action.in_workspace
    )


NAMED: dict[str, Callable[[Action], bool]] = {
    "push": lambda action: (
        isinstance(action, Exec) and action.program == "git" and action.words[:1] == ("push",)
    ),
    "rm": removal,
    "curl": elsewhere,
    "env": sensitive,
}


def test_the_corpora_are_large_and_their_entries_distinct() -> None:
    entries = evasions()
    assert len(entries) >= 260 and len({entry["id"] for entry in entries}) == len(entries)
    assert {entry["kind"] for entry in entries} == set(NAMED)
    assert {entry["via"] for entry in entries} == {"shell", "stdin", "tool"}
    texts = [text for _, text in everyday()]
    assert len(texts) >= 500 and len(set(texts)) == len(texts)


def test_every_evasion_stands_out(evaded: list[tuple[JSON, Understood]]) -> None:
    passed: list[str] = []
    for entry, (actions, parsed) in evaded:
        if uncertain(actions, parsed) or any(map(unusual, actions)):
            continue
        if not any(map(NAMED[entry["kind"]], actions)):
            passed.append(f"{entry['id']}: {entry.get('text') or entry.get('input')!r}")
    assert not passed, "\n".join(passed)


def test_a_push_under_its_own_name_is_told_as_one(evaded: list[tuple[JSON, Understood]]) -> None:
    """Where nothing is in doubt, rules on `git push` and on the host have something to hold on to."""
    for entry, (actions, parsed) in evaded:
        if entry["kind"] == "push" and not uncertain(actions, parsed):
            pushes = [action for action in actions if NAMED["push"](action)]
            assert pushes or any(map(unusual, actions)), entry["id"]


def would_ask(action: Action) -> bool:
    outside = isinstance(action, FileWrite) and not action.in_workspace
    return unusual(action) or elsewhere(action) or sensitive(action) or outside or removal(action)


def test_everyday_commands_pass(workspace: Path) -> None:
    asked: list[str] = []
    for group, text in everyday():
        actions, parsed = shell.understand(text, workspace, workspace)
        if uncertain(actions, parsed) or any(map(would_ask, actions)):
            why = [action.doubt or str(action) for action in actions if action.doubt or would_ask(action)]
            asked.append(f"{group}: {text}\n      {why or parsed}")
    assert len(asked) <= MOST_ASKS, "\n".join(asked)
