"""Claude Code's transcripts: written to seed a conversation, read to find a message.

A transcript is `CONFIG/projects/<cwd, every non-alphanumeric a dash>/<session>.jsonl`, a line per
message, each naming the one before (seen on 2.1.330, with which `--resume` takes what is written here).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from uuid import UUID, uuid5

from omnigent.events import JSON, Carried
from omnigent.harnesses._claude_tools import objects, text
from omnigent.history import AssistantMessage, History, Image, ToolCall, UserMessage

NAMESPACE = UUID("6f6d6e69-6765-4e74-8000-636c61756465")
_ATTEMPTS = 8
_TIMESTAMP = "2026-01-01T00:00:00.000Z"


def planted_id(message_id: str, attempt: int = 0) -> str:
    """The uuid a message is sent under. Claude drops a second message of the same uuid, hence `attempt`."""
    return str(uuid5(NAMESPACE, f"{message_id}/{attempt}"))


def directory(config: Path, cwd: Path) -> Path:
    """Where Claude keeps the transcripts of a working directory (which it resolves first)."""
    return config / "projects" / re.sub(r"[^A-Za-z0-9]", "-", str(cwd.resolve()))


def holds(config: Path, session: str, message_id: str, words: str) -> bool:
    """Whether the transcript has the message: under an id we planted, or as the last thing a person said."""
    planted = {planted_id(message_id, attempt) for attempt in range(_ATTEMPTS)}
    last = ""
    for path in config.glob(f"projects/*/{session}.jsonl"):
        for line in _lines(path):
            attachment = line.get("attachment")
            taken = text(cast(JSON, attachment), "source_uuid") if isinstance(attachment, dict) else ""
            if text(line, "uuid") in planted or taken in planted:
                return True
            last = _said(line) or last
    return bool(words) and last.strip() == words.strip()


def _lines(path: Path) -> Iterator[JSON]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # the last line of a killed process may be half a line
            if isinstance(value, dict):
                yield cast(JSON, value)


def _said(line: JSON) -> str:
    if line.get("type") != "user" or line.get("isMeta") or line.get("isSidechain"):
        return ""
    message = line.get("message")
    content = cast(JSON, message).get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    return "\n".join(text(block, "text") for block in objects(content) if block.get("type") == "text")


def seed(config: Path, cwd: Path, session: str, history: History, version: str) -> None:
    """Write the history as the transcript of a session that can be resumed."""
    folder = directory(config, cwd)
    folder.mkdir(parents=True, exist_ok=True)
    parent: str | None = None
    lines: list[str] = []
    for number, message in enumerate(_messages(history)):
        uuid = str(uuid5(NAMESPACE, f"{session}/seed/{number}"))
        line = {
            "parentUuid": parent,
            "isSidechain": False,
            "type": message["role"],
            "message": message,
            "uuid": uuid,
            "timestamp": _TIMESTAMP,
            "cwd": str(cwd.resolve()),
            "sessionId": session,
            "version": version,
            "userType": "external",
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        parent = uuid
    (folder / f"{session}.jsonl").write_text("".join(lines), encoding="utf-8")


def carried(history: History) -> Carried:
    """What `seed` takes along: all of it."""
    entries = history.entries
    return Carried(
        how="seeded",
        messages=sum(not isinstance(entry, ToolCall) for entry in entries),
        tool_calls=sum(isinstance(entry, ToolCall) for entry in entries),
        images=sum(len(entry.images) for entry in entries if isinstance(entry, UserMessage)),
    )


def _messages(history: History) -> Iterator[JSON]:
    """As the Messages API has it: what the assistant said and called is one message, its result the next.

    Each call gets a pair of its own, as it isn't known which were made at once.
    """
    said: list[JSON] = []
    results: list[JSON] = []
    count = 0
    for entry in history.entries:
        if results or isinstance(entry, UserMessage):
            yield from _turn(said, results, count)
            count += 1
            said, results = [], []
        match entry:
            case UserMessage():
                if blocks := _spoken(entry):
                    yield {"role": "user", "content": blocks}
            case AssistantMessage():
                if entry.text.strip():
                    said.append({"type": "text", "text": entry.text})
            case ToolCall():
                call_id = re.sub(r"[^A-Za-z0-9_-]", "_", entry.call_id)
                said.append(
                    {"type": "tool_use", "id": call_id, "name": _name(entry.tool), "input": _input(entry)}
                )
                results.append(_result(entry, call_id))
    yield from _turn(said, results, count)


def _turn(said: list[JSON], results: list[JSON], count: int) -> Iterator[JSON]:
    if said:
        yield {
            "role": "assistant",
            "content": said,
            "id": f"msg_seed_{count}",
            "type": "message",
            "model": "seeded",
            "stop_reason": "tool_use" if results else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
    if results:
        yield {"role": "user", "content": results}


def _spoken(entry: UserMessage) -> list[JSON]:
    blocks: list[JSON] = [{"type": "text", "text": entry.text}] if entry.text.strip() else []
    return blocks + [image_block(image) for image in entry.images]


def image_block(image: Image) -> JSON:
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": image.media_type, "data": image.data},
    }


def _name(tool: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", tool)[:128] or "tool"


def _input(entry: ToolCall) -> JSON:
    try:
        value = json.loads(entry.input)
    except ValueError:
        value = None
    return cast(JSON, value) if isinstance(value, dict) else {"input": entry.input}


def _result(entry: ToolCall, call_id: str) -> JSON:
    output = entry.output if entry.output.strip() else f"({entry.outcome}, no output)"
    result: JSON = {"type": "tool_result", "tool_use_id": call_id, "content": output}
    return result if entry.outcome == "ok" else result | {"is_error": True}
