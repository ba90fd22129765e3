"""Claude Code's tools: what each does to the world, and what is told of its calls and results.

Names, inputs and results were seen on claude 2.1.330. It is started with `--tools` and the names of
`OFFERED`, so that a tool a newer version adds is not offered; the other rows say what was left out.
"""

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from omnigent import shell
from omnigent.actions import Action, Mcp, Message, Parsed, Spawn, Unknown, net
from omnigent.events import (
    JSON,
    FileChanged,
    Option,
    Outcome,
    Output,
    PlanEntry,
    PlanUpdated,
    Question,
    ToolCompleted,
)
from omnigent.harnesses import ToolRow
from omnigent.shell.paths import could_be_secret, tool_read, tool_write

type Understood = tuple[list[Action], Parsed]

_EXIT_CODE = re.compile(r"\A(?:Error: )?Exit code (\d+)\n?")
_DENY_PREFIX = re.compile(r"\APreToolUse:\S+ hook error: ")
_TITLE_LENGTH = 120
_CWD = "\0cwd"
"""Where the shell stands, beside the vendor's own keys."""


def text(value: JSON, key: str) -> str:
    """A string of the vendor's, or "" where there is none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def objects(value: object) -> list[JSON]:
    """The objects of a list of the vendor's; anything else in it is left out."""
    listed = cast(list[object], value) if isinstance(value, list) else []
    return [cast(JSON, each) for each in listed if isinstance(each, dict)]


def _shell(given: JSON, workspace: Path) -> Understood:
    command = text(given, "command")
    if not command:
        return [Unknown(tool="Bash")], "opaque"
    background = given.get("run_in_background") is True
    return shell.understand(command, Path(text(given, _CWD) or workspace), workspace, background=background)


def _reads(given: JSON, workspace: Path) -> Understood:
    return tool_read(text(given, "file_path"), workspace, workspace), "full"


def _searches(given: JSON, workspace: Path) -> Understood:
    """All below a directory, its `.env` files too unless the search is for other names or types."""
    glob = text(given, "glob")
    hidden = not text(given, "type") and (not glob or _fits_a_secret(glob))
    return tool_read(text(given, "path") or ".", workspace, workspace, recursive=True, hidden=hidden), "full"


def _fits_a_secret(glob: str) -> bool:
    """Negations, braces and lists are not taken apart: they may fit."""
    return bool(re.search(r"[!{},\s]", glob)) or could_be_secret(glob.rpartition("/")[2])


def _globs(given: JSON, workspace: Path) -> Understood:
    """The pattern may climb out of its directory, so it is read up to its first wildcard too."""
    actions = tool_read(text(given, "path") or ".", workspace, workspace)
    fixed = re.split(r"[*?\[{]", text(given, "pattern"), maxsplit=1)[0]
    if fixed.startswith(("/", "~")) or ".." in fixed:
        actions += tool_read(fixed, workspace, workspace)
    return actions, "full"


def _writes(key: str) -> Callable[[JSON, Path], Understood]:
    def understand(given: JSON, workspace: Path) -> Understood:
        return tool_write(text(given, key), workspace, workspace), "full"

    return understand


def _fetches(given: JSON, workspace: Path) -> Understood:
    asked = net(text(given, "url"))
    return [asked], "partial" if asked.doubt else "full"


def _spawns(given: JSON, workspace: Path) -> Understood:
    return [Spawn(description=text(given, "description") or text(given, "prompt"))], "full"


def _asks(given: JSON, workspace: Path) -> Understood:
    asked = [text(each, "question") for each in objects(given.get("questions"))]
    return [Message(description=" ".join(asked))], "full"


def _plans(given: JSON, workspace: Path) -> Understood:
    return [Message(description="Update the plan")], "full"


def _stops(given: JSON, workspace: Path) -> Understood:
    return [Message(description=f"Stop the background task {text(given, 'task_id')}")], "full"


_GATED: dict[str, ToolRow] = {
    "Agent": ToolRow("gated", _spawns),
    "Bash": ToolRow("gated", _shell),
    "Edit": ToolRow("gated", _writes("file_path")),
    "Glob": ToolRow("gated", _globs),
    "Grep": ToolRow("gated", _searches),
    "NotebookEdit": ToolRow("gated", _writes("notebook_path")),
    "Read": ToolRow("gated", _reads),
    "TaskStop": ToolRow("gated", _stops),
    "WebFetch": ToolRow("gated", _fetches),
    "Write": ToolRow("gated", _writes("file_path")),
}
_HARMLESS: dict[str, ToolRow] = {
    "AskUserQuestion": ToolRow("harmless", _asks),
    "TodoWrite": ToolRow("harmless", _plans),
}

