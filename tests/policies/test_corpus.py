"""The two corpora through the whole decision: the defaults, the engine, a session that has just begun.

`tests/shell/test_corpus.py` looks at the actions; here every evasion has to be asked or denied, and everyday
commands have to pass.
"""

from collections.abc import Sequence
from pathlib import Path

from shell.test_corpus import MOST_ASKS, evasions, everyday, understood
from shell.test_corpus import workspace as workspace  # the fixture

from omnigent import shell
from omnigent.actions import Action, Parsed
from omnigent.policies.contract import Call, Setting, Verdict
from omnigent.policies.engine import decide
from omnigent.policies.folding import TreeProjector


def verdict_on(actions: Sequence[Action], parsed: Parsed, workspace: Path) -> Verdict:
    setting = Setting("s1", at=0, session={"id": "s1", "workspace": str(workspace)})
    return decide(Call("tc_1", tuple(actions), parsed, "shell"), TreeProjector().empty(), setting)


def test_every_evasion_is_asked_or_denied(workspace: Path) -> None:
    passed: list[str] = []
    for entry in evasions():
        actions, parsed = understood(entry, workspace)
        verdict = verdict_on(actions, parsed, workspace)
        if verdict.decision not in ("ask", "deny"):
            passed.append(f"{entry['id']}: {entry.get('text') or entry.get('input')!r} ({entry['note']})")
        assert verdict.decision == "allow" or verdict.reason, entry["id"]
    assert not passed, f"{len(passed)} passed:\n" + "\n".join(passed)


def test_everyday_commands_pass(workspace: Path) -> None:
    asked: list[str] = []
    for group, text in everyday():
        verdict = verdict_on(*shell.understand(text, workspace, workspace), workspace)
        if verdict.decision != "allow":
            asked.append(f"{group}: {text}\n      {verdict.decision}: {verdict.reason}")
    assert len(asked) <= MOST_ASKS, f"{len(asked)} asked:\n" + "\n".join(asked)
