"""The built-in policies, one table each, on actions as the adapters make them."""

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Message, Model, Net, Spawn, net
from omnigent.errors import PolicyInvalid
from omnigent.events import (
    Body,
    Draft,
    Event,
    MessageSubmitted,
    SessionForked,
    TextPart,
    ToolCompleted,
    ToolRequested,
    UsageReserved,
)
from omnigent.log.seal import Numbers, seal
from omnigent.policies.builtins import BUILTINS, DEFAULTS
from omnigent.policies.contract import Call, Cap, Opinion, Policy, Setting, Spend
from omnigent.policies.language import load, parse

WORKSPACE = "/work/project"
HOME = str(Path.home())
EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
DOCS = Path(__file__).parents[2] / "docs"
NANO = 1_000_000_000


@dataclass
class Seen:
    """What a policy is shown."""

    setting: Setting
    call: Call
    index: int = 0
    memory: Any = None
    tree: dict[str, Any] = field(default_factory=dict[str, Any])


def setting(**changes: Any) -> Setting:
    values: dict[str, Any] = {"session_id": "s1", "at": 1_000_000, "session": {"workspace": WORKSPACE}}
    return Setting(**values | changes)


def ask(policy: Policy, *actions: Action, memory: Any = None, **changes: Any) -> Opinion | None:
    """What the policy says to the last action of a call."""
    tree, pos = changes.pop("tree", {}), changes.pop("pos", None)
    remembered = policy.empty() if memory is None else memory
    call = Call("tc_1", actions, pos=pos)
    seen = Seen(setting(**changes), call, len(actions) - 1, remembered, tree)
    return policy.decide(actions[-1], seen)


def said(policy: Policy, *actions: Action, **changes: Any) -> str:
    opinion = ask(policy, *actions, **changes)
    if opinion is None:
        return "-"
    assert opinion.decision == "allow" or opinion.reason.rstrip().endswith("."), opinion
    return opinion.decision


def run(text: str, **changes: Any) -> Exec:
    """A simple command, its words and flags told apart by their dashes alone."""
    argv = tuple(shlex.split(text))
    long = {word[2:] for word in argv[1:] if word.startswith("--") and word != "--"}
    short = {letter for word in argv[1:] if re.fullmatch(r"-[A-Za-z]+", word) for letter in word[1:]}
    words = tuple(word for word in argv[1:] if not word.startswith("-"))
    values = {
        "command": text,
        "argv": argv,
        "program": argv[0].rpartition("/")[2],
        "words": words,
        "flags": tuple(sorted(long | short)),
        "cwd": WORKSPACE,
    }
    return Exec.model_validate(values | changes)


def _file[A: FileRead | FileWrite](kind: type[A], path: str, changes: dict[str, Any]) -> A:
    named = path.replace("~", HOME, 1) if path.startswith("~") else path
    real = changes.pop("real_path", named if named.startswith("/") else f"{WORKSPACE}/{named}".rstrip("/."))
    inside = real == WORKSPACE or real.startswith(f"{WORKSPACE}/")
    return kind.model_validate({"path": path, "real_path": real, "in_workspace": inside} | changes)


def read(path: str, **changes: Any) -> FileRead:
    return _file(FileRead, path, changes)


def write(path: str, **changes: Any) -> FileWrite:
    return _file(FileWrite, path, changes)


def delete(path: str, **changes: Any) -> FileWrite:
    return write(path, change="delete", recursive=True, **changes)


def model(name: str = "big", **changes: Any) -> Model:
    return Model.model_validate({"wire": "anthropic-messages", "provider": "lab", "model": name} | changes)


