"""How events look on a terminal. Pure."""

import json
import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from omnigent.cli.attach import Lines, State
from omnigent.cli.talk import ago, clean, one_line, table
from omnigent.cli.transcript import Transcript, choices, question_lines
from omnigent.client import Event


class Log:
    """Makes events with rising numbers."""

    def __init__(self) -> None:
        self.seq = 0

    def event(self, kind: str, item: str | None = None, **body: Any) -> Event:
        self.seq += 1
        return {
            "seq": self.seq, "at": 0, "kind": kind, "session_id": "ses_1", "item_id": item, "turn_id": None,
            "actor": {"kind": "person", "id": "laptop", "via": "cli"}, "cause": None, "body": body,
        }  # fmt: skip


def said(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def delta(item: str, offset: int, text: str, stream: str = "text") -> dict[str, Any]:
    return {"item_id": item, "stream": stream, "offset": offset, "text": text}


TEXTS = st.text(string.ascii_letters + " \n🙂é", min_size=1, max_size=40)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8))
def test_any_deltas_and_the_completion_show_the_text_once(text: str, cuts: list[tuple[int, int]]) -> None:
    """Repeated, overlapping and missing pieces (a reconnect) change nothing in the end."""
    transcript, log = Transcript(), Log()
    shown = ""
    for start, end in cuts:
        shown += transcript.delta(delta("msg_1", start, text[start:end]))
    shown += transcript.event(log.event("message.completed", "msg_1", content=said(text), status="complete"))
    assert shown.rstrip("\n") == text.rstrip("\n")


def test_a_turn_reads_like_a_conversation() -> None:
    transcript, log = Transcript(), Log()
    event = log.event
    action = {"title": "npm test", "reason": "shell commands ask"}
    output = {"text": "2 passed\n"}
    shown = "".join(
        [
            transcript.event(event("message.submitted", "msg_1", content=said("run the tests"))),
            transcript.event(event("turn.started")),
            transcript.delta(delta("msg_2", 0, "I'll run ")),
            transcript.delta(delta("msg_2", 9, "them.")),
            transcript.event(event("tool.requested", "tc_1", tool="Bash", title="npm test")),
            transcript.event(event("approval.requested", "ap_1", **action)),
            transcript.event(event("approval.resolved", "ap_1", outcome="allowed", grant={"scope": "once"})),
            transcript.event(event("tool.started", "tc_1")),
            transcript.event(event("tool.completed", "tc_1", outcome="ok", output=output, duration_ms=1234)),
            transcript.event(
                event("message.completed", "msg_2", content=said("I'll run them."), status="complete")
            ),
            transcript.event(event("turn.completed")),
        ]
    )
    assert shown == (
        "> run the tests\n"
        "I'll run them.\n"
        "● Bash  npm test\n"
        "? ap_1 asks: npm test  (shell commands ask)\n"
        "  allowed by laptop (cli)\n"
        "  │ 2 passed\n"
        "  └ ok · 1.2 s\n"
    )


def test_denied_failed_interrupted_and_switched_are_named() -> None:
    transcript, log = Transcript(), Log()
    event = log.event
    shown = "".join(
        map(
            transcript.event,
            [
                event("tool.completed", "tc_1", outcome="denied", reason="not here", output={"text": ""}),
                event("tool.completed", "tc_2", outcome="error", exit_code=3, output={"text": ""}),
                event("turn.failed", code="agent_exited", detail="it crashed", stderr_tail="boom\n"),
                event("turn.interrupted", how="kill"),
                event("message.failed", "msg_1", code="delivery_unknown", detail=""),
                event("approval.resolved", "ap_1", outcome="cancelled", cancelled_by="interrupted"),
                event(
                    "harness.changed",
                    None,
                    **{
                        "from": "codex",
                        "to": "pi",
                        "carried": {"how": "seeded", "messages": 4, "dropped": ["images"]},
                    },
                ),
                event("future.kind", anything=1),
            ],
        )
    )
    assert shown == (
        "  └ denied · not here\n"
        "  └ exit 3\n"
        "✗ turn failed (agent_exited): it crashed\nboom\n"
        "■ interrupted (the agent was ended)\n"
        "✗ not delivered (delivery_unknown)\n"
        "  cancelled (interrupted)\n"
        "— codex → pi (4 messages, 0 tool calls carried, seeded; left behind: images)\n"
    )


