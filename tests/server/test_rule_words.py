"""Rules in one line."""

from typing import Any

import pytest

from omnigent.policies.builtins import BUILTINS
from omnigent.policies.language import defaults, parse
from omnigent.server.rule_words import describe, rule_json


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"when": {"exec": ["git push", "git push -f"]}, "then": "deny"}, "run git push | git push -f: deny"),
        (
            {"when": {"exec": "git push"}, "after": {"exec": "npm ci", "within": "1h"}, "then": "ask"},
            "run git push after run npm ci within 1h: ask",
        ),
        ({"when": {"spend_usd": 3.0}, "then": "pause", "reason": "Enough."}, "$3.0 spent: pause (Enough.)"),
        (
            {"when": {"net": {"host": "github.com", "method": "POST"}}, "unless": {"read": "docs/**"},
             "then": "ask", "who": ["owner", "ann"]},
            "net host github.com method POST unless read docs/**: ask, answered by owner, ann",
        ),
        ({"if": "at.getHours() > 22", "then": "deny"}, "if at.getHours() > 22: deny"),
        ({"when": {"exec": "curl"}, "rate": "30/1m", "then": "ask"}, "run curl beyond 30/1m: ask"),
        ({"when": {"exec": "curl"}, "count": 3, "then": "ask"}, "run curl after 3 times: ask"),
        ({"when": {"exec": "npm i"}, "rewrite": "npm ci"}, "run npm i: run npm ci instead"),
        ({"when": {"model": "*"}, "downgrade": "small"}, "model *: ask small instead"),
        ({"then": "deny"}, "everything: deny"),
        ({"function": "ours", "with": {"a": [1, 2]}}, "ours (a: 1, 2): a function of the operator's"),
    ],
)  # fmt: skip
def test_a_rule_reads_as_a_line(rule: dict[str, Any], said: str) -> None:
    assert describe(rule) == said


def test_every_built_in_says_what_it_is_for() -> None:
    texts = {name: describe({"use": name}) for name in BUILTINS}
    assert len(set(texts.values())) == len(BUILTINS)
    for name, text in texts.items():
        assert text.startswith(f"{name}: ") and 15 < len(text) < 250, text
    assert all(rule_json(entry)["description"] for entry in defaults())


def test_a_rule_is_shown_as_it_was_written() -> None:
    (entry,) = parse("policies:\n  - {name: a, when: {exec: curl}, then: deny}\n", "t", "server")
    assert rule_json(entry) == {
        "name": "a",
        "scope": "server",
        "rule": {"name": "a", "when": {"exec": "curl"}, "then": "deny"},
        "description": "run curl: deny",
    }
