"""Doubt, grants, patterns, what is always on, sets of rules and their differences."""

from pathlib import Path
from typing import Any

import pytest
from policies.trees import START, Tree, made

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Model, Net, Unknown
from omnigent.events import JSON, Approvals, PolicyEntry
from omnigent.metering import Spend
from omnigent.policies.contract import Call, Setting, Verdict
from omnigent.policies.engine import (
    action_digest,
    decide,
    defaults,
    diff,
    digest,
    effective,
    pattern_matches,
    patterns,
    reads_spend,
)
from omnigent.policies.language import parse

HOME = "/home/of/omnigent"
API = "127.0.0.1:6767"


def rules(text: str, scope: Any = "session") -> tuple[PolicyEntry, ...]:
    return parse(f"policies: [{text}]", "t.yaml", scope)


def judge(
    entries: tuple[PolicyEntry, ...],
    *actions: Action | str,
    grants: tuple[JSON, ...] = (),
    approvals: Approvals = "ask",
    parsed: Any = "full",
    **setting: Any,
) -> Verdict:
    tree = Tree()
    tree.created()
    tree.policies(entries)
    call = Call("tc", made(*actions), parsed, "shell")
    where: JSON = {"workspace": "/w"}
    around = Setting("ses_root", START, approvals, grants, session=where, **setting)
    return decide(call, tree.state, around)


ASK_LS = "{name: r, when: {exec: ls}, then: ask}"
ASK_ALL = "{name: q, when: {exec: '*'}, then: ask}"


# Doubt.


@pytest.mark.parametrize(
    ("actions", "parsed"),
    [
        ((Exec(command="$X", doubt="The command isn't known."),), "full"),
        ((Unknown(tool="new"),), "full"),
        (made("ls"), "partial"),
        ((), "full"),
    ],
)
def test_doubt_asks(actions: tuple[Action, ...], parsed: str) -> None:
    verdict = judge((), *actions, parsed=parsed)
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("builtin.doubt",))
    assert [each.action for each in verdict.asked] == list(range(len(actions)))
    assert judge((), *actions, parsed=parsed, approvals="deny").decision == "deny"
    assert judge((), *actions, parsed=parsed, approvals="yes").decision == "allow"


@pytest.mark.parametrize("approvals", ["ask", "yes", "deny"])
def test_what_nobody_can_be_asked_is_denied_though_another_rule_pauses(approvals: Approvals) -> None:
    entries = rules("{name: p, when: {exec: ls}, then: pause}, " + ASK_LS)
    expected = ("deny", ("session.r",)) if approvals == "deny" else ("pause", ("session.p",))
    verdict = judge(entries, "ls", approvals=approvals)
    assert (verdict.decision, verdict.rule_ids) == expected


def test_a_rule_that_breaks_is_doubt_and_told_by_name() -> None:
    verdict = judge(rules("{name: r, when: {exec: ls}, if: 'action.words[3] == \"x\"', then: deny}"), "ls")
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("builtin.doubt",))
    assert "session.r" in verdict.reason


def test_a_rule_that_cannot_be_used_is_doubt() -> None:
    gone = PolicyEntry(name="r", scope="server", content='{"name":"r","use":"no_such_thing"}')
    verdict = judge((gone,), "ls")
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("builtin.doubt",))
    assert "server.r" in verdict.reason


def test_all_reasons_of_the_strictest_are_told() -> None:
    text = "{name: a, then: ask}, {name: b, then: deny, reason: Two.}, {name: c, then: deny, reason: Three.}"
    verdict = judge(rules(text), "ls")
    assert (verdict.decision, verdict.reason) == ("deny", "Two. Three.")
    assert verdict.rule_ids == ("session.b", "session.c")
    assert len(verdict.facts) == 3


def test_nobody_to_ask() -> None:
    verdict = judge(rules(ASK_LS), "ls", approvals="deny")
    assert verdict.decision == "deny"
    assert "Nobody can be asked" in verdict.reason


def test_who_may_answer_is_whom_all_name() -> None:
    text = "{name: a, then: ask, who: [ann, owner]}, {name: b, then: ask, who: [bob, ann], expires: 1h}"
    verdict = judge(rules(text), "ls")
    assert (verdict.may_answer, verdict.expires_seconds) == (("ann",), 3600)
    apart = "{name: a, then: ask, who: [ann]}, {name: b, then: ask, who: [bob]}"
    assert judge(rules(apart), "ls").may_answer == ("owner",)


