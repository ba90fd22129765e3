"""Secrets: where a value is read, at the moment it is needed and never before; and all that we know of.

A value never enters an event, a log, an argv, a child's environment or an error's text.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from omnigent.config import Config, Key
from omnigent.errors import Malformed, NotFound, ProviderMissing
from omnigent.redaction import REDACTED, Redactor
from omnigent.redaction.forms import SHORTEST

__all__ = ["REDACTED", "Redactor", "known_secrets", "names", "read_key", "remove", "store"]

COMMAND_SECONDS = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SAYS_SO = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|PRIVATE|APIKEY"
    r"|(?:^|_)(?:KEY|TOKEN|PAT|AUTH|PWD|PASS|COOKIE|DSN)(?:_|$)|(?:API|ACCESS|AUTH)(?:KEY|TOKEN)|TOKEN$|KEY$"
)
"""A variable's or header's name, in capitals with underscores, that says that its value is a secret."""
_NO_SECRET = re.compile(
    r"[~.]/.*|\d{1,19}|true|false|none|null|default|enabled|disabled|[a-z]+://[^@]*", re.I
)
"""Values that such names often have and that are none: relative paths, numbers, switches, addresses."""


def read_key(key: Key, home: Path, environ: Mapping[str, str] | None = None) -> str:
    """The value. Raises `ProviderMissing` saying where it was looked for, never what was found."""
    if key.env is not None:
        value = (os.environ if environ is None else environ).get(key.env, "")
        where = f"the server's environment has no {key.env}"
        hint = (
            f"Export {key.env} and restart the server (`omnigent server stop`): it reads keys when it starts."
        )
    elif key.secret is not None:
        path = home / "secrets" / key.secret
        value = _read(path)
        where = f"there is no secret file {path}"
        hint = f"Store it: omnigent secret set {key.secret}"
    elif key.keychain is not None:
        argv = _keychain(key.keychain)
        value = _run(argv)
        where = f"{argv[0]} has nothing for {key.keychain!r}"
        hint = f"Run it by hand and see what it says: {' '.join(argv[:-1])} {key.keychain!r}"
    else:
        value = _run(key.command or ())
        where = f"the command {' '.join((key.command or ())[:1])!r} printed no key"
        hint = "Run it by hand and see what it says."
    if not value:
        raise ProviderMissing(f"The provider's key is missing: {where}.", hint=hint)
    return value


def _keychain(service: str) -> tuple[str, ...]:
    """The machine's own key store, asked by its own program: it may ask the person to unlock it."""
    if sys.platform == "darwin":
        return ("security", "find-generic-password", "-w", "-s", service)
    return ("secret-tool", "lookup", "service", service)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _run(argv: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# What we know of.


def known_secrets(config: Config, home: Path, environ: Mapping[str, str]) -> list[str]:
    """Every value that must never be stored or shown, as far as we can know. Blocks: it may run programs.

    A source that has nothing to give now is left out: a session doesn't need the key of every provider.
    """
    found = [*_configured(config, home, environ), *_of_environment(environ)]
    found += [_read(home / "secrets" / name) for name in names(home)]
    found.append(_read(home / "token"))
    return list(dict.fromkeys(value for value in found if len(value) >= SHORTEST))


def _configured(config: Config, home: Path, environ: Mapping[str, str]) -> Iterator[str]:
    for key in dict.fromkeys([*(row.key for row in config.providers.values()), *config.secrets]):
        with suppress(ProviderMissing):
            yield read_key(key, home, environ)
    for provider in config.providers.values():
        yield from credentials({**provider.headers, **provider.query})
    for server in config.mcp_servers.values():
        yield from _of_environment(server.environment)


def credentials(fields: Mapping[str, str]) -> Iterator[str]:
    """The values of headers and query parameters that carry a credential, without their scheme."""
    words = ("auth", "key", "token", "secret", "cookie", "password")
    for name, value in fields.items():
        if any(word in name.lower() for word in words) and value.split():
            yield value.split()[-1]


def _of_environment(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if _SAYS_SO.search(name.upper().replace("-", "_")) and not _harmless(value.strip()):
            yield value.strip()
        yield from _of_address(value)


def _harmless(value: str) -> bool:
    """Whether it is no secret, whatever its name. A secret may begin with a slash, as a path does."""
    if value.startswith("/"):
        return Path("/", value.split("/")[1]).exists()
    return _NO_SECRET.fullmatch(value) is not None


def _of_address(value: str) -> Iterator[str]:
    """The password in a URL, whatever its variable is called: `postgres://me:password@host`."""
    if "://" in value and "@" in value:
        with suppress(ValueError):
            password = urlsplit(value).password or ""
            yield from (password, unquote(password))


# What people register.


def names(home: Path) -> list[str]:
    """The registered secrets, by name."""
    folder = home / "secrets"
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file())


def store(home: Path, name: str, value: str) -> bool:
    """Register a secret, or change it. Whether it is new. Raises `Malformed` for a name or value unfit."""
    path = _path(home, name)
    if len(value) < SHORTEST:
        raise Malformed(
            f"The value has {len(value)} characters: what is shorter than {SHORTEST} can't be redacted.",
            hint="Pipe the whole value in, or type it at the prompt.",
        )
    new = not path.exists()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(value + "\n")
    temporary.replace(path)
    return new


def remove(home: Path, name: str) -> None:
    """Forget a registered secret. Raises `NotFound`."""
    try:
        _path(home, name).unlink()
    except FileNotFoundError:
        known = ", ".join(names(home)) or "none"
        raise NotFound(f"There is no secret {name!r}.", hint=f"Registered: {known}.") from None


def _path(home: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise Malformed(
            f"{name!r} can't be a secret's name.", hint="Letters, digits, dots, hyphens and underscores."
        )
    return home / "secrets" / name
