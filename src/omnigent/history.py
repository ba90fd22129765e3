"""A conversation without its vendor: what a switch or a fork hands to the next agent.

Rules learnt from strict APIs: calls and results are paired, reasoning and vendor system items are left out,
no call dangles, and consecutive assistant text and calls belong to one assistant message.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from omnigent.events import Outcome


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    turn_id: str | None = None


class Image(BaseModel):
    """`data` is base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    media_type: str
    data: str


class UserMessage(_Entry):
    role: Literal["user"] = "user"
    text: str
    images: tuple[Image, ...] = ()


class AssistantMessage(_Entry):
    role: Literal["assistant"] = "assistant"
    text: str


class ToolCall(_Entry):
    """One call with its result. `call_id` is our item id, so it is unique over all turns and harnesses."""

    role: Literal["call"] = "call"
    call_id: str
    tool: str
    input: str
    """JSON text of an object."""
    output: str
    outcome: Outcome


Entry = Annotated[UserMessage | AssistantMessage | ToolCall, Field(discriminator="role")]


class History(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    entries: tuple[Entry, ...] = ()


def preamble(history: History) -> str:
    """The conversation as text, for an agent that can't be seeded natively: compact and faithful."""
    lines = ["This conversation was begun with another agent. What was said and done so far:", ""]
    for entry in history.entries:
        match entry:
            case UserMessage():
                lines.append(f"User: {entry.text}")
            case AssistantMessage():
                lines.append(f"Assistant: {entry.text}")
            case ToolCall():
                lines.append(f"Tool {entry.tool} {entry.input} → {entry.outcome}: {entry.output}")
    return "\n".join([*lines, "", "Continue from here."])