class Story:
    """Events as a log would hold them, shown to a policy one by one."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.memory = policy.empty()
        self._numbers = {"s1": Numbers("s1", "s1")}
        self._pos = 0
        self._ids = itertools.count()

    def tell(self, body: Body, item_id: str | None = None, *, at: int = 0, session: str = "s1") -> Event:
        numbers = self._numbers.setdefault(session, Numbers(session, "s1"))
        numbers.tree_pos, self._pos = self._pos, self._pos + 1
        [event] = seal(
            [Draft(body, item_id=item_id)],
            numbers,
            now=at,
            new_id=lambda prefix: f"{prefix}_{next(self._ids)}",
            producer="test",
            first=numbers.seq + 1,
            epoch=None,
        )
        self.memory = self.policy.observe(self.memory, event, {})
        return event

    def request(self, *actions: Action, item: str = "", at: int = 0, session: str = "s1") -> Event:
        item = item or f"tc_{next(self._ids)}"
        body = ToolRequested(
            tool="shell", title="", actions=actions, parsed="full", raw="{}", native_id="call_1"
        )
        return self.tell(body, item, at=at, session=session)

    def said(self, *actions: Action, **changes: Any) -> str:
        return said(self.policy, *actions, memory=self.memory, **changes)


def built(name: str, **params: Any) -> Policy:
    return BUILTINS[name](params)


# ── All of them ─────────────────────────────────────────────────────────────────────────────────────────


def doc_of(name: str) -> str:
    return import_module(f"omnigent.policies.builtins.{name}").__doc__ or ""


def example(text: str) -> str:
    """The rule that a built-in's documentation shows."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.lstrip().startswith("- name:"))
    return "\n".join(["policies:", *itertools.takewhile(str.strip, lines[start:])])


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_each_has_an_example_that_the_language_takes(name: str) -> None:
    [entry] = parse(example(doc_of(name)), name, "session")
    assert yaml.safe_load(entry.content)["use"] == name
    assert load(entry).id == f"session.{entry.name}"


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_an_unknown_parameter_is_an_error_that_names_those_there_are(name: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        BUILTINS[name]({"no_such": 1})
    assert "no_such" in caught.value.detail
    assert caught.value.hint.startswith(f"{name} takes: ")


@pytest.mark.parametrize(
    ("name", "params", "wrong"),
    [
        ("spend", {}, "usd"),
        ("spend", {"usd": 1, "tokens": 5}, "exactly one"),
        ("spend", {"usd": 0}, "usd"),
        ("spend", {"usd": float("inf")}, "usd"),
        ("spend", {"usd": 1, "scope": "tree"}, "scope"),
        ("spend", {"usd": 1, "then": {"downgrade": ""}}, "then"),
        ("models", {}, "allow"),
        ("hours", {}, "zone"),
        ("hours", {"zone": "Europe/Nowhere"}, "time zone"),
        ("hours", {"zone": "UTC", "days": []}, "days"),
        ("hours", {"zone": "UTC", "start": "25:00"}, "start"),
        ("rate", {"calls": 0}, "calls"),
        ("rate", {"calls": 1, "per": "soon"}, "duration"),
        ("loop", {"times": 1}, "times"),
        ("github", {"repositories": []}, "repositories"),
        ("github", {"repositories": ["a/b"], "force": "yes"}, "force"),
        ("reach", {"hosts": {"denied": ["x"]}}, "hosts.denied"),
        ("approve", {"exec": "everyday"}, "exec"),
        ("blast_radius", {"publish": True}, "publish"),
        ("sequence", {"first": {"exec": "a"}, "next": {"exek": "b"}}, "next.exek"),
        ("sequence", {"first": {"exec": "a"}, "next": {"exec": "b"}, "within": "soon"}, "first.within"),
    ],
)
def test_wrong_parameters_are_named(name: str, params: dict[str, Any], wrong: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        BUILTINS[name](params)
    assert wrong in caught.value.detail


def test_the_defaults_parse_and_are_shown_with_a_word_each() -> None:
    names = [entry.name for entry in parse(DEFAULTS, "the defaults", "builtin")]
    assert {"approve", "reach", "blast_radius", "loop", "spawn_bounds", "secrets"} <= set(names)
    assert DEFAULTS.count("  # ") == len(names)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_example_file_parses_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ") and not text.splitlines()[1].startswith("#")
    for entry in parse(text, path.name, "project"):
        load(entry)


def test_the_documentation_names_each_and_its_rules_parse() -> None:
    pages = [path.read_text() for path in DOCS.glob("policies*.md")]
    text = next(page for page in pages if "Built-in policies\n" in page)
    for name in BUILTINS:
        assert f"`{name}`" in text, name
    for block in re.findall(r"```yaml\n(- .*?)```", text, re.DOTALL):
        parse("policies:\n" + block, "the documentation", "session")


def test_the_examples_of_the_mission_have_at_most_six_lines_a_rule() -> None:
    for name in ("three-dollars", "push-after-install"):
        lines = (EXAMPLES / f"{name}.yaml").read_text().splitlines()
        assert len(lines) - lines.index("policies:") - 1 <= 6


# ── approve ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("params", "action", "answer"),
    [
        ({}, run("frobnicate"), "ask"),
        ({}, run("ls", everyday=True), "-"),
        ({"exec": "all"}, run("ls", everyday=True), "ask"),
        ({"exec": "none"}, run("frobnicate"), "-"),
        ({"exec": "unusual", "then": "deny"}, run("frobnicate"), "deny"),
        ({}, write("src/a.py"), "-"),
        ({}, write("/tmp/a"), "ask"),
        ({"paths": ["/tmp/**"]}, write("/tmp/a"), "-"),
        ({"paths": ["/tmp/**"]}, write("/tmp/a", real_path="/etc/a"), "ask"),
        ({"paths": ["/tmp/*"]}, write("/tmp/a", recursive=True), "ask"),
        ({"write": "all"}, write("src/a.py"), "ask"),
        ({}, read("/usr/include/stdio.h"), "-"),
        ({"read": "outside"}, read("/usr/include/stdio.h"), "ask"),
        ({}, net("https://example.org/x"), "ask"),
        ({}, net("http://localhost:3000/health"), "-"),
        ({}, net("http://127.0.0.1:3000/"), "-"),
        ({}, net("http://[::1]:3000/"), "-"),
        ({}, net("http://127.0.0.1.example.org/"), "ask"),
        ({}, net("https://pypi.org/simple/"), "-"),
        ({}, net("https://pypi.org/legacy/", "POST"), "ask"),
        ({}, Net(method="", url="git@github.com:a/b", host="github.com"), "-"),
        ({}, Net(method="", url="git@evil.example:a/b", host="evil.example"), "ask"),
        ({}, net("https://github.com/a/b"), "ask"),
        ({}, Net(url="", host=""), "ask"),
        ({"hosts": ["*.acme.example"]}, net("https://docs.acme.example/x", "POST"), "-"),
        ({"hosts": ["*.acme.example"]}, net("https://acme.example/x"), "ask"),
        ({"hosts": ["*.acme.example"]}, net("https://xacme.example/x"), "ask"),
        ({"net": "none"}, net("https://example.org/x"), "-"),
        ({}, Mcp(server="docs", tool="search"), "ask"),
        ({"tools": ["docs/*"]}, Mcp(server="docs", tool="search"), "-"),
        ({"mcp": "none"}, Mcp(server="docs", tool="search"), "-"),
        ({}, Spawn(description="look"), "-"),
        ({"spawn": "all"}, Spawn(description="look"), "ask"),
        ({}, model(), "-"),
        ({}, model(hosted=("web_search",)), "ask"),
        ({"hosted": "none"}, model(hosted=("web_search",)), "-"),
        ({"hosted": "strip"}, model(hosted=("web_search",)), "allow"),
        ({"hosted": "strip"}, model(), "-"),
        ({}, Message(description="hello"), "-"),
    ],
)
def test_approve(params: dict[str, Any], action: Action, answer: str) -> None:
    assert said(built("approve", **params), action) == answer


# ── reach ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        (read("README.md"), "-"),
        (read(".env"), "ask"),
        (read("apps/web/.env.production"), "ask"),
        (read(".env.example"), "-"),
        (read(".env.production.sample"), "-"),
        (read("environment.py"), "-"),
        (read("notes.txt", real_path=f"{WORKSPACE}/.env"), "ask"),
        (read(".env", real_path="/elsewhere/plain"), "ask"),
        (read(".env.example", real_path=f"{WORKSPACE}/.env"), "ask"),
        (read(".e*", glob=True), "ask"),
        (read(".en?", glob=True), "ask"),
        (read("*", glob=True), "-"),
        (read("certs/*.pem", glob=True), "ask"),
        (read("certs/*.p[e]m", glob=True), "ask"),
        (read("*rsa*", glob=True), "ask"),
        (read("**/*env", glob=True), "ask"),
        (read("**/*.env", glob=True), "ask"),
        (read("?env", glob=True), "ask"),
        (read("**/*.py", glob=True), "-"),
        (read("src/*.py", glob=True), "-"),
        (read("**/*.json", glob=True), "-"),
        (read("src/**/*.py", glob=True), "-"),
        (read("apps/*/.env", glob=True), "ask"),
        (read("."), "-"),
        (read(".", recursive=True), "-"),
        (read("~", recursive=True), "ask"),
        (read("/", recursive=True), "ask"),
        (read("/usr/include", recursive=True), "-"),
        (read("~/.ssh/config"), "ask"),
        (read("~/.ssh", recursive=True), "ask"),
        (read("~/.ssh"), "ask"),
        (read("~/.ssh/id_ed25519.pub"), "-"),
        (read("~/.aws/credentials"), "ask"),
        (read("~/.npmrc"), "ask"),
        (read(".npmrc"), "-"),
        (read("~/.kube/config"), "ask"),
        (read("~/.config/gh/hosts.yml"), "ask"),
        (read("~/.docker/config.json"), "ask"),
        (read("~/.bash_history"), "ask"),
        (read("~/.mozilla/firefox/x/cookies.sqlite"), "ask"),
        (read("certs/server.key"), "ask"),
        (read("certs/server.pem"), "ask"),
        (read("/etc/ssl/certs/ca.pem"), "-"),
        (read("id_rsa"), "ask"),
        (read("/etc/shadow"), "ask"),
        (read("/etc/passwd"), "-"),
        (read("/proc/self/environ"), "ask"),
        (write("src/a.py"), "-"),
        (write(".env"), "ask"),
        (write(".git/hooks/pre-commit"), "ask"),
        (write(".git/config"), "ask"),
        (write(".git/index"), "-"),
        (write("sub/.git/hooks/post-checkout"), "ask"),
        (write(".envrc"), "ask"),
        (write(".vscode/tasks.json"), "ask"),
        (write(".claude/settings.json"), "ask"),
        (write(".codex/config.toml"), "ask"),
        (write(".pi/settings.json"), "ask"),
        (write(".omnigent/policies.yaml"), "ask"),
        (write(".github/workflows/ci.yml"), "ask"),
        (write(".github/CODEOWNERS"), "-"),
        (write(".gitlab-ci.yml"), "ask"),
        (write("~/.bashrc"), "ask"),
        (write("~/.config/systemd/user/x.service"), "ask"),
        (read(".git/config"), "-"),
        (read(".github/workflows/ci.yml"), "-"),
        (delete("node_modules"), "-"),
        (net("https://example.org/x"), "-"),
        (net("http://169.254.169.254/latest/meta-data/"), "deny"),
    ],
)
def test_reach_by_default(action: Action, answer: str) -> None:
    assert said(built("reach"), action) == answer


