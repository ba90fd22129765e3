"""Git and GitHub commands: which repository, host and branches they speak to."""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from omnigent.actions import Net, net
from omnigent.shell.output import repository_root
from omnigent.shell.paths import real_path
from omnigent.shell.programs import Split
from omnigent.shell.requests import host_net
from omnigent.shell.simple import Effects, Shell, Simple
from omnigent.shell.values import Scope, Word

_RUNNING_KEYS = re.compile(
    r"alias\..*|core\.(pager|editor|sshcommand|fsmonitor|hookspath|gitproxy|askpass|worktree|"
    r"attributesfile|excludesfile)|"
    r"pager\..*|diff\..*|difftool\..*|merge\..*|mergetool\..*|filter\..*|credential\..*|gpg\..*|"
    r"sequence\.editor|"
    r"uploadpack\..*|receive\..*|protocol\..*|url\..*|include.*|remote\..*|http\..*|"
    r"init\.templatedir|browser\..*|"
    r"interactive\.difffilter|submodule\..*|web\.browser|man\..*|trailer\..*|sendemail\..*|"
    r"safe\.directory|ssh\..*",
    re.I,
)
_READING_KEYS = re.compile(r"core\.pager=(cat|less|)|pager\.\w+=(cat|less|false)|"
                           r"diff\.(renamelimit|context|algorithm|"
                           r"external|noprefix|mnemonicprefix|color\w*)=\w*|"
                           r"safe\.directory=.*", re.I)  # fmt: skip
_ADDRESS = re.compile(
    r"(?:\w[\w+.-]*::?)?(?:https?|ssh|git|file|ftps?|ext|git\+ssh)(?:://|::).*"
    r"|[\w.-]+@[\w.-]+:.*|[\w-][\w.-]+:(?!//).+"
)
_SPEAKING = {"push", "fetch", "pull", "clone", "ls-remote", "archive"}


def git_effects(
    shell: Shell, simple: Simple, subs: tuple[str, ...], split: Split, operands: list[Word], effects: Effects
) -> None:
    scope = _scope(simple, split, effects)
    for flag in split.flags:
        if flag.name in ("config", "config-env") and flag.value is not None:
            _setting(shell, simple, flag.value, effects)
    sub = subs[0] if subs else ""
    if sub in _SPEAKING or subs[:2] in (("remote", "update"), ("submodule", "update"), ("submodule", "add")):
        _speaking(scope, sub, split, operands, effects)
    if sub == "push":
        effects.branches = tuple(_pushed(scope, split, operands[1:], effects))
    check = _CHECKS.get(sub)
    if check is not None:
        check(split, operands, effects)
    if not sub and operands and operands[0].known:
        _alias(shell, simple, scope, operands, effects)


def _scope(simple: Simple, split: Split, effects: Effects) -> Scope:
    """Where git works: `-C DIR` one after the other, `--git-dir`."""
    scope = simple.scope.copy()
    for flag in split.flags:
        if flag.name == "C" and flag.value is not None:
            if not flag.value.known:
                scope.cwd = None
            elif scope.cwd is not None or flag.value.text.startswith("/"):
                scope.cwd = Path(real_path(flag.value.text, scope.cwd or Path("/")))
        elif flag.name in ("git-dir", "work-tree", "exec-path", "namespace") and flag.value is not None:
            scope.cwd = None
            effects.everyday = effects.everyday and flag.name in ("git-dir", "work-tree")
    return scope


def _setting(shell: Shell, simple: Simple, value: Word, effects: Effects) -> None:
    """`-c NAME=VALUE`: some names make git run something."""
    if not value.known:
        effects.doubts.append("A setting of git isn't known before it runs.")
        return
    name, _, text = value.text.partition("=")
    if _READING_KEYS.fullmatch(value.text) or not _RUNNING_KEYS.fullmatch(name):
        return
    effects.doubts.append(f"git's setting {name} changes what it does or runs.")
    if name.lower().startswith("alias."):
        command = text.removeprefix("!") if text.startswith("!") else f"git {text}"
        shell.text(command, simple.scope.copy(), simple.around)


