"""Every key of the language: what it matches, and how each mistake is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from policies.trees import START, Tree, made

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Message, Model, Net, Spawn, Unknown
from omnigent.errors import PolicyInvalid
from omnigent.events import UsageReserved
from omnigent.metering import Spend
from omnigent.policies.contract import Call, Setting, Verdict
from omnigent.policies.engine import decide
from omnigent.policies.language import defaults, load, parse
from omnigent.policies.rules import RULE_KEYS


def file(kind: str, path: str, real: str = "", **rest: Any) -> Action:
    real = real or (path if path.startswith("/") else f"/w/{path}")
    cls = FileRead if kind == "read" else FileWrite
    return cls(path=path, real_path=real, in_workspace=real.startswith("/w/"), **rest)


def net(host: str, path: str = "/", method: str = "GET", port: int | None = None) -> Net:
    return Net(method=method, url=f"https://{host}{path}", host=host, path=path, port=port)


def said(
    text: str, *actions: Action | str, spend: dict[Any, Spend] | None = None, at: int = START
) -> Verdict:
    """Of one rule, given as the inside of a YAML mapping."""
    tree = Tree()
    tree.created()
    tree.policies(parse(f"policies: [{{name: r, {text}}}]", "t.yaml", "session"))
    labels = {"labels": {"team": "red"}, "workspace": "/w", "harness": "toy"}
    setting = Setting("ses_root", at, session=labels, spend=spend or {})
    return decide(Call("tc_1", made(*actions)), tree.state, setting)


DENIED: list[tuple[str, Action | str]] = [
    ("when: {exec: git push}", "git push origin main"),
    ("when: {exec: git push}", "/usr/bin/git push"),
    ("when: {exec: [ls, git push]}", "git push"),
    ("when: {exec: git push -f}", "git push origin --force"),
    ("when: {exec: git push --force}", "git push -f origin"),
    ("when: {exec: rm -rf}", "rm -r -f x"),
    ("when: {exec: 'npm run *'}", "npm run test"),
    ("when: {exec: 'npm run test*'}", "npm run test:unit"),
    ("when: {exec: npm i}", "npm install left-pad"),
    ("when: {exec: '*'}", "anything at all"),
    ("when: {exec: git}", "git"),
    ("when: {exec: ./gradlew publish}", "./gradlew publish --info"),
    ("when: {exec: git push}", "git -C dir push"),
    ("when: {exec: git push}", "git --no-pager push"),
    ("when: {exec: git push}", "sh -c 'git push'"),
    ("when: {exec: git push}", "env X=1 git push"),
    ("when: {read: '**/.env*'}", file("read", ".env.local")),
    ("when: {read: '**/.env*'}", file("read", "/other/.env")),
    ("when: {read: .env}", file("read", "./x", "/w/.env")),
    ("when: {read: .env}", file("read", ".env", "/elsewhere/x")),
    ("when: {read: 'secrets/**'}", file("read", "secrets")),
    ("when: {read: '**/.env*'}", file("read", "*", "/w/*", glob=True)),
    ("when: {read: 'secrets/**'}", file("read", ".", "/w", recursive=True)),
    ("when: {write: '/etc/**'}", file("write", "/etc/hosts")),
    ("when: {write: '/etc/**'}", file("write", "/etc/hosts", change="delete")),
    ("when: {delete: '**'}", file("write", "a", change="delete")),
    ("when: {net: example.org}", net("example.org")),
    ("when: {net: '*.example.org'}", net("a.b.example.org")),
    ("when: {net: {host: '*', method: [post, put]}}", net("x.org", method="PUT")),
    ("when: {net: {path: '/**/git-receive-pack'}}", net("x.org", "/a/b/git-receive-pack")),
    ("when: {net: {host: x.org, port: 22}}", net("x.org", port=22)),
    ("when: {mcp: github}", Mcp(server="github", tool="create_issue")),
    ("when: {mcp: 'github/create_*'}", Mcp(server="github", tool="create_issue")),
    ("when: {model: '*opus*'}", Model(wire="w", provider="p", model="claude-Opus-5")),
    ("when: {model: 'p/*'}", Model(wire="w", provider="p", model="m")),
    ("when: {spawn: true}", Spawn(description="look")),
    ("when: {spawn: 'look*'}", Spawn(description="look around")),
    ("when: {message: true}", Message()),
    ("when: {tool: 'brand_*'}", Unknown(tool="brand_new")),
    ("when: {exec: ls, net: x.org}", net("x.org")),
    ("if: 'action.type == \"exec\"'", "ls"),
    ("when: {exec: ls}, if: 'size(action.words) > 1'", "ls a b"),
    ("when: {exec: ls}, if: 'session.labels.team == \"red\"'", "ls"),
    ("when: {exec: ls}, if: 'at < timestamp(\"2030-01-01T00:00:00Z\")'", "ls"),
    ("when: {exec: ls}, if: 'like(action.words[0], \"a*\")'", "ls abc"),
    ("when: {read: '**'}, if: 'glob(action.real_path, \"/w/*\")'", file("read", "a")),
    ("when: {exec: ls}, if: 'state.depth == 0 && state.spawned == 0'", "ls"),
    ("when: {read: '**'}, unless: {read: 'docs/**'}", file("read", "src/a")),
    ("when: {read: '**'}, unless: {read: 'docs/**'}", file("read", "docs/a", "/etc/passwd")),
    ("when: {read: '**'}, unless: {read: 'docs/**'}", file("read", ".", "/w", recursive=True)),
    ("when: {exec: git push}, unless: {exec: git push origin docs}", "git push origin main"),
]
PASSED: list[tuple[str, Action | str]] = [
    ("when: {exec: git push}", "git pull"),
    ("when: {exec: git push}", "git stash push"),
    ("when: {exec: git push --force}", "git push"),
    ("when: {exec: 'npm run test*'}", "npm run build"),
    ("when: {exec: ls}", file("read", "ls")),
    ("when: {read: '**/.env*'}", file("write", ".env")),
    ("when: {read: .env}", file("read", "sub/.env")),
    ("when: {read: 'docs/*'}", file("read", "docs/a/b")),
    ("when: {read: '/etc/**'}", file("read", ".", "/w", recursive=True)),
    ("when: {delete: '**'}", file("write", "a")),
    ("when: {net: '*.example.org'}", net("example.org")),
    ("when: {net: example.org}", net("example.org.evil.net")),
    ("when: {net: {method: POST}}", net("x.org")),
    ("when: {mcp: 'github/create_*'}", Mcp(server="github", tool="list")),
    ("when: {spawn: 'look*'}", Spawn(description="write")),
    ("when: {exec: ls}, if: 'size(action.words) > 1'", "ls a"),
    ("when: {read: '**'}, unless: {read: 'docs/**'}", file("read", "docs/a")),
    ("when: {read: '**'}, unless: {read: 'docs/**'}", file("read", "docs", recursive=True)),
    ("when: {exec: git push}, unless: {exec: git push origin docs}", "git push origin docs"),
]


@pytest.mark.parametrize(("text", "action"), DENIED)
def test_matches(text: str, action: Action | str) -> None:
    verdict = said(f"{text}, then: deny", action)
    assert verdict.decision == "deny"
    assert verdict.rule_ids == ("session.r",)


@pytest.mark.parametrize(("text", "action"), PASSED)
def test_does_not_match(text: str, action: Action | str) -> None:
    assert said(f"{text}, then: deny", action).decision == "allow"


def test_a_request_of_which_only_the_host_is_known_is_asked() -> None:
    verdict = said(
        "when: {net: {host: github.com, method: POST, path: '/**/git-receive-pack'}}, then: deny",
        net("github.com", "", ""),
    )
    assert verdict.decision == "ask"
    assert verdict.rule_ids == ("session.r",)


def test_who_expires_and_reason() -> None:
    verdict = said("when: {exec: ls}, then: ask, who: [owner, ann], expires: 2h, reason: Think.", "ls")
    assert verdict.may_answer == ("owner", "ann")
    assert verdict.expires_seconds == 7200
    assert verdict.reason == "Think."


def test_pause() -> None:
    assert said("when: {exec: ls}, then: pause", "ls").decision == "pause"


@pytest.mark.parametrize(
    ("text", "spent", "expected"),
    [
        ("when: {tokens: 1000}", Spend(tokens=899), "allow"),
        ("when: {tokens: 1000}", Spend(tokens=901), "pause"),
        ("when: {spend_usd: 1.5}", Spend(1_400_000_000), "allow"),
        ("when: {spend_usd: 1.5}", Spend(1_400_000_001), "pause"),
        ("when: {spend_usd: 1.5, tokens: 50}", Spend(0), "pause"),
        ("when: {model: other, spend_usd: 1.5}", Spend(2_000_000_000), "allow"),
    ],
)
def test_limits(text: str, spent: Spend, expected: str) -> None:
    call = Model(
        wire="w", provider="p", model="m", input_tokens=90, max_output_tokens=10,
        estimate_nanousd=100_000_000, bounded=True,
    )  # fmt: skip
    verdict = said(f"{text}, then: pause", call, spend={"family": spent})
    assert verdict.decision == expected


def test_a_scope_of_spending_is_its_own() -> None:
    call = Model(wire="w", provider="p", model="m", estimate_nanousd=1, bounded=True)
    spend: dict[Any, Spend] = {"family": Spend(5 * 10**9), "user_day": Spend(1)}
    text = "when: {spend_usd: 1}, scope: user_day, then: pause"
    verdict = said(text, call, spend=spend)
    assert verdict.decision == "allow"
    assert verdict.caps[0].scope == "user_day"


def test_a_tool_call_stops_when_the_money_is_gone() -> None:
    text = "when: {spend_usd: 1}, then: pause"
    assert said(text, "ls").decision == "allow"
    assert said(text, "ls", spend={"family": Spend(10**9)}).decision == "pause"


def test_spending_that_is_asked_for_and_not_told_is_doubt() -> None:
    verdict = said("when: {exec: ls, spend_usd: 1}, then: deny", "ls")
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("builtin.doubt",))
    verdict = said("when: {exec: ls}, if: state.spend_usd.family > 1.0, then: deny", "ls")
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("builtin.doubt",))
    spend: dict[Any, Spend] = {"family": Spend(2 * 10**9)}
    assert (
        said("when: {exec: ls}, if: state.spend_usd.family > 1.0, then: deny", "ls", spend=spend).decision
        == "deny"
    )


def test_rewrite() -> None:
    verdict = said("when: {exec: npm install}, rewrite: npm ci --ignore-scripts", "npm install")
    assert (verdict.decision, verdict.command) == ("allow", "npm ci --ignore-scripts")
    verdict = said("when: {exec: make}, rewrite: 'timeout 60 {command}'", "make test")
    assert verdict.command == "timeout 60 make test"


def test_a_rewritten_command_is_decided_once_more() -> None:
    tree = Tree()
    tree.created()
    text = """\