@pytest.mark.parametrize(
    ("params", "action", "answer"),
    [
        ({"sensitive": "deny"}, read(".env"), "deny"),
        ({"sensitive": "allow"}, read(".env"), "-"),
        ({"read": {"allow": ["**/.env.test"]}}, read(".env.test"), "-"),
        ({"read": {"allow": ["**/.env.test"]}}, write(".env.test"), "ask"),
        ({"paths": {"allow": ["**/.env.test"]}}, write(".env.test"), "-"),
        ({"read": {"allow": ["**/.env.test"]}}, read(".env.test", real_path=f"{WORKSPACE}/.env"), "ask"),
        ({"runs_later": "deny"}, write(".git/hooks/pre-push"), "deny"),
        ({"runs_later": "allow"}, write(".git/hooks/pre-push"), "-"),
        ({"write": {"allow": ["src/**"], "otherwise": "ask"}}, write("src/deep/a.py"), "-"),
        ({"write": {"allow": ["src/**"], "otherwise": "ask"}}, write("setup.py"), "ask"),
        ({"write": {"allow": ["src/**"], "otherwise": "deny"}}, write("/work/project2/src/a.py"), "deny"),
        ({"write": {"allow": ["src/**"], "otherwise": "deny"}}, delete("src"), "-"),
        ({"write": {"allow": ["src/**"], "otherwise": "deny"}}, delete("."), "deny"),
        ({"read": {"deny": ["docs/private/**"]}}, read("docs/private/a/b.md"), "deny"),
        ({"read": {"deny": ["docs/private/**"]}}, read("docs", recursive=True), "deny"),
        ({"read": {"deny": ["docs/private/**"]}}, read("docs/*/a.md", glob=True), "deny"),
        ({"read": {"deny": ["docs/private/**"], "ask": ["docs/**"]}}, read("docs/private/x"), "deny"),
        ({"read": {"ask": ["docs/**"]}}, read("docs/x"), "ask"),
        ({"read": {"ask": ["docs/**"]}}, write("docs/x"), "-"),
        ({"hosts": {"deny": ["*.internal.example"]}}, net("https://a.internal.example"), "deny"),
        ({"hosts": {"ask": ["example.org"]}}, net("https://EXAMPLE.org/"), "ask"),
        ({"hosts": {"allow": ["example.org"], "otherwise": "deny"}}, net("https://example.org/"), "-"),
        ({"hosts": {"allow": ["example.org"], "otherwise": "deny"}}, net("https://example.com/"), "deny"),
        ({"hosts": {"allow": ["example.org"], "otherwise": "deny"}}, Net(url="$X", host=""), "deny"),
    ],
)
def test_reach_with_lists(params: dict[str, Any], action: Action, answer: str) -> None:
    assert said(built("reach", **params), action) == answer


