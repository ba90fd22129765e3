"""A rule in one line, for people who read a list of them."""

import json
import sys
from functools import cache
from typing import cast

from omnigent.events import JSON, PolicyEntry
from omnigent.policies.builtins import BUILTINS

_KINDS = {"exec": "run", "tool": "tool", "spawn": "sub-agents", "message": "messages"}
_ORDER = ("when", "after", "unless", "if", "count", "rate")


def rule_json(entry: PolicyEntry) -> JSON:
    """A rule as the API shows it."""
    rule = cast(JSON, json.loads(entry.content))
    return {"name": entry.name, "scope": entry.scope, "rule": rule, "description": describe(rule)}


def describe(rule: JSON) -> str:
    """`run git push after run npm install: ask (Dependencies changed.)`"""
    made = rule.get("use") or rule.get("function")
    if made:
        parameters = cast(JSON, rule.get("with") or {})
        given = ", ".join(f"{key}: {_value(value)}" for key, value in parameters.items())
        about = rule.get("reason") or (
            _about(rule["use"]) if "use" in rule else "a function of the operator's"
        )
        return f"{made}{f' ({given})' if given else ''}: {about}"
    reason = f" ({rule['reason']})" if rule.get("reason") else ""
    parts = [_part(key, rule[key]) for key in _ORDER if key in rule]
    return f"{' '.join(parts) or 'everything'}: {_outcome(rule)}{reason}"


@cache
def _about(name: str) -> str:
    """What a built-in is for: the first sentence of its file."""
    build = BUILTINS.get(name)
    module = sys.modules.get(getattr(build, "__self__", build).__module__) if build else None
    first = " ".join(((module and module.__doc__) or "").strip().partition("\n\n")[0].split())
    return first.partition(". ")[0].removesuffix(".")


def _part(key: str, value: object) -> str:
    match key:
        case "when":
            return _matcher(cast(JSON, value))
        case "after" | "unless":
            return f"{key} {_matcher(cast(JSON, value))}"
        case "if":
            return f"if {value}"
        case "count":
            return f"after {value} times"
        case _:
            return f"beyond {value}"


def _matcher(given: JSON) -> str:
    found = [_alternative(key, value) for key, value in given.items() if key != "within"]
    within = given.get("within")
    reach = "" if within is None else " in this turn" if within == "turn" else f" within {within}"
    return " or ".join(found) + reach


def _alternative(key: str, value: object) -> str:
    match key:
        case "spend_usd":
            return f"${value} spent"
        case "tokens":
            return f"{value} tokens used"
        case _:
            many = cast(list[object], value) if isinstance(value, list) else [value]
            return f"{_KINDS.get(key, key)} {' | '.join(map(_value, many))}"


def _outcome(rule: JSON) -> str:
    if "rewrite" in rule:
        return f"run {rule['rewrite']} instead"
    if "downgrade" in rule:
        return f"ask {rule['downgrade']} instead"
    who = f", answered by {_value(rule['who'])}" if rule.get("who") else ""
    return f"{rule.get('then', 'ask')}{who}"


def _value(value: object) -> str:
    match value:
        case str():
            return value
        case list():
            return ", ".join(map(_value, cast(list[object], value)))
        case dict():
            given = cast(JSON, value)
            return " ".join(f"{key} {_value(each)}" for key, each in given.items())
        case _:
            return json.dumps(value)
