"""A request that generates: read once, described for the meter, and changed only where a grant says so."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from omnigent.events import JSON
from omnigent.harnesses import Wire
from omnigent.metering import Grant, ModelCall

BYTES_PER_TOKEN = 4
IMAGE_TOKENS = 5_000
"""What one image costs at most: the vendors' largest, rounded up."""

# Tools that run on the agent's side, by the beginning of their `type`; a tool without one is the client's.
# Whatever isn't here is taken to run at the provider. The searches look only through the request's own tools.
_CLIENT_SIDE: dict[Wire, re.Pattern[str]] = {
    "anthropic-messages": re.compile(r"custom|(bash|text_editor|memory|tool_search_tool\w*?)_\d{8}"),
    "openai-responses": re.compile(r"function|custom|local_shell|apply_patch|namespace|tool_search"),
    "openai-chat": re.compile(r"function|custom"),
}
# Keys beside `tools` that make the provider act: connectors, plug-ins, prompts kept there.
_HOSTED_KEYS: dict[Wire, tuple[tuple[str, str], ...]] = {
    "anthropic-messages": (("mcp_servers", "mcp"), ("container", "code_execution")),
    "openai-responses": (("prompt", "prompt"), ("plugins", "plugins")),
    "openai-chat": (("web_search_options", "web_search"), ("plugins", "plugins")),
}
_DATE = re.compile(r"_(preview(_\d{4}_\d{2}_\d{2})?|\d{8}|\d{4}_\d{2}_\d{2})$")
_OUTPUT_BOUNDS: dict[Wire, tuple[str, ...]] = {
    "anthropic-messages": ("max_tokens",),
    "openai-responses": ("max_output_tokens",),
    "openai-chat": ("max_completion_tokens", "max_tokens"),
}