def test_a_work_tree_below_an_agents_directory_is_judged_by_what_lies_in_it() -> None:
    inside = f"{HOME}/.omnigent/worktrees/x"
    action = FileWrite(path="a.py", real_path=f"{inside}/a.py", in_workspace=True)
    hook = FileWrite(path="h", real_path=f"{inside}/.git/hooks/h", in_workspace=True)
    session = {"workspace": inside}
    assert said(built("reach"), action, session=session) == "-"
    assert said(built("reach"), hook, session=session) == "ask"
    scratch = FileWrite(
        path=f"{HOME}/.omnigent/run/s/a", real_path=f"{HOME}/.omnigent/run/s/a", in_workspace=False
    )
    assert said(built("reach"), scratch, own=(f"{HOME}/.omnigent/run/s",)) == "-"
    assert said(built("reach"), scratch) == "ask"


# ── blast_radius ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("git status", "-"),
        ("git commit -m x", "-"),
        ("git push", "ask"),
        ("git push --force origin main", "ask"),
        ("git push origin +main", "ask"),
        ("git push origin :main", "ask"),
        ("git reset --hard HEAD~1", "ask"),
        ("git reset HEAD a.py", "-"),
        ("git rebase main", "ask"),
        ("git rebase --abort", "-"),
        ("git filter-branch --all", "ask"),
        ("git commit --amend", "-"),
        ("git branch -D old", "ask"),
        ("git branch --delete --force old", "ask"),
        ("git branch -d old", "-"),
        ("git tag -d v1", "ask"),
        ("git tag v1", "-"),
        ("git clean -fd", "ask"),
        ("git clean -n", "-"),
        ("git checkout -f main", "ask"),
        ("git checkout -- a.py", "-"),
        ("git checkout -- src/", "ask"),
        ("git checkout HEAD -- '*.py'", "ask"),
        ("git checkout .", "ask"),
        ("git checkout main", "-"),
        ("git restore .", "ask"),
        ("git restore --staged .", "-"),
        ("git restore --staged a.py", "-"),
        ("git stash", "-"),
        ("git stash drop", "ask"),
        ("git stash clear", "ask"),
        ("git reflog expire --all", "ask"),
        ("npm publish", "ask"),
        ("npm test", "-"),
        ("twine upload dist/a.whl", "ask"),
        ("cargo publish", "ask"),
        ("cargo build", "-"),
        ("docker push acme/x", "ask"),
        ("docker ps", "-"),
        ("gh release create v1", "ask"),
        ("gh pr create", "ask"),
        ("gh pr view 1", "-"),
        ("gh api repos/a/b -f title=x", "ask"),
        ("gh api repos/a/b", "-"),
        ("mkfs.ext4 /dev/sdb1", "deny"),
        ("dd if=/dev/zero of=/dev/sda", "deny"),
        ("dd if=a of=b", "-"),
        ("shutdown now", "deny"),
        ("systemctl poweroff", "deny"),
        ("systemctl status nginx", "-"),
        ("systemctl restart nginx", "ask"),
        ("kill -9 -1", "deny"),
        ("kill 123", "-"),
        ("pkill node", "ask"),
        ("chmod -R 777 .", "ask"),
        ("chmod -R a+w .", "ask"),
        ("chmod -R 755 .", "-"),
        ("chmod +x a.sh", "-"),
        ("chown -R root .", "ask"),
        ("crontab -r", "ask"),
        ("crontab -l", "-"),
        ("apt-get install -y curl", "ask"),
        ("apt list", "-"),
        ("psql -c 'DROP TABLE users'", "ask"),
        ("psql -c 'select 1'", "-"),
        ("mysql -e 'delete from users;'", "ask"),
        ("mysql -e 'delete from users where id = 1'", "-"),
        ("dropdb app", "ask"),
        ("redis-cli FLUSHALL", "ask"),
        ("prisma migrate reset", "ask"),
        ("terraform destroy", "ask"),
        ("terraform plan", "-"),
        ("kubectl delete pod x", "ask"),
        ("kubectl get pods", "-"),
        ("python manage.py flush", "ask"),
        ("python manage.py test", "-"),
        ("php artisan migrate:fresh", "ask"),
        ("npm run deploy", "ask"),
        ("npm run build", "-"),
        ("make release", "ask"),
    ],
)
def test_blast_radius(text: str, answer: str) -> None:
    assert said(built("blast_radius"), run(text)) == answer


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        (delete("node_modules"), "-"),
        (delete("packages/web/dist"), "-"),
        (delete("src"), "ask"),
        (delete("src/*", glob=True), "ask"),
        (delete("."), "deny"),
        (delete("*", glob=True), "deny"),
        (delete("/"), "deny"),
        (delete("/work"), "deny"),
        (delete("~"), "deny"),
        (delete(".git"), "deny"),
        (delete("/other/build"), "ask"),
        (write("src/a.py", change="delete"), "-"),
        (write("/dev/sda"), "deny"),
        (run("mv src /dev/null"), "ask"),
        (run("mv src lib"), "-"),
        (run("sudo ls", program="ls", argv=("ls",)), "ask"),
        (run("sqlite3 app.db", stdin="drop table users;"), "ask"),
    ],
)
def test_blast_radius_of_deletes_and_the_rest(action: Action, answer: str) -> None:
    assert said(built("blast_radius"), action) == answer


