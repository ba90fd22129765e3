"""Checkpoints and forks of a real repository; what is the person's stays as it was."""

import subprocess
from pathlib import Path

import pytest

from omnigent.errors import WorkspaceMissing
from omnigent.workspace import Checkpoint, checkpoint, existing, fork


def git(where: Path, *argv: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "protocol.file.allow=always")
    done = subprocess.run(
        ("git", *identity, "-C", str(where), *argv), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A repository without a commit."""
    path = tmp_path / "repo"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    return path


@pytest.fixture
def repo(empty: Path) -> Path:
    (empty / "a.txt").write_text("a\n")
    (empty / ".gitignore").write_text("ignored\n")
    (empty / "sub").mkdir()
    (empty / "sub" / "b.txt").write_text("b\n")
    git(empty, "add", "-A")
    git(empty, "commit", "-q", "-m", "start")
    return empty


def kept(path: Path, last: Checkpoint | None = None) -> Checkpoint:
    found = checkpoint(path, "ses_1", last)
    assert found is not None
    return found


def dirty(repo: Path) -> None:
    """Staged, unstaged, untracked, deleted, ignored, stashed: one of each."""
    (repo / "stashed.txt").write_text("s\n")
    git(repo, "stash", "push", "-q", "-u")
    (repo / "staged.txt").write_text("staged\n")
    git(repo, "add", "staged.txt")
    (repo / "a.txt").write_text("changed\n")
    (repo / "new.txt").write_text("new\n")
    (repo / "ignored").write_text("no\n")
    (repo / "sub" / "b.txt").unlink()


def test_a_checkpoint_holds_all_files_and_touches_nothing(repo: Path) -> None:
    dirty(repo)
    index = (repo / ".git" / "index").read_bytes()
    before = [git(repo, *argv) for argv in (("status", "--porcelain"), ("stash", "list"), ("branch", "-a"))]
    found = kept(repo)
    assert (repo / ".git" / "index").read_bytes() == index
    after = [git(repo, *argv) for argv in (("status", "--porcelain"), ("stash", "list"), ("branch", "-a"))]
    assert after == before
    files = git(repo, "ls-tree", "-r", "--name-only", found.tree).splitlines()
    assert files == [".gitignore", "a.txt", "new.txt", "staged.txt"]
    assert git(repo, "show", f"{found.tree}:a.txt") == "changed"
    assert found.head == git(repo, "rev-parse", "HEAD")


def test_nothing_changed_is_no_checkpoint(repo: Path) -> None:
    assert checkpoint(repo, "ses_1", None) is None
    (repo / "new.txt").write_text("new\n")
    first = kept(repo)
    assert checkpoint(repo, "ses_1", first) is None
    (repo / "new.txt").write_text("newer\n")
    assert kept(repo, first).tree != first.tree


def test_older_checkpoints_outlive_the_garbage_collector(repo: Path) -> None:
    (repo / "new.txt").write_text("one\n")
    first = kept(repo)
    (repo / "new.txt").write_text("two\n")
    kept(repo, first)
    git(repo, "gc", "-q", "--prune=now")
    assert git(repo, "show", f"{first.tree}:new.txt") == "one"


def test_a_checkpoint_of_a_directory_below_the_top_holds_the_whole_tree(repo: Path) -> None:
    (repo / "new.txt").write_text("new\n")
    assert "new.txt" in git(repo, "ls-tree", "-r", "--name-only", kept(repo / "sub").tree)


def test_before_the_first_commit(empty: Path) -> None:
    (empty / "a.txt").write_text("a\n")
    found = kept(empty)
    assert found.head == ""
    assert git(empty, "ls-tree", "--name-only", found.tree) == "a.txt"


def test_where_there_is_no_repository(tmp_path: Path) -> None:
    assert checkpoint(tmp_path, "ses_1", None) is None
    with pytest.raises(WorkspaceMissing, match="no git repository"):
        fork(tmp_path, "ses_2", tmp_path / "home", None)


def test_a_fork_has_the_files_of_the_checkpoint_as_changes_to_the_same_commit(
    repo: Path, tmp_path: Path
) -> None:
    dirty(repo)
    found = kept(repo)
    (repo / "a.txt").write_text("later\n")
    target = fork(repo, "ses_2", tmp_path / "home", found)
    assert (target / "a.txt").read_text() == "changed\n"
    assert (target / "new.txt").read_text() == "new\n"
    assert not (target / "sub" / "b.txt").exists()
    assert git(target, "rev-parse", "HEAD") == found.head
    assert set(git(target, "status", "--porcelain").splitlines()) == {
        "M a.txt",
        " D sub/b.txt",
        "?? new.txt",
        "?? staged.txt",
    }
    (target / "a.txt").write_text("the fork's\n")
    assert (repo / "a.txt").read_text() == "later\n"


def test_a_fork_without_a_checkpoint_is_at_the_commit(repo: Path, tmp_path: Path) -> None:
    target = fork(repo / "sub", "ses_2", tmp_path / "home", None)
    assert target.name == "sub" and (target / "b.txt").read_text() == "b\n"
    assert git(target, "status", "--porcelain") == ""


def test_a_checkpoint_of_another_repository_is_not_used(repo: Path, tmp_path: Path) -> None:
    target = fork(repo, "ses_2", tmp_path / "home", Checkpoint("0" * 40, "1" * 40))
    assert (target / "a.txt").read_text() == "a\n"


def test_a_fork_before_the_first_commit(empty: Path, tmp_path: Path) -> None:
    (empty / "a.txt").write_text("a\n")
    target = fork(empty, "ses_2", tmp_path / "home", kept(empty))
    assert (target / "a.txt").read_text() == "a\n"
    assert git(target, "status", "--porcelain") == "?? a.txt"
    with pytest.raises(WorkspaceMissing):
        fork(empty, "ses_3", tmp_path / "home", None)


def test_a_submodule_is_kept_at_its_commit(repo: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "i.txt").write_text("i\n")
    git(inner, "add", "-A")
    git(inner, "commit", "-q", "-m", "inner")
    git(repo, "submodule", "add", "-q", str(inner), "inner")
    git(repo, "commit", "-q", "-m", "with a submodule")
    (repo / "new.txt").write_text("new\n")
    found = kept(repo)
    assert f"160000 commit {git(inner, 'rev-parse', 'HEAD')}\tinner" in git(repo, "ls-tree", found.tree)
    assert (fork(repo, "ses_2", tmp_path / "home", found) / "new.txt").exists()


def test_no_program_of_the_repositorys_configuration_is_run(repo: Path, tmp_path: Path) -> None:
    """The agent may write .git/config without asking; what it names there would run past the gate."""
    trap = tmp_path / "trap"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    script.chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(script))
    git(repo, "config", "core.hooksPath", str(tmp_path / "hooks"))
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "post-checkout").symlink_to(script)
    for name in ("clean", "smudge"):
        git(repo, "config", f"filter.a=b.{name}", str(script))
    git(repo, "config", "filter.a=b.required", "true")
    (repo / ".gitattributes").write_text("*.txt filter=a=b\n")
    (repo / "new.txt").write_text("new\n")
    target = fork(repo, "ses_2", tmp_path / "home", kept(repo))
    assert (target / "new.txt").read_text() == "new\n"
    assert not trap.exists()


def test_gits_own_variables_are_not_inherited(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server started from a git hook has them, and they point at another repository."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    (repo / "new.txt").write_text("new\n")
    found = kept(repo)
    monkeypatch.undo()
    assert "new.txt" in git(repo, "ls-tree", "--name-only", found.tree)


def test_a_workspace_must_be_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceMissing, match="is a file"):
        existing(tmp_path / "file")
    with pytest.raises(WorkspaceMissing, match="doesn't exist"):
        existing(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    assert existing(".") == tmp_path
