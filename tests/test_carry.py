"""What an agent that starts anew is told, and what is left out where it doesn't fit."""

import base64
import json
from typing import Any

from omnigent.carry import SHORT_OUTPUT, fit, history_of
from omnigent.events import JSON
from omnigent.history import AssistantMessage, Entry, History, ToolCall, UserMessage

BLOBS = {"b1": b"the whole output", "img": b"png"}


def user(text: str, status: str = "delivered", **more: Any) -> JSON:
    content: list[JSON] = [{"type": "text", "text": text}, *more.pop("parts", [])]
    return {"type": "message", "role": "user", "status": status, "content": content, "turn_id": "t", **more}


def assistant(text: str, status: str = "complete") -> JSON:
    content = [{"type": "text", "text": text}] if text else []
    return {"type": "message", "role": "assistant", "status": status, "content": content, "turn_id": "t"}


def call(status: str = "ok", raw: str = '{"command":"ls"}', **more: Any) -> JSON:
    return {
        "type": "tool_call",
        "id": "tc_1",
        "tool": "bash",
        "raw": raw,
        "status": status,
        "turn_id": "t",
        **more,
    }


def told(*items: JSON) -> tuple[Entry, ...]:
    return history_of(items, lambda name: BLOBS[name]).entries


def test_only_what_was_said_and_done_is_told() -> None:
    entries = told(
        user("hello"),
        {"type": "reasoning", "text": "hm", "turn_id": "t"},
        assistant("hi"),
        assistant(""),
        call(output={"text": "a.txt"}),
        {"type": "notice", "code": "x", "turn_id": "t"},
        user("never delivered", "failed"),
        user("waiting", "queued"),
        user("taken back", "cancelled"),
    )
    assert [type(entry) for entry in entries] == [UserMessage, AssistantMessage, ToolCall]


def test_no_call_dangles() -> None:
    words: dict[str, str] = {}
    for status in ("running", "held", "unknown", "cancelled", "denied"):
        (entry,) = told(call(status))
        assert isinstance(entry, ToolCall)
        words[status] = entry.outcome
        assert entry.output
    assert words["running"] == words["held"] == "unknown"
    assert (words["cancelled"], words["denied"]) == ("cancelled", "denied")
    (entry,) = told(call("denied", reason="not today"))
    assert isinstance(entry, ToolCall) and entry.output == "not today"


def test_a_long_output_is_told_whole_and_an_image_as_bytes() -> None:
    (entry,) = told(call(output={"text": "the wh", "blob": "b1"}))
    assert isinstance(entry, ToolCall) and entry.output == "the whole output"
    image = {"type": "image", "media_type": "image/png", "blob": "img"}
    (message,) = told(user("look", parts=[image]))
    assert isinstance(message, UserMessage)
    assert base64.b64decode(message.images[0].data) == b"png"


def test_an_input_that_is_no_object_becomes_one() -> None:
    for raw in ("ls -l", "[1]", '"x"', ""):
        (entry,) = told(call(raw=raw))
        assert isinstance(entry, ToolCall) and json.loads(entry.input) == {"input": raw}


def history(turns: int, output: int = 0, text: int = 10) -> History:
    entries: list[Entry] = []
    for number in range(turns):
        entries.append(UserMessage(text=f"question {number} " + "x" * text))
        if output:
            entries.append(
                ToolCall(call_id=f"tc_{number}", tool="bash", input="{}", output="o" * output, outcome="ok")
            )
        entries.append(AssistantMessage(text=f"answer {number}"))
    return History(entries=tuple(entries))


def test_what_fits_is_left_alone() -> None:
    whole = history(5)
    assert fit(whole, 200_000) == (whole, [])


def test_long_outputs_are_cut_before_any_turn_is_dropped_oldest_first() -> None:
    kept, dropped = fit(history(4, output=20_000), 20_000)
    outputs = [len(entry.output) for entry in kept.entries if isinstance(entry, ToolCall)]
    assert len(outputs) == 4 and outputs == sorted(outputs)
    assert outputs[0] < SHORT_OUTPUT * 2 and outputs[-1] == 20_000
    assert all("characters of bash's output" in line for line in dropped)


def test_then_whole_turns_are_dropped_oldest_first_and_said() -> None:
    kept, dropped = fit(history(50, text=1000), 5_000)
    first = kept.entries[0]
    assert isinstance(first, UserMessage)
    number = int(first.text.split()[1])
    assert len(dropped) == number > 0
    last = kept.entries[-1]
    assert isinstance(last, AssistantMessage) and last.text == "answer 49"
    assert len(kept.entries) == 2 * (50 - number)