@pytest.mark.parametrize(
    ("find", "answer"),
    [
        ("find . -delete", "deny"),
        ("find . -name x -delete", "ask"),
        ("find / -maxdepth 1 -delete", "deny"),
    ],
)
def test_find_deletes_what_it_finds_and_not_where_it_looks(find: str, answer: str) -> None:
    # find's own flags are words with one dash.
    words = [word for word in find.split() if not word.startswith("-")]
    flags = tuple(sorted(word[1:] for word in find.split() if word.startswith("-")))
    command = run(find, flags=flags)
    nested = run(find, program="rm", argv=("rm", "-rf", "{}"), words=("{}",), flags=("force", "recursive"))
    where = delete(words[1])
    assert said(built("blast_radius"), command, where) == answer
    assert said(built("blast_radius"), command, nested, where) == answer


@pytest.mark.parametrize(
    ("actions", "answer"),
    [
        ((run("rm -rf dist"), delete("dist")), "-"),
        (
            (run("rm -rf dist packages/a/node_modules"), delete("dist"), delete("packages/a/node_modules")),
            "-",
        ),
        ((run("rm -rf dist src"), delete("dist"), delete("src")), "ask"),
        ((run("rm -rf /tmp/dist"), delete("/tmp/dist")), "ask"),
        ((run("rm -rf dist"),), "ask"),
        ((run("rm -rf dist"), run("ls")), "ask"),
        ((run("rm -rf dist", doubt="x"), delete("dist")), "ask"),
        ((run("rm -rf $X", unknown=(2,)), delete("dist")), "ask"),
        ((run("sudo rm -rf dist", argv=("rm",), program="rm"), delete("dist")), "ask"),
        ((run("./rm -rf dist"), delete("dist")), "ask"),
    ],
)
def test_what_a_build_makes_anew_may_be_removed(actions: tuple[Action, ...], answer: str) -> None:
    policy = built("approve")
    seen = Seen(setting(), Call("tc_1", actions), 0, policy.empty())
    opinion = policy.decide(actions[0], seen)
    assert (opinion.decision if opinion else "-") == answer


def test_a_request_of_an_everyday_gh_command_passes_and_none_of_its_others() -> None:
    request = net("https://github.com/")
    assert said(built("approve"), run("gh pr list", everyday=True), request) == "-"
    assert said(built("approve"), run("gh api user"), request) == "ask"
    assert said(built("approve"), run("curl x", everyday=True), request) == "ask"


def test_a_push_is_judged_once_by_its_command_and_not_by_its_bare_request() -> None:
    policy = built("github", repositories=["acme/*"])
    assert (
        said(
            policy, run("gh pr create", repository="github.com/acme/app"), net("https://github.com/", "POST")
        )
        == "-"
    )
    assert said(policy, run("curl x"), net("https://github.com/", "POST")) == "ask"


def test_blast_radius_answers_by_group() -> None:
    policy = built("blast_radius", publish="deny", history="allow", catastrophe="ask", build_dirs=["gen"])
    assert said(policy, run("git push")) == "deny"
    assert said(policy, run("git reset --hard")) == "-"
    assert said(policy, delete(".")) == "ask"
    assert said(policy, delete("gen")) == "-"


