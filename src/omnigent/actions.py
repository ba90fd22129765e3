"""What an agent does to the world, normalised: the only vocabulary the gate and the policies see.

A tool call is an ordered list of actions; the raw vendor call stays beside it in `tool.requested`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Parsed = Literal["full", "partial", "opaque"]
"""How far a call was understood. Anything but `full` is doubt, and doubt asks."""


class _Action(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exec(_Action):
    """A shell command as the agent wrote it, or text typed into a running process (`stdin`)."""

    type: Literal["exec"] = "exec"
    command: str
    cwd: str = ""
    stdin: str | None = None
    background: bool = False


class FileRead(_Action):
    type: Literal["file.read"] = "file.read"
    path: str
    real_path: str
    in_workspace: bool


class FileWrite(_Action):
    """`path` is as the agent named it, `real_path` with links resolved before the decision."""

    type: Literal["file.write"] = "file.write"
    path: str
    real_path: str
    in_workspace: bool


class Net(_Action):
    type: Literal["net"] = "net"
    method: str = "GET"
    url: str


class Mcp(_Action):
    type: Literal["mcp"] = "mcp"
    server: str
    tool: str


class Spawn(_Action):
    """A sub-agent of the vendor's own; each of its calls passes the gate by itself."""

    type: Literal["spawn"] = "spawn"
    description: str = ""


class Message(_Action):
    """The agent speaks to the person, or keeps notes for itself (plans, to-do lists): no effect outside."""

    type: Literal["message"] = "message"
    description: str = ""


class Unknown(_Action):
    """A tool without a row in its adapter's inventory: doubt."""

    type: Literal["unknown"] = "unknown"
    tool: str


Action = Annotated[
    Exec | FileRead | FileWrite | Net | Mcp | Spawn | Message | Unknown, Field(discriminator="type")
]


def resolve(path: str, workspace: Path) -> tuple[str, bool]:
    """The real path (links followed, relative to the workspace) and whether it lies inside the workspace."""
    real = (workspace / Path(path).expanduser()).resolve()
    return str(real), real.is_relative_to(workspace.resolve())


def file_read(path: str, workspace: Path) -> FileRead:
    real, inside = resolve(path, workspace)
    return FileRead(path=path, real_path=real, in_workspace=inside)


def file_write(path: str, workspace: Path) -> FileWrite:
    real, inside = resolve(path, workspace)
    return FileWrite(path=path, real_path=real, in_workspace=inside)
