"""The one decision: may this tool call run?

Until the policy language comes there is one built-in rule set. A file write inside the workspace passes; a
shell command, a write elsewhere, a request to the network and an MCP call ask; what isn't understood is
doubt, and doubt asks. `--yes` allows all; `--no-ask` turns every ask into a deny, because nobody will answer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Message, Net, Spawn, Unknown
from omnigent.events import Approvals, ToolRequested, canonical, sha256

Decision = Literal["allow", "ask", "deny"]

_STRICTNESS: dict[Decision, int] = {"allow": 0, "ask": 1, "deny": 2}


@dataclass(frozen=True, slots=True)
class Verdict:
    decision: Decision
    rule_ids: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """What a decision may depend on: a fold of the log, nothing else."""

    approvals: Approvals
    grants: Collection[str] = ()
    """Digests of actions a person allowed for the session."""


def digest(actions: Sequence[Action]) -> str:
    """Names exactly this call's actions: what a grant is bound to."""
    return sha256(canonical([action.model_dump(mode="json") for action in actions]))


def decide(call: ToolRequested, state: State) -> Verdict:
    """The strictest verdict over the call's actions, then the session's approvals mode and grants."""
    verdicts = [_judge(action) for action in call.actions]
    if not verdicts or call.parsed != "full":
        verdicts.append(Verdict("ask", ("builtin.doubt",), f"{call.tool} isn't fully understood."))
    verdict = max(verdicts, key=lambda v: _STRICTNESS[v.decision])
    if verdict.decision != "ask" or digest(call.actions) in state.grants:
        return verdict if verdict.decision == "deny" else Verdict("allow")
    match state.approvals:
        case "yes":
            return Verdict("allow")
        case "deny":
            return Verdict("deny", verdict.rule_ids, f"{verdict.reason} Nobody can be asked in this session.")
        case "ask":
            return verdict
        case _:
            assert_never(state.approvals)


def _judge(action: Action) -> Verdict:
    match action:
        case Exec():
            return Verdict("ask", ("builtin.exec",), "A shell command needs approval.")
        case FileWrite(in_workspace=True) | FileRead() | Spawn() | Message():
            return Verdict("allow")
        case FileWrite():
            return Verdict("ask", ("builtin.write",), f"{action.path} lies outside the workspace.")
        case Net():
            return Verdict("ask", ("builtin.net",), "A network request needs approval.")
        case Mcp():
            return Verdict("ask", ("builtin.mcp",), "An MCP call needs approval.")
        case Unknown():
            return Verdict("ask", ("builtin.doubt",), f"{action.tool} isn't in the tool inventory.")
        case _:
            assert_never(action)
