"""A request in one form whatever its wire: what was said, what is offered, where in the turn it stands."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, cast

type Json = dict[str, Any]
type Role = Literal["system", "user", "assistant"]
type Kind = Literal["text", "call", "result"]

# Texts the harnesses put into user messages themselves, as seen on the wire of Claude Code 2.1.330 and
# Codex 0.163-0.169. They are part of the context but nobody typed them.
HARNESS_TEXT = re.compile(
    r"\s*(<system-reminder>|<environment_context>|<user_instructions>|# AGENTS\.md instructions"
    r"|<INSTRUCTIONS>|<permissions instructions>|<skills_instructions>|<apps_instructions>|<model_switch>"
    r"|<collaboration_mode>|<local-command-|<command-name>|Caveat: The messages below|<hook_prompt"
    r"|<user_shell_command>|<subagent_notification>|<task-notification>"
    r"|Stop hook feedback:|Tool loaded\.\s*$)"
)
INTERRUPTION = re.compile(r"\s*(\[Request interrupted by user|<turn_aborted>)")
# Pi 0.87.1 leaves no marker in the conversation, only the result of the command it killed.
ABORTED_RESULT = re.compile(r"(Command|Operation) aborted\s*$|^interrupted\.?\s*$")
REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
# Claude Code folds a message typed mid-turn into a system message with this opening.
STEER = re.compile(r"\s*The user sent a new message while you were working:\s*")
STEER_END = re.compile(
    r"\n+(IMPORTANT: |This is how Claude Code|<system-reminder>|</system-reminder>).*", re.DOTALL
)
# Opens the id of a call that only loads a deferred tool. It is no step of a script, so nothing counts it.
LOOKUP = "lookup_"
CWD_IN_PROMPT = re.compile(r"\bCWD=(\S+)")
CWD_IN_CONTEXT = re.compile(
    r"(?:<cwd>\s*|[Ww]orking directory(?: is)?:\s*|current working directory:\s*)(/[^\s<]*)"
)


def as_dict(value: object) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []


def as_str(value: object) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing said. `role` is who said it, so a reminder a harness hid in a user message is `system`
    and a tool's result is `user`. `text` of a call is its arguments as sent; `steer` marks a prompt that
    came while the turn was running."""

    role: Role
    kind: Kind
    text: str
    name: str = ""
    call_id: str = ""
    steer: bool = False

    @property
    def is_lookup(self) -> bool:
        return self.call_id.startswith(LOOKUP)


@dataclass(frozen=True, slots=True)
class Offer:
    """One tool the request offers. `name` is flat (`mcp__server__tool`); on the wire a namespaced tool
    is `namespace` + `bare`. `kind` tells how it is called."""

    name: str
    bare: str
    namespace: str = ""
    kind: Literal["function", "custom", "local_shell", "tool_search"] = "function"
    schema: Json = field(default_factory=dict[str, Any])
    description: str = ""

    @property
    def properties(self) -> Json:
        return as_dict(self.schema.get("properties"))


@dataclass(frozen=True, slots=True)
class Conversation:
    items: list[Item]
    offers: list[Offer]
    model: str
    n_messages: int
    images: int
    unique_calls: bool = False

    @property
    def prompts(self) -> list[int]:
        return [i for i, item in enumerate(self.items) if item.role == "user" and item.kind == "text"]

    @property
    def prompt(self) -> str:
        prompts = self.prompts
        return self.items[prompts[-1]].text if prompts else ""

    @property
    def last_result(self) -> str:
        return next((item.text for item in reversed(self.steps) if item.kind == "result"), "")

    @property
    def steps(self) -> list[Item]:
        return [item for item in self.items if not item.is_lookup]

    @property
    def cwd(self) -> str:
        """The `CWD=` of the newest prompt that has one, else what the harness says of itself, else ''."""
        for index in reversed(self.prompts):
            if found := CWD_IN_PROMPT.search(self.items[index].text):
                return found[1].rstrip(".,;")
        for item in reversed(self.items):
            if item.role == "system" and (found := CWD_IN_CONTEXT.search(item.text)):
                return found[1]
        return ""

    def count_responses(self, after: int) -> int:
        """Model responses after the item `after`: what the assistant said with nothing between is one."""
        count, answering = 0, False
        for item in self.items[after + 1 :]:
            if item.is_lookup:
                continue
            count += item.role == "assistant" and not answering
            answering = item.role == "assistant"
        return count

    def count_calls(self, after: int) -> int:
        return sum(item.kind == "call" and not item.is_lookup for item in self.items[after + 1 :])


def split_user_text(blocks: list[str]) -> list[Item]:
    """The text blocks of one user message as items: what was typed, apart from what a harness added.

    Blocks typed together are one prompt; an interruption marker separates two."""
    items: list[Item] = []
    typed: list[str] = []

    def flush() -> None:
        if typed:
            items.append(Item("user", "text", "\n".join(typed)))
            typed.clear()

    for block in blocks:
        typed_part = REMINDER.sub("", block).strip()
        if INTERRUPTION.match(block):
            flush()
            items.append(Item("system", "text", block))
        elif STEER.match(block.replace("<system-reminder>", "", 1)):
            flush()
            items.append(steered(block))
        elif not typed_part or HARNESS_TEXT.match(typed_part):
            items.append(Item("system", "text", block))
        else:
            typed.append(typed_part)
    flush()
    return items


def steered(block: str) -> Item:
    text = block.replace("<system-reminder>", "", 1).replace("</system-reminder>", "")
    return Item("user", "text", STEER_END.sub("", STEER.sub("", text, count=1)).strip(), steer=True)


def system_text(text: str) -> Item:
    return steered(text) if STEER.match(text) else Item("system", "text", text)


def mark_steering(items: list[Item]) -> list[Item]:
    """Marks the prompts that follow a tool result with no answer and no interruption between."""
    marked: list[Item] = []
    mid_turn = False
    for item in items:
        if item.kind == "result":
            mid_turn = not ABORTED_RESULT.search(item.text)
        elif item.role == "assistant" or (item.role == "system" and INTERRUPTION.match(item.text)):
            mid_turn = False
        elif item.role == "user" and item.kind == "text" and mid_turn and not item.steer:
            item = Item(item.role, item.kind, item.text, steer=True)
        marked.append(item)
    return marked


def flatten(content: object) -> str:
    """The text of a content value: a string, or blocks of which some have text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [block_text(block) for block in as_list(cast(object, content))]
        return "\n".join(text for text in texts if text)
    return "" if content is None else json.dumps(content)


def block_text(block: object) -> str:
    if isinstance(block, str):
        return block
    fields = as_dict(block)
    if is_image(fields):
        return "[image]"
    return as_str(fields.get("text")) or as_str(fields.get("refusal"))


def is_image(block: Json) -> bool:
    return block.get("type") in ("image", "image_url", "input_image")


def count_images(value: object) -> int:
    if isinstance(value, list):
        return sum(count_images(part) for part in as_list(cast(object, value)))
    if isinstance(value, dict):
        fields = as_dict(cast(object, value))
        return 1 if is_image(fields) else sum(count_images(part) for part in fields.values())
    return 0
