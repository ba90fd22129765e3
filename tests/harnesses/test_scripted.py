"""The scripted agent under the suite: the same cases as the real agents."""

import json
from pathlib import Path

import pytest

from omnigent.events import TurnFailed, TurnInterrupted
from omnigent.harnesses import Binary, Emit, Exited, Input, Interrupt, Launch, Raw, StartTurn
from omnigent.harnesses.scripted import Scripted
from omnigent.ids import new_id
from omnigent.testing.harness_suite import RESULTS, HarnessSuite, capabilities_markdown, read_results


@pytest.mark.slow
class TestScripted(HarnessSuite):
    harness = "scripted"
    expected_file = Path(__file__).with_name("expected_capabilities.json")


def end_of(tmp_path: Path, *inputs: Input) -> TurnFailed | TurnInterrupted | None:
    """How a turn ends that got these inputs before the process ended."""
    binary = Binary("scripted", ("agent",), "1", "builtin", in_range=True)
    launch = Launch(
        "ses_1", "run_1", tmp_path, tmp_path, binary, None, "anthropic-messages", "url", "key", {}
    )
    translator = Scripted().translator(launch, new_id)
    outputs = [out for given in (*inputs, Exited(9, "stderr")) for out in translator.step(given)]
    bodies = [out.body for out in outputs if isinstance(out, Emit)]
    return next((body for body in bodies if isinstance(body, TurnFailed | TurnInterrupted)), None)


def test_an_exit_ends_the_turn_by_what_was_asked(tmp_path: Path) -> None:
    start = StartTurn("turn_1", "msg_1", ())
    assert end_of(tmp_path) is None
    assert end_of(tmp_path, start, Interrupt()) == TurnInterrupted(how="kill")
    ended = end_of(tmp_path, start, Raw({"type": "news"}), Raw({}))
    assert isinstance(ended, TurnFailed)
    assert (ended.code, ended.stderr_tail) == ("agent_exited", "stderr")


def test_a_message_is_found_in_the_transcript(tmp_path: Path) -> None:
    folder = tmp_path / "transcripts"
    folder.mkdir()
    lines = [{"role": "user", "id": "msg_1,msg_2"}, {"role": "assistant"}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"role": "user", "id": "msg_3"'
    (folder / "ref.jsonl").write_text(text)
    held = [Scripted().holds("ref", tmp_path, f"msg_{n}", "") for n in (1, 2, 3, 4)]
    assert held == [True, True, False, False]
    assert not Scripted().holds("other", tmp_path, "msg_1", "")


def test_the_matrix_is_made_of_what_the_cases_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESULTS, str(tmp_path))
    suite = TestScripted()
    suite.record("steer", "yes")
    suite.record("images_reach_the_model", "failed")
    suite.record("a_subagents_call_is_gated", "no")
    suite.record("ping", "yes")
    rows = capabilities_markdown(read_results(tmp_path)).splitlines()
    assert rows[:2] == ["| | scripted 1.0.0 |", "|---|---|"]
    for row in ("| steers | yes |", "| images | failed |", "| subagents | no |", "| resumes | - |"):
        assert row in rows
