"""The OpenAI Chat Completions wire."""

import json
import time
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
)
from .openai import write_error
from .reply import Frame, Refusal, Reply, new_id, pieces, refuse

ROLES = ("system", "developer", "user", "assistant", "tool")


def read(body: Json) -> Conversation:
    messages = [as_dict(message) for message in as_list(body.get("messages"))]
    names: dict[str, str] = {}
    items: list[Item] = []
    for message in messages:
        items += read_message(message, names)
    return Conversation(
        items=mark_steering(items),
        offers=[offer for tool in map(as_dict, as_list(body.get("tools"))) if (offer := read_offer(tool))],
        model=as_str(body.get("model")),
        n_messages=len(messages),
        images=count_images([message.get("content") for message in messages]),
    )


def read_offer(tool: Json) -> Offer | None:
    kind = "custom" if tool.get("type") == "custom" else "function"
    fields = as_dict(tool.get(kind))
    name = as_str(fields.get("name"))
    if not name:
        return None
    schema, description = as_dict(fields.get("parameters")), as_str(fields.get("description"))
    return Offer(name=name, bare=name, kind=kind, schema=schema, description=description)


def read_message(message: Json, names: dict[str, str]) -> list[Item]:
    content = message.get("content")
    match message.get("role"):
        case "user":
            parts: list[Any] = [content] if isinstance(content, str) else as_list(content)
            return split_user_text([text for part in parts if (text := block_text(part))])
        case "assistant":
            return read_answer(message, names)
        case "tool":
            call = as_str(message.get("tool_call_id"))
            return [Item("user", "result", flatten(content), names.get(call, ""), call)]
        case _:
            return [Item("system", "text", flatten(content))]


def read_answer(message: Json, names: dict[str, str]) -> list[Item]:
    items: list[Item] = []
    if text := flatten(message.get("content")):
        items.append(Item("assistant", "text", text))
    for call in map(as_dict, as_list(message.get("tool_calls"))):
        fields = as_dict(call.get("function")) or as_dict(call.get("custom"))
        name, call_id = as_str(fields.get("name")), as_str(call.get("id"))
        names[call_id] = name
        arguments = as_str(fields.get("arguments")) or as_str(fields.get("input"))
        items.append(Item("assistant", "call", arguments, name, call_id))
    return items


def check(body: Json) -> None:
    """Refuses what the Chat Completions API refuses."""
    if not as_str(body.get("model")):
        raise refuse("you must provide a model parameter")
    messages = [as_dict(message) for message in as_list(body.get("messages"))]
    if not messages:
        raise refuse("Missing required parameter: 'messages'.", "messages")
    waiting: list[str] = []
    in_results = False
    for index, message in enumerate(messages):
        where = f"messages.[{index}]"
        check_message(where, message)
        if message.get("role") == "tool":
            call = as_str(message.get("tool_call_id"))
            if not in_results or call not in waiting:
                raise refuse(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding "
                    f"message with 'tool_calls'. (tool_call_id {call!r} has none open)",
                    f"{where}.role",
                )
            waiting.remove(call)
            continue
        refuse_unanswered(waiting, where)
        waiting = [as_str(as_dict(call).get("id")) for call in as_list(message.get("tool_calls"))]
        if len(set(waiting)) < len(waiting):
            raise refuse(f"Duplicate value for 'tool_call_id' in {where}.tool_calls", f"{where}.tool_calls")
        in_results = bool(waiting)
    refuse_unanswered(waiting, f"messages.[{len(messages) - 1}]")


def refuse_unanswered(waiting: list[str], where: str) -> None:
    if waiting:
        raise refuse(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. The following tool_call_ids did not have response messages: "
            + ", ".join(waiting),
            f"{where}.role",
        )


def check_message(where: str, message: Json) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise refuse(f"Invalid value: {role!r}. Supported values are: {', '.join(ROLES)}.", f"{where}.role")
    if isinstance(content, list) and not content:
        raise refuse(
            f"Invalid '{where}.content': empty array. Expected at least one part.", f"{where}.content"
        )
    if not isinstance(content, str | list) and not (role == "assistant" and message.get("tool_calls")):
        raise refuse("Invalid value for 'content': expected a string, got null.", f"{where}.content")
    if role == "assistant" and message.get("tool_calls") == []:
        raise refuse(f"Invalid '{where}.tool_calls': empty array.", f"{where}.tool_calls")
    if role == "tool" and not as_str(message.get("tool_call_id")):
        raise refuse(f"Missing parameter 'tool_call_id' in {where}.", f"{where}.tool_call_id")


def finish_reason(reply: Reply) -> str:
    if reply.stop:
        return {"max_tokens": "length", "refusal": "content_filter"}[reply.stop]
    return "tool_calls" if reply.calls else "stop"


def usage_of(reply: Reply) -> Json:
    tokens = reply.tokens
    return {
        "prompt_tokens": tokens.input_with_cache,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input_with_cache + tokens.output,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cache_read,
            "cache_write_tokens": tokens.cache_write,
        },
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def calls_of(reply: Reply) -> list[Json]:
    calls: list[Json] = []
    for call in reply.calls:
        if call.kind == "custom":
            calls.append(
                {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
            )
        else:
            function = {"name": call.name, "arguments": call.arguments}
            calls.append({"id": call.id, "type": "function", "function": function})
    return calls


def write(reply: Reply, body: Json) -> Json:
    del body
    message: Json = {"role": "assistant", "content": reply.text or None, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = calls_of(reply)
    choice = {"index": 0, "message": message, "finish_reason": finish_reason(reply), "logprobs": None}
    head = {"id": new_id("chatcmpl-"), "object": "chat.completion", "created": int(time.time())}
    return {**head, "model": reply.model, "choices": [choice], "usage": usage_of(reply)}


def stream(reply: Reply, body: Json) -> Iterator[Frame]:
    head: Json = {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": reply.model,
    }
    with_usage = bool(as_dict(body.get("stream_options")).get("include_usage"))
    extra: Json = {"usage": None} if with_usage else {}

    def chunk(change: Json, finish: str | None = None, *, delta: bool = False) -> Frame:
        choice = {"index": 0, "delta": change, "finish_reason": finish, "logprobs": None}
        return Frame(data_line({**head, "choices": [choice], **extra}), delta)

    yield chunk({"role": "assistant", "content": ""})
    for piece in pieces(reply.reasoning, reply.chunk):
        yield chunk({"reasoning_content": piece}, delta=True)
    for piece in pieces(reply.text, reply.chunk):
        yield chunk({"content": piece}, delta=True)
    for index, call in enumerate(calls_of(reply)):
        kind = call["type"]
        key = "input" if kind == "custom" else "arguments"
        arguments = call[kind][key]
        yield chunk({"tool_calls": [{"index": index, **call, kind: {**call[kind], key: ""}}]})
        for piece in pieces(arguments, reply.chunk):
            yield chunk({"tool_calls": [{"index": index, kind: {key: piece}}]}, delta=True)
    yield chunk({}, finish_reason(reply))
    if with_usage:
        yield Frame(data_line({**head, "choices": [], "usage": usage_of(reply)}))
    yield Frame(b"data: [DONE]\n\n")


def data_line(data: Json) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def stream_error(refusal: Refusal) -> bytes:
    return data_line(write_error(refusal))