def test_long_output_is_cut_unless_it_is_asked_for() -> None:
    body = {"outcome": "ok", "output": {"text": "".join(f"line {n}\n" for n in range(100))}}
    short = Transcript().event(Log().event("tool.completed", "tc_1", **body))
    full = Transcript(full=True).event(Log().event("tool.completed", "tc_1", **body))
    assert "line 7\n" in short
    assert "… 89 more lines …" in short
    assert short.count("\n") == 13
    assert full.count("\n") == 101


def test_nothing_an_agent_writes_moves_the_cursor() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;AAAA\x1b\\a\rb\x08c\x9b31m"
    assert clean(hostile) == "abc31m"
    event = Log().event("message.completed", "msg_1", content=said(hostile), status="complete")
    assert "\x1b" not in Transcript().event(event)
    requested = Log().event("tool.requested", "tc_1", tool="Bash", title=hostile)
    assert "\x1b" not in Transcript().event(requested)


QUESTION = {"question": "Which?", "options": [{"label": "red"}, {"label": "blue", "description": "calm"}]}


def test_choices_take_numbers_and_own_words() -> None:
    several = {**QUESTION, "multiple": True}
    assert choices(QUESTION, "2") == ["blue"]
    assert choices(several, "2, 1") == ["blue", "red"]
    assert choices(QUESTION, "3") == ["3"]
    assert choices(QUESTION, "green, please") == ["green, please"]
    assert choices({"question": "How many?"}, "2") == ["2"]


def test_questions_number_their_options() -> None:
    assert question_lines("q_1", [QUESTION]) == ["? q_1 asks: Which?", "    1. red", "    2. blue  calm"]


def test_state_settles_only_when_nothing_more_comes_by_itself() -> None:
    log, state = Log(), State(head=0)
    assert state.settled
    state.head = 1  # a command was answered with seq 1, which hasn't been seen
    assert not state.settled
    state.take(log.event("message.submitted", "msg_1"))
    assert not state.settled, "its turn hasn't begun"
    state.take(log.event("turn.started", message_id="msg_1"))
    state.take(log.event("approval.requested", "ap_1", title="x"))
    assert state.settled
    assert list(state.open) == ["ap_1"]
    state.take(log.event("approval.resolved", "ap_1", outcome="allowed"))
    assert not state.settled
    state.take(log.event("turn.completed"))
    assert state.settled
    assert state.outcome == "completed"


def test_a_queued_message_keeps_the_state_unsettled_after_the_turn_before() -> None:
    log, state = Log(), State(head=0)
    state.take(log.event("turn.started", message_id="msg_1"))
    state.take(log.event("message.submitted", "msg_2"))
    state.take(log.event("turn.completed"))
    assert not state.settled
    state.take(log.event("message.cancelled", "msg_2"))
    assert state.settled


def test_table_fits_its_room_and_stays_on_its_lines() -> None:
    lines = table(("ID", "TITLE"), [("ses_1", "two\nlines " + "x" * 100)], 40)
    assert lines[0] == "ID     TITLE"
    assert lines[1].startswith("ses_1  two lines xxx")
    assert all(len(line) <= 40 for line in lines)


def test_ago_uses_one_unit() -> None:
    now = 100 * 86_400_000
    assert [ago(now - ms, now) for ms in (-5, 59_000, 61_000, 7_200_000, 3 * 86_400_000)] == [
        "0s",
        "59s",
        "1m",
        "2h",
        "3d",
    ]


def test_one_line_is_one_line() -> None:
    assert one_line("a\n\tb  c") == "a b c"
    assert len(one_line("x" * 500, 50)) == 50


def test_lines_wait_for_their_end(tmp_path: Any) -> None:
    path = tmp_path / "typed"
    path.write_bytes("eins\nzwei grü".encode()[:-1])
    with path.open("rb") as opened:
        lines = Lines(opened.fileno())
        lines.fill()
        assert (lines.take(), lines.take(), lines.ended) == ("eins", None, False)
        lines.fill()
        assert lines.ended
        assert json.dumps(lines.take())
