"""What Codex keeps and is given: the items a history is seeded as, and the rollout file it writes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from omnigent.events import JSON, Carried
from omnigent.history import AssistantMessage, History, Image, ToolCall, UserMessage

_BAD = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64
"""What the Responses API takes as a tool's name or a call's id."""


def items_of(history: History) -> list[JSON]:
    """Items for `thread/inject_items`, as the Responses API has them, each call followed by its output."""
    return list(_items(history))


def carried(history: History) -> Carried:
    users = [entry for entry in history.entries if isinstance(entry, UserMessage)]
    calls = sum(isinstance(entry, ToolCall) for entry in history.entries)
    return Carried(
        how="seeded",
        messages=len(history.entries) - calls,
        tool_calls=calls,
        images=sum(len(user.images) for user in users),
    )


def longest_output(history: History) -> int:
    """Tokens, as Codex counts them (4 bytes each), of the longest output, and a few to spare."""
    sizes = [len(entry.output.encode()) for entry in history.entries if isinstance(entry, ToolCall)]
    return max(sizes, default=0) // 4 + 100


def data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{image.data}"


def rollout(private: Path, thread: str) -> Path | None:
    """The file of a thread: `sessions/YYYY/MM/DD/rollout-<time>-<thread>.jsonl`."""
    found = sorted((private / "codex" / "sessions").glob(f"*/*/*/rollout-*-{thread}.jsonl"))
    return found[-1] if found else None


def holds(file: Path, message_id: str) -> bool:
    """Whether a user message with our id (its `client_id`) was recorded."""
    with file.open("rb") as lines:
        return any(_is_message(line, message_id) for line in lines if message_id.encode() in line)


def _is_message(line: bytes, message_id: str) -> bool:
    try:
        payload = json.loads(line)["payload"]
    except (ValueError, KeyError, TypeError):
        return False  # torn by a kill
    item = payload.get("item") or payload
    return bool(item.get("client_id") == message_id or item.get("clientId") == message_id)


def _items(history: History) -> Iterator[JSON]:
    for entry in history.entries:
        match entry:
            case UserMessage():
                content: list[JSON] = [{"type": "input_text", "text": entry.text}] if entry.text else []
                content += [{"type": "input_image", "image_url": data_url(image)} for image in entry.images]
                if content:
                    yield {"type": "message", "role": "user", "content": content}
            case AssistantMessage():
                if entry.text:
                    part = {"type": "output_text", "text": entry.text}
                    yield {"type": "message", "role": "assistant", "content": [part]}
            case ToolCall():
                call_id = _name(entry.call_id)
                yield {
                    "type": "function_call",
                    "call_id": call_id,
                    "name": _name(entry.tool),
                    "arguments": entry.input or "{}",
                }
                output = entry.output or f"({entry.outcome}, no output)"
                yield {"type": "function_call_output", "call_id": call_id, "output": output}


def _name(text: str) -> str:
    return _BAD.sub("_", text)[:_LONGEST_NAME] or "unknown"
