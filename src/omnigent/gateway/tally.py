"""What a call used, from what its answer says: all token classes of the three wires, whole or broken off."""

from decimal import Decimal, InvalidOperation
from typing import Any, cast

from omnigent.events import JSON
from omnigent.gateway.request import BYTES_PER_TOKEN
from omnigent.harnesses import Wire
from omnigent.metering import ModelCall, Outcome, Usage

_ENDS = ("response.completed", "response.incomplete", "response.failed")


class Tally:
    """Fed with the events of a stream or with one whole body; asked once, when the call is over."""

    def __init__(self, call: ModelCall) -> None:
        self.call_id = call.call_id
        self.model = call.model
        """The one that was asked in the end."""
        self.sent = False
        """Whether the provider may have got the request."""
        self.refused = False
        """Whether it answered with an error instead of an answer."""
        self.error: JSON | None = None
        """The error an answer that had begun told."""
        self._call = call
        self._told: JSON | None = None
        self._complete = False
        self._text_bytes = 0

    def event(self, event: JSON) -> None:
        """An event of a stream."""
        raise NotImplementedError

    def body(self, body: JSON) -> None:
        """A whole answer."""
        raise NotImplementedError

    def usage(self) -> Usage | None:
        """None if nothing was used. Of an answer without its end, or that doesn't say, it is an estimate from
        what was seen, and `aborted`."""
        if not self.sent or self.refused:
            return None
        if self._told is not None and self._complete:
            return self._counted(self._told, "error" if self.error else "ok")
        if self.error is not None and self._told is None and not self._text_bytes:
            return None
        told = dict(self._told) if self._told is not None else {"input_tokens": self._call.input_tokens}
        seen = -(-self._text_bytes // BYTES_PER_TOKEN)
        told["output_tokens"] = max(told.get("output_tokens", 0), seen)
        return self._counted(told, "error" if self.error else "aborted")

    def _counted(self, told: JSON, outcome: Outcome) -> Usage:
        return Usage(model=self.model, outcome=outcome, **told)

    def _hear_error(self, holder: JSON) -> None:
        if isinstance(error := holder.get("error"), dict):
            self.error = cast(JSON, error)

    def _hear(self, *texts: Any) -> None:
        for text in texts:
            if isinstance(text, str):
                self._text_bytes += len(text.encode("utf-8", "surrogatepass"))


class _MessagesTally(Tally):
    def event(self, event: JSON) -> None:
        match event.get("type"):
            case "content_block_delta":
                delta = _dict(event.get("delta"))
                self._hear(delta.get("text"), delta.get("thinking"), delta.get("partial_json"))
            case "message_start":
                self._told = _anthropic_counts({}, _dict(_dict(event.get("message")).get("usage")))
            case "message_delta":
                # Cumulative, and of the input only what changed since the start.
                self._told = _anthropic_counts(self._told or {}, _dict(event.get("usage")))
                self._complete = self._complete or _dict(event.get("delta")).get("stop_reason") is not None
            case "message_stop":
                self._complete = self._told is not None
            case "error":
                self.error = _dict(event.get("error"))
            case _:
                pass

    def body(self, body: JSON) -> None:
        self._hear_error(body)
        if isinstance(body.get("usage"), dict):
            self._told, self._complete = _anthropic_counts({}, _dict(body["usage"])), True


class _ResponsesTally(Tally):
    def event(self, event: JSON) -> None:
        kind = event.get("type")
        if kind in _ENDS:
            response = _dict(event.get("response"))
            self.body(response)
        elif kind == "error":
            # Either flat or, from some, with the error inside.
            self.error = _dict(event.get("error")) or event
        elif isinstance(kind, str) and kind.endswith(".delta"):
            self._hear(event.get("delta"))

    def body(self, body: JSON) -> None:
        self._hear_error(body)
        if isinstance(body.get("usage"), dict):
            self._told, self._complete = _responses_counts(_dict(body["usage"])), True


class _ChatTally(Tally):
    _finished = False

    def event(self, event: JSON) -> None:
        self._hear_error(event)
        choices = [_dict(choice) for choice in _list(event.get("choices"))]
        for choice in choices:
            delta = _dict(choice.get("delta"))
            self._hear(delta.get("content"), delta.get("refusal"))
            self._hear(delta.get("reasoning_content") or delta.get("reasoning"))
            for call in map(_dict, _list(delta.get("tool_calls"))):
                self._hear(
                    _dict(call.get("function")).get("arguments"), _dict(call.get("custom")).get("input")
                )
        if isinstance(event.get("usage"), dict):
            # Some tell it once, after the last choice; some with every chunk, growing.
            self._told = _chat_counts(_dict(event["usage"]))
        self._finished = self._finished or any(choice.get("finish_reason") for choice in choices)
        self._complete = self._told is not None and (self._finished or self._complete or not choices)

    def body(self, body: JSON) -> None:
        self._hear_error(body)
        if isinstance(body.get("usage"), dict):
            self._told, self._complete = _chat_counts(_dict(body["usage"])), True


_TALLIES: dict[Wire, type[Tally]] = {
    "anthropic-messages": _MessagesTally,
    "openai-responses": _ResponsesTally,
    "openai-chat": _ChatTally,
}


def open_tally(wire: Wire, call: ModelCall) -> Tally:
    return _TALLIES[wire](call)


def _anthropic_counts(before: JSON, usage: JSON) -> JSON:
    """`input_tokens` leaves the cache out; `output_tokens` has the thinking in it."""
    told = dict(before)
    names = {
        "input_tokens": "input_tokens",
        "cache_read_input_tokens": "cache_read_tokens",
        "cache_creation_input_tokens": "cache_write_tokens",
        "output_tokens": "output_tokens",
    }
    for theirs, ours in names.items():
        if usage.get(theirs) is not None:
            told[ours] = _count(usage[theirs])
    if written := _dict(usage.get("cache_creation")):
        told["cache_write_1h_tokens"] = _count(written.get("ephemeral_1h_input_tokens"))
        both = told["cache_write_1h_tokens"] + _count(written.get("ephemeral_5m_input_tokens"))
        told["cache_write_tokens"] = max(told.get("cache_write_tokens", 0), both)
    if details := _dict(usage.get("output_tokens_details")):
        told["reasoning_tokens"] = _count(details.get("thinking_tokens"))
    return told


def _responses_counts(usage: JSON) -> JSON:
    given, made = usage.get("input_tokens"), usage.get("output_tokens")
    return _openai_counts(usage, given, made, "input_tokens_details", "output_tokens_details")


def _chat_counts(usage: JSON) -> JSON:
    given, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return _openai_counts(usage, given, made, "prompt_tokens_details", "completion_tokens_details")


def _openai_counts(usage: JSON, given: Any, made: Any, given_details: str, made_details: str) -> JSON:
    """Their input has the cached and the written in it; both are taken out."""
    details = _dict(usage.get(given_details))
    read = _count(details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens"))
    written = _count(details.get("cache_write_tokens"))
    return {
        "input_tokens": max(0, _count(given) - read - written),
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "output_tokens": _count(made),
        "reasoning_tokens": _count(_dict(usage.get(made_details)).get("reasoning_tokens")),
        "cost_nanousd": _cost(usage.get("cost")),
    }


def _cost(usd: Any) -> int | None:
    """Routers tell what a call cost, in USD."""
    if isinstance(usd, bool) or not isinstance(usd, int | float | Decimal):
        return None
    try:
        return int((Decimal(str(usd)) * 1_000_000_000).to_integral_value())
    except InvalidOperation:
        return None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return max(0, int(value)) if abs(value) < 1e15 else 0


def _dict(value: Any) -> JSON:
    return cast(JSON, value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []
