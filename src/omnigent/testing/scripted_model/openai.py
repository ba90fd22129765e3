"""The error form both OpenAI wires share."""

from .conversation import Json
from .reply import Refusal

CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def write_error(refusal: Refusal) -> Json:
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    if refusal.status == 429:
        kind = "rate_limit_error"
    code = refusal.code or CODES.get(refusal.status)
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}}