def test_an_amend_asks_after_a_push_until_the_next_commit() -> None:
    story = Story(built("blast_radius"))
    amend, commit, push = run("git commit --amend"), run("git commit -m x"), run("git push")
    assert story.said(amend) == "-"
    assert story.said(push, amend) == "ask"
    story.request(push)
    assert story.said(amend) == "ask"
    assert story.said(commit, amend) == "-"
    story.request(commit, item="tc_a")
    story.tell(ToolCompleted(outcome="error", exit_code=1), "tc_a")
    assert story.said(amend) == "ask"
    story.request(amend, item="tc_b")
    story.tell(ToolCompleted(outcome="ok"), "tc_b")
    assert story.said(amend) == "ask"
    story.request(commit, item="tc_c")
    assert story.said(amend) == "ask"
    story.tell(ToolCompleted(outcome="ok"), "tc_c")
    assert story.said(amend) == "-"
    for call in range(200):
        story.request(commit, item=f"tc_{call}")
    assert len(story.memory["open"]) <= 50


# ── spend ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("params", "spent", "call", "answer"),
    [
        ({"usd": 3}, Spend(), {"estimate_nanousd": 3 * NANO}, "allow"),
        ({"usd": 3}, Spend(), {"estimate_nanousd": 3 * NANO + 1}, "pause"),
        ({"usd": 3}, Spend(nanousd=3 * NANO), {"estimate_nanousd": 0}, "pause"),
        ({"usd": 3, "then": "ask"}, Spend(nanousd=2 * NANO), {"estimate_nanousd": 2 * NANO}, "ask"),
        ({"usd": 3}, Spend(), {"estimate_nanousd": None}, "ask"),
        ({"usd": 3}, Spend(unknown=1), {"estimate_nanousd": 1}, "ask"),
        ({"usd": 3}, Spend(nanousd=4 * NANO, unknown=1), {"estimate_nanousd": 1}, "pause"),
        ({"tokens": 100}, Spend(tokens=50), {"input_tokens": 20, "max_output_tokens": 30}, "allow"),
        ({"tokens": 100}, Spend(tokens=51), {"input_tokens": 20, "max_output_tokens": 30}, "pause"),
        ({"tokens": 100}, Spend(tokens=1, unknown=3), {"input_tokens": 20}, "allow"),
    ],
)
def test_spend(params: dict[str, Any], spent: Spend, call: dict[str, Any], answer: str) -> None:
    assert said(built("spend", **params), model(**call), spend={"family": spent}) == answer


def test_spend_hands_on_its_cap_under_its_own_id() -> None:
    policy = built("spend", usd=1.5, scope="user_day")
    policy.id = "user.daily"
    opinion = ask(policy, model(estimate_nanousd=1), spend={"user_day": Spend()})
    assert opinion and opinion.caps == (Cap("user_day", "user.daily", nanousd=1_500_000_000),)


def test_spend_downgrades_past_the_limit_and_not_the_cheap_model_itself() -> None:
    policy = built("spend", usd=1, then={"downgrade": "small"})
    spent = {"family": Spend(nanousd=NANO)}
    opinion = ask(policy, model("big", estimate_nanousd=1), spend=spent)
    assert opinion and (opinion.decision, opinion.model) == ("allow", "small")
    assert ask(policy, model("small", estimate_nanousd=1), spend=spent) is None
    assert ask(policy, model("big", estimate_nanousd=1), spend={"family": Spend()}) is None


def test_spend_stops_a_tool_call_where_the_harness_counts() -> None:
    policy = built("spend", usd=1)
    assert said(policy, run("ls"), spend={"family": Spend(nanousd=NANO)}) == "pause"
    assert said(policy, run("ls"), spend={"family": Spend(nanousd=NANO - 1)}) == "-"
    assert said(policy, run("ls")) == "-"


# ── models, hours, spawn_bounds ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("params", "call", "answer"),
    [
        ({"allow": ["claude-*"]}, {"name": "claude-sonnet-5"}, "-"),
        ({"allow": ["claude-*"]}, {"name": "Claude-Sonnet-5"}, "-"),
        ({"allow": ["claude-*"]}, {"name": "gpt-5.5"}, "deny"),
        ({"allow": ["claude-*"], "deny": ["*-opus-*"]}, {"name": "claude-opus-5"}, "deny"),
        ({"deny": ["*-opus-*"]}, {"name": "gpt-5.5"}, "-"),
        ({"deny": ["*-opus-*"], "then": "ask"}, {"name": "claude-opus-5"}, "ask"),
        ({"providers": ["lab"]}, {"name": "gpt-5.5"}, "-"),
        ({"providers": ["other"]}, {"name": "gpt-5.5"}, "deny"),
    ],
)
def test_models(params: dict[str, Any], call: dict[str, Any], answer: str) -> None:
    assert said(built("models", **params), model(**call)) == answer


def test_models_downgrades_to_a_model_that_is_always_allowed() -> None:
    policy = built("models", allow=["claude-haiku-*"], then={"downgrade": "mini"})
    opinion = ask(policy, model("gpt-5.5"))
    assert opinion and (opinion.decision, opinion.model) == ("allow", "mini")
    assert ask(policy, model("mini")) is None


