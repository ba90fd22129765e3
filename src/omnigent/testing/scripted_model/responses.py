"""The OpenAI Responses wire, with Codex's additions: namespaces, custom tools, `additional_tools` items."""

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
from .reply import Call, Frame, Refusal, Reply, event, new_id, pieces, refuse, sign

CALLS = {
    "function_call": "function call",
    "custom_tool_call": "custom tool call",
    "local_shell_call": "local shell call",
    "tool_search_call": "tool search call",
}
OUTPUTS = {f"{kind}_output": kind for kind in CALLS} | {"tool_search_output": "tool_search_call"}


def input_items(body: Json) -> list[Json]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return [as_dict(item) for item in as_list(given)]


def read(body: Json) -> Conversation:
    given = input_items(body)
    items: list[Item] = []
    if instructions := as_str(body.get("instructions")):
        items.append(Item("system", "text", instructions))
    names: dict[str, str] = {}
    for item in given:
        items += read_item(item, names)
    tools = as_list(body.get("tools"))
    for item in given:
        if item.get("type") in ("additional_tools", "tool_search_output"):
            tools = tools + as_list(item.get("tools"))
    return Conversation(
        items=mark_steering(items),
        offers=[offer for tool in tools for offer in read_offers(as_dict(tool), "")],
        model=as_str(body.get("model")),
        n_messages=len(given),
        images=count_images(given),
    )


def read_offers(tool: Json, namespace: str) -> list[Offer]:
    kind, name = as_str(tool.get("type")), as_str(tool.get("name"))
    if kind == "namespace" or (kind != "custom" and "tools" in tool):
        return [offer for inner in as_list(tool.get("tools")) for offer in read_offers(as_dict(inner), name)]
    flat = flat_name(namespace, name)
    description = as_str(tool.get("description"))
    if kind == "custom":
        return [Offer(flat, name, namespace, "custom", description=description)]
    if kind == "local_shell":
        return [Offer("local_shell", "local_shell", kind="local_shell")]
    schema = as_dict(tool.get("parameters"))
    if kind == "tool_search":
        return [Offer(kind, kind, kind=kind, schema=schema, description=description)]
    return [Offer(flat or kind, name or kind, namespace, schema=schema, description=description)]


def flat_name(namespace: str, name: str) -> str:
    """`functions` is what the vendor calls the space of the tools that have none."""
    return name if namespace in ("", "functions") else f"{namespace.removesuffix('__')}__{name}"


def read_item(item: Json, names: dict[str, str]) -> list[Item]:
    kind = as_str(item.get("type")) or "message"
    call_id = as_str(item.get("call_id"))
    if kind in CALLS:
        names[call_id] = flat_name(
            as_str(item.get("namespace")), as_str(item.get("name")) or kind.removesuffix("_call")
        )
        arguments = item.get("arguments", item.get("input", item.get("action")))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return [Item("assistant", "call", text, names[call_id], call_id)]
    if kind in OUTPUTS:
        return [Item("user", "result", flatten(item.get("output")), names.get(call_id, ""), call_id)]
    if kind == "agent_message":
        return read_agent_message(item)
    if kind != "message":
        return []
    content = item.get("content")
    match item.get("role"):
        case "user":
            parts: list[Any] = [content] if isinstance(content, str) else as_list(content)
            return split_user_text([text for part in parts if (text := block_text(part))])
        case "assistant":
            return [Item("assistant", "text", flatten(content))]
        case _:
            return [Item("system", "text", flatten(content))]


def read_agent_message(item: Json) -> list[Item]:
    """What one agent of a Codex team tells another; a task is the child's prompt."""
    parts = [as_dict(part) for part in as_list(item.get("content"))]
    text = "".join(as_str(part.get("text")) or as_str(part.get("encrypted_content")) for part in parts)
    head, _, payload = text.partition("Payload:\n")
    if "Message Type: NEW_TASK" in head:
        return [Item("user", "text", payload)]
    return [Item("system", "text", text)]