class Unreadable(Exception):
    """The body is none that could be counted. The text is for the agent."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body and what it says. `body` is what came; `fields` the same, parsed."""

    wire: Wire
    body: bytes
    fields: JSON

    @property
    def streams(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def tells_usage(self) -> bool:
        """Whether its answer will say what it used, without our asking."""
        options = self.fields.get("stream_options")
        told = isinstance(options, dict) and cast(JSON, options).get("include_usage") is True
        return self.wire != "openai-chat" or not self.streams or told

    def call(self, call_id: str) -> ModelCall:
        model = self.fields.get("model")
        return ModelCall(
            call_id=call_id,
            model=model if isinstance(model, str) else "",
            input_tokens=_estimate_input(self.body, self.fields),
            max_output_tokens=_output_bound(self.wire, self.fields),
            hosted=tuple(dict.fromkeys(_hosted(self.wire, self.fields))),
        )

    def granted(self, grant: Grant) -> bytes:
        """The body that leaves: byte by byte what came, unless something has to change."""
        if grant.model is None and not grant.strip:
            return self.body if self.tells_usage else self._asking_for_usage()
        fields = dict(self.fields)
        if grant.model is not None:
            fields["model"] = grant.model
        if grant.strip:
            _strip(self.wire, fields, frozenset(grant.strip))
        if not self.tells_usage:
            fields["stream_options"] = _with_usage(fields)
        return _write(fields)

    def _asking_for_usage(self) -> bytes:
        if "stream_options" in self.fields:
            return _write({**self.fields, "stream_options": _with_usage(self.fields)})
        head, brace, tail = self.body.partition(b"{")
        return head + brace + b'"stream_options":{"include_usage":true},' + tail


def read_request(wire: Wire, body: bytes) -> Asked:
    """Raises `Unreadable`: what isn't understood can't be counted, and doesn't leave."""
    try:
        fields: Any = json.loads(body.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Unreadable("The request is no JSON, or has a key twice.") from error
    if not isinstance(fields, dict):
        raise Unreadable("The request is no JSON object.")
    asked = Asked(wire, body, cast(JSON, fields))
    if asked.fields.get("background"):
        raise Unreadable("Omnigent doesn't take background responses: nobody would count them.")
    return asked


def _unique(pairs: list[tuple[str, Any]]) -> JSON:
    """Two parsers may take different ones of a key's two values: ours must see what the provider sees."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key twice")
    return fields


def _write(fields: JSON) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _with_usage(fields: JSON) -> JSON:
    options = fields.get("stream_options")
    return {**(cast(JSON, options) if isinstance(options, dict) else {}), "include_usage": True}


def _output_bound(wire: Wire, fields: JSON) -> int | None:
    """Null also where what is read lies elsewhere: then nothing bounds the call's price."""
    if fields.get("previous_response_id") or fields.get("conversation"):
        return None
    bounds = [fields.get(name) for name in _OUTPUT_BOUNDS[wire]]
    bound = next((b for b in bounds if isinstance(b, int) and not isinstance(b, bool) and b > 0), None)
    times = fields.get("n")
    if bound is None or not isinstance(times, int) or wire != "openai-chat":
        return bound
    return bound * max(1, times)


def _estimate_input(body: bytes, fields: JSON) -> int:
    size, tokens = len(body), 0
    if b"image" in body or b"document" in body or b"file" in body:
        for length, price in _media(fields):
            size -= length
            tokens += price
    return -(-size // BYTES_PER_TOKEN) + tokens


def _media(fields: JSON) -> Iterator[tuple[int, int]]:
    """Of every image and file: the bytes it takes in the body and the tokens it may cost."""
    waiting: list[Any] = [fields]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(cast(list[Any], value))
        elif isinstance(value, dict):
            block = cast(JSON, value)
            data, kind = _data_of(block), block.get("type")
            if kind in ("image", "image_url", "input_image"):
                yield len(data), IMAGE_TOKENS
            elif kind in ("document", "file", "input_file"):
                yield len(data), len(data)  # a page costs far more than its packed text
            else:
                waiting.extend(block.values())


def _data_of(block: JSON) -> str:
    """The base64 text (or URL) of an image or file block in any wire's form."""
    for holder in (block, block.get("source"), block.get("image_url"), block.get("file")):
        if isinstance(holder, dict):
            holder = cast(JSON, holder)
            for name in ("data", "url", "file_data", "image_url"):
                if isinstance(text := holder.get(name), str):
                    return text
    return ""


def _hosted(wire: Wire, fields: JSON) -> Iterator[str]:
    for tools in _tool_lists(wire, fields):
        for tool in tools:
            yield from _hosted_names(wire, tool)
    for key, name in _HOSTED_KEYS[wire]:
        if fields.get(key):
            yield name


def _tool_lists(wire: Wire, fields: JSON) -> Iterator[list[Any]]:
    yield _list(fields.get("tools"))
    if wire == "openai-responses":
        for item in _list(fields.get("input")):
            if isinstance(item, dict) and "tools" in item:
                yield _list(cast(JSON, item)["tools"])


def _hosted_names(wire: Wire, tool: Any) -> Iterator[str]:
    """The names of what runs at the provider, in one tool: none, itself, or members of its namespace."""
    if not isinstance(tool, dict):
        yield "unknown"
        return
    fields = cast(JSON, tool)
    kind = fields.get("type", "custom")
    if not isinstance(kind, str):
        yield "unknown"
    elif not _is_client_side(wire, kind, fields):
        yield _DATE.sub("", kind)
    elif "tools" in fields:
        for member in _list(fields["tools"]):
            yield from _hosted_names(wire, member)


def _is_client_side(wire: Wire, kind: str, tool: JSON) -> bool:
    if wire == "openai-responses" and kind == "shell":
        environment = tool.get("environment")
        return environment is None or _kind_of(environment) == "local"
    return _CLIENT_SIDE[wire].fullmatch(kind) is not None


def _strip(wire: Wire, fields: JSON, names: frozenset[str]) -> None:
    """Cut the hosted tools of these names out, in place of the top level, copying below it."""
    if "tools" in fields:
        fields["tools"] = _kept(wire, fields["tools"], names)
    if wire == "openai-responses" and isinstance(fields.get("input"), list):
        fields["input"] = [_stripped_item(wire, item, names) for item in _list(fields["input"])]
    for key, name in _HOSTED_KEYS[wire]:
        if name in names:
            fields.pop(key, None)
    if not fields.get("tools"):
        fields.pop("tools", None)
        fields.pop("tool_choice", None)
    elif _names_a(fields.get("tool_choice"), names):
        del fields["tool_choice"]


def _stripped_item(wire: Wire, item: Any, names: frozenset[str]) -> Any:
    if not isinstance(item, dict) or "tools" not in item:
        return cast(Any, item)
    return {**cast(JSON, item), "tools": _kept(wire, cast(JSON, item)["tools"], names)}


def _kept(wire: Wire, tools: Any, names: frozenset[str]) -> list[Any]:
    return [tool for tool in _list(tools) if names.isdisjoint(_hosted_names(wire, tool))]


def _names_a(choice: Any, names: frozenset[str]) -> bool:
    """Whether a `tool_choice` insists on a tool that is cut out."""
    if not isinstance(choice, dict):
        return False
    fields = cast(JSON, choice)
    named = {fields.get("name"), _DATE.sub("", _kind_of(fields))}
    return not names.isdisjoint(named) or any(_names_a(tool, names) for tool in _list(fields.get("tools")))


def _kind_of(value: Any) -> str:
    kind = cast(JSON, value).get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


def _list(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []
