"""How a call is refused: in whose words, in which form, and what the provider meant by its own.

Which form no harness tries again was measured with the real agents: `docs/decisions/` 0009.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from aiohttp import web

from omnigent.events import JSON
from omnigent.harnesses import Wire
from omnigent.metering import Refused

LONG_WAIT_SECONDS = 120
"""A provider that says to come back later than this isn't busy: something is used up."""
_LONGEST_DETAIL = 500
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    502: "api_error",
    503: "overloaded_error",
}
_CODES = {401: "invalid_api_key"}
_QUOTA_CODES = frozenset({"usage_limit_reached", "usage_limit_exceeded", "plan_limit_reached"})
_BILLING_CODES = frozenset(
    {"insufficient_quota", "billing_error", "billing_hard_limit_reached", "usage_not_included"}
)
_BUSY = frozenset({429, 503, 529})
_BUSY_CODES = frozenset(
    {"rate_limit_error", "rate_limit_exceeded", "overloaded_error", "server_is_overloaded", "slow_down"}
)


def error(wire: Wire, status: int, message: str) -> web.Response:
    """An error in the form the wire's vendor uses, so that every SDK shows its message."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return _response(wire, status, message, _TYPES[status], kind, _CODES.get(status))


def paused(wire: Wire, message: str) -> web.Response:
    """Nothing is tried again before a person, or the clock, has changed something."""
    status = 402 if wire == "anthropic-messages" else 429
    return _final(
        _response(wire, status, message, "billing_error", "insufficient_quota", "insufficient_quota")
    )


def denied(wire: Wire, message: str) -> web.Response:
    """This call is not to be made. Codex tries a 403 again, and shows the message of a 400."""
    status = 400 if wire == "openai-responses" else 403
    kind = "invalid_request_error"
    return _final(_response(wire, status, message, "permission_error", kind, "permission_denied"))


def _final(response: web.Response) -> web.Response:
    response.headers["x-should-retry"] = "false"  # both vendors' SDKs obey it
    return response


def _response(
    wire: Wire, status: int, message: str, anthropic: str, openai: str, code: str | None
) -> web.Response:
    if wire == "anthropic-messages":
        body: JSON = {"type": "error", "error": {"type": anthropic, "message": message}}
    else:
        body = {"error": {"message": message, "type": openai, "param": None, "code": code}}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a provider's error means. `until` in UTC ms, `detail` the provider's words."""

    kind: Refused
    until: int | None
    detail: str


def understand(status: int, headers: Mapping[str, str], body: JSON, at: int) -> Refusal | None:
    """The refusal in an error answer (`at`: UTC ms, now); None for any other error."""
    inner = _error_in(body)
    codes = {inner.get("code"), inner.get("type")}
    detail = _text(inner.get("message"))[:_LONGEST_DETAIL]
    until = _reset(headers, inner, at)
    late = until is not None and until - at > LONG_WAIT_SECONDS * 1000
    used_up = headers.get("anthropic-ratelimit-unified-status") == "rejected" or _has_plan(headers, inner)
    if codes & _QUOTA_CODES or (status == 429 and (used_up or late)):
        return Refusal("quota", until, detail)
    if status == 402 or codes & _BILLING_CODES or "credit balance is too low" in detail.lower():
        return Refusal("quota" if late else "billing", until if late else None, detail)
    if status in _BUSY or codes & _BUSY_CODES:
        return Refusal("rate_limit", until, detail)
    return None


def _error_in(body: JSON) -> JSON:
    inner = body.get("error")
    return cast(JSON, inner) if isinstance(inner, dict) else body


def _has_plan(headers: Mapping[str, str], inner: JSON) -> bool:
    """A subscription's window is used up: only such answers say when it opens again, in these places."""
    told = ("resets_at", "resets_in_seconds", "plan_type")
    return "anthropic-ratelimit-unified-reset" in headers or any(inner.get(name) for name in told)


def _reset(headers: Mapping[str, str], inner: JSON, at: int) -> int | None:
    """The moment a provider says to come back, UTC ms."""
    for moment in (headers.get("anthropic-ratelimit-unified-reset"), inner.get("resets_at")):
        if (parsed := _moment(moment)) is not None:
            return parsed
    for wait in (inner.get("resets_in_seconds"), headers.get("retry-after")):
        if (seconds := _number(wait)) is not None:
            return at + int(seconds * 1000)
    return _moment(headers.get("retry-after"))


def _moment(value: Any) -> int | None:
    """Seconds since 1970, RFC 3339, or the date of an HTTP header, in UTC ms."""
    if (seconds := _number(value)) is not None:
        return int(seconds * 1000)
    if not isinstance(value, str):
        return None
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(value)
        except (ValueError, TypeError):
            continue
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < 1e11 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
