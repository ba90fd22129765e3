"""Which of these tests run on the real agents in CI, and which only when asked for (`./dev control`).

Everything runs on the scripted agent. The matrix of verdicts and the faults run on the real ones in CI too;
of the others those in which an agent of its own kind could make a difference.
"""

import pytest

REAL = ("claude-code", "codex", "pi")
IN_CI = (
    "test_matrix.py",
    "test_faults.py",
    # The mission.
    "-direct]",
    "-compound]",
    "-known-to-have-failed]",
    "-turn-1-and-turn-5]",
    "-two-parallel-calls]",
    "-after-a-restart]",
    "-after-a-switch]",
    "test_pause_at_three_dollars",
    # Approvals and pauses.
    "test_server_killed_while_held",
    "the_answer_revives_the_agent",
    "test_two_answers_at_the_same_instant",
    "test_an_edited_command_runs_instead",
    "test_three_identical_denied_calls",
    "-nothing]",
    "test_what_nobody_paid_for",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/control/" not in item.nodeid or not any(name in item.nodeid for name in REAL):
            continue
        if not any(part in item.nodeid for part in IN_CI):
            item.add_marker(pytest.mark.endurance)
