"""The harness contract: how any coding agent is driven, and the table of those we know.

An adapter is a *pure translator* (agent messages and commands in, events and messages to send out) plus a few
lines that say how to start the process. The I/O shell that they share is `_wire.py`. Nothing above this room
asks *which* harness it has, only *what it can* (`Capabilities`).
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from omnigent.actions import Action, Parsed
from omnigent.events import JSON, Body, Carried, Content, StartedHow, Stream, ToolRequested
from omnigent.history import History, Image
from omnigent.ids import NewId

Wire = Literal["anthropic-messages", "openai-responses", "openai-chat"]
"""A model API, by name."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about a harness, verified by `HarnessSuite`; the docs' matrix is printed from its run."""

    streams_text: bool = False
    streams_reasoning: bool = False
    live_output: bool = False
    """Output of a running command is seen before it ends."""
    asks_before_tools: bool = False
    """Every tool call of the inventory waits for a verdict before it runs."""
    rewrites: bool = False
    """An allowed command can be replaced by another before it runs."""
    deny_reason: bool = False
    """The model's next request holds the reason of a deny."""
    gate_fails_closed: bool = False
    """When the gate can't answer, the call doesn't run."""
    reports_usage: bool = False
    reports_cost: bool = False
    interrupts: bool = False
    steers: bool = False
    """A message can go into a running turn."""
    sets_model: bool = False
    """The model can change between turns without a restart."""
    resumes: bool = False
    """After SIGKILL the native session goes on where it was."""
    seeds_history: bool = False
    """A foreign history can be handed in as native roles."""
    images: bool = False
    mcp_servers: bool = False
    asks_questions: bool = False
    background_commands: bool = False
    types_into_processes: bool = False
    """A running command can be given standard input by a later tool call."""
    subagents: bool = False


@dataclass(frozen=True, slots=True)
class ToolRow:
    """A row of the tool inventory.

    `gated` waits for a verdict; `harmless` runs without asking (no effect outside the conversation);
    `hosted` runs at the provider and is switched off; `disabled` is switched off by configuration.
    """

    kind: Literal["gated", "harmless", "hosted", "disabled"]
    actions: Callable[[JSON, Path], tuple[list[Action], Parsed]] | None = None
    """The call's input and the workspace → what it does. None where nothing is done."""


@dataclass(frozen=True, slots=True)
class Binary:
    """An agent's program: `argv` starts it (Pi: node and a script)."""

    name: str
    argv: tuple[str, ...]
    version: str
    source: Literal["managed", "path", "builtin"]
    in_range: bool
    """Whether the version lies in the range the suite was run on."""


@dataclass(frozen=True, slots=True)
class McpServer:
    """A tool server the agent starts and speaks MCP with over stdio: the session's, not the vendor's."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs, in USD per million tokens."""

    input: float
    output: float
    cache_read: float = 0.0
    cache_write: float = 0.0


@dataclass(frozen=True, slots=True)
class Launch:
    """All an adapter needs to start an agent. No secret: the gateway holds the key."""

    session_id: str
    run: str
    workspace: Path
    private: Path
    """Config and state directory of this session and harness; survives restarts, never under TMPDIR."""
    binary: Binary
    model: str | None
    wire: Wire
    gateway_url: str
    """Base URL of the wire on the session's gateway: what an SDK calls its base URL (no trailing slash).
    Anthropic: the part before `/v1/messages`; OpenAI: the part before `/responses` or `/chat/completions`."""
    placeholder: str
    """What the agent is told is its API key; useless anywhere but at the gateway."""
    environment: dict[str, str]
    """The allow-listed environment; the adapter adds its own variables."""
    native_ref: str | None = None
    """Resume this native session (its content is up to date)."""
    history: History | None = None
    """Seed this history (only if `native_ref` is None)."""
    instructions: str = ""
    mcp_servers: tuple[McpServer, ...] = ()
    """Handed to a harness that `mcp_servers`; their tools pass the gate like any other."""
    prices: dict[str, Prices] = field(default_factory=dict[str, "Prices"])
    """By model; a harness that counts costs by prices it is told uses these."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path


# ── Into a translator ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Opened:
    """The process is up: say hello."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One JSON object from the agent's stdout."""

    message: JSON


@dataclass(frozen=True, slots=True)
class StartTurn:
    turn_id: str
    message_id: str
    content: tuple[Content, ...]
    images: tuple[Image, ...] = ()
    """The bytes of the content's image parts, in order."""


@dataclass(frozen=True, slots=True)
class Steer:
    """A message for the running turn. Acknowledge with `MessageDelivered(as_="steer")`."""

    message_id: str
    content: tuple[Content, ...]
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Interrupt:
    """End the running turn. Answer with `TurnInterrupted` (or whatever end came first)."""