def check(body: Json) -> None:
    """Refuses what the Responses API refuses."""
    if not as_str(body.get("model")):
        raise refuse("you must provide a model parameter")
    if previous := body.get("previous_response_id"):
        message = f"Previous response with id '{previous}' not found."
        raise Refusal(400, message, "previous_response_not_found", "previous_response_id")
    given = input_items(body)
    if not given:
        raise refuse("One of 'input' or 'previous_response_id' or 'prompt' must be provided.", "input")
    open_calls: dict[str, str] = {}
    for index, item in enumerate(given):
        check_item(f"input[{index}]", item, open_calls)
    for call, kind in open_calls.items():
        raise refuse(f"No tool output found for {CALLS[kind]} {call}.", "input")


def check_item(where: str, item: Json, open_calls: dict[str, str]) -> None:
    kind, call = as_str(item.get("type")) or "message", as_str(item.get("call_id"))
    if kind == "message":
        check_message(where, item)
    elif kind in CALLS:
        if not call:
            raise refuse(f"Missing required parameter: '{where}.call_id'.", f"{where}.call_id")
        if call in open_calls:
            raise refuse(f"Duplicate call_id {call!r} found in input: the first has no output yet.", where)
        open_calls[call] = kind
    elif kind in OUTPUTS:
        if open_calls.pop(call, None) != OUTPUTS[kind]:
            raise refuse(
                f"No tool call found for {CALLS[OUTPUTS[kind]]} output with call_id {call}.", "input"
            )
    elif kind == "reasoning":
        check_reasoning(where, item)


def check_message(where: str, item: Json) -> None:
    role: object = item.get("role")
    content: Any = item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        raise refuse(
            f"Invalid value: {role!r}. Supported values are: 'assistant', 'system', 'developer', and 'user'.",
            f"{where}.role",
        )
    if not isinstance(content, str) and not isinstance(content, list):
        raise refuse(f"Missing required parameter: '{where}.content'.", f"{where}.content")
    allowed = (
        ("output_text", "refusal") if role == "assistant" else ("input_text", "input_image", "input_file")
    )
    for number, part in enumerate(as_list(item.get("content"))):
        if (kind := as_dict(part).get("type")) not in allowed:
            values = " and ".join(f"'{value}'" for value in allowed)
            raise refuse(
                f"Invalid value: '{kind}'. Supported values are: {values}.", f"{where}.content[{number}]"
            )


def check_reasoning(where: str, item: Json) -> None:
    proof = as_str(item.get("encrypted_content"))
    if proof and proof != sign(flatten(item.get("summary"))):
        message = f"The encrypted content for item {item.get('id')} could not be verified."
        raise Refusal(400, message, "invalid_encrypted_content", where)


def usage_of(reply: Reply) -> Json:
    tokens = reply.tokens
    return {
        "input_tokens": tokens.input_with_cache,
        "input_tokens_details": {
            "cached_tokens": tokens.cache_read,
            "cache_write_tokens": tokens.cache_write,
        },
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.input_with_cache + tokens.output,
    }


def envelope(reply: Reply, identity: str, status: str, output: list[Json]) -> Json:
    incomplete = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}
    ended = status != "in_progress"
    return {
        "id": identity,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": incomplete[reply.stop]} if ended and reply.stop else None,
        "instructions": None,
        "metadata": {},
        "model": reply.model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": usage_of(reply) if ended else None,
    }


def final_status(reply: Reply) -> str:
    return "incomplete" if reply.stop else "completed"


def reasoning_item(reply: Reply, body: Json) -> Json:
    item: Json = {
        "id": new_id("rs_"),
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": reply.reasoning}],
    }
    if "reasoning.encrypted_content" in as_list(body.get("include")):
        item["encrypted_content"] = sign(reply.reasoning)
    return item


def message_item(reply: Reply) -> Json:
    part: Json = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
    return {
        "id": new_id("msg_"),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }


def call_item(call: Call) -> Json:
    if call.kind == "tool_search":
        return {
            "id": new_id("tsc_"),
            "type": "tool_search_call",
            "status": "completed",
            "execution": "client",
            "call_id": call.id,
            "arguments": call.input,
        }
    if call.kind == "local_shell":
        return {
            "id": new_id("lsh_"),
            "type": "local_shell_call",
            "status": "completed",
            "call_id": call.id,
            "action": call.input,
        }
    kind, key, prefix = ("custom_tool_call", "input", "ctc_") if call.kind == "custom" else FUNCTION
    item: Json = {
        "id": new_id(prefix),
        "type": kind,
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        key: call.arguments,
    }
    if call.namespace:
        item["namespace"] = call.namespace
    return item


