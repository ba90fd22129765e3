"""Codex's tools, what their calls do, and how its items read (0.163 to 0.169).

Codex tells us an item (`commandExecution`, `fileChange`, …), not the call the model made; `Given` is what we
keep of it as the call's input.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, cast

from omnigent import shell
from omnigent.actions import Action, Mcp, Message, Parsed, Spawn, Unknown
from omnigent.events import JSON, FileChanged
from omnigent.events import Output as ToolOutput
from omnigent.harnesses import ToolRow
from omnigent.shell.paths import tool_write

Does = tuple[list[Action], Parsed]
Change = Literal["added", "modified", "deleted"]

_SHELLS = {"bash", "zsh", "sh", "dash"}
_TITLE = 200
_CHANGES: dict[str, Change] = {"add": "added", "update": "modified", "delete": "deleted"}


@dataclass(frozen=True, slots=True)
class Given:
    """A call as it is shown: the tool's name, one line for people, its input, what it does."""

    tool: str
    title: str
    input: JSON
    actions: tuple[Action, ...]
    parsed: Parsed

    @property
    def raw(self) -> str:
        return json.dumps(self.input, ensure_ascii=False)


def _exec(given: JSON, workspace: Path) -> Does:
    command = given.get("command")
    if not isinstance(command, str):
        return [Unknown(tool="exec_command")], "opaque"
    cwd = workspace / str(given.get("cwd") or ".")
    return shell.understand(plain_command(command), cwd, workspace)


def _patch(given: JSON, workspace: Path) -> Does:
    actions: list[Action] = []
    try:
        for change in rows(given.get("changes")):
            kind, path = table(change.get("kind")), change.get("path")
            if isinstance(path, str):
                deletes = kind.get("type") == "delete" or isinstance(kind.get("move_path"), str)
                actions += tool_write(path, workspace, workspace, delete=deletes)
            if isinstance(moved := kind.get("move_path"), str):
                actions += tool_write(moved, workspace, workspace)
    except (ValueError, OSError):
        actions = []
    return (actions, "full") if actions else ([Unknown(tool="apply_patch")], "opaque")


def _mcp(given: JSON, workspace: Path) -> Does:
    server, tool = str(given.get("server") or ""), str(given.get("tool") or "")
    arguments = json.dumps(given.get("arguments"), ensure_ascii=False)
    return [Mcp(server=server, tool=tool, arguments=arguments)], "full"


def _spawn(given: JSON, workspace: Path) -> Does:
    return [Spawn(description=str(given.get("prompt") or given.get("agentPath") or ""))], "full"


def _speak(given: JSON, workspace: Path) -> Does:
    return [Message(description=str(given.get("prompt") or ""))], "full"


_GATED_EXEC = ToolRow("gated", _exec)
_HARMLESS = ToolRow("harmless", _speak)
_SPAWN = ToolRow("harmless", _spawn)
_OFF = ToolRow("disabled")
_HOSTED = ToolRow("hosted")

TOOLS: dict[str, ToolRow] = {
    "exec_command": _GATED_EXEC,
    "shell_command": _GATED_EXEC,
    "shell": _GATED_EXEC,
    "apply_patch": ToolRow("gated", _patch),
    "mcp__*": ToolRow("gated", _mcp),
    # Without a TTY a process has no standard input; the call only waits for output.
    "write_stdin": _HARMLESS,
    # Code mode: the script reaches the world only through the other tools, whose calls ask by themselves.
    "exec": _HARMLESS,
    "wait": _HARMLESS,
    "update_plan": _HARMLESS,
    "request_user_input": _HARMLESS,
    "request_user_input_async": _HARMLESS,
    "clock__sleep": _HARMLESS,
    "clock__curr_time": _HARMLESS,
    # Finds the descriptions of tools of this table that are kept back to save room.
    "tool_search": _HARMLESS,
    # Offered without an MCP server too, where there is nothing to list or read.
    "list_mcp_resources": _HARMLESS,
    "list_mcp_resource_templates": _HARMLESS,
    "read_mcp_resource": _HARMLESS,
    # Sub-agents: each of their calls asks by itself.
    "multi_agent_v1__spawn_agent": _SPAWN,
    "multi_agent_v1__send_input": _HARMLESS,
    "multi_agent_v1__resume_agent": _HARMLESS,
    "multi_agent_v1__wait_agent": _HARMLESS,
    "multi_agent_v1__close_agent": _HARMLESS,
    "collaboration__spawn_agent": _SPAWN,
    "collaboration__followup_task": _HARMLESS,
    "collaboration__send_message": _HARMLESS,
    "collaboration__wait_agent": _HARMLESS,
    "collaboration__interrupt_agent": _HARMLESS,
    "collaboration__list_agents": _HARMLESS,
    # Reads any image of the disk without asking.
    "view_image": _OFF,
    "get_goal": _OFF,
    "create_goal": _OFF,
    "update_goal": _OFF,
    "request_permissions": _OFF,
    "web_search": _HOSTED,
    "image_generation": _HOSTED,
}