@dataclass(frozen=True, slots=True)
class SetModel:
    model: str
    effort: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer to `Ask`. `reason` must reach the model when denied."""

    item_id: str
    allow: bool
    reason: str = ""
    command: str | None = None
    """With allow, for a harness that `rewrites`: the command to run in place of the one proposed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's answer to `QuestionAsked` (item id `question_id`), or that nobody will."""

    question_id: str
    values: tuple[tuple[str, ...], ...]
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """The watchdog asks whether the agent is alive; answer with `Pong` when the agent answered."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A timer set with `SetTimer` ran out."""

    timer: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended. Close whatever is open: a turn becomes `TurnFailed(agent_exited)`."""

    code: int
    stderr_tail: str


Command = StartTurn | Steer | Interrupt | SetModel | Verdict | Answer | Ping
Input = Opened | Raw | Command | Tick | Exited


# ── Out of a translator ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Emit:
    """An event. `turn_id` None stands for the turn that is open."""

    body: Body
    item_id: str | None = None
    parent_item_id: str | None = None
    turn_id: str | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """A delta: the next `text` of a stream of an item."""

    item_id: str
    stream: Stream
    text: str


@dataclass(frozen=True, slots=True)
class Send:
    """One JSON line to the agent's stdin."""

    message: JSON


@dataclass(frozen=True, slots=True)
class SetTimer:
    """(Re)start a timer, or stop it with `seconds` None."""

    timer: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Ask:
    """A tool call waits at the gate; a `Verdict` for `item_id` will come, after a second or a day."""

    item_id: str
    body: ToolRequested
    parent_item_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is done: prompts may come. `native_ref` may be unknown until the first turn."""

    native_ref: str | None
    version: str
    model: str | None = None
    tools: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] = ()
    how: StartedHow = "new"
    carried: Carried | None = None


@dataclass(frozen=True, slots=True)
class NativeRef:
    """The vendor's session id or file became known or changed."""

    ref: str


@dataclass(frozen=True, slots=True)
class Pong:
    pass


@dataclass(frozen=True, slots=True)
class Refuse:
    """The agent can't be trusted as it runs (a gate that doesn't hold): it is ended, `detail` shown."""

    code: str
    detail: str


Output = Emit | Say | Send | SetTimer | Ask | Ready | NativeRef | Pong | Refuse


class Translator(Protocol):
    """Pure: all protocol state inside, no I/O, no clock. Golden files are dialogues with it."""

    def step(self, given: Input) -> list[Output]: ...


class Harness(Protocol):
    """One kind of agent. A row of `HARNESSES` names the class."""

    name: str
    capabilities: Capabilities
    wires: tuple[Wire, ...]
    """The model APIs it speaks, preferred first."""
    tools: dict[str, ToolRow]
    """The inventory: every tool name the agent may offer its model."""
    versions: tuple[str, str]
    """Lowest and highest version the suite was run on; both ends included."""

    def locate(self, home: Path) -> Binary:
        """Its program. Raises `MissingBinary` with the install command."""
        ...

    def prepare(self, launch: Launch) -> ProcessSpec:
        """Write the private configuration (and a seeded transcript, if that is how it is seeded)."""
        ...

    def translator(self, launch: Launch, new_id: NewId) -> Translator: ...

    def holds(self, native_ref: str, private: Path, message_id: str, text: str) -> bool:
        """Whether the native transcript holds this message; asked after a crash before its delivery."""
        ...


class HarnessSession(Protocol):
    """An agent that runs. Made by `_wire.open_agent`."""

    async def send(self, command: Command) -> None: ...

    def outputs(self) -> AsyncIterator["SessionOutput"]:
        """Everything but `Send` and `SetTimer`, ends after `Gone`."""
        ...

    async def close(self) -> None:
        """End the process and everything it started; no process is left behind."""
        ...


@dataclass(frozen=True, slots=True)
class Gone:
    """The process and all its descendants have ended. Always the last output."""

    code: int
    stderr_tail: str = ""


SessionOutput = Emit | Say | Ask | Ready | NativeRef | Pong | Refuse | Gone


@dataclass(frozen=True, slots=True)
class HarnessRow:
    """Where an adapter lives. Its module is imported only when it is used."""

    module: str
    cls: str
    title: str
    aliases: tuple[str, ...] = field(default=())
    person_files: tuple[str, ...] = field(default=())
    """The vendor's log-in and settings under a person's home, which no agent may touch."""


HARNESSES: dict[str, HarnessRow] = {
    "claude-code": HarnessRow(
        "omnigent.harnesses.claude_code",
        "ClaudeCode",
        "Claude Code",
        ("claude",),
        (
            ".claude.json",
            ".claude/.credentials.json",
            ".claude/settings.json",
            ".claude/settings.local.json",
        ),
    ),
    "codex": HarnessRow(
        "omnigent.harnesses.codex",
        "Codex",
        "Codex",
        person_files=(".codex/auth.json", ".codex/config.toml"),
    ),
    "pi": HarnessRow(
        "omnigent.harnesses.pi",
        "Pi",
        "Pi",
        person_files=(".pi/agent/auth.json", ".pi/agent/settings.json"),
    ),
    "scripted": HarnessRow("omnigent.harnesses.scripted", "Scripted", "Scripted agent"),
}
