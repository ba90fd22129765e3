"""What an agent does to the world, normalised: the only vocabulary the gate and the policies see.

A tool call is an ordered list of actions; the raw vendor call stays beside it in `tool.requested`.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

Parsed = Literal["full", "partial", "opaque"]
"""How far a call was understood. Anything but `full` is doubt, and doubt asks."""


class _Action(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    doubt: str = ""
    """Why it isn't known what this will do, for people; "" when it is. Doubt asks, whatever the rules say."""


class Exec(_Action):
    """One simple command of a shell text, its wrappers (`env`, `sudo`, `timeout`, `sh -c`, …) taken off.

    Of a text that can't be taken apart it is the whole (`argv` empty, `doubt` set). `stdin` is what goes into
    it: a here-document, a here-string, or text typed into a running process.
    """

    type: Literal["exec"] = "exec"
    command: str
    """Its text as written."""
    argv: tuple[str, ...] = ()
    """Its words with quotes removed and known values put in, `argv[0]` as written; a word whose value isn't
    known stands as written."""
    unknown: tuple[int, ...] = ()
    """Indices of `argv` whose value isn't known before it runs (expansions, globs)."""
    program: str = ""
    """`argv[0]` without its directory, an alias of a package manager under its main name."""
    words: tuple[str, ...] = ()
    """The arguments that are no flags and no values of flags: sub-commands first, then operands."""
    flags: tuple[str, ...] = ()
    """The flags, long and without dashes where the program's table knows one (`force` for `-f` of git push),
    sorted; `name=value` where it takes a value."""
    cwd: str = ""
    env_names: tuple[str, ...] = ()
    """Variables set for this command alone."""
    stdin: str | None = None
    background: bool = False
    sole: bool = False
    """The whole call is this one command, so that the call's exit code is its own."""
    everyday: bool = False
    """The table of everyday commands (reading, building, testing) has it, with these flags and operands."""
    repository: str = ""
    """Where the command speaks to a git host and it can be told: `host/owner/name`."""
    branches: tuple[str, ...] = ()
    """The branches or tags it would write there."""


class FileRead(_Action):
    """`path` is as the agent named it, `real_path` with links resolved before the decision."""

    type: Literal["file.read"] = "file.read"
    path: str
    real_path: str
    in_workspace: bool
    glob: bool = False
    """`path` and `real_path` are a pattern: every file it matches."""
    recursive: bool = False
    """A directory and all below it."""


class FileWrite(_Action):
    """Like `FileRead`; `change` tells a removal from a write."""

    type: Literal["file.write"] = "file.write"
    path: str
    real_path: str
    in_workspace: bool
    glob: bool = False
    recursive: bool = False
    change: Literal["write", "delete"] = "write"


class Net(_Action):
    """A request to another host. `method` and `path` are "" where only the host is known (git, ssh)."""

    type: Literal["net"] = "net"
    method: str = "GET"
    url: str
    host: str = ""
    """Lower case, without port; "" when it isn't known."""
    path: str = ""
    port: int | None = None


class Mcp(_Action):
    type: Literal["mcp"] = "mcp"
    server: str
    tool: str
    arguments: str = ""
    """As JSON text."""


class Model(_Action):
    """A model call, on its way out of the gateway."""

    type: Literal["model"] = "model"
    wire: str
    provider: str
    model: str
    input_tokens: int = 0
    """An estimate, from above."""
    max_output_tokens: int | None = None
    """The bound that the request itself sets; None without one."""
    estimate_nanousd: int | None = None
    """What it costs at most; None where the price is unknown."""
    bounded: bool = False
    """Whether `estimate_nanousd` covers the output too."""
    hosted: tuple[str, ...] = ()
    """Tools that run at the provider and are still offered in the request."""


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
    Exec | FileRead | FileWrite | Net | Mcp | Model | Spawn | Message | Unknown,
    Field(discriminator="type"),
]


def resolve(path: str, workspace: Path) -> tuple[str, bool]:
    """The real path (links followed, relative to the workspace) and whether it lies inside the workspace."""
    real = (workspace / Path(path).expanduser()).resolve()
    return str(real), real.is_relative_to(workspace.resolve())


def file_read(path: str, workspace: Path, *, recursive: bool = False) -> FileRead:
    real, inside = resolve(path, workspace)
    return FileRead(path=path, real_path=real, in_workspace=inside, recursive=recursive)


def file_write(path: str, workspace: Path) -> FileWrite:
    real, inside = resolve(path, workspace)
    return FileWrite(path=path, real_path=real, in_workspace=inside)


def net(url: str, method: str = "GET") -> Net:
    """A request by its URL. A URL without a host that can be told is doubt."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return Net(method=method, url=url, doubt="The URL can't be read.")
    doubt = "" if host else "The host can't be told."
    return Net(method=method, url=url, host=host, path=parts.path or "/", port=port, doubt=doubt)
