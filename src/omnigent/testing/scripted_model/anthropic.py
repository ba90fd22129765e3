"""The Anthropic Messages wire."""

import json
import re
from collections.abc import Iterator
from typing import Any

from .conversation import (
    Conversation,
    Item,
    Json,
    Offer,
    as_dict,
    as_list,
    as_str,
    block_text,
    count_images,
    flatten,
    mark_steering,
    split_user_text,
    system_text,
)
from .reply import Call, Frame, Refusal, Reply, event, new_id, pieces, refuse, sign

TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read(body: Json) -> Conversation:
    items: list[Item] = []
    if system := flatten(body.get("system")):
        items.append(Item("system", "text", system))
    messages = [as_dict(message) for message in as_list(body.get("messages"))]
    for message in messages:
        items += read_message(message)
    offers = [
        Offer(
            name=as_str(tool.get("name")),
            bare=as_str(tool.get("name")),
            schema=as_dict(tool.get("input_schema")),
            description=as_str(tool.get("description")),
        )
        for tool in map(as_dict, as_list(body.get("tools")))
    ]
    return Conversation(
        items=mark_steering(items),
        offers=offers,
        model=as_str(body.get("model")),
        n_messages=len(messages),
        images=count_images([message.get("content") for message in messages]),
        unique_calls=True,
    )


def blocks_of(message: Json) -> list[Json]:
    content = message.get("content")
    return (
        [{"type": "text", "text": content}] if isinstance(content, str) else [*map(as_dict, as_list(content))]
    )


def read_message(message: Json) -> list[Item]:
    blocks, role = blocks_of(message), message.get("role")
    if role == "system":
        return [system_text(block_text(block)) for block in blocks]
    if role == "assistant":
        return [item for block in blocks if (item := read_answer(block))]
    results = [
        Item("user", "result", flatten(block.get("content")), call_id=as_str(block.get("tool_use_id")))
        for block in blocks
        if block.get("type") == "tool_result"
    ]
    return results + split_user_text([text for block in blocks if (text := block_text(block))])


def read_answer(block: Json) -> Item | None:
    if block.get("type") == "tool_use":
        arguments = json.dumps(block.get("input"))
        return Item("assistant", "call", arguments, as_str(block.get("name")), as_str(block.get("id")))
    if block.get("type") == "text":
        return Item("assistant", "text", as_str(block.get("text")))
    return None


def check(body: Json, counting: bool = False) -> None:
    """Refuses what the Messages API refuses. `counting`: by the rules of count_tokens."""
    if not as_str(body.get("model")):
        raise refuse("model: Field required")
    if not counting and not (type(body.get("max_tokens")) is int and body["max_tokens"] >= 1):
        raise refuse("max_tokens: Field required")
    messages = [as_dict(message) for message in as_list(body.get("messages"))]
    if not messages:
        raise refuse("messages: at least one message is required")
    check_tools([as_dict(tool) for tool in as_list(body.get("tools"))])
    for index, message in enumerate(messages):
        check_message(index, message, last=index == len(messages) - 1)
    check_pairs(merge_roles(messages))