FEATURES: dict[str, bool] = {
    # A TTY lets one approved shell take anything through `write_stdin`, unseen.
    "unified_exec_tty": False,
    "view_image": False,
    "image_generation": False,
    "web_search_request": False,
    "web_search_cached": False,
    "standalone_web_search": False,
    "request_permissions_tool": False,
    "exec_permission_approvals": False,
    "goals": False,
    "memories": False,
    # Code of others: hooks fail open, plugins and apps bring tools of their own.
    "hooks": False,
    "plugins": False,
    "remote_plugin": False,
    "apps": False,
    "tool_suggest": False,
    "skill_mcp_dependency_install": False,
    "browser_use": False,
    "computer_use": False,
    # An approval is a person's or the gate's, not a model's.
    "guardian_approval": False,
    # Reads the person's shell profile into a file at each start.
    "shell_snapshot": False,
    "daemon_auto_start": False,
    "default_mode_request_user_input": True,
}
"""Codex's own switches. Both ends of the range know all of them (`codex features list`)."""

SWITCHED_OFF = {"webSearch", "imageView", "imageGeneration", "dynamicToolCall"}
"""Items that the configuration makes impossible: one that comes shows that it doesn't hold."""


def given_command(params: JSON, workspace: Path) -> Given:
    """From `item/commandExecution/requestApproval`. Any kind but a plain command is doubt."""
    kind = params.get("kind") or "command"
    command = params.get("command")
    known: JSON = {"command": command, "cwd": params.get("cwd")}
    if kind != "command" or not isinstance(command, str):
        known["kind"] = kind
        return Given(str(kind), _line(str(command or kind)), known, (Unknown(tool=str(kind)),), "opaque")
    return _given("exec_command", _line(plain_command(command)), known, workspace)


def given_patch(item: JSON, workspace: Path) -> Given:
    """From the `fileChange` item that came before its approval request."""
    known: JSON = {"changes": item.get("changes") or []}
    return _given(
        "apply_patch", _line(", ".join(_short(path, workspace) for path in paths_of(known))), known, workspace
    )


def given_mcp(item: JSON) -> Given:
    server, tool = str(item.get("server") or ""), str(item.get("tool") or "")
    arguments: object = item.get("arguments")
    known = cast(JSON, arguments) if isinstance(arguments, dict) else {"arguments": arguments}
    return Given(
        f"mcp__{server}__{tool}",
        f"{server}: {tool}",
        known,
        (Mcp(server=server, tool=tool, arguments=json.dumps(arguments, ensure_ascii=False)),),
        "full",
    )


def given_agent(item: JSON, workspace: Path) -> Given:
    """From `collabAgentToolCall` (its `tool` in camel case) or `subAgentActivity`."""
    if item.get("type") == "subAgentActivity":
        known: JSON = {"agentPath": item.get("agentPath")}
        return _given("collaboration__spawn_agent", _line(str(known["agentPath"])), known, workspace)
    tool = str(item.get("tool") or "")
    known = {"prompt": item.get("prompt"), "agents": item.get("receiverThreadIds") or []}
    name = {"spawnAgent": "spawn_agent", "sendInput": "send_input", "resumeAgent": "resume_agent",
            "wait": "wait_agent", "closeAgent": "close_agent"}.get(tool, tool)  # fmt: skip
    return _given(f"multi_agent_v1__{name}", _line(str(item.get("prompt") or name)), known, workspace)


def table(value: object) -> JSON:
    """The object that was expected, else an empty one."""
    return cast(JSON, value) if isinstance(value, dict) else {}


def rows(value: object) -> list[JSON]:
    """The objects of the list that was expected."""
    return [table(entry) for entry in cast(list[object], value)] if isinstance(value, list) else []


def plain_command(command: str) -> str:
    """The script of `/bin/bash -lc 'script'`, as Codex wraps what the model wrote; else as it is."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    if len(words) == 3 and PurePath(words[0]).name in _SHELLS and words[1] in ("-lc", "-c"):
        return words[2]
    return command


def paths_of(given: JSON) -> list[str]:
    """Every path a patch writes, moves to or deletes."""
    paths: list[str] = []
    for change in rows(given.get("changes")):
        kind = table(change.get("kind"))
        paths += [path for path in (change.get("path"), kind.get("move_path")) if isinstance(path, str)]
    return paths


def changes_of(item: JSON) -> list[FileChanged]:
    """What a patch did. A moved file is one deleted and one added."""
    done: list[FileChanged] = []
    for change in rows(item.get("changes")):
        kind = table(change.get("kind"))
        path, diff = str(change.get("path") or ""), str(change.get("diff") or "")
        moved = kind.get("move_path")
        if isinstance(moved, str):
            done += [
                FileChanged(path=path, change="deleted"),
                FileChanged(path=moved, change="added", diff=diff),
            ]
        else:
            done.append(
                FileChanged(path=path, change=_CHANGES.get(str(kind.get("type")), "modified"), diff=diff)
            )
    return done


def output_of_mcp(item: JSON) -> ToolOutput:
    error = table(item.get("error"))
    result = table(item.get("result"))
    blocks = rows(result.get("content"))
    texts = [str(block["text"]) for block in blocks if block.get("type") == "text"]
    return ToolOutput(text="\n".join(texts) or str(error.get("message") or ""))


def _given(tool: str, title: str, known: JSON, workspace: Path) -> Given:
    does: Callable[[JSON, Path], Does] | None = TOOLS[tool].actions if tool in TOOLS else None
    actions, parsed = does(known, workspace) if does else ([Unknown(tool=tool)], cast(Parsed, "opaque"))
    return Given(tool, title or tool, known, tuple(actions), parsed)


def _line(text: str) -> str:
    return text.strip().split("\n", 1)[0][:_TITLE]


def _short(path: str, workspace: Path) -> str:
    inside = PurePath(path).is_relative_to(workspace)
    return str(PurePath(path).relative_to(workspace)) if inside else path