# Grants.


def granted(scope: str, *names: str, **rest: Any) -> JSON:
    return {"grant_id": "gr_1", "scope": scope, "rule_ids": names, "until": None, **rest}


def test_a_grant_for_the_session_is_of_this_action() -> None:
    (ls,) = made("ls a")
    grant = granted("session", "session.r", digests=[action_digest(ls)])
    assert judge(rules(ASK_LS), "ls a", grants=(grant,)).grant_ids == ("gr_1",)
    assert judge(rules(ASK_LS), "ls b", grants=(grant,)).decision == "ask"


def test_a_grant_silences_only_the_rules_it_names() -> None:
    grant = granted("pattern", "session.r", pattern="exec: ls *")
    verdict = judge(rules(f"{ASK_LS}, {ASK_ALL}"), "ls a", grants=(grant,))
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("session.q",))


@pytest.mark.parametrize("then", ["deny", "pause"])
def test_nothing_silences(then: str) -> None:
    (ls,) = made("ls")
    grants = (
        granted("session", "session.r", digests=[action_digest(ls)]),
        granted("once", "session.r", call_sha256=digest((ls,))),
        granted("pattern", "session.r", pattern="exec: ls *"),
    )
    entries = rules(f"{{name: r, when: {{exec: ls}}, then: {then}}}")
    assert judge(entries, "ls", grants=grants).decision == then


def test_a_grant_for_once_is_of_the_whole_call() -> None:
    grant = granted("once", "session.r", call_sha256=digest(made("ls", "ls b")))
    assert judge(rules(ASK_LS), "ls", "ls b", grants=(grant,)).decision == "allow"
    assert judge(rules(ASK_LS), "ls", grants=(grant,)).decision == "ask"


def test_a_grant_ends() -> None:
    grant = granted("pattern", "session.r", pattern="exec: ls *") | {"until": START}
    assert judge(rules(ASK_LS), "ls", grants=(grant,)).decision == "ask"


def read(path: str, real: str, **rest: Any) -> Action:
    return FileRead(path=path, real_path=real, in_workspace=True, **rest)


@pytest.mark.parametrize(
    ("pattern", "action", "covers"),
    [
        ("exec: npm run test", made("npm run test")[0], True),
        ("exec: npm run test", made("npm run test --watch")[0], False),
        ("exec: npm run test", made("npm run test x")[0], False),
        ("exec: npm run *", made("npm run test --watch x")[0], True),
        ("exec: npm run *", made("npm install")[0], False),
        ("exec: npm run *", made("env X=1 npm run test")[0], False),
        ("exec: npm run *", made("./npm run test")[0], False),
        ("exec: ./gradlew build", made("./gradlew build")[0], True),
        ("exec: ./gradlew build", made("gradle build")[0], False),
        ("exec: gradle build", made("./gradlew build")[0], False),
        ("exec: git push", made("git push --force")[0], False),
        ("exec: '*'", made("ls")[0], False),
        ("exec: ls *", made("ls")[0].model_copy(update={"doubt": "?"}), False),
        ("exec: 'x", made("ls")[0], False),
        ("read: docs/**", read("docs/a", "/w/docs/a"), True),
        ("read: docs/**", read("docs/a", "/etc/passwd"), False),
        ("read: docs/**", read("docs", "/w/docs", recursive=True), True),
        ("read: docs/**", read(".", "/w", recursive=True), False),
        ("read: docs/*.md", read("docs/*.md", "/w/docs/*.md", glob=True), True),
        ("read: docs/*.md", read("docs/*", "/w/docs/*", glob=True), False),
        ("write: docs/**", read("docs/a", "/w/docs/a"), False),
        ("delete: docs/**", FileWrite(path="docs/a", real_path="/w/docs/a", in_workspace=True), False),
        ("net: api.example.org", Net(url="", host="api.example.org"), True),
        ("net: '*'", Net(url="", host=""), False),
        ("mcp: s/*", Mcp(server="s", tool="t"), True),
        ("mcp: s", Mcp(server="other", tool="t"), False),
        ("model: m*", Model(wire="w", provider="p", model="m1"), True),
        ("tool: new", Unknown(tool="new"), False),
        ("nonsense", made("ls")[0], False),
        ("what: ls", made("ls")[0], False),
    ],
)
def test_what_a_pattern_covers(pattern: str, action: Action, covers: bool) -> None:
    assert pattern_matches(pattern, action, "/w") is covers


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (made("npm run test --watch")[0], ("exec: npm run test --watch", "exec: npm run test *")),
        (made("git push origin main")[0], ("exec: git push origin main", "exec: git push *")),
        (made("rm -rf build")[0], ("exec: rm -rf build",)),
        (made("bash x.sh")[0], ("exec: bash x.sh",)),
        (read("docs/a", "/w/docs/a"), ("read: /w/docs/a", "read: /w/docs/**")),
        (Net(url="", host="x.org"), ("net: x.org",)),
        (Mcp(server="s", tool="t"), ("mcp: s/t", "mcp: s/*")),
        (Exec(command="$X", doubt="?"), ()),
    ],
)
def test_suggested_patterns(action: Action, expected: tuple[str, ...]) -> None:
    assert patterns(action) == expected
    assert all(pattern_matches(pattern, action, "/w") for pattern in expected)