_DISABLED = (
    # They start turns, sessions or processes of their own, or change what is asked.
    *("CronCreate", "CronDelete", "CronList", "ScheduleWakeup", "Monitor", "Workflow", "RemoteTrigger"),
    *("EnterPlanMode", "ExitPlanMode", "EnterWorktree", "ExitWorktree", "REPL", "PowerShell"),
    # They speak to other Claude sessions on the machine, or to the vendor.
    *(
        "ListAgents",
        "SendMessage",
        "SendUserMessage",
        "TeamCreate",
        "TeamDelete",
        "ReportFindings",
        "Artifact",
    ),
    # A skill may run commands while it loads, which no hook sees.
    "Skill",
    # Needed only for tools whose schema comes later; all of ours come with the first request.
    *("ToolSearch", "DeferredToolPlaceholder", "LSP", "StructuredOutput"),
    # `TodoWrite` keeps the plan; output of background commands is read with `Read`.
    *("TaskCreate", "TaskGet", "TaskList", "TaskUpdate", "TaskOutput", "BashOutput", "KillShell"),
    # Other names of offered tools in older and newer versions.
    *("Task", "LS", "MultiEdit", "NotebookRead"),
    *("ListMcpResources", "ReadMcpResource", "ListMcpResourcesTool", "ReadMcpResourceTool"),
)

TOOLS: dict[str, ToolRow] = {
    **_GATED,
    # Of the session's own servers; `understand` takes the name apart.
    "mcp__*": ToolRow("gated"),
    **_HARMLESS,
    "WebSearch": ToolRow("hosted"),
    **{name: ToolRow("disabled") for name in _DISABLED},
}

OFFERED: tuple[str, ...] = tuple(sorted([*_GATED, *_HARMLESS]))
"""What `--tools` names, and so all that the model is offered besides MCP tools."""


def understand(tool: str, given: JSON, workspace: Path, cwd: Path) -> Understood:
    """What a call does. `cwd` is where Claude's shell stands; a relative path starts there."""
    row = TOOLS.get(tool)
    if tool.startswith("mcp__"):
        server, _, name = tool.removeprefix("mcp__").partition("__")
        arguments = json.dumps(given, ensure_ascii=False)
        return [Mcp(server=server, tool=name, arguments=arguments)], "full"
    if row is None or row.actions is None:
        return [Unknown(tool=tool)], "opaque"
    try:
        return row.actions(_absolute(tool, given, cwd) if cwd != workspace else given, workspace)
    except (ValueError, OSError):
        return [Unknown(tool=tool)], "opaque"


def _absolute(tool: str, given: JSON, cwd: Path) -> JSON:
    """The input with the places named from the workspace on."""
    if tool == "Bash":
        return given | {_CWD: str(cwd)}
    keys = [key for key in ("path", "file_path", "notebook_path") if text(given, key)]
    if not keys and tool in ("Glob", "Grep"):
        return given | {"path": str(cwd)}
    return given | {key: _placed(text(given, key), cwd) for key in keys}


def _placed(path: str, cwd: Path) -> str:
    return path if path.lstrip().startswith(("/", "~")) else str(cwd / path.strip())


def title(tool: str, given: JSON) -> str:
    """One short line for people."""
    if tool == "Agent":
        line = text(given, "description") or text(given, "prompt")
    elif tool == "AskUserQuestion":
        line = next((text(each, "question") for each in objects(given.get("questions"))), "")
    elif tool == "TodoWrite":
        line = "Update the plan"
    elif tool in ("Glob", "Grep"):
        line = " in ".join(filter(None, [text(given, "pattern"), text(given, "path")]))
    else:
        keys = ("command", "file_path", "notebook_path", "url", "task_id")
        line = next((text(given, key) for key in keys if text(given, key)), tool)
    first, _, more = line.strip().partition("\n")
    return first if not more and len(first) <= _TITLE_LENGTH else first[: _TITLE_LENGTH - 1] + "…"


