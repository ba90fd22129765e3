"""Says which repositories and branches of a code host may be written.

    - name: our-repos
      use: github
      with: {repositories: ["acme/*"], branches: {deny: [main, "release/*"]}}

It sees `git push`, `gh` commands and API requests that write, and GitHub's MCP tools. A repository on the
list may be written by pushing branches; what else writes there asks. Another repository is denied; one that
can't be told asks. Forced pushes, deleted branches and pushed tags are denied unless `force`, `tags` say
otherwise.
"""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from omnigent.actions import Action, Exec, Mcp, Net
from omnigent.policies.builtins._base import Builtin, Params, command_of, flag, one, writes_api
from omnigent.policies.contract import Facts, Opinion

Answer = Literal["allow", "ask", "deny"]

_READS = frozenset(
    {
        "view",
        "list",
        "status",
        "diff",
        "checks",
        "checkout",
        "search",
        "clone",
        "download",
        "watch",
        "browse",
        "verify",
    }
)
_MCP_READS = ("get_", "list_", "search_", "download_")
_API = re.compile(r"/repos/(?P<owner>[^/?]+)/(?P<name>[^/?]+)")
_PACK = re.compile(r"/(?P<owner>[^/]+)/(?P<name>[^/]+?)(?:\.git)?/git-receive-pack$")
_FORCED = ("f", "force", "force-with-lease", "mirror", "prune", "d", "delete")


class Branches(Params):
    allow: tuple[str, ...] = ()
    """Empty: every branch that `deny` doesn't name."""
    deny: tuple[str, ...] = ()


class GithubParams(Params):
    repositories: tuple[str, ...] = Field(min_length=1)
    """`owner/name`, `owner/*`, or with the host before: `github.com/owner/name`."""
    host: str = "github.com"
    branches: Branches = Branches()
    force: Answer = "deny"
    tags: Answer = "deny"
    others: Answer = "deny"
    """What may be done to repositories that aren't on the list."""
    writes: Answer = "ask"
    """What `gh`, the API and MCP tools do to a repository on the list."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write to a repository. `repository` is `host/owner/name`, "" when it can't be told."""

    repository: str
    what: str
    push: bool = False
    forced: bool = False
    tags: bool = False
    branches: tuple[str, ...] = ()


class Github(Builtin[GithubParams]):
    NAME: ClassVar[str] = "github"
    PARAMS: ClassVar[type[Params]] = GithubParams
    TYPES: ClassVar[frozenset[str] | None] = frozenset({"exec", "net", "mcp"})

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        command = command_of(facts.call, facts.index) if isinstance(action, Net) else None
        if command is not None and command.program in ("git", "gh"):
            # The command says more of the repository than its bare request does.
            return None
        write = self._write(action)
        if write is None:
            return None
        if not write.repository:
            return one(
                "ask", f"It can't be told which repository {write.what} writes to.", "repository unknown"
            )
        if not self._ours(write.repository):
            reason = (
                f"{write.what} would write to {write.repository}, which isn't one of the listed repositories."
            )
            return _say(self.params.others, reason, f"repository={write.repository}")
        return self._own(write)

    def _own(self, write: Write) -> Opinion | None:
        params, where = self.params, f"repository={write.repository} branches={','.join(write.branches)}"
        found = [
            _say(params.force, "It rewrites or deletes what is on the remote.", where)
            if write.forced
            else None,
            _say(params.tags, "It pushes or deletes tags.", where) if write.tags else None,
            self._branch(write, where) if write.push else None,
            None if write.push else _say(params.writes, f"{write.what} writes to {write.repository}.", where),
        ]
        opinions = [each for each in found if each]
        return next((each for each in opinions if each.decision == "deny"), opinions[0] if opinions else None)

    def _branch(self, write: Write, where: str) -> Opinion | None:
        limits = self.params.branches
        if not (limits.allow or limits.deny) or write.tags:
            return None
        if not write.branches:
            return one("ask", f"It can't be told which branch {write.what} writes to.", where)
        for branch in (each.removeprefix("refs/heads/") for each in write.branches):
            if _any(limits.deny, branch) or (limits.allow and not _any(limits.allow, branch)):
                return one("deny", f"The branch {branch} of {write.repository} isn't to be pushed to.", where)
        return None

    def _ours(self, repository: str) -> bool:
        return any(
            fnmatchcase(
                repository.lower(), (each if each.count("/") > 1 else f"{self.params.host}/{each}").lower()
            )
            for each in self.params.repositories
        )

    def _write(self, action: Action) -> Write | None:
        match action:
            case Exec(program="git") if action.words[:1] == ("push",):
                return _push(action)
            case Exec(program="gh"):
                return _gh(action)
            case Net() if self._is_host(action.host):
                return self._request(action)
            case Mcp():
                return self._mcp(action)
            case _:
                return None

    def _is_host(self, host: str) -> bool:
        return host == self.params.host or host == f"api.{self.params.host}"

    def _request(self, request: Net) -> Write | None:
        # A bare address (method "") goes with a command, and that is judged by itself.
        if request.method.upper() in ("GET", "HEAD", "OPTIONS", ""):
            return None
        found = _PACK.match(request.path) or _API.match(request.path)
        repository = f"{self.params.host}/{found['owner']}/{found['name']}" if found else ""
        return Write(repository, f"A request to {request.host}")

    def _mcp(self, call: Mcp) -> Write | None:
        if "github" not in call.server.lower() or call.tool.startswith(_MCP_READS):
            return None
        given = _arguments(call)
        owner, name = given.get("owner"), given.get("repo") or given.get("repository")
        branch = given.get("branch")
        return Write(
            f"{self.params.host}/{owner}/{name}" if owner and name else "",
            f"The tool {call.tool}",
            push=call.tool in ("push_files", "create_or_update_file", "delete_file")
            and isinstance(branch, str),
            branches=(branch,) if isinstance(branch, str) else (),
        )


def _push(action: Exec) -> Write:
    refs = action.words[1:]
    forced = flag(action, *_FORCED) or any(ref.startswith(("+", ":")) for ref in refs)
    tags = flag(action, "tags", "follow-tags") or any(
        "refs/tags/" in ref for ref in (*refs, *action.branches)
    )
    # After the word `tag`, or by a name that looks like a version.
    named = "tag" in refs or any(re.fullmatch(r"v?\d+(\.\d+)+\S*", each) for each in action.branches)
    return Write(action.repository, "git push", True, forced, tags or named, action.branches)


def _gh(action: Exec) -> Write | None:
    words = action.words
    if words[:1] == ("api",):
        return Write(action.repository, "gh api") if writes_api(action) else None
    if (
        len(words) < 2
        or words[1] in _READS
        or words[0] in ("auth", "config", "search", "status", "browse", "alias")
    ):
        return None
    return Write(action.repository, f"gh {words[0]} {words[1]}")


def _arguments(call: Mcp) -> dict[str, Any]:
    try:
        given = json.loads(call.arguments or "{}")
    except ValueError:
        return {}
    return cast(dict[str, Any], given) if isinstance(given, dict) else {}


def _any(patterns: tuple[str, ...], branch: str) -> bool:
    return any(fnmatchcase(branch, pattern) for pattern in patterns)


def _say(answer: Answer, reason: str, facts: str) -> Opinion | None:
    return None if answer == "allow" else one(answer, reason, facts)
