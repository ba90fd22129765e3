"""Abstract tools (`$shell`, `$write`, …) as calls of whatever tools a request offers.

One script drives every harness this way. The shapes were seen on the wire of Claude Code 2.1.330,
Codex 0.163-0.169 and Pi 0.87.1.
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from .conversation import Conversation, Json, Offer, as_dict, as_list, as_str
from .reply import Call
from .script import ToolUse

SESSION_ID = re.compile(r"session (?:ID|id)[^\d]{0,3}(\d+)|\"session_id\":\s*(\d+)")
TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[\w-]+)?")
SHELLS = ("Bash", "bash", "exec_command", "shell_command", "shell", "local_shell")


class NotOffered(Exception):
    """The request offers no tool that can do this. The text is for the reader of a failing test."""


class NotLoaded(Exception):
    """The tool is deferred: the search tool has to be called first, with this input."""

    def __init__(self, search: Offer, query: Json) -> None:
        super().__init__(search.name)
        self.search = search
        self.query = query


def deferred_names(conversation: Conversation) -> list[str]:
    """Claude Code lists them one a line in a system message that names its ToolSearch tool."""
    return [
        line.strip()
        for item in conversation.items
        if item.role == "system" and "ToolSearch" in item.text
        for line in item.text.splitlines()
        if TOOL_NAME.fullmatch(line.strip())
    ]


type Made = tuple[Offer, Json | str]
type Mapping = Callable[["Toolbox", Json], Made | None]


class Toolbox:
    """The tools of one request, with what is needed to call them."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.offers = {offer.name: offer for offer in conversation.offers}
        self.looked_up = [item.text for item in conversation.items if item.is_lookup and item.kind == "call"]
        names = deferred_names(conversation) if "ToolSearch" in self.offers else []
        self.offers |= {name: Offer(name, name) for name in names if name not in self.offers}
        loaded = {name for name in names if any(f"select:{name}" in text for text in self.looked_up)}
        self.deferred = set(names) - loaded - {offer.name for offer in conversation.offers}

    def find(self, *names: str) -> Offer | None:
        return next((self.offers[name] for name in names if name in self.offers), None)

    @property
    def code(self) -> Offer | None:
        """Codex's code mode: one custom tool whose input is JavaScript calling `tools.NAME(…)`."""
        offer = self.offers.get("exec")
        return offer if offer and offer.kind == "custom" else None

    def absolute(self, path: str) -> str:
        cwd = self.conversation.cwd
        return path if path.startswith("/") or not cwd else str(PurePosixPath(cwd) / path)

    def call(self, use: ToolUse, call_id: str) -> Call:
        """Raises NotLoaded, NotOffered."""
        made = self.make(use)
        if made is None:
            self.look_up(use)
            offered = ", ".join(self.offers) or "none"
            raise NotOffered(f"tool {use.tool} not offered; offered: {offered}")
        offer, value = made
        if offer.name in self.deferred:
            raise NotLoaded(self.offers["ToolSearch"], {"query": f"select:{offer.name}", "max_results": 5})
        return Call(use.id or call_id, offer.bare, value, offer.namespace, offer.kind)

    def look_up(self, use: ToolUse) -> None:
        """Codex tells no names of deferred tools, so the search is by the words of the one wanted."""
        search = self.offers.get("tool_search")
        if search is None or search.kind != "tool_search":
            return
        given = as_dict(use.input)
        words = f"{given.get('server')} {given.get('tool')}" if use.tool == "$mcp" else use.tool
        if not any(words in text for text in self.looked_up):
            raise NotLoaded(search, {"query": words, "limit": 8})

    def make(self, use: ToolUse) -> Made | None:
        if not use.tool.startswith("$"):
            offer = self.offers.get(use.tool)
            return (offer, pass_through(offer, use.input)) if offer else None
        mapping = MAPPINGS.get(use.tool)
        return mapping(self, as_dict(use.input)) if mapping else None


def pass_through(offer: Offer, value: Json | str) -> Json | str:
    if offer.kind == "custom" and not isinstance(value, str):
        return as_str(value.get("input")) or json.dumps(value)
    return value


def shell(box: Toolbox, given: Json) -> Made | None:
    return run(box, as_str(given.get("command")), background=bool(given.get("background")))


def run(box: Toolbox, command: str, *, background: bool = False) -> Made | None:
    offer = box.find(*SHELLS)
    if offer is None:
        return run_code(box, "exec_command", exec_input(command, background, False)) if box.code else None
    if offer.kind == "local_shell":
        return offer, {"type": "exec", "command": ["bash", "-lc", command], "env": {}}
    if offer.name == "exec_command":
        return offer, exec_input(command, background, "tty" in offer.properties)
    value: Json = {"command": command}
    if as_dict(offer.properties.get("command")).get("type") == "array":
        value = {"command": ["bash", "-lc", command]}
    if "description" in offer.properties:
        value["description"] = "Run a scripted command"
    if background:
        value |= {key: True for key in ("run_in_background", "background") if key in offer.properties}
    return offer, value


def exec_input(command: str, background: bool, terminal: bool) -> Json:
    """A background command keeps a terminal where one is offered, so that `$stdin` can write to it."""
    if not background:
        return {"cmd": command}
    return {"cmd": command, "yield_time_ms": 250} | ({"tty": True} if terminal else {})


def run_code(box: Toolbox, name: str, value: Any) -> Made | None:
    if box.code is None:
        return None
    script = (
        f"const r = await tools.{name}({json.dumps(value)});\n"
        'text(typeof r === "string" ? r : JSON.stringify(r));'
    )
    return box.code, script