@pytest.mark.parametrize(
    ("changes", "now", "answer"),
    [
        ({}, "2026-03-02 08:00", "-"),
        ({}, "2026-03-02 07:59", "ask"),
        ({}, "2026-03-02 17:59", "-"),
        ({}, "2026-03-02 18:00", "ask"),
        ({}, "2026-03-07 12:00", "ask"),
        ({"then": "pause"}, "2026-03-07 12:00", "pause"),
        # The day the clocks change: seven o'clock UTC is nine in Berlin.
        ({}, "2026-03-30 08:30", "-"),
        ({"start": "22:00", "end": "06:00", "days": ["fri"]}, "2026-03-06 23:00", "-"),
        ({"start": "22:00", "end": "06:00", "days": ["fri"]}, "2026-03-07 05:00", "-"),
        ({"start": "22:00", "end": "06:00", "days": ["fri"]}, "2026-03-06 05:00", "ask"),
        ({"start": 600, "end": 1080}, "2026-03-02 09:59", "ask"),
        ({"start": 600, "end": 1080}, "2026-03-02 10:00", "-"),
    ],
)
def test_hours(changes: dict[str, Any], now: str, answer: str) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    policy = built("hours", zone="Europe/Berlin", **changes)
    assert said(policy, run("ls"), at=int(at.timestamp() * 1000)) == answer


def test_hours_lets_reading_and_speaking_pass_unless_told() -> None:
    night = int(datetime(2026, 3, 2, 3, tzinfo=ZoneInfo("UTC")).timestamp() * 1000)
    assert said(built("hours", zone="UTC"), read("a"), at=night) == "-"
    assert said(built("hours", zone="UTC", actions=["model"]), model(), at=night) == "ask"
    assert said(built("hours", zone="UTC", actions=["model"]), run("ls"), at=night) == "-"


@pytest.mark.parametrize(
    ("tree", "actions", "answer"),
    [
        ({}, 1, "-"),
        ({"depth": 1}, 1, "-"),
        ({"depth": 2}, 1, "deny"),
        ({"spawned": 9}, 1, "-"),
        ({"spawned": 10}, 1, "deny"),
        ({"spawned": 9}, 2, "deny"),
        ({"running": 2}, 1, "-"),
        ({"running": 3}, 1, "deny"),
        ({"running": 2}, 2, "deny"),
    ],
)
def test_spawn_bounds(tree: dict[str, Any], actions: int, answer: str) -> None:
    policy = built("spawn_bounds", depth=2, count=10, running=3, then="deny")
    assert said(policy, *[Spawn(description="x")] * actions, tree=tree) == answer


# ── rate and loop ───────────────────────────────────────────────────────────────────────────────────────


def test_rate_counts_calls_of_the_last_while() -> None:
    story = Story(built("rate", calls=3, per="1m", actions=["exec"]))
    for second in (0, 10, 20):
        assert story.said(run("ls"), at=second * 1000) == "-"
        story.request(run("ls"), run("ls"), at=second * 1000)
    story.request(read("a"), at=20_000)
    assert story.said(run("ls"), at=30_000) == "ask"
    assert story.said(read("a"), at=30_000) == "-"
    assert story.said(run("ls"), at=60_000) == "-"
    assert story.said(run("ls"), at=59_999) == "ask"


def test_rate_leaves_out_what_was_requested_later() -> None:
    story = Story(built("rate", calls=1, per="1m"))
    own = story.request(run("ls"), at=1000)
    story.request(run("ls"), at=1000)
    assert story.said(run("ls"), at=1000, pos=own.tree_pos) == "-"
    assert story.said(run("ls"), at=1000, pos=own.tree_pos + 1) == "ask"


def test_rate_counts_model_calls_and_forgets_old_ones() -> None:
    story = Story(built("rate", calls=2, per="1h", actions=["model"]))
    for call in range(200):
        story.tell(UsageReserved(call_id=f"c{call}", model="m", provider="p"), at=call)
    assert story.said(model(), at=300) == "ask"
    assert len(story.memory) < 100


def repeat(story: Story, times: int, *actions: Action, session: str = "s1") -> None:
    for _ in range(times):
        story.request(*actions, session=session)


def test_loop_asks_at_the_call_of_its_number() -> None:
    story = Story(built("loop", times=3))
    repeat(story, 1, run("npm test"))
    assert story.said(run("npm test")) == "-"
    repeat(story, 1, run("npm test"))
    assert story.said(run("npm test")) == "ask"
    assert story.said(run("npm run build")) == "-"
    assert story.said(Message(description="x")) == "-"


def test_loop_sees_calls_that_take_turns() -> None:
    story = Story(built("loop", times=3))
    for _ in range(2):
        repeat(story, 1, run("a"))
        repeat(story, 1, read("b"))
    assert story.said(run("a")) == "ask"


def test_a_new_write_and_a_message_begin_anew() -> None:
    story = Story(built("loop", times=3))
    for line in range(10):
        repeat(story, 1, write("a.py"), run(f"edit {line}"))
        assert story.said(run("npm test")) == "-"
        repeat(story, 1, run("npm test"))
    repeat(story, 2, run("x"))
    story.tell(MessageSubmitted(content=(TextPart(text="again"),)), "msg_1")
    assert story.said(run("x")) == "-"


def test_the_same_write_again_is_no_change() -> None:
    story = Story(built("loop", times=3))
    for _ in range(2):
        repeat(story, 1, write("a.py"))
        repeat(story, 1, run("npm test"))
    assert story.said(run("npm test")) == "ask"


def test_loop_looks_at_one_session_and_a_fork_takes_it_along() -> None:
    story = Story(built("loop", times=3))
    repeat(story, 2, run("x"))
    assert story.said(run("x"), session_id="s2") == "-"
    forked = SessionForked(
        parent_id="s1", at_seq=2, parent_hash="0" * 64, owner="o", title="", harness="h",
        model=None, provider=None, workspace="w", approvals="ask",
    )  # fmt: skip
    story.tell(forked, session="s2")
    assert story.said(run("x"), session_id="s2") == "ask"