policies:
  - {name: a, when: {exec: npm install}, rewrite: npm ci}
  - {name: b, when: {exec: npm ci}, then: ask}
"""
    tree.policies(parse(text, "t.yaml", "session"))
    verdict = decide(Call("tc", made("npm install")), tree.state, Setting("ses_root", START))
    assert (verdict.decision, verdict.command, verdict.rule_ids) == ("ask", "npm ci", ("session.b",))


def test_only_a_whole_call_is_rewritten() -> None:
    pair = [each.model_copy(update={"sole": False}) for each in made("npm install", "ls")]
    verdict = said("when: {exec: npm install}, rewrite: npm ci", *pair)
    assert (verdict.decision, verdict.rule_ids, verdict.command) == ("ask", ("session.r",), None)


def test_downgrade() -> None:
    call = Model(wire="w", provider="p", model="big", estimate_nanousd=10**9, bounded=True)
    text = "when: {model: big, spend_usd: 2}, downgrade: small"
    verdict = said(text, call, spend={"family": Spend(10**9)})
    assert (verdict.decision, verdict.model, verdict.caps) == ("allow", None, ())
    verdict = said(text, call, spend={"family": Spend(10**9 + 1)})
    assert (verdict.decision, verdict.model) == ("allow", "small")


# What is remembered.


def after(text: str, *, turns: bool = False) -> tuple[Tree, Any]:
    tree = Tree()
    tree.created()
    tree.policies(parse(f"policies: [{{name: r, {text}}}]", "t.yaml", "session"))
    tree.turn()

    def ask(*actions: Action | str, later: int = 1000) -> str:
        setting = Setting("ses_root", tree.at + later)
        return decide(Call("tc_x", made(*actions)), tree.state, setting).decision

    return tree, ask


def test_after_within_a_time() -> None:
    tree, ask = after("when: {exec: git push}, after: {exec: npm install, within: 1h}, then: deny")
    tree.ran("npm install")
    assert ask("git push", later=3_000_000) == "deny"
    assert ask("git push", later=3_700_000) == "allow"


def test_after_within_the_turn() -> None:
    tree, ask = after("when: {exec: git push}, after: {exec: npm install, within: turn}, then: deny")
    tree.ran("npm install")
    assert ask("git push") == "deny"
    tree.end()
    tree.turn()
    assert ask("git push") == "allow"


def test_after_a_read() -> None:
    tree, ask = after("when: {net: '*'}, after: {read: 'customers/**'}, then: deny")
    assert ask(net("x.org")) == "allow"
    tree.ran(file("read", "customers/a"))
    assert ask(net("x.org")) == "deny"


def test_count() -> None:
    tree, ask = after("when: {exec: npm publish}, count: 2, then: deny")
    tree.ran("npm publish")
    assert ask("npm publish") == "allow"
    tree.ran("npm publish", exit_code=1)
    assert ask("npm publish") == "deny"
    assert ask("npm test") == "allow"


def test_count_inside_one_call() -> None:
    tree, ask = after("when: {exec: npm publish}, count: 1, then: deny")
    assert ask("npm publish") == "allow"
    assert ask("npm publish", "npm publish") == "deny"
    tree.decided(tree.request("npm publish"), "deny")
    assert ask("npm publish") == "allow"


def test_rate() -> None:
    tree, ask = after("when: {exec: curl}, rate: 3/1m, then: pause")
    for _ in range(3):
        tree.ran("curl x")
    assert ask("curl y") == "pause"
    assert ask("curl y", later=61_000) == "allow"


def test_rate_of_model_calls() -> None:
    tree, ask = after("when: {model: '*'}, rate: 2/1m, then: pause")
    call = Model(wire="w", provider="p", model="m", estimate_nanousd=1)
    assert ask(call) == "allow"
    for n in range(2):
        tree.add(UsageReserved(call_id=f"c{n}", model="m", provider="p"))
    assert ask(call) == "pause"


def test_state_of_the_rule_in_its_condition() -> None:
    tree, ask = after(
        "when: {exec: ls}, after: {exec: cd}, if: 'state.after && state.running == 0', then: deny"
    )
    assert ask("ls") == "allow"
    tree.ran("cd x")
    assert ask("ls") == "deny"


# Mistakes.


P = "policies:\n  - "

MISTAKES = [
    (P + "{name: a, §whn: {exec: ls}, then: deny}", "whn|`when`"),
    (P + "name: a\n    §whn: {exec: ls}\n    then: deny", "whn|`when`"),
    (P + "{name: a, when: {§exce: ls}, then: deny}", "exce|`exec`"),
    (P + "{name: a, when: {exec: ls}, then: §dney}", "dney|`deny`"),
    ("§polices: []", "polices|`policies`"),
    ("§- name: a", "no mapping|policies:"),
    ("policies: §{name: a}", "no list"),
    (P + "§then: deny", "name"),
    (P + "§name: a", "then"),
    (P + "{name: §3, then: deny}", "3|quotes"),
    (P + "{name: §a b, then: deny}", "'a b'"),
    (P + "{name: a, then: deny}\n  - {name: §a, then: ask}", "Two rules"),
    (P + "{name: a, §name: b, then: deny}", "twice"),
    (P + "{name: a, when: §{}, then: deny}", "empty"),
    (P + "{name: a, when: {exec: [ls, §3]}, then: deny}", "3|quotes"),
    (P + "{name: a, when: {exec: §[]}, then: deny}", "empty"),
    (P + "{name: a, when: {exec: §'a \"b'}, then: deny}", "quotes"),
    (P + "{name: a, when: {net: {§hots: x}}, then: deny}", "hots|`host`"),
    (P + "{name: a, when: {net: §'https://x/y'}, then: deny}", "host name"),
    (P + "{name: a, when: {spend_usd: §'3'}, then: pause}", "amount"),
    (P + "{name: a, when: {spend_usd: §-1}, then: pause}", "amount"),
    (P + "{name: a, when: {tokens: §1.5}, then: pause}", "whole number"),
    (P + "{name: a, when: {exec: ls}, scope: §family, then: deny}", "scope"),
    (P + "{name: a, when: {spend_usd: 1}, scope: §familly, then: deny}", "`family`"),
    (P + "{name: a, after: §{within: 1h}, then: deny}", "names no action"),
    (P + "{name: a, after: {exec: ls, within: §soon}, then: deny}", "length of time"),
    (P + "{name: a, count: §0, then: deny}", "whole number"),
    (P + "{name: a, count: §5000, then: deny}", "too many"),
    (P + "{name: a, rate: §30, then: deny}", "30"),
    (P + "{name: a, rate: §fast, then: deny}", "30/1m"),
    (P + "{name: a, then: deny, rewrite: §x}", "together"),
    (P + "{name: a, when: {read: x}, rewrite: §x}", "commands"),
    (P + "{name: a, when: {exec: x}, downgrade: §x}", "model"),
    (P + "{name: a, then: deny, who: §owner}", "ask"),
    (P + "{name: a, then: ask, expires: §2}", "length of time"),
    (P + "{name: a, use: §nonsense}", "built-in"),
    (P + "{name: a, use: spend, §when: {exec: x}}", "when"),
    (P + "{name: a, use: spend, with: {usd: §x}}", "usd"),
    (P + "{name: a, function: §mine}", "function"),
    (P + "{name: a, with: §{}, then: deny}", "use"),
    (P + "{name: a, if: §'action.pth == 1', when: {read: x}, then: deny}", "pth|`path`"),
    (P + "{name: a, if: §'action.program', when: {exec: x}, then: deny}", "str"),
    (P + "{name: a, if: §'action.program ==', then: deny}", "CEL"),
    (P + "{name: a, if: §'acton.program == \"x\"', then: deny}", "`action`"),
    (P + "{name: a, if: §'session.own == \"x\"', then: deny}", "own|`owner`"),
    (P + "{name: a, if: §'state.after', then: deny}", "after"),
    (P + "{name: a, if: §'state.tokens.famly > 1', then: deny}", "`family`"),
    (P + "{name: a, if: §'nothing(1)', then: deny}", "nothing"),
    (P + "name: a\n    if: §!action.x\n    then: deny", "tag|quotes"),
    ("policies: [§", "YAML"),
    ("policies:\n§\t- a", "YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_mistakes(text: str, words: str) -> None:
    """`§` stands where the mistake is told to be."""
    before = text.partition("§")[0]
    line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
    with pytest.raises(PolicyInvalid) as caught:
        parse(text.replace("§", ""), "rules.yaml", "project")
    error = caught.value
    assert (error.facts["line"], error.facts["column"]) == (line, column), error.detail
    assert error.detail.startswith(f"rules.yaml:{line}:{column}: ")
    told = f"{error.detail} {error.hint}"
    assert all(word in told for word in words.split("|")), told
    assert error.hint


def test_a_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(PolicyInvalid, match="too large"):
        parse("\n".join(lines), "bomb.yaml", "session")


def test_content_is_canonical_and_loads_again() -> None:
    (entry,) = parse("policies: [{then: deny, name: a, when: {exec: ls}}]", "t.yaml", "server")
    assert entry.content == '{"name":"a","then":"deny","when":{"exec":"ls"}}'
    assert (load(entry).id, load(entry)) == ("server.a", load(entry))
    assert json.loads(entry.content)["then"] == "deny"


def test_nothing_is_no_rules() -> None:
    assert parse("", "t", "session") == parse("policies:", "t", "session") == ()
    assert parse("policies: []", "t", "session") == ()


def test_the_defaults_load() -> None:
    assert defaults()
    assert all(load(entry).id == f"builtin.{entry.name}" for entry in defaults())


def test_of_a_command_the_flags_are_a_set() -> None:
    action = made("git push --force -u origin")[0]
    assert isinstance(action, Exec)
    assert said("when: {exec: git push -u -f}, then: deny", action).decision == "deny"


def test_the_examples_in_the_docs_parse() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    rules = [entry for block in blocks for entry in parse(block, "docs/policies.md", "session")]
    assert len(rules) >= 14
    used = {key for entry in rules for key in json.loads(entry.content)}
    assert set(RULE_KEYS) - used == {"function"}
