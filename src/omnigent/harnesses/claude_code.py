"""Claude Code, driven by its stream-JSON and control protocol on stdio: how it is started, and what it can.

Never start it with `--bare`: that turns off the hook that is the gate. All its state is in the private
directory, and no setting source of the person or the workspace is read; their instruction files are.
"""

import json
import os
import shutil
from pathlib import Path

from omnigent.events import JSON
from omnigent.harnesses import (
    Binary,
    Capabilities,
    Launch,
    ProcessSpec,
    ToolRow,
    Translator,
    Wire,
    install,
)
from omnigent.harnesses import _claude_history as transcripts
from omnigent.harnesses import _claude_tools as tools
from omnigent.harnesses._claude_translator import ClaudeTranslator, native_session, seeded_history
from omnigent.ids import NewId

_SETTINGS: JSON = {
    # Claude deletes transcripts older than this at its start; ours are ours to delete.
    "cleanupPeriodDays": 36_500,
    # Else WebFetch asks the vendor about each host first.
    "skipWebFetchPreflight": True,
    "permissions": {"disableBypassPermissionsMode": "disable"},
}
_ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_INSTALLATION_CHECKS": "1",
    # Write the transcript before the frames that tell of it: else a kill loses up to 100 ms of it.
    "CLAUDE_CODE_EAGER_FLUSH": "1",
    # A file named by @ in a prompt would be read without the gate.
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_FILE_CHECKPOINTING": "1",
    "CLAUDE_CODE_DISABLE_BUNDLED_SKILLS": "1",
    "CLAUDE_CODE_DISABLE_CRON": "1",
    "CLAUDE_CODE_DISABLE_WORKFLOWS": "1",
    # Never silently another model than the one that was chosen.
    "CLAUDE_CODE_NO_MODEL_FALLBACK": "1",
    # All tools in the first request, and `TodoWrite` as the one tool for plans.
    "ENABLE_TOOL_SEARCH": "false",
    "CLAUDE_CODE_ENABLE_TASKS": "0",
}
_LOADED = (
    *("settings.json", "settings.local.json", "managed-settings.json", "remote-settings.json"),
    *(".claude.json", ".mcp.json", ".credentials.json", "CLAUDE.md", "keybindings.json"),
    *("agents", "commands", "hooks", "output-styles", "plugins", "rules", "skills", "workflows"),
)
"""What Claude would load from its directory; none of it is ours, so whatever is there is taken away."""
_INSTRUCTION_FILES = ("AGENTS.md", "CLAUDE.md", ".claude/CLAUDE.md", "CLAUDE.local.md")


class ClaudeCode:
    name = "claude-code"
    capabilities = Capabilities(
        streams_text=True,
        streams_reasoning=True,
        asks_before_tools=True,
        rewrites=True,
        deny_reason=True,
        gate_fails_closed=True,
        reports_usage=True,
        reports_cost=True,
        interrupts=True,
        steers=True,
        sets_model=True,
        resumes=True,
        seeds_history=True,
        images=True,
        mcp_servers=True,
        asks_questions=True,
        background_commands=True,
        subagents=True,
    )
    wires: tuple[Wire, ...] = ("anthropic-messages",)
    tools: dict[str, ToolRow] = tools.TOOLS
    versions = ("2.1.321", "2.1.330")

    def locate(self, home: Path) -> Binary:
        return install.locate(self.name, home)

    def prepare(self, launch: Launch) -> ProcessSpec:
        config = _config(launch.private)
        for folder in (config, _scratch(launch.private)):
            folder.mkdir(parents=True, exist_ok=True)
        _sweep(config)
        told = launch.private / "instructions.md"
        told.write_text(_instructions(launch), encoding="utf-8")
        _write_servers(launch)
        session = native_session(launch)
        if seeded := seeded_history(launch):
            transcripts.seed(config, launch.workspace, session, seeded, launch.binary.version)
        return ProcessSpec(_argv(launch, session, told), _environment(launch), launch.workspace)

    def translator(self, launch: Launch, new_id: NewId) -> Translator:
        return ClaudeTranslator(launch, new_id, lambda path: _stored(launch.private, path))

    def holds(self, native_ref: str, private: Path, message_id: str, text: str) -> bool:
        return transcripts.holds(_config(private), native_ref, message_id, text)


