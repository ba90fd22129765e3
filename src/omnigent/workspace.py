"""The files an agent works on: checkpoints of a work tree, and a work tree of its own for a fork.

Everything goes through git; a hidden ref keeps a checkpoint's objects alive, and the person's index, branches
and stash are never touched. Nothing here deletes.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from omnigent.errors import WorkspaceMissing

_IDENTITY = {
    "GIT_AUTHOR_NAME": "omnigent",
    "GIT_AUTHOR_EMAIL": "omnigent@localhost",
    "GIT_COMMITTER_NAME": "omnigent",
    "GIT_COMMITTER_EMAIL": "omnigent@localhost",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`head` is the commit checked out (empty before the first), `tree` a commit that holds all files."""

    head: str
    tree: str


def existing(path: str | Path) -> Path:
    """The workspace as an absolute path. Raises `WorkspaceMissing`."""
    workspace = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (Path's raises for an unknown user)
    if not workspace.is_dir():
        what = "is a file, not a directory" if workspace.exists() else "doesn't exist"
        raise WorkspaceMissing(
            f"The workspace {workspace} {what}.", hint="Name a directory with -C, or make it first."
        )
    return workspace


def checkpoint(workspace: Path, session_id: str, last: Checkpoint | None) -> Checkpoint | None:
    """Keep the work tree as it is (untracked files too, ignored ones not).

    None where there is no repository, git fails, or nothing changed since `last`: best effort by design.
    """
    top = _git(workspace, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    head = _git(workspace, "rev-parse", "--verify", "-q", "HEAD") or ""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "index"
        index = {"GIT_INDEX_FILE": str(copy), **_unfiltered(workspace)}
        if not _copy_index(workspace, copy) and head:
            _git(workspace, "read-tree", head, env=index)
        if _git(Path(top), "add", "-A", env=index) is None:
            return None
        tree = _git(workspace, "write-tree", env=index)
    before = last.tree if last else head
    if not tree or (before and _git(workspace, "rev-parse", f"{before}^{{tree}}") == tree):
        return None
    known = [commit for commit in (head, last.tree if last else "") if commit and _has(workspace, commit)]
    parents = [option for commit in known for option in ("-p", commit)]  # the one ref keeps all checkpoints
    commit = _git(
        workspace, "commit-tree", tree, *parents, "-m", f"checkpoint of {session_id}", env=_IDENTITY
    )
    if not commit or _git(workspace, "update-ref", f"refs/omnigent/{session_id}", commit) is None:
        return None
    return Checkpoint(head, commit)


def fork(workspace: Path, session_id: str, home: Path, at: Checkpoint | None) -> Path:
    """A new work tree for a fork, at the checkpoint (else at the current commit).

    Raises `WorkspaceMissing` where there is no repository to branch from.
    """
    top = _git(workspace, "rev-parse", "--show-toplevel")
    if at is not None and not _has(workspace, at.tree):
        at = None  # of another repository, or pruned
    commit = at.tree if at else _git(workspace, "rev-parse", "--verify", "-q", "HEAD")
    if top is None or not commit:
        raise WorkspaceMissing(
            f"{workspace} is no git repository with a commit, so a fork can't get a work tree of its own.",
            hint="Name another directory (workspace), or say that both share this one (share_workspace).",
        )
    target = home / "worktrees" / session_id
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = _unfiltered(workspace)
    if _git(Path(top), "worktree", "add", "--detach", str(target), commit, env=plain) is None:
        raise WorkspaceMissing(f"git couldn't make a work tree of {workspace} at {commit[:12]}.")
    if at and at.head:
        _git(target, "reset", "-q", "--soft", at.head, env=plain)
        _git(target, "reset", "-q", env=plain)
    elif at:  # before a first commit: the files on a branch not yet born, none of them staged
        _git(target, "symbolic-ref", "HEAD", f"refs/heads/omnigent-{session_id}")
        _git(target, "read-tree", "--empty")
    return target / workspace.resolve().relative_to(Path(top).resolve())


def _has(workspace: Path, commit: str) -> bool:
    return _git(workspace, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def _copy_index(workspace: Path, copy: Path) -> bool:
    """Start from the person's index: with what it knows of each file only changed ones are read."""
    path = _git(workspace, "rev-parse", "--git-path", "index")
    try:
        shutil.copyfile(workspace / (path or ""), copy)
    except OSError:
        return False
    return True


def _unfiltered(workspace: Path) -> dict[str, str]:
    """Variables that switch off the filters of the repository's own configuration.

    A filter is a program, and the agent may write that configuration: run here, it would run past the gate.
    """
    shown = _git(workspace, "config", "-z", "--show-scope", "--name-only", "--get-regexp", r"^filter\.")
    fields = (shown or "").split("\0")
    names = [name for scope, name in zip(fields[::2], fields[1::2], strict=False) if scope in _UNTRUSTED]
    variables = {"GIT_CONFIG_COUNT": str(len(names))}
    for number, name in enumerate(names):
        variables[f"GIT_CONFIG_KEY_{number}"] = name
        variables[f"GIT_CONFIG_VALUE_{number}"] = "false" if name.endswith(".required") else ""
    return variables


_UNTRUSTED = ("local", "worktree")


def _git(where: Path, *argv: str, env: dict[str, str] | None = None) -> str | None:
    """Its output, or None if it failed. Runs no program that the repository's configuration names."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = {**inherited, **(env or {}), "GIT_OPTIONAL_LOCKS": "0"}
    safe = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
    command = ("git", *safe, "-C", str(where), *argv)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
