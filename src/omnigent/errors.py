"""Every error a person or program may meet: one tree, one code each.

The wire form is problem+json (RFC 9457); the CLI prints `detail` and `hint` and exits with `exit_code`.
"""

from typing import Any, ClassVar


class OmnigentError(Exception):
    """An error with a name. `detail` says what happened, `hint` the fix, `facts` are for programs."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.facts = facts

    def problem(self) -> dict[str, Any]:
        """The problem+json body."""
        body: dict[str, Any] = {
            "type": f"urn:omnigent:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.hint:
            body["hint"] = self.hint
        return body | self.facts


class Malformed(OmnigentError):
    code, status, title, exit_code = "malformed", 400, "Malformed request", 2


class BadCursor(OmnigentError):
    code, status, title, exit_code = "bad_cursor", 400, "Cursor beyond the log", 2


class Unauthorized(OmnigentError):
    code, status, title, exit_code = "unauthorized", 401, "Not signed in", 4


class Forbidden(OmnigentError):
    code, status, title, exit_code = "forbidden", 403, "Not allowed", 4


class NotFound(OmnigentError):
    code, status, title, exit_code = "not_found", 404, "Not found", 3


class Conflict(OmnigentError):
    """A race was lost or the state doesn't permit it; `current` in the facts says what is so now."""

    code, status, title, exit_code = "conflict", 409, "Conflict with the current state", 5


class TooLarge(OmnigentError):
    code, status, title, exit_code = "too_large", 413, "Too large", 2


class Unprocessable(OmnigentError):
    code, status, title, exit_code = "unprocessable", 422, "Can't be done as asked", 2


class KeyReused(Unprocessable):
    code, title = "idempotency_key_reused", "Idempotency key reused with another body"


class UnknownHarness(Unprocessable):
    code, title, exit_code = "unknown_harness", "Unknown harness", 2


class MissingBinary(Unprocessable):
    code, title, exit_code = "missing_binary", "The agent is not installed", 3


class UnsupportedVersion(Unprocessable):
    code, title = "unsupported_version", "The agent's version can't be trusted"


class ProviderMissing(Unprocessable):
    code, title = "provider_missing", "No provider configured"


class WireMismatch(Unprocessable):
    code, title = "wire_mismatch", "The harness doesn't speak this provider's API"


class WorkspaceMissing(Unprocessable):
    code, title = "workspace_missing", "No such workspace"


class PolicyInvalid(Unprocessable):
    """A policy file or rule that can't be stored; `line` and `column` (from 1) in the facts where known."""

    code, title = "policy_invalid", "The policy can't be used"


class OverBudget(OmnigentError):
    """A model call would pass a cap; `cap` in the facts names it, with what is settled and reserved."""

    code, status, title, exit_code = "over_budget", 409, "The budget doesn't reach", 7


class Draining(OmnigentError):
    code, status, title, exit_code = "draining", 503, "The server is stopping", 9


class ServerUnreachable(OmnigentError):
    code, status, title, exit_code = "unreachable", 503, "Server unreachable", 9


class ConfigInvalid(OmnigentError):
    code, title, exit_code = "config_invalid", "Configuration invalid", 2


class HomeUnusable(OmnigentError):
    code, title, exit_code = "home_unusable", "Omnigent's home can't be used", 1


class NewerHome(HomeUnusable):
    code, title, exit_code = "newer_home", "Written by a newer Omnigent", 1


class Fenced(OmnigentError):
    """A writer's epoch is no longer the session's: it must stop."""

    code, status, title = "fenced", 409, "Superseded by a newer runner"


class Gap(OmnigentError):
    """A producer skipped numbers; `facts["expected"]` is where it must restart."""

    code, status, title = "gap", 409, "Producer numbers skipped"
