"""Pi's tools and what their calls do (0.85 to 0.87)."""

import re
from pathlib import Path
from typing import cast

from omnigent import shell
from omnigent.actions import Action, Parsed, Unknown
from omnigent.events import JSON
from omnigent.harnesses import ToolRow
from omnigent.shell.paths import tool_read, tool_write

Does = tuple[list[Action], Parsed]

_EXIT = re.compile(r"Command exited with code (\d+)\s*\Z")
_ODD_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")


def _bash(given: JSON, workspace: Path) -> Does:
    command = given.get("command")
    if not isinstance(command, str):
        return [Unknown(tool="bash")], "opaque"
    return shell.understand(command, workspace, workspace)


def _read(given: JSON, workspace: Path) -> Does:
    path, parsed = _path(given)
    return (tool_read(path, workspace, workspace), parsed) if path else ([Unknown(tool="read")], "opaque")


def _write(given: JSON, workspace: Path) -> Does:
    path, parsed = _path(given)
    return (tool_write(path, workspace, workspace), parsed) if path else ([Unknown(tool="write")], "opaque")


def _search(given: JSON, workspace: Path) -> Does:
    path, parsed = _path({"path": given.get("path") or "."})
    return tool_read(path, workspace, workspace, recursive=True), parsed


def _path(given: JSON) -> tuple[str, Parsed]:
    """The path as Pi will read it. Where Pi looks further than we do (its own home, URLs), that is doubt."""
    path = given.get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        return "", "opaque"
    plain = _ODD_SPACE.sub(" ", path).removeprefix("@")
    return plain or ".", "partial" if plain != path or plain.startswith(("~", "file:")) else "full"


TOOLS: dict[str, ToolRow] = {
    "bash": ToolRow("gated", _bash),
    "read": ToolRow("gated", _read),
    "edit": ToolRow("gated", _write),
    "write": ToolRow("gated", _write),
    "grep": ToolRow("disabled", _search),
    "find": ToolRow("disabled", _search),
    "ls": ToolRow("disabled", _search),
    "powershell": ToolRow("disabled", _bash),
}


def actions_of(tool: str, given: JSON, workspace: Path) -> Does:
    row = TOOLS.get(tool)
    if row is None or row.actions is None:
        return [Unknown(tool=tool)], "opaque"
    try:
        return row.actions(given, workspace)
    except (ValueError, OSError):
        return [Unknown(tool=tool)], "opaque"


def title_of(tool: str, given: JSON) -> str:
    """One short line for people: the command, the path, else the tool's name."""
    value = given.get("command") or given.get("path")
    first = value.strip().split("\n", 1)[0] if isinstance(value, str) else ""
    return first[:200] or tool


def text_of_result(result: object) -> str:
    """The text blocks of a (partial) result."""
    if not isinstance(result, dict):
        return ""
    content = cast(JSON, result).get("content")
    if not isinstance(content, list):
        return ""
    blocks = (cast(JSON, block) for block in cast(list[object], content) if isinstance(block, dict))
    return "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")


def exit_code_of(tool: str, text: str, failed: bool) -> int | None:
    """Pi tells the exit code of a command only at the end of the text, and only if it isn't 0."""
    if tool != "bash":
        return None
    if not failed:
        return 0
    told = _EXIT.search(text)
    return int(told[1]) if told else None


def news_of(before: str, now: str) -> str:
    """What a snapshot of a command's output adds to the last one.

    Pi sends the whole output each time, and once that is long (50 kB, 2000 lines) only its tail.
    """
    if now.startswith(before):
        return now[len(before) :]
    anchor = before[-1000:]
    at = now.rfind(anchor)
    return now[at + len(anchor) :] if at >= 0 else now