def _alias(shell: Shell, simple: Simple, scope: Scope, operands: list[Word], effects: Effects) -> None:
    """An alias of the repository's own is read from its configuration."""
    root = repository_root(scope.cwd) if scope.cwd is not None else None
    config = _config(root) if root is not None else {}
    command = config.get(f"alias.{operands[0].text.lower()}")
    if command:
        effects.doubts.append(f"git {operands[0].text} is an alias of this repository.")
        text = command.removeprefix("!") if command.startswith("!") else f"git {command}"
        shell.text(text, simple.scope.copy(), simple.around)


# Hosts


def _speaking(scope: Scope, sub: str, split: Split, operands: list[Word], effects: Effects) -> None:
    remote = split.value("repo") or split.value("remote") or (operands[0] if operands else None)
    if remote is not None and not remote.known:
        if not remote.atom:
            effects.doubts.append("Which repository this speaks to isn't known before it runs.")
        return
    if sub == "archive" and split.value("remote") is None:
        return
    name = remote.text if remote is not None else ""
    urls = [name] if _ADDRESS.fullmatch(name) else remote_urls(scope.cwd, name, push=sub == "push")
    if sub == "clone" and not urls:
        effects.read(*operands[:1], recursive=True)
    if sub == "clone":
        where = operands[1:2] or [Word(name.rstrip("/").rpartition("/")[2].removesuffix(".git") or ".")]
        effects.write(*where, recursive=True)
    if name and not urls and re.match(r"[./~]", name):
        effects.read(Word(name), recursive=True)
        return
    for url in urls:
        _speak(url, effects)


def _speak(url: str, effects: Effects) -> None:
    if re.match(r"\w+::", url) or url.startswith("file:"):
        if not url.startswith("file:"):
            effects.doubts.append("This address makes git run a program of its own.")
        return
    if re.match(r"[./~]", url):
        effects.write(Word(url), recursive=True)  # a repository on this machine
        return
    effects.nets.append(remote_net(url))
    effects.repository = effects.repository or repository_of(url)


def remote_net(url: str) -> Net:
    if re.match(r"https?://", url):
        return net(url, "")
    if "://" in url:
        return host_net(re.sub(r"(\w+://[^/]*).*", r"\1", url)).model_copy(update={"url": url})
    return host_net(url.partition(":")[0]).model_copy(update={"url": url})


def repository_of(url: str) -> str:
    """`host/owner/name` of a remote's address, "" where it has none."""
    found = re.fullmatch(r"(?:\w+(?:\+\w+)?://)?(?:[^@/]*@)?([\w.-]+)(?::\d+)?[:/]+(.+?)(?:\.git)?/*", url)
    return f"{found[1].lower()}/{found[2].strip('/')}" if found else ""


def remote_urls(cwd: Path | None, name: str, *, push: bool) -> list[str]:
    root = repository_root(cwd) if cwd is not None else None
    config = _config(root) if root is not None else {}
    if not name:
        branch = _head(root) if root is not None else ""
        name = config.get(f"branch.{branch}.pushremote", "") if push else ""
        name = name or config.get(f"branch.{branch}.remote", "") or "origin"
    url = (config.get(f"remote.{name}.pushurl") if push else None) or config.get(f"remote.{name}.url")
    if not url:
        return []
    return [_rewritten(url, config, push=push)]


def _rewritten(url: str, config: dict[str, str], *, push: bool) -> str:
    """`url.<base>.insteadOf`, longest prefix first."""
    kinds = (".pushinsteadof", ".insteadof") if push else (".insteadof",)
    for kind in kinds:
        found = [
            (value, key[4 : -len(kind)])
            for key, value in config.items()
            if key.startswith("url.") and key.endswith(kind)
        ]
        for prefix, base in sorted(found, key=lambda pair: -len(pair[0])):
            if url.startswith(prefix):
                return base + url.removeprefix(prefix)
    return url


def _git_dir(root: Path) -> Path:
    """The directory that holds the configuration: a worktree's `.git` is a file that names it."""
    here = root / ".git"
    if here.is_file():
        named = here.read_text(errors="replace").removeprefix("gitdir:").strip()
        own = (root / named).resolve()
        common = own / "commondir"
        return (own / common.read_text().strip()).resolve() if common.is_file() else own
    return here