def _config(private: Path) -> Path:
    return private / "claude"


def _sweep(config: Path) -> None:
    """Remove what would be loaded; an agent that was once allowed to write here must not gain by it."""
    for name in _LOADED:
        place = config / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _scratch(private: Path) -> Path:
    return private / "claude-tmp"


def _servers(private: Path) -> Path:
    return private / "claude-mcp.json"


def _write_servers(launch: Launch) -> None:
    """By a file that only its owner reads: a server's environment may hold a secret, and argv is public."""
    path = _servers(launch.private)
    path.unlink(missing_ok=True)
    if not launch.mcp_servers:
        return
    servers: JSON = {
        server.name: {
            "type": "stdio",
            "command": server.command[0],
            "args": list(server.command[1:]),
            "env": server.environment,
        }
        for server in launch.mcp_servers
    }
    with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({"mcpServers": servers}, file)


def _argv(launch: Launch, session: str, instructions: Path) -> tuple[str, ...]:
    resumed = launch.native_ref or seeded_history(launch)
    return (
        *launch.binary.argv,
        *("--print", "--verbose", "--input-format", "stream-json", "--output-format", "stream-json"),
        *("--include-partial-messages", "--replay-user-messages", "--forward-subagent-text"),
        *("--permission-prompt-tool", "stdio", "--permission-mode", "manual"),
        *("--setting-sources", "", "--settings", json.dumps(_SETTINGS, separators=(",", ":"))),
        *("--strict-mcp-config", "--disable-slash-commands", "--no-chrome"),
        *(("--mcp-config", str(_servers(launch.private))) if launch.mcp_servers else ()),
        *("--tools", ",".join(tools.OFFERED)),
        # The record of an earlier start would hide instructions that changed since.
        *("--append-system-prompt-file", str(instructions), "--system-prompt-snapshot", "off"),
        *(("--model", launch.model) if launch.model else ()),
        *(("--resume", session) if resumed else ("--session-id", session)),
    )


def _environment(launch: Launch) -> dict[str, str]:
    own = {
        "CLAUDE_CONFIG_DIR": str(_config(launch.private)),
        "CLAUDE_CODE_TMPDIR": str(_scratch(launch.private)),
        "ANTHROPIC_BASE_URL": launch.gateway_url,
        "ANTHROPIC_API_KEY": launch.placeholder,
    }
    if launch.model:
        # Side requests (a fetched page's summary) and sub-agents that name a size reach no other model.
        names = ("SMALL_FAST_MODEL", "DEFAULT_HAIKU_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_OPUS_MODEL")
        own |= {f"ANTHROPIC_{name}": launch.model for name in names}
    return launch.environment | _ENVIRONMENT | own


def _instructions(launch: Launch) -> str:
    """Instruction files of the person and the workspace, which Claude doesn't read without setting sources.

    A link that leads out of the workspace isn't followed: it would put any file into the prompt, unasked.
    """
    parts = [launch.instructions] if launch.instructions else []
    home, workspace = launch.environment.get("HOME"), launch.workspace.resolve()
    files = [Path(home) / ".claude" / "CLAUDE.md"] if home else []
    inside = [launch.workspace / name for name in _INSTRUCTION_FILES]
    files += [path for path in inside if path.resolve().is_relative_to(workspace)]
    seen: set[Path] = set()
    for path in files:
        real = path.resolve()
        if real not in seen and real.is_file():
            seen.add(real)
            words = real.read_text(encoding="utf-8", errors="replace").strip()
            parts.append(f"Instructions from {path}:\n\n{words}")
    return "\n\n".join(parts)


def _stored(private: Path, path: str) -> str | None:
    """A large output that Claude put into its own directory; None if it isn't there."""
    real = Path(path).resolve()
    if not real.is_relative_to(private.resolve()) or not real.is_file():
        return None
    return real.read_text(encoding="utf-8", errors="replace")