def test_loop_forgets_beyond_its_window_and_keeps_few_sessions() -> None:
    story = Story(built("loop", times=3, window=4))
    repeat(story, 2, run("x"))
    for place in range(4):
        story.request(read(f"f{place}"))
    assert story.said(run("x")) == "-"
    for session in range(60):
        story.request(run("x"), session=f"c{session}")
    assert len(story.memory) <= 20 and all(len(each) <= 4 for each in story.memory.values())


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────

_LETTERS = "".join(chr(65 + place % 26) + str(place % 10) for place in range(40))
"""Of no use anywhere: what a made-up token is filled with."""


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + _LETTERS[:36],
        "glpat-" + _LETTERS[:20],
        "npm_" + _LETTERS[:36],
        "[redacted]",
        "[redacted: github token]",
    ],
)
@pytest.mark.parametrize("where", ["command", "stdin", "url", "arguments", "spawn"])
def test_secrets_are_found_wherever_they_would_leave(token: str, where: str) -> None:
    actions: dict[str, Action] = {
        "command": run("curl", command=f"curl -H 'Authorization: Bearer {token}' https://example.org"),
        "stdin": run("psql", stdin=f"select '{token}'"),
        "url": net(f"https://example.org/?key={token}"),
        "arguments": Mcp(server="s", tool="t", arguments=f'{{"key": "{token}"}}'),
        "spawn": Spawn(description=f"use {token}"),
    }
    policy = built("secrets")
    assert said(policy, actions[where]) == "ask"
    opinion = ask(policy, actions[where])
    assert opinion and _LETTERS[:20] not in opinion.reason + opinion.facts
    assert "token" in opinion.reason or "(known secret)" in opinion.reason


def test_secrets_lets_what_is_none_and_what_is_allowed_pass() -> None:
    token = "ghp_" + _LETTERS[:36]
    assert said(built("secrets"), run("git show 4f2b1c9e8d7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c")) == "-"
    assert said(built("secrets", allow=["github token"]), run(f"echo {token}")) == "-"
    assert said(built("secrets", then="deny"), run(f"echo {token}")) == "deny"


# ── github ──────────────────────────────────────────────────────────────────────────────────────────────


def push(text: str, branch: str | Sequence[str] = "topic", repository: str = "github.com/acme/app") -> Exec:
    branches = (branch,) if isinstance(branch, str) else tuple(branch)
    return run(text, repository=repository, branches=branches)


def tool(name: str, arguments: str) -> Mcp:
    return Mcp(server="github", tool=name, arguments=arguments)


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        (push("git push origin topic"), "-"),
        (push("git push", repository="github.com/ACME/app"), "-"),
        (push("git push", repository="github.com/other/app"), "deny"),
        (push("git push", repository="gitlab.com/acme/app"), "deny"),
        (push("git push", repository=""), "ask"),
        (push("git push", branch="main"), "deny"),
        (push("git push", branch=["topic", "release/1"]), "deny"),
        (push("git push", branch=()), "ask"),
        (push("git push --force"), "deny"),
        (push("git push origin +topic"), "deny"),
        (push("git push origin :topic"), "deny"),
        (push("git push --tags"), "deny"),
        (push("git push origin v1.2.3", branch="v1.2.3"), "deny"),
        (push("git push origin tag nightly", branch="nightly"), "deny"),
        (push("git push origin refs/tags/x", branch="refs/tags/x"), "deny"),
        (run("git fetch"), "-"),
        (run("gh pr create", repository="github.com/acme/app"), "ask"),
        (run("gh pr create", repository="github.com/other/app"), "deny"),
        (run("gh pr view 1", repository="github.com/other/app"), "-"),
        (run("gh api x -f a=b", repository=""), "ask"),
        (net("https://api.github.com/repos/acme/app/issues", "POST"), "ask"),
        (net("https://api.github.com/repos/other/app/issues", "POST"), "deny"),
        (net("https://api.github.com/repos/other/app/issues"), "-"),
        (net("https://github.com/other/app.git/git-receive-pack", "POST"), "deny"),
        (net("https://api.github.com/user/repos", "POST"), "ask"),
        (net("https://example.org/", "POST"), "-"),
        (tool("get_issue", '{"owner": "other", "repo": "app"}'), "-"),
        (tool("create_issue", '{"owner": "other", "repo": "app"}'), "deny"),
        (tool("create_issue", '{"owner": "acme", "repo": "app"}'), "ask"),
        (tool("create_issue", "no json"), "ask"),
        (tool("push_files", '{"owner": "acme", "repo": "app", "branch": "main"}'), "deny"),
        (tool("push_files", '{"owner": "acme", "repo": "app", "branch": "topic"}'), "-"),
    ],
)
def test_github(action: Action, answer: str) -> None:
    policy = built("github", repositories=["acme/*"], branches={"deny": ["main", "release/*"]})
    assert said(policy, action) == answer


def test_github_with_a_list_of_branches_takes_no_other() -> None:
    policy = built(
        "github", repositories=["acme/app"], branches={"allow": ["agent/*"]}, force="ask", tags="ask"
    )
    assert said(policy, push("git push", branch="agent/x")) == "-"
    assert said(policy, push("git push", branch="topic")) == "deny"
    assert said(policy, push("git push --force", branch="agent/x")) == "ask"
    assert said(policy, push("git push --force", branch="topic")) == "deny"
    assert said(policy, push("git push --tags", branch=())) == "ask"
