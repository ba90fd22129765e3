"""Codex: `codex app-server`, one process per session, JSON-RPC 2.0 over stdio without the `jsonrpc` field.

`codex app-server generate-json-schema --experimental --out DIR` writes the protocol. What holds a call back
is the approval request that stays open until the verdict; the thread's policy is `untrusted`, under which
every command, patch and MCP call asks. Codex's own sandbox is off, since a call that asks may do all.
"""

import json
from pathlib import Path

from omnigent.harnesses import (
    Binary,
    Capabilities,
    Launch,
    ProcessSpec,
    ToolRow,
    Translator,
    Wire,
    _codex_history,
    install,
)
from omnigent.harnesses._codex_tools import (
    FEATURES,
    TOOLS,
)
from omnigent.harnesses._codex_translator import KEY, TESTED, CodexTranslator
from omnigent.ids import NewId

_LOADED = ("rules", "hooks.json", "agents", "prompts", "plugins", "requirements.toml", "AGENTS.override.md")
"""What Codex would load from its home; nothing of it is ours, so whatever is there is taken away."""
_INSTRUCTIONS = ("AGENTS.override.md", "AGENTS.md")


class Codex:
    name = "codex"
    capabilities = Capabilities(
        streams_text=True,
        streams_reasoning=True,
        live_output=True,
        asks_before_tools=True,
        deny_reason=True,
        gate_fails_closed=True,
        reports_usage=True,
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
    wires: tuple[Wire, ...] = ("openai-responses",)
    tools: dict[str, ToolRow] = TOOLS
    versions: tuple[str, str] = TESTED

    def locate(self, home: Path) -> Binary:
        found = install.locate(self.name, home)
        return Binary(found.name, found.argv, found.version, found.source, found.in_range)

    def prepare(self, launch: Launch) -> ProcessSpec:
        home = launch.private / "codex"
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        (home / "config.toml").write_text(_home_config(launch.workspace))
        (home / "AGENTS.md").write_text(_instructions(launch))
        environment = {
            name: value for name, value in launch.environment.items() if not name.startswith("CODEX_")
        }
        environment |= {"CODEX_HOME": str(home), KEY: launch.placeholder}
        return ProcessSpec((*launch.binary.argv, "app-server"), environment, launch.workspace)

    def translator(self, launch: Launch, new_id: NewId) -> Translator:
        return CodexTranslator(launch, new_id)

    def holds(self, native_ref: str, private: Path, message_id: str, text: str) -> bool:
        file = _codex_history.rollout(private, native_ref)
        return file is not None and _codex_history.holds(file, message_id)


# ── Configuration ───────────────────────────────────────────────────────────────────────────────────────


def _sweep(home: Path) -> None:
    """Remove what would be loaded; an agent that was once allowed to write here must not gain by it."""
    for name in _LOADED:
        place = home / name
        if place.is_dir() and not place.is_symlink():
            for file in sorted(place.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
            place.rmdir()
        else:
            place.unlink(missing_ok=True)


def _home_config(workspace: Path) -> str:
    """`config.toml`. A directory of which Codex knows nothing is trusted by it as soon as a thread starts
    there: its `.codex` would bring MCP servers, hooks and rules that allow calls unasked."""
    resolved = workspace.resolve()
    places = dict.fromkeys([workspace, *workspace.parents, resolved, *resolved.parents])
    lines = ["check_for_update_on_startup = false", "", "[analytics]", "enabled = false", "", "[features]"]
    lines += [f"{name} = {json.dumps(on)}" for name, on in FEATURES.items()]
    for place in places:
        lines += ["", f"[projects.{json.dumps(str(place), ensure_ascii=False)}]", 'trust_level = "untrusted"']
    return "\n".join([*lines, ""])


def _instructions(launch: Launch) -> str:
    """The person's and the workspace's `AGENTS.md`, which Codex doesn't read where nothing is trusted."""
    person = Path(launch.environment.get("HOME") or Path.home()) / ".codex"
    top = next((place for place in _upward(launch.workspace) if (place / ".git").exists()), launch.workspace)
    places = [place for place in _upward(launch.workspace) if place.is_relative_to(top)]
    texts: list[str] = []
    for place in [person, *reversed(places)]:
        file = next((place / name for name in _INSTRUCTIONS if (place / name).is_file()), None)
        if file is not None and (text := file.read_text(errors="replace").strip()):
            texts.append(f"# Instructions from {file}\n\n{text}")
    return "\n\n".join([*texts, ""])


def _upward(place: Path) -> list[Path]:
    return [place, *place.parents]
