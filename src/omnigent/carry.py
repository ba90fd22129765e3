"""What an agent that starts anew is told: the session's items as a vendor-free history, trimmed to fit."""

import base64
import json
from collections.abc import Callable, Iterable
from typing import cast

from omnigent.events import JSON, Outcome
from omnigent.history import AssistantMessage, Entry, History, Image, ToolCall, UserMessage

CHARS_PER_TOKEN = 4
"""A rough and safe reading of English and code; only for deciding what fits."""
SHARE = 0.7
"""How much of the context window a history may take: the rest is for instructions, tools and the answer."""
IMAGE_TOKENS = 1600
SHORT_OUTPUT = 4_000
"""Code points a tool output is cut to before whole turns are dropped."""

GetBlob = Callable[[str], bytes]


def history_of(items: Iterable[JSON], blob: GetBlob) -> History:
    """Delivered messages, answers and calls with their results, in order.

    No reasoning, no notices; a call that never ended is closed with a word, so that none dangles.
    """
    entries: list[Entry] = []
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "user" and item.get("status") == "delivered":
                entries.append(_user(item, blob))
            case "message" if item["role"] == "assistant":
                if text := _text(item["content"]):
                    entries.append(AssistantMessage(text=text, turn_id=item["turn_id"]))
            case "tool_call":
                entries.append(_call(item, blob))
            case _:
                pass
    return History(entries=tuple(entries))


def fit(history: History, context_tokens: int) -> tuple[History, list[str]]:
    """The history cut to its share of the context, and one line per thing left out.

    Long outputs are shortened first, oldest first; then whole turns are dropped, oldest first.
    """
    limit = int(context_tokens * SHARE)
    entries = list(history.entries)
    sizes = [_tokens(entry) for entry in entries]
    total = sum(sizes)
    dropped: list[str] = []
    for index, entry in enumerate(entries):
        if total <= limit:
            break
        if isinstance(entry, ToolCall) and len(entry.output) > SHORT_OUTPUT:
            short = entry.model_copy(update={"output": _shortened(entry.output)})
            dropped.append(f"{len(entry.output) - len(short.output)} characters of {entry.tool}'s output")
            entries[index] = short
            total += _tokens(short) - sizes[index]
            sizes[index] = _tokens(short)
    while total > limit and (end := _first_turn(entries)) < len(entries):
        dropped.append(_described(entries[:end]))
        total -= sum(sizes[:end])
        del entries[:end], sizes[:end]
    return History(entries=tuple(entries)), dropped


def _user(item: JSON, blob: GetBlob) -> UserMessage:
    parts = cast(list[JSON], item["content"])
    images = tuple(
        Image(media_type=part["media_type"], data=base64.b64encode(blob(part["blob"])).decode())
        for part in parts
        if part["type"] == "image"
    )
    return UserMessage(text=_text(parts), images=images, turn_id=item["turn_id"])


def _call(item: JSON, blob: GetBlob) -> ToolCall:
    output: JSON = item.get("output") or {}
    text: str = (
        blob(output["blob"]).decode(errors="replace") if output.get("blob") else output.get("text", "")
    )
    status: str = item["status"]
    outcome: Outcome = status if status in ("ok", "error", "denied", "cancelled") else "unknown"
    if not text:
        text = item.get("reason") or _WORDS.get(outcome, "")
    raw: str = item["raw"]
    return ToolCall(
        call_id=item["id"],
        tool=item["tool"],
        input=raw if _is_object(raw) else json.dumps({"input": raw}),
        output=text,
        outcome=outcome,
        turn_id=item["turn_id"],
    )


_WORDS = {
    "denied": "Denied.",
    "cancelled": "Interrupted before it ended.",
    "unknown": "Interrupted; whether it ended isn't known.",
}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _text(content: list[JSON]) -> str:
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _tokens(entry: Entry) -> int:
    match entry:
        case UserMessage():
            return len(entry.text) // CHARS_PER_TOKEN + len(entry.images) * IMAGE_TOKENS + 8
        case AssistantMessage():
            return len(entry.text) // CHARS_PER_TOKEN + 8
        case ToolCall():
            return (len(entry.input) + len(entry.output)) // CHARS_PER_TOKEN + 16


def _shortened(text: str) -> str:
    half = SHORT_OUTPUT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def _first_turn(entries: list[Entry]) -> int:
    """The end of the oldest turn: where the second user message begins."""
    for index, entry in enumerate(entries):
        if index and isinstance(entry, UserMessage):
            return index
    return len(entries)


def _described(entries: list[Entry]) -> str:
    first = entries[0].text if not isinstance(entries[0], ToolCall) else entries[0].tool
    calls = sum(isinstance(entry, ToolCall) for entry in entries)
    return f"a turn of {len(entries) - calls} messages and {calls} tool calls: {first[:60]!r}"
