"""Named secrets: where a key's value is read, at the moment it is needed and never before; and its redaction.

A value never enters an event, a log, an argv, a child's environment or an error's text.
"""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from omnigent.config import Key
from omnigent.errors import ProviderMissing

REDACTED = "[redacted]"
SHORTEST = 8
"""Characters. What is shorter is no secret worth the name, and would be found everywhere."""


def read_key(key: Key, home: Path) -> str:
    """The value. Raises `ProviderMissing` saying where it was looked for, never what was found."""
    if key.env is not None:
        value = os.environ.get(key.env, "")
        where = f"the server's environment has no {key.env}"
        hint = (
            f"Export {key.env} and restart the server (`omnigent server stop`): it reads keys when it starts."
        )
    elif key.secret is not None:
        path = home / "secrets" / key.secret
        value = _read(path)
        where = f"there is no secret file {path}"
        hint = f"Write the key there with mode 0600: install -m 600 /dev/stdin {path}"
    else:
        value = _run(key.command or ())
        where = f"the command {' '.join((key.command or ())[:1])!r} printed no key"
        hint = "Run it by hand and see what it says."
    if not value:
        raise ProviderMissing(f"The provider's key is missing: {where}.", hint=hint)
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _run(argv: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Redactor:
    """Takes known secrets out of texts and JSON values."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST}
        quoted = {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in known}
        self._secrets = sorted(known | quoted, key=len, reverse=True)

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value, its strings (keys too) redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            fields = cast(dict[str, Any], value)
            return {self.text(name): self.value(inner) for name, inner in fields.items()}
        if isinstance(value, list):
            return [self.value(inner) for inner in cast(list[Any], value)]
        return value

    def split(self, text: str) -> tuple[str, str]:
        """A stream's text so far: what may be shown, and the end that may be the beginning of a secret."""
        text = self.text(text)
        held = max((_overlap(text, secret) for secret in self._secrets), default=0)
        return text[: len(text) - held], text[len(text) - held :]


def _overlap(text: str, secret: str) -> int:
    """The length of the longest end of `text` that a secret begins with."""
    longest = min(len(text), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(secret[:size])), 0)