def _head(root: Path | None) -> str:
    if root is None:
        return ""
    here = root / ".git"
    try:
        own = (root / here.read_text().removeprefix("gitdir:").strip()).resolve() if here.is_file() else here
        text = (own / "HEAD").read_text(errors="replace").strip()
    except OSError:
        return ""
    return text.removeprefix("ref: refs/heads/") if text.startswith("ref: refs/heads/") else ""


def _config(root: Path) -> dict[str, str]:
    try:
        path = _git_dir(root) / "config"
        state = path.stat()
    except OSError:
        return {}
    return _parsed(str(path), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _parsed(path: str, changed: int, size: int) -> dict[str, str]:
    """`section.sub.key` → its last value. `changed` and `size` tell one state of the file from another."""
    found: dict[str, str] = {}
    section = ""
    try:
        lines = Path(path).read_text(errors="replace")[: 1 << 20].splitlines()
    except OSError:
        return {}
    for line in lines:
        line = line.strip()
        head = re.match(r'\[([\w.-]+)(?:\s+"((?:[^"\\]|\\.)*)")?\]', line)
        if head:
            section = head[1].lower() + (f".{head[2]}" if head[2] is not None else "")
            line = line[head.end() :].strip()
        pair = re.match(r"([A-Za-z][\w-]*)\s*(?:=\s*(.*))?$", line)
        if pair and section:
            found[f"{section}.{pair[1].lower()}"] = (pair[2] or "true").strip().strip('"')
    return found


# Branches


def _pushed(scope: Scope, split: Split, refspecs: list[Word], effects: Effects) -> Iterable[str]:
    if split.names & {"all", "mirror", "tags", "branches"}:
        effects.doubts.append("This pushes every branch or tag there is.")
    if not refspecs:
        root = repository_root(scope.cwd) if scope.cwd is not None else None
        yield from filter(None, [_head(root)])
    for word in refspecs:
        if not word.known:
            effects.doubts.append("Which branch this pushes isn't known before it runs.")
            continue
        source, colon, target = word.text.removeprefix("+").partition(":")
        if word.text.startswith("+"):
            effects.flags.add("force")
        if colon and not source:
            effects.flags.add("delete")
        name = (target if colon else source).removeprefix("refs/heads/").removeprefix("refs/tags/")
        root = repository_root(scope.cwd) if scope.cwd is not None else None
        yield (_head(root) or name) if name in ("HEAD", "@") else name


# Which of the everyday sub-commands aren't, by their arguments


def _branch(split: Split, operands: list[Word], effects: Effects) -> None:
    if split.names & {"D", "delete", "force", "M", "C", "d"}:
        effects.everyday = not split.names & {"D", "force"}


def _checkout(split: Split, operands: list[Word], effects: Effects) -> None:
    if split.names & {"force", "discard-changes"} or any(word.text in (".", ":/") for word in operands):
        effects.everyday = False


def _config_command(split: Split, operands: list[Word], effects: Effects) -> None:
    reads = split.names & {"get", "list", "get-all", "get-regexp", "l", "get-urlmatch", "show-origin"}
    key = operands[0].text if operands else ""
    writes = len(operands) > 1 and not reads and key not in ("get", "list")
    if writes and not re.fullmatch(
        r"user\.(name|email)|pull\.rebase|init\.defaultBranch|core\.autocrlf", key
    ):
        effects.everyday = False
    if (
        split.names & {"global", "system", "file", "edit", "e"}
        and not reads
        and (writes or "edit" in split.names)
    ):
        effects.everyday = False


def _stash(split: Split, operands: list[Word], effects: Effects) -> None:
    if operands and operands[0].text in ("drop", "clear"):
        effects.everyday = False


def _tag(split: Split, operands: list[Word], effects: Effects) -> None:
    if split.names & {"delete", "force"}:
        effects.everyday = False


def _reset(split: Split, operands: list[Word], effects: Effects) -> None:
    if split.names & {"hard", "merge", "keep"}:
        effects.everyday = False


def _restore(split: Split, operands: list[Word], effects: Effects) -> None:
    effects.everyday = "staged" in split.names and "worktree" not in split.names


def _commit(split: Split, operands: list[Word], effects: Effects) -> None:
    message = split.value("file")
    if message is not None and message.text != "-":
        effects.read(message)


def _diff(split: Split, operands: list[Word], effects: Effects) -> None:
    if "no-index" in split.names:
        effects.read(*operands)


def _show(split: Split, operands: list[Word], effects: Effects) -> None:
    """`REVISION:PATH` reads a file as it was."""
    for word in operands:
        _, colon, path = word.text.partition(":")
        if colon and path and word.known and not word.text.startswith("-"):
            effects.read(Word(path))


def _added(split: Split, operands: list[Word], effects: Effects) -> None:
    """What is added is read into the repository."""
    effects.read(*(word for word in operands if word.text not in (".", ":/", "-A")))


def _submodule(split: Split, operands: list[Word], effects: Effects) -> None:
    if operands and operands[0].text not in ("status", "summary", "update", "init", "sync"):
        effects.everyday = False


def _worktree(split: Split, operands: list[Word], effects: Effects) -> None:
    if operands and operands[0].text == "add":
        effects.write(*operands[1:2], recursive=True)
    elif operands and operands[0].text not in ("list", "prune"):
        effects.everyday = False


def _bisect(split: Split, operands: list[Word], effects: Effects) -> None:
    if operands and operands[0].text in ("run", "visualize", "view"):
        effects.doubts.append("git bisect run runs a command for each commit.")


def _file_reads(split: Split, operands: list[Word], effects: Effects) -> None:
    effects.read(*(word for word in operands if word.known and ":" not in word.text and "/" in word.text))


def _reflog(split: Split, operands: list[Word], effects: Effects) -> None:
    if operands and operands[0].text in ("expire", "delete"):
        effects.everyday = False


def _rm(split: Split, operands: list[Word], effects: Effects) -> None:
    if "cached" not in split.names:
        effects.delete(*operands, recursive="recursive" in split.names)
        effects.everyday = "recursive" not in split.names


_CHECKS = {
    "branch": _branch, "checkout": _checkout, "switch": _checkout, "config": _config_command,
    "stash": _stash, "tag": _tag, "reset": _reset, "restore": _restore, "commit": _commit, "diff": _diff,
    "show": _show, "cat-file": _show, "add": _added, "submodule": _submodule, "worktree": _worktree,
    "bisect": _bisect, "blame": _added, "hash-object": _added, "reflog": _reflog, "rm": _rm,
    "grep": _file_reads,
}  # fmt: skip


# GitHub's command line


_GH_READING = {"view", "list", "status", "diff", "checks", "search", "watch", "download", "checkout"}


def github_effects(
    simple: Simple, subs: tuple[str, ...], split: Split, operands: list[Word], effects: Effects
) -> None:
    named = split.value("repo")
    where = named.text if named is not None and named.known else ""
    if named is not None and not named.known:
        effects.doubts.append("Which repository this speaks to isn't known before it runs.")
    parts = where.removeprefix("https://").strip("/").split("/")
    host = parts[0] if len(parts) == 3 else "github.com"
    if where:
        effects.repository = f"{host}/{'/'.join(parts[-2:])}".removesuffix(".git")
    else:
        urls = remote_urls(simple.scope.cwd, "", push=False)
        effects.repository = repository_of(urls[0]) if urls else ""
    if subs[:1] == ("auth",) or not subs:
        return
    method = "GET" if subs[-1] in _GH_READING or subs[0] == "search" else "POST"
    path = ""
    if subs[0] == "api":
        told = split.value("method")
        fields = split.names & {"field", "raw-field", "input"}
        method = told.text.upper() if told is not None else "POST" if fields else "GET"
        path = operands[0].text if operands else ""
        found = re.match(r"/?repos/([^/]+/[^/?]+)", path)
        effects.repository = f"{host}/{found[1]}" if found else ""
        host = f"api.{host}"
    head = split.value("head") or split.value("base")
    if head is not None and head.known and subs[-1] in ("create", "merge", "edit"):
        effects.branches = (head.text,)
    effects.nets.append(net(f"https://{host}/{path.lstrip('/')}", method))


__all__ = ["git_effects", "github_effects", "remote_urls", "repository_of"]
