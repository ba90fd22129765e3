"""What goes over the wire: JSON answers encoded once, problems, and bodies read within a limit."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from omnigent.errors import Malformed, NotFound, OmnigentError, TooLarge
from omnigent.events import JSON

SMALL_BODY = 2 * 1024 * 1024
"""Bytes: a prompt of 1 MB with its JSON escapes."""


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, "application/json")


def made(value: Any, replayed: bool, status: int) -> Response:
    """The answer to what carries an idempotency key."""
    return answer(value, status, {"Idempotent-Replayed": "true"} if replayed else None)


def problem(error: OmnigentError) -> Response:
    body = encode(error.problem())
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    retry = error.facts.get("retry_after")
    if retry is not None:
        headers["Retry-After"] = str(retry)
    return Response(body, error.status, headers, "application/problem+json")


async def show_problem(request: Request, error: Exception) -> Response:
    """The one exception handler: whatever a route raised, as problem+json."""
    match error:
        case OmnigentError():
            return problem(error)
        case RequestValidationError():
            return problem(malformed(error.errors(), skip=1))
        case HTTPException(status_code=404):
            return problem(NotFound(f"There is nothing at {request.url.path}."))
        case HTTPException():
            return problem(_http_error(error))
        case _:
            return problem(OmnigentError("The server broke.", hint="See `omnigent server logs`."))


def _http_error(error: HTTPException) -> OmnigentError:
    found = OmnigentError(error.detail)
    cast(Any, found).status = error.status_code
    cast(Any, found).title = error.detail
    cast(Any, found).code = "method_not_allowed" if error.status_code == 405 else "http_error"
    return found


async def read_body(request: Request, limit: int) -> bytes:
    """Raises `TooLarge` before more than `limit` bytes are in memory."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.", hint="Send less.", limit=limit)


async def read_model[Model: BaseModel](request: Request, model: type[Model]) -> Model:
    """The body as a model; an empty body is an empty object. Raises `Malformed`, `TooLarge`."""
    body = await read_body(request, SMALL_BODY)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise malformed(error.errors(include_url=False)) from error


async def read_union[T](request: Request, adapter: TypeAdapter[T], limit: int) -> T:
    """The body as one of a tagged union. Raises `Malformed` (`allowed` for an unknown tag), `TooLarge`."""
    body = await read_body(request, limit)
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        # Pydantic puts the chosen tag before the path.
        raise malformed(error.errors(include_url=False), skip=1) from error


def malformed(errors: Sequence[Any], skip: int = 0) -> Malformed:
    """The first validation error, with its place in the body and what would have been right."""
    first = cast(JSON, errors[0])
    place = ".".join(str(part) for part in first["loc"][skip:])
    message = str(first["msg"]).removeprefix("Value error, ")
    facts: JSON = {"path": place} if place else {}
    context: JSON = first.get("ctx") or {}
    if allowed := _allowed(first["type"], context):
        facts["allowed"] = allowed
        message = f"{context.get('tag', first.get('input'))!r} is unknown, use one of: {', '.join(allowed)}"
    hint = "See docs/openapi.json for the fields." if first["type"] == "extra_forbidden" else ""
    return Malformed(f"{place}: {message}." if place else f"{message}.", hint=hint, **facts)


def _allowed(kind: str, context: JSON) -> list[str]:
    """The permitted words, out of pydantic's `'a', 'b' or 'c'`."""
    if kind not in ("union_tag_invalid", "literal_error"):
        return []
    text = str(context.get("expected_tags") or context.get("expected") or "")
    return [word.strip(" '") for word in text.replace(" or ", ", ").split(",")]


def require_key(request: Request) -> str:
    """The `Idempotency-Key` of what must not happen twice. Raises `Malformed`."""
    key = request.headers.get("idempotency-key", "")
    if not 1 <= len(key) <= 200:
        raise Malformed(
            "The header Idempotency-Key is missing." if not key else "The Idempotency-Key is too long.",
            hint="Send a fresh random value of at most 200 characters, and the same one when you repeat.",
            header="Idempotency-Key",
        )
    return key