def check_tools(tools: list[Json]) -> None:
    names = [as_str(tool.get("name")) for tool in tools]
    for index, name in enumerate(names):
        if not TOOL_NAME.fullmatch(name):
            raise refuse(f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
    if len(set(names)) < len(names):
        raise refuse("tools: Tool names must be unique.")


def check_message(index: int, message: Json, *, last: bool) -> None:
    role, where = message.get("role"), f"messages.{index}"
    if role not in ("user", "assistant", "system"):
        raise refuse(f"{where}.role: Input should be 'user' or 'assistant'")
    content = message.get("content")
    if not isinstance(content, str | list):
        raise refuse(f"{where}.content: Field required")
    if not content and not (last and role == "assistant"):
        raise refuse(
            f"{where}: all messages must have non-empty content except for the optional final assistant "
            "message"
        )
    for number, block in enumerate(blocks_of(message)):
        check_block(f"{where}.content.{number}", block, as_str(role))


def check_block(where: str, block: Json, role: str) -> None:
    match block.get("type"):
        case "text":
            if not as_str(block.get("text")):
                raise refuse("messages: text content blocks must be non-empty")
            if not as_str(block.get("text")).strip():
                raise refuse("messages: text content blocks must contain non-whitespace text")
        case "tool_use":
            if role != "assistant":
                raise refuse(f"{where}: `tool_use` blocks can only be in `assistant` messages")
            if not TOOL_ID.fullmatch(as_str(block.get("id"))):
                raise refuse(f"{where}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
            if not isinstance(block.get("input"), dict):
                raise refuse(f"{where}.tool_use.input: Input should be a valid dictionary")
        case "tool_result":
            if role != "user":
                raise refuse(f"{where}: `tool_result` blocks can only be in `user` messages")
        case "thinking":
            if block.get("signature") != sign(as_str(block.get("thinking"))):
                raise refuse(f"{where}: Invalid `signature` in `thinking` block")
        case str():
            return
        case _:
            raise refuse(f"{where}.type: Field required")


def merge_roles(messages: list[Json]) -> list[tuple[int, str, list[Json]]]:
    """Consecutive messages of one role are one to the API; a system message stands between none."""
    merged: list[tuple[int, str, list[Json]]] = []
    for index, message in enumerate(messages):
        role = as_str(message.get("role"))
        if role == "system":
            continue
        if merged and merged[-1][1] == role:
            merged[-1][2].extend(blocks_of(message))
        else:
            merged.append((index, role, list(blocks_of(message))))
    return merged


def check_pairs(messages: list[tuple[int, str, list[Json]]]) -> None:
    if not messages or messages[0][1] != "user":
        raise refuse('messages: first message must use the "user" role')
    open_ids: list[str] = []
    opened_at = 0
    for index, role, blocks in messages:
        results = leading_results(blocks) if role == "user" else []
        missing = [call for call in open_ids if call not in results]
        if missing:
            raise refuse(unanswered(opened_at, missing))
        check_results(index, blocks, open_ids)
        open_ids = [as_str(block.get("id")) for block in blocks if block.get("type") == "tool_use"]
        opened_at = index
        if len(set(open_ids)) < len(open_ids):
            raise refuse(f"messages.{index}.content: `tool_use` ids must be unique")
    if open_ids:
        raise refuse(unanswered(opened_at, open_ids))


def leading_results(blocks: list[Json]) -> list[str]:
    ids: list[str] = []
    for block in blocks:
        if block.get("type") != "tool_result":
            break
        ids.append(as_str(block.get("tool_use_id")))
    return ids


def check_results(index: int, blocks: list[Json], open_ids: list[str]) -> None:
    seen: set[str] = set()
    for number, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            continue
        call = as_str(block.get("tool_use_id"))
        if call not in open_ids:
            raise refuse(
                f"messages.{index}.content.{number}: unexpected `tool_use_id` found in `tool_result` blocks: "
                f"{call}. Each `tool_result` block must have a corresponding `tool_use` block in the "
                "previous message."
            )
        if call in seen:
            raise refuse(
                f"messages.{index}.content.{number}: each tool_use must have a single result. Found multiple "
                f"`tool_result` blocks with id: {call}"
            )
        seen.add(call)


def unanswered(index: int, calls: list[str]) -> str:
    return (
        f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: "
        f"{', '.join(calls)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
        "next message."
    )


def stop_reason(reply: Reply) -> str:
    return reply.stop or ("tool_use" if reply.calls else "end_turn")


def usage_of(reply: Reply, output: int) -> Json:
    return {
        "input_tokens": reply.tokens.input,
        "cache_creation_input_tokens": reply.tokens.cache_write,
        "cache_creation": {
            "ephemeral_5m_input_tokens": reply.tokens.cache_write - reply.tokens.cache_write_1h,
            "ephemeral_1h_input_tokens": reply.tokens.cache_write_1h,
        },
        "cache_read_input_tokens": reply.tokens.cache_read,
        "output_tokens": output,
        "service_tier": "standard",
    }


def call_input(call: Call) -> Json:
    return {"input": call.input} if isinstance(call.input, str) else call.input


def write(reply: Reply, body: Json) -> Json:
    del body
    content: list[Json] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": sign(reply.reasoning)})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call_input(call)}
        for call in reply.calls
    ]
    return {
        **empty_message(reply),
        "content": content,
        "stop_reason": stop_reason(reply),
        "usage": usage_of(reply, reply.tokens.output),
    }


def empty_message(reply: Reply) -> Json:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(reply, 1),
    }


def stream(reply: Reply, body: Json) -> Iterator[Frame]:
    del body
    yield frame("message_start", message=empty_message(reply))
    yield frame("ping")
    index = 0
    if reply.reasoning:
        yield start(index, {"type": "thinking", "thinking": "", "signature": ""})
        for piece in pieces(reply.reasoning, reply.chunk):
            yield delta(index, {"type": "thinking_delta", "thinking": piece})
        yield delta(index, {"type": "signature_delta", "signature": sign(reply.reasoning)})
        yield frame("content_block_stop", index=index)
        index += 1
    if reply.text:
        yield start(index, {"type": "text", "text": ""})
        for piece in pieces(reply.text, reply.chunk):
            yield delta(index, {"type": "text_delta", "text": piece})
        yield frame("content_block_stop", index=index)
        index += 1
    for call in reply.calls:
        yield start(index, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        for piece in pieces(json.dumps(call_input(call)), reply.chunk):
            yield delta(index, {"type": "input_json_delta", "partial_json": piece})
        yield frame("content_block_stop", index=index)
        index += 1
    ending = {"stop_reason": stop_reason(reply), "stop_sequence": None}
    yield frame("message_delta", delta=ending, usage=usage_of(reply, reply.tokens.output))
    yield frame("message_stop")


def frame(name: str, **fields: Any) -> Frame:
    return Frame(event(name, {"type": name, **fields}))


def start(index: int, block: Json) -> Frame:
    return frame("content_block_start", index=index, content_block=block)


def delta(index: int, change: Json) -> Frame:
    data = {"type": "content_block_delta", "index": index, "delta": change}
    return Frame(event("content_block_delta", data), delta=True)


def write_error(refusal: Refusal) -> Json:
    kind = refusal.code or ERROR_TYPES.get(refusal.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": refusal.message},
        "request_id": new_id("req_"),
    }


def stream_error(refusal: Refusal) -> bytes:
    return event("error", write_error(refusal))