STREAMED = ("reasoning", "message", "function_call", "custom_tool_call")
FUNCTION = ("function_call", "arguments", "fc_")


def output_of(reply: Reply, body: Json) -> list[Json]:
    items: list[Json] = []
    if reply.reasoning:
        items.append(reasoning_item(reply, body))
    if reply.text:
        items.append(message_item(reply))
    return items + [call_item(call) for call in reply.calls]


def write(reply: Reply, body: Json) -> Json:
    return envelope(reply, new_id("resp_"), final_status(reply), output_of(reply, body))


def stream(reply: Reply, body: Json) -> Iterator[Frame]:
    for sequence, (name, fields, is_delta) in enumerate(events(reply, body)):
        yield Frame(event(name, {"type": name, "sequence_number": sequence, **fields}), is_delta)


type Event = tuple[str, Json, bool]


def events(reply: Reply, body: Json) -> Iterator[Event]:
    identity = new_id("resp_")
    opening = envelope(reply, identity, "in_progress", [])
    yield "response.created", {"response": opening}, False
    yield "response.in_progress", {"response": opening}, False
    output = output_of(reply, body)
    for index, item in enumerate(output):
        yield from item_events(index, item, reply.chunk)
    status = final_status(reply)
    yield f"response.{status}", {"response": envelope(reply, identity, status, output)}, False


def item_events(index: int, item: Json, chunk: int) -> Iterator[Event]:
    at: Json = {"item_id": item["id"], "output_index": index}
    yield "response.output_item.added", {"output_index": index, "item": opened(item)}, False
    match item["type"]:
        case "reasoning":
            yield from reasoning_events({**at, "summary_index": 0}, item["summary"][0], chunk)
        case "message":
            yield from text_events({**at, "content_index": 0}, item["content"][0], chunk)
        case "function_call":
            yield from input_events("function_call_arguments", "arguments", at, item, chunk)
        case "custom_tool_call":
            yield from input_events("custom_tool_call_input", "input", at, item, chunk)
        case _:
            pass
    yield "response.output_item.done", {"output_index": index, "item": item}, False


def opened(item: Json) -> Json:
    """The item as it is announced, before its content has come."""
    if item["type"] not in STREAMED:
        return item
    blank: dict[str, Any] = {"summary": [], "content": [], "arguments": "", "input": ""}
    opening = {key: blank.get(key, value) for key, value in item.items()}
    if "status" in opening:
        opening["status"] = "in_progress"
    return opening


def reasoning_events(at: Json, part: Json, chunk: int) -> Iterator[Event]:
    empty = {"type": "summary_text", "text": ""}
    yield "response.reasoning_summary_part.added", {**at, "part": empty}, False
    for piece in pieces(part["text"], chunk):
        yield "response.reasoning_summary_text.delta", {**at, "delta": piece}, True
    yield "response.reasoning_summary_text.done", {**at, "text": part["text"]}, False
    yield "response.reasoning_summary_part.done", {**at, "part": part}, False


def text_events(at: Json, part: Json, chunk: int) -> Iterator[Event]:
    yield "response.content_part.added", {**at, "part": {**part, "text": ""}}, False
    for piece in pieces(part["text"], chunk):
        yield "response.output_text.delta", {**at, "delta": piece, "logprobs": []}, True
    yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}, False
    yield "response.content_part.done", {**at, "part": part}, False


def input_events(name: str, key: str, at: Json, item: Json, chunk: int) -> Iterator[Event]:
    for piece in pieces(item[key], chunk):
        yield f"response.{name}.delta", {**at, "delta": piece}, True
    yield f"response.{name}.done", {**at, key: item[key]}, False


def stream_error(refusal: Refusal) -> bytes:
    error = write_error(refusal)["error"]
    response: Json = {
        "id": new_id("resp_"),
        "object": "response",
        "status": "failed",
        "error": {"code": error["code"] or error["type"], "message": error["message"]},
        "output": [],
        "usage": None,
    }
    return event("response.failed", {"type": "response.failed", "sequence_number": 0, "response": response})