# What is always on.


def protected(*actions: Action | str, own: tuple[str, ...] = ()) -> str:
    entries = rules("{name: r, when: {exec: nothing}, then: ask}")
    grant = granted("pattern", "builtin.protect", pattern="exec: cat *")
    person = str(Path.home() / ".claude.json")
    verdict = judge(
        entries, *actions, grants=(grant,), approvals="yes", protected=(HOME, person), api=API, own=own
    )
    assert verdict.decision == "allow" or verdict.rule_ids == ("builtin.protect",)
    return verdict.decision


def exec_(command: str, *argv: str, cwd: str = "/w", stdin: str | None = None) -> Exec:
    return Exec(command=command, argv=argv or tuple(command.split()), program="x", cwd=cwd, stdin=stdin)


@pytest.mark.parametrize(
    "action",
    [
        exec_(f"cat {HOME}/token"),
        exec_("cat omnigent/token", cwd="/home/of"),
        exec_("cat ../of/omnigent/token", cwd="/home/x"),
        exec_(f"cat {HOME}/../omnigent/token"),
        exec_(f"tar cf - --directory={HOME} ."),
        exec_("cat $OMNIGENT_HOME/token"),
        exec_("cat ~/.claude.json"),
        exec_("cat $HOME/.claude.json"),
        exec_("sh", stdin=f"cat {HOME}/token"),
        exec_("curl http://127.0.0.1:6767/v1/sessions"),
        exec_("curl http://localhost:6767/v1/sessions"),
        exec_("curl http://2130706433:6767/"),
        exec_("curl http://0x7f000001:6767/"),
        exec_("curl http://[::1]:6767/"),
        exec_("nc localhost 6767"),
        exec_("python -c import('127.0.0.1', 6767)"),
        read("x", f"{HOME}/token"),
        read("/home", "/home", recursive=True),
        read("*", f"{HOME}/*", glob=True),
        read("/home/*/omnigent/token", "/home/*/omnigent/token", glob=True),
        FileWrite(path="x", real_path=f"{HOME}/omnigent.db", in_workspace=False),
        FileWrite(path="/home/of", real_path="/home/of", in_workspace=False, recursive=True, change="delete"),
        Net(url="http://127.0.0.1:6767/v1", host="127.0.0.1", port=6767),
        Net(url="http://localhost:6767/v1", host="localhost", port=6767),
        Net(url="http://127.1:6767/v1", host="127.1", port=6767),
        Mcp(server="fs", tool="read", arguments='{"path": "\\/home\\/of\\/omnigent\\/token"}'),
        Mcp(server="web", tool="get", arguments='{"nested": [{"url": "http://localhost:6767"}]}'),
    ],
)
def test_what_is_protected(action: Action) -> None:
    assert protected(action) == "deny"