def stdin(box: Toolbox, given: Json) -> Made | None:
    found = SESSION_ID.findall(box.conversation.last_result)
    session = int(found[-1][0] or found[-1][1]) if found else 0
    value = {"session_id": session, "chars": as_str(given.get("text"))}
    offer = box.find("write_stdin")
    return (offer, value) if offer else run_code(box, "write_stdin", value)


def write(box: Toolbox, given: Json) -> Made | None:
    path, content = as_str(given.get("path")), as_str(given.get("content"))
    if offer := box.find("Write", "write"):
        return offer, {**locate(box, offer, path), "content": content}
    if patcher := patch(box, add_file(path, content)):
        return patcher
    folder = shlex.quote(str(PurePosixPath(path).parent))
    return run(box, f"mkdir -p {folder} && {here_document(path, content)}")


def locate(box: Toolbox, offer: Offer, path: str) -> Json:
    if "file_path" in offer.properties:
        return {"file_path": box.absolute(path)}
    return {"path": path}


def here_document(path: str, content: str) -> str:
    quoted = shlex.quote(path)
    if not content.endswith("\n"):
        return f"printf %s {shlex.quote(content)} > {quoted}"
    return f"cat > {quoted} <<'SCRIPT_END'\n{content}SCRIPT_END"


def patch(box: Toolbox, text: str) -> Made | None:
    if offer := box.find("apply_patch"):
        return offer, text if offer.kind == "custom" else {"input": text}
    if box.code and "apply_patch" in box.code.description:
        return run_code(box, "apply_patch", text)
    return None


def add_file(path: str, content: str) -> str:
    lines = "".join(f"+{line}\n" for line in content.splitlines())
    return f"*** Begin Patch\n*** Add File: {path}\n{lines}*** End Patch\n"


def update_file(path: str, old: str, new: str) -> str:
    lines = "".join(
        [*(f"-{line}\n" for line in old.splitlines()), *(f"+{line}\n" for line in new.splitlines())]
    )
    return f"*** Begin Patch\n*** Update File: {path}\n@@\n{lines}*** End Patch\n"


def edit(box: Toolbox, given: Json) -> Made | None:
    path, old, new = (as_str(given.get(key)) for key in ("path", "old", "new"))
    offer = box.find("Edit", "edit")
    if offer is None:
        return patch(box, update_file(path, old, new)) or run(box, substitute(path, old, new))
    where = locate(box, offer, path)
    if "old_string" in offer.properties:
        return offer, {**where, "old_string": old, "new_string": new}
    if "edits" in offer.properties:
        return offer, {**where, "edits": [{"oldText": old, "newText": new}]}
    if "oldText" in offer.properties:
        return offer, {**where, "oldText": old, "newText": new}
    return offer, {**where, "old": old, "new": new}


def substitute(path: str, old: str, new: str) -> str:
    program = r"s/\Q$ENV{OLD}\E/$ENV{NEW}/ or die qq(text to replace not found\n)"
    return f"OLD={shlex.quote(old)} NEW={shlex.quote(new)} perl -0777 -pi -e '{program}' {shlex.quote(path)}"


def read(box: Toolbox, given: Json) -> Made | None:
    path = as_str(given.get("path"))
    if offer := box.find("Read", "read"):
        return offer, locate(box, offer, path)
    return run(box, f"cat {shlex.quote(path)}")


def mcp(box: Toolbox, given: Json) -> Made | None:
    server, tool, args = as_str(given.get("server")), as_str(given.get("tool")), as_dict(given.get("args"))
    wanted = [f"mcp__{server}__{tool}", f"mcp_{server}_{tool}", f"{server}__{tool}", f"{server}_{tool}", tool]
    by_name = {plain(name): offer for name, offer in box.offers.items()}
    for name in wanted:
        if offer := by_name.get(plain(name)):
            return offer, args
    # Code mode leaves some tools out of its description that can be called all the same.
    return run_code(box, f"mcp__{identifier(server)}__{identifier(tool)}", args)


def plain(name: str) -> str:
    """Harnesses replace what a vendor does not allow in a tool name, each in its own way."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def subagent(box: Toolbox, given: Json) -> Made | None:
    prompt = as_str(given.get("prompt"))
    offer = next(
        (offer for offer in box.offers.values() if offer.bare in ("Agent", "Task", "spawn_agent")), None
    )
    if offer is None:
        return None
    value: Json = {}
    for key, filler in (
        ("description", "Scripted task"),
        ("subagent_type", "general-purpose"),
        ("task_name", "scripted_task"),
        # Without it the child starts with the parent's turn, and would play that once more.
        ("fork_turns", "none"),
        ("run_in_background", bool(given.get("background"))),
    ):
        if key in offer.properties:
            value[key] = filler
    return offer, {**value, ("prompt" if "prompt" in offer.properties else "message"): prompt}


def ask(box: Toolbox, given: Json) -> Made | None:
    options = [
        {"label": option, "description": option} if isinstance(option, str) else option
        for option in as_list(given.get("options"))
    ]
    question: Json = {"question": as_str(given.get("question")), "header": "Question", "options": options}
    if offer := box.find("AskUserQuestion"):
        return offer, {"questions": [{**question, "multiSelect": False}]}
    if offer := box.find("request_user_input"):
        return offer, {"questions": [{**question, "id": "question_1"}]}
    return None


MAPPINGS: dict[str, Mapping] = {
    "$shell": shell,
    "$stdin": stdin,
    "$write": write,
    "$edit": edit,
    "$read": read,
    "$mcp": mcp,
    "$subagent": subagent,
    "$ask": ask,
}