def questions(given: JSON) -> tuple[Question, ...]:
    return tuple(
        Question(
            question=text(each, "question"),
            header=text(each, "header"),
            options=tuple(
                Option(label=text(option, "label"), description=text(option, "description"))
                for option in objects(each.get("options"))
            ),
            multiple=each.get("multiSelect") is True,
        )
        for each in objects(given.get("questions"))
    )


def answered(given: JSON, values: tuple[tuple[str, ...], ...]) -> JSON:
    """The input of `AskUserQuestion` with the answers in it, which is how Claude takes them."""
    asked = [text(each, "question") for each in objects(given.get("questions"))]
    answers = {question: ", ".join(chosen) for question, chosen in zip(asked, values, strict=False)}
    return given | {"answers": answers}


def plan(given: JSON) -> PlanUpdated:
    entries: list[PlanEntry] = []
    for each in objects(given.get("todos")):
        match text(each, "status"):
            case "completed" | "in_progress" as status:
                entries.append(PlanEntry(text=text(each, "content"), status=status))
            case _:
                entries.append(PlanEntry(text=text(each, "content"), status="pending"))
    return PlanUpdated(entries=tuple(entries))


def completed(block: JSON, result: object, meta: JSON, stored: Callable[[str], str | None]) -> ToolCompleted:
    """How a call ended: `block` is the `tool_result`, `result` and `meta` what Claude tells hosts beside it.

    Claude keeps all but the head of a large output in a file of its own; `stored` reads it.
    """
    told = _plain(block.get("content"))
    kind = text(meta, "non_execution_kind")
    if kind:
        outcome: Outcome = "denied" if kind == "permission-rule" else "cancelled"
        reason = _DENY_PREFIX.sub("", told) if outcome == "denied" else ""
        return ToolCompleted(outcome=outcome, reason=reason)
    if block.get("is_error") is True:
        found = _EXIT_CODE.match(told)
        code = int(found[1]) if found else None
        return ToolCompleted(
            outcome="error", output=_output(_EXIT_CODE.sub("", told, count=1)), exit_code=code
        )
    if isinstance(result, dict) and "stdout" in result:
        return _command_completed(cast(JSON, result), told, stored)
    return ToolCompleted(outcome="ok", output=_output(told))


def _command_completed(result: JSON, told: str, stored: Callable[[str], str | None]) -> ToolCompleted:
    if result.get("interrupted") is True:
        return ToolCompleted(outcome="cancelled", output=_output(text(result, "stdout")))
    if text(result, "backgroundTaskId"):
        return ToolCompleted(outcome="ok", output=_output(told))
    whole = stored(text(result, "persistedOutputPath")) if text(result, "persistedOutputPath") else None
    shown = "\n".join(filter(None, [text(result, "stdout"), text(result, "stderr")]))
    # A non-zero code that Claude takes for an answer (`grep` found nothing) is told in words only.
    meaning = text(result, "returnCodeInterpretation")
    return ToolCompleted(
        outcome="ok", output=_output(shown if whole is None else whole), exit_code=None if meaning else 0
    )


def file_changed(result: object) -> FileChanged | None:
    """What a finished `Write` or `Edit` did to its file; None for other results."""
    if not isinstance(result, dict) or "structuredPatch" not in result:
        return None
    told = cast(JSON, result)
    path, old = text(told, "filePath"), told.get("originalFile")
    hunks = objects(told.get("structuredPatch"))
    if old is None and not hunks:
        lines = difflib.unified_diff([], text(told, "content").splitlines(), "/dev/null", path, lineterm="")
        return FileChanged(path=path, change="added", diff="\n".join(lines))
    return FileChanged(path=path, change="modified", diff="\n".join(_hunk(each) for each in hunks))


def _hunk(hunk: JSON) -> str:
    numbers = [hunk.get(key) for key in ("oldStart", "oldLines", "newStart", "newLines")]
    head = "@@ -{},{} +{},{} @@".format(*numbers)
    return "\n".join([head, *(str(line) for line in cast(list[object], hunk.get("lines") or []))])


def _output(whole: str) -> Output:
    return Output(text=whole, size=len(whole.encode(errors="replace")))


def _plain(content: object) -> str:
    """The text of a result, which is a string or a list of blocks."""
    if isinstance(content, str):
        return content
    parts = objects(content)
    return "\n".join(text(part, "text") or f"[{text(part, 'type')}]" for part in parts)
