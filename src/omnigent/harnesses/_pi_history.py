"""Pi's session file: written to seed a conversation, read to see what it holds.

JSON lines: a header, then entries, each naming its parent. The format is version 3 (0.85 to 0.87), and Pi
appends to a file that it was started with at once, but to one of its own only after the first answer;
therefore every session starts from a file of ours.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omnigent.events import JSON, Carried
from omnigent.history import AssistantMessage, Entry, History, ToolCall, UserMessage

NOTE = "omnigent-gate"
"""The type of the entry that our gate writes after each of our messages, with the message's id."""

ROOM = 480_000
"""Characters of a history that surely fit into the context (200,000 tokens, some of them for the answer)."""

_EPOCH = "1970-01-01T00:00:00.000Z"
_NO_USAGE: JSON = {
    "input": 0,
    "output": 0,
    "cacheRead": 0,
    "cacheWrite": 0,
    "totalTokens": 0,
    "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0, "total": 0},
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom the seeded answers are ascribed to."""

    api: str
    provider: str
    model: str


def fit(history: History, room: int = ROOM) -> tuple[History, tuple[str, ...]]:
    """The newest entries that fit, from a user message on, and a line for people on what was left."""
    used, first = 0, len(history.entries)
    for index in range(len(history.entries) - 1, -1, -1):
        used += _size(history.entries[index])
        if used > room:
            break
        first = index
    while 0 < first < len(history.entries) and not isinstance(history.entries[first], UserMessage):
        first += 1
    if first == 0:
        return history, ()
    kept = history.entries[first:]
    return History(entries=kept), (f"The oldest {first} entries: the context has no room for them.",)


def carried(history: History) -> Carried:
    """What `seed` takes along."""
    kept, dropped = fit(history)
    users = [entry for entry in kept.entries if isinstance(entry, UserMessage)]
    calls = sum(isinstance(entry, ToolCall) for entry in kept.entries)
    return Carried(
        how="seeded",
        messages=len(kept.entries) - calls,
        tool_calls=calls,
        images=sum(len(user.images) for user in users),
        dropped=dropped,
    )


def seed(file: Path, cwd: Path, history: History, origin: Origin) -> None:
    """Write the session file that `--session` starts from."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header: JSON = {"type": "session", "version": 3, "id": file.stem, "timestamp": _EPOCH, "cwd": str(cwd)}
    lines = [header]
    parent: str | None = None
    for number, message in enumerate(_messages(fit(history)[0], origin)):
        entry = hashlib.sha256(f"{file.stem} {number}".encode()).hexdigest()[:8]
        lines.append(
            {"type": "message", "id": entry, "parentId": parent, "timestamp": _EPOCH, "message": message}
        )
        parent = entry
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def mend(file: Path, cwd: Path) -> None:
    """Drop a line that a killed Pi didn't finish (it would spoil the next); follow a moved workspace."""
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    head, _, rest = whole.partition(b"\n")
    header: JSON = json.loads(head or b"{}")
    if header.get("cwd") != str(cwd):
        whole = json.dumps(header | {"cwd": str(cwd)}).encode() + b"\n" + rest
    if whole != data:
        file.write_bytes(whole)


def holds(file: Path, message_id: str, text: str) -> bool:
    """Whether the file has this message: by its note, or as a last user message that was not noted yet."""
    unnoted = ""
    for entry in _entries(file):
        if entry.get("type") == "custom" and entry.get("customType") == NOTE:
            data = cast(JSON, entry.get("data") or {})
            if data.get("message") == message_id:
                return True
            unnoted = ""
        elif entry.get("type") == "message":
            message = cast(JSON, entry["message"])
            if message.get("role") == "user":
                unnoted = _plain(message.get("content"))
    return bool(unnoted) and unnoted == text


def _entries(file: Path) -> Iterator[JSON]:
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                entry: object = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            if isinstance(entry, dict):
                yield cast(JSON, entry)


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = cast(list[JSON], content or [])
    return "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")


def _size(entry: Entry) -> int:
    match entry:
        case ToolCall():
            return len(entry.input) + len(entry.output)
        case UserMessage():
            return len(entry.text) + 6000 * len(entry.images)
        case AssistantMessage():
            return len(entry.text)


@dataclass(slots=True)
class _Answer:
    """An assistant message being gathered: texts and calls, then the calls' results."""

    content: list[JSON] = field(default_factory=list[JSON])
    results: list[JSON] = field(default_factory=list[JSON])

    def flush(self, origin: Origin) -> Iterator[JSON]:
        if self.content:
            yield {
                "role": "assistant",
                "content": self.content,
                "api": origin.api,
                "provider": origin.provider,
                "model": origin.model,
                "usage": _NO_USAGE,
                "stopReason": "toolUse" if self.results else "stop",
                "timestamp": 0,
            }
            yield from self.results
        self.content, self.results = [], []


def _messages(history: History, origin: Origin) -> Iterator[JSON]:
    answer = _Answer()
    for entry in history.entries:
        match entry:
            case UserMessage():
                yield from answer.flush(origin)
                yield {"role": "user", "content": _user(entry), "timestamp": 0}
            case AssistantMessage():
                if answer.results:
                    yield from answer.flush(origin)
                if entry.text.strip():
                    answer.content.append({"type": "text", "text": entry.text})
            case ToolCall():
                answer.content.append(_call(entry))
                answer.results.append(_result(entry))
    yield from answer.flush(origin)


def _user(entry: UserMessage) -> list[JSON]:
    images: list[JSON] = [
        {"type": "image", "data": image.data, "mimeType": image.media_type} for image in entry.images
    ]
    return ([{"type": "text", "text": entry.text}] if entry.text or not images else []) + images


def _call(entry: ToolCall) -> JSON:
    return {
        "type": "toolCall",
        "id": entry.call_id,
        "name": entry.tool,
        "arguments": json.loads(entry.input or "{}"),
    }


def _result(entry: ToolCall) -> JSON:
    return {
        "role": "toolResult",
        "toolCallId": entry.call_id,
        "toolName": entry.tool,
        "content": [{"type": "text", "text": entry.output or f"({entry.outcome}, no output)"}],
        "isError": entry.outcome != "ok",
        "timestamp": 0,
    }
