"""The one decision, as a table."""

from typing import Any

import pytest

from omnigent.events import Approvals, ToolRequested
from omnigent.policies import Decision, State, decide, digest

EXEC = {"type": "exec", "command": "ls"}
INSIDE = {"type": "file.write", "path": "a", "real_path": "/w/a", "in_workspace": True}
OUTSIDE = {"type": "file.write", "path": "/etc/a", "real_path": "/etc/a", "in_workspace": False}
READ = {"type": "file.read", "path": "/etc/a", "real_path": "/etc/a", "in_workspace": False}
NET = {"type": "net", "url": "https://example.org"}
MCP = {"type": "mcp", "server": "s", "tool": "t"}
UNKNOWN = {"type": "unknown", "tool": "brand_new"}
SPAWN = {"type": "spawn"}
NOTE = {"type": "message"}


def call(*actions: dict[str, Any], parsed: str = "full") -> ToolRequested:
    return ToolRequested.model_validate(
        {
            "tool": "tool",
            "title": "",
            "actions": list(actions),
            "parsed": parsed,
            "raw": "{}",
            "native_id": "1",
        }
    )


@pytest.mark.parametrize(
    ("requested", "decision"),
    [
        (call(INSIDE), "allow"),
        (call(READ), "allow"),
        (call(SPAWN), "allow"),
        (call(NOTE), "allow"),
        (call(EXEC), "ask"),
        (call(OUTSIDE), "ask"),
        (call(NET), "ask"),
        (call(MCP), "ask"),
        (call(UNKNOWN), "ask"),
        (call(), "ask"),
        (call(INSIDE, EXEC), "ask"),
        (call(EXEC, INSIDE), "ask"),
        (call(READ, INSIDE, NOTE), "allow"),
        (call(INSIDE, parsed="partial"), "ask"),
        (call(READ, parsed="opaque"), "ask"),
    ],
)
def test_the_built_in_rules(requested: ToolRequested, decision: Decision) -> None:
    verdict = decide(requested, State("ask"))
    assert verdict.decision == decision
    assert (decision == "allow") == (not verdict.rule_ids and not verdict.reason)


@pytest.mark.parametrize(("approvals", "decision"), [("ask", "ask"), ("yes", "allow"), ("deny", "deny")])
def test_who_may_be_asked(approvals: Approvals, decision: Decision) -> None:
    assert decide(call(EXEC), State(approvals)).decision == decision
    assert decide(call(INSIDE), State(approvals)).decision == "allow"


def test_a_grant_holds_for_exactly_these_actions() -> None:
    grants = [digest(call(EXEC).actions)]
    for approvals in ("ask", "deny"):
        assert decide(call(EXEC), State(approvals, grants)).decision == "allow"
    for other in (
        call({**EXEC, "command": "ls "}),
        call({**EXEC, "cwd": "/"}),
        call(EXEC, EXEC),
        call({**EXEC, "background": True}),
    ):
        assert decide(other, State("ask", grants)).decision == "ask"


def test_the_strictest_rule_is_the_one_named() -> None:
    verdict = decide(call(INSIDE, OUTSIDE), State("deny"))
    assert (verdict.decision, verdict.rule_ids) == ("deny", ("builtin.write",))
    assert "Nobody can be asked" in verdict.reason
