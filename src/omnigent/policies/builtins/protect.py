"""Keeps agents away from Omnigent itself: its home, its API, the log-ins and settings of the vendors.

Always on, and nothing loosens it. It looks at what an action names: the paths of file actions (a pattern or a
whole tree that reaches a protected path counts), the words, text and input of a command, the address of a
request, the arguments of an MCP call, the number of a process to end. What a program does by itself is not
seen here.
"""

import json
import os.path
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Net
from omnigent.events import JSON, Event
from omnigent.policies.contract import Facts, Opinion, Setting

HOME_VARIABLE = "OMNIGENT_HOME"

_LOOPBACK = re.compile(
    r"localhost|ip6-loopback|127\.\d[\d.]*|0\.0\.0\.0|0177\.|0x7f|2130706433|::1|::ffff:7f|\[::\]|(?<![\w.])0:",
    re.IGNORECASE,
)
"""Ways to write this machine's own address, in any text."""
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_WILD = re.compile(r"[*?\[{]")


class Protect:
    """Denies; has no parameters and no memory."""

    id = "builtin.protect"
    types: frozenset[str] | None = frozenset({"exec", "file.read", "file.write", "net", "mcp"})

    def empty(self) -> Any:
        return {}

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        return memory

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        found = _named(action, facts.setting)
        if found is None:
            return None
        what = "Omnigent's own API" if found == facts.setting.api else found
        return Opinion("deny", f"{what} is Omnigent's or a vendor's own; no agent may touch it.", found)


def _named(action: Action, setting: Setting) -> str | None:
    """What protected thing the action names, if it names one."""
    match action:
        case FileRead() | FileWrite():
            return _file(action, setting)
        case Exec():
            return _exec(action, setting)
        case Net():
            return setting.api if _is_api(action, setting.api) else None
        case Mcp():
            return next((found for text in _strings(action) if (found := _text(text, "", setting))), None)
        case _:
            return None


def _file(action: FileRead | FileWrite, setting: Setting) -> str | None:
    for path in (action.real_path, action.path):
        if _is_own(path, setting):
            continue
        for guarded in setting.protected:
            if _below(path, guarded):
                return guarded
            # A tree or a pattern over what holds it. Its fixed part decides: what follows may be anything.
            fixed = path if not action.glob else _fixed(path)
            if (action.recursive or action.glob) and _below(guarded, fixed):
                return guarded
    return None


def _exec(action: Exec, setting: Setting) -> str | None:
    if action.program == "kill" and any(str(pid) in action.words for pid in setting.pids):
        return "this process"
    # One text: what names a thing over several words (a host, then its port) counts too.
    return _text("\n".join((action.command, *action.argv, action.stdin or "")), action.cwd, setting)


def _text(text: str, cwd: str, setting: Setting) -> str | None:
    if setting.api and _names_api(text, setting.api):
        return setting.api
    if not setting.protected:
        return None
    if HOME_VARIABLE in text:
        return setting.protected[0]
    folded = _expand(text)
    for guarded in setting.protected:
        for found in _spelled(guarded).finditer(folded):
            if not _is_own(folded[found.start() :].split()[0].strip("'\"`;)"), setting):
                return guarded
    words = (
        part for word in re.split(r"[\s'\"`;|&<>()]+", folded) for part in re.split(r"[=,@]|:(?=[./~])", word)
    )
    for word in words:
        if ("/" in word or word.startswith(".")) and cwd and not word.startswith("/"):
            path = os.path.normpath(f"{cwd}/{word}")
        elif "/./" in word or "//" in word or "/../" in word:
            path = os.path.normpath(word)
        else:
            continue
        guarded = next((each for each in setting.protected if _below(path, each)), None)
        if guarded is not None and not _is_own(path, setting):
            return guarded
    return None


def _expand(text: str) -> str:
    """With the spellings of the person's home replaced by it."""
    home = str(Path.home())
    return re.sub(r"\$\{?HOME\}?(?=/|\b|$)|(?<![\w/.])~(?=/|$)", lambda _: home, text)


@lru_cache(maxsize=64)
def _spelled(guarded: str) -> re.Pattern[str]:
    """The path as it stands in a text, not as the beginning of a longer name."""
    return re.compile(re.escape(guarded) + r"(?![\w.-])")


def _below(path: str, guarded: str) -> bool:
    top = guarded.rstrip("/")
    return path == top or path.startswith(f"{top}/")


def _is_own(path: str, setting: Setting) -> bool:
    return any(_below(os.path.normpath(path), own) for own in setting.own if own)


def _fixed(pattern: str) -> str:
    """The directory that every match of a pattern lies in."""
    found = _WILD.search(pattern)
    return pattern if found is None else pattern[: found.start()].rpartition("/")[0]


def _is_api(action: Net, api: str) -> bool:
    if not api:
        return False
    host, _, port = api.rpartition(":")
    scheme = action.url.split("://")[0].lower() if "://" in action.url else "http"
    asked = action.port or _DEFAULT_PORTS.get(scheme, 80)
    if str(asked) != port:
        return False
    return action.host in ("", host.strip("[]")) or _LOOPBACK.match(f"{action.host}:") is not None


def _names_api(text: str, api: str) -> bool:
    host, _, port = api.rpartition(":")
    if not re.search(rf"(?<!\d){re.escape(port)}(?!\d)", text):
        return False
    return host.strip("[]") in text or _LOOPBACK.search(text) is not None


def _strings(action: Mcp) -> Iterator[str]:
    """Every string in the arguments, without JSON's escapes; the text itself where it is no JSON."""
    try:
        value = json.loads(action.arguments or "null")
    except ValueError:
        value = action.arguments
    yield from _walk(value)


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _walk(key)
            yield from _walk(each)
    elif isinstance(value, list):
        for each in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _walk(each)
