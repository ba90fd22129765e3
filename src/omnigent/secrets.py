"""Named secrets: where a key's value is read, at the moment it is needed and never before.

A value never enters an event, a log, an argv, a child's environment or an error's text.
"""

import os
import subprocess
from pathlib import Path

from omnigent.config import Key
from omnigent.errors import ProviderMissing


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
    except OSError:
        return ""


def _run(argv: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