@pytest.mark.parametrize(
    "action",
    [
        exec_("ls -la"),
        exec_("cat src/omnigent/token.py"),
        exec_(f"ls {HOME}-other"),
        exec_("curl http://localhost:3000/"),
        exec_("curl http://localhost:16767/"),
        exec_("echo 6767"),
        read("a", "/w/a"),
        read(".", "/w", recursive=True),
        Net(url="http://localhost:3000", host="localhost", port=3000),
        Net(url="https://example.org:6767", host="example.org", port=6767),
        Mcp(server="fs", tool="read", arguments='{"path": "/w/a"}'),
    ],
)
def test_what_is_not_protected(action: Action) -> None:
    assert protected(action) == "allow"


def test_an_agents_own_place_inside_is_its_own() -> None:
    own = (f"{HOME}/worktrees/s",)
    assert protected(read("a", f"{HOME}/worktrees/s/a"), own=own) == "allow"
    assert protected(exec_("ls src", cwd=f"{HOME}/worktrees/s"), own=own) == "allow"
    assert protected(exec_("cat ../../token", cwd=f"{HOME}/worktrees/s"), own=own) == "deny"
    assert protected(exec_(f"cat {HOME}/worktrees/s/a {HOME}/token"), own=own) == "deny"


# Budgets, sets of rules.


def test_the_sessions_budget_is_a_rule() -> None:
    call = Model(wire="w", provider="p", model="m", estimate_nanousd=10, bounded=True)
    spend: Any = {"family": Spend(90)}
    verdict = judge((), call, spend=spend, budget_nanousd=100)
    assert [(cap.rule_id, cap.nanousd, cap.scope) for cap in verdict.caps] == [("budget", 100, "family")]
    verdict = judge((), call, spend=spend, budget_nanousd=99)
    assert (verdict.decision, verdict.rule_ids) == ("pause", ("budget",))
    assert judge((), call, spend=spend, budget_nanousd=0).decision == "pause"


def test_a_log_without_policies_has_the_defaults() -> None:
    tree = Tree()
    tree.created()
    assert effective(tree.state, "ses_root") == defaults()
    assert effective(tree.projector.empty(), "ses_other") == defaults()


def test_a_child_can_only_tighten() -> None:
    tree = Tree()
    tree.created()
    above, below = rules("{name: a, then: deny}", "server"), rules("{name: b, then: ask}")
    tree.policies(above)
    tree.created("ses_child", "ses_root")
    assert effective(tree.state, "ses_child") == above
    tree.policies(below, "ses_child")
    assert sorted(each.name for each in effective(tree.state, "ses_child")) == ["a", "b"]
    assert effective(tree.state, "ses_root") == above


def test_memory_stays_when_only_words_change() -> None:
    tree = Tree()
    tree.created()
    tree.policies(rules("{name: a, when: {exec: git push}, after: {read: x}, then: ask}"))
    tree.ran(read("x", "/w/x"))
    tree.policies(rules("{name: b, when: {exec: git push}, after: {read: x}, then: deny, reason: No.}"))
    setting = Setting("ses_root", tree.at, session={"workspace": "/w"})
    assert decide(Call("tc", made("git push")), tree.state, setting).decision == "deny"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{name: a, then: ask}", "{name: a, then: ask}", ((), (), (), False)),
        ("", "{name: a, then: ask}", (("session.a",), (), (), False)),
        ("{name: a, then: ask}", "", ((), ("session.a",), (), True)),
        ("{name: a, then: ask}", "{name: a, then: deny}", ((), (), ("session.a",), False)),
        ("{name: a, then: deny}", "{name: a, then: ask}", ((), (), ("session.a",), True)),
        ("{name: a, then: ask}", "{name: a, then: ask, reason: x}", ((), (), ("session.a",), False)),
        ("{name: a, then: ask}", "{name: a, then: deny, when: {exec: x}}", ((), (), ("session.a",), True)),
    ],
)
def test_differences(old: str, new: str, expected: Any) -> None:
    assert diff(rules(old), rules(new)) == expected


def test_who_reads_spending() -> None:
    tree = Tree()
    tree.created()
    tree.policies(rules("{name: a, when: {spend_usd: 1}, then: pause}"))
    assert not reads_spend(tree.state, "ses_root")
    tree.policies(rules("{name: a, when: {exec: ls, spend_usd: 1}, then: pause}"))
    assert reads_spend(tree.state, "ses_root")
