"""Pi: `pi --mode rpc`, one process per session, JSON lines both ways (docs/rpc.md of the npm package).

Pi has no permissions of its own. `pi_gate.js`, loaded from this package, asks before each tool call over the
same stream; Pi blocks a call whose extension gives no answer. The gate also notes in the session file which
of our messages has landed, so that an acknowledgement means "it is on disk".
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from omnigent.errors import NotFound, UnsupportedVersion
from omnigent.events import JSON
from omnigent.harnesses import (
    Binary,
    Capabilities,
    Launch,
    Prices,
    ProcessSpec,
    ToolRow,
    Translator,
    Wire,
    _pi_history,
    install,
)
from omnigent.harnesses._book import Book
from omnigent.harnesses._pi_tools import TOOLS
from omnigent.harnesses._pi_translator import PROVIDER, PiTranslator
from omnigent.ids import NewId

GATE = Path(__file__).with_name("pi_gate.js")
GATE_SHA256 = "8cce5c2cf3e966bbd78d64c58281c05eefd14207acb31ddd4f8199f4b69689be"
"""What the gate must be; another file is not loaded."""

_DEFAULT_MODEL = "default"
_APIS: dict[Wire, str] = {
    "anthropic-messages": "anthropic-messages",
    "openai-responses": "openai-responses",
    "openai-chat": "openai-completions",
}
_CONTEXT_WINDOW = 200_000
_MAX_TOKENS: dict[Wire, int] = {
    "anthropic-messages": 32_000,
    "openai-responses": 32_000,
    "openai-chat": 16_384,
}
"""Of one answer: what the usual models of a wire allow at least."""
_OFFERED = tuple(name for name, row in TOOLS.items() if row.kind == "gated")
_LOADED = (
    *("SYSTEM.md", "APPEND_SYSTEM.md", "auth.json", "keybindings.json"),
    *("agents", "extensions", "hooks", "packages", "prompts", "skills", "themes", "tools"),
)
"""What Pi would load from its directory; none of it is ours, so whatever is there is taken away."""
_DROPPED_VARIABLES = ("PI_", "NODE_OPTIONS", "JITI_")
"""Variables by which something else than this adapter could load code into Pi or move its files."""


class Pi:
    name = "pi"
    capabilities = Capabilities(
        streams_text=True,
        streams_reasoning=True,
        live_output=True,
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
    )
    wires: tuple[Wire, ...] = ("anthropic-messages", "openai-responses", "openai-chat")
    tools: dict[str, ToolRow] = TOOLS
    versions = ("0.85.1", "0.87.1")

    def locate(self, home: Path) -> Binary:
        found = install.locate(self.name, home)
        return Binary(found.name, found.argv, found.version, found.source, found.in_range)

    def prepare(self, launch: Launch) -> ProcessSpec:
        check_gate()
        home = launch.private / "agent"
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        _write_config(launch, home)
        environment = {
            name: value
            for name, value in launch.environment.items()
            if not name.startswith(_DROPPED_VARIABLES)
        }
        environment |= {
            "PI_CODING_AGENT_DIR": str(home),
            "PI_OFFLINE": "1",
            "PI_SKIP_VERSION_CHECK": "1",
            "PI_TELEMETRY": "0",
            # Else the loader keeps a compiled gate under TMPDIR, where it could be exchanged for another.
            "JITI_FS_CACHE": "false",
        }
        argv = (*launch.binary.argv, *_flags(launch, _session_file(launch)))
        return ProcessSpec(argv, environment, launch.workspace)

    def translator(self, launch: Launch, new_id: NewId) -> Translator:
        def provider(model: str, reasoning: bool) -> JSON:
            return _provider(launch, model, reasoning)

        return PiTranslator(launch, Book(new_id), provider)

    def holds(self, native_ref: str, private: Path, message_id: str, text: str) -> bool:
        return _pi_history.holds(Path(native_ref), message_id, text)


def check_gate() -> None:
    """Raises `UnsupportedVersion` if the gate is not the one that this version was made with."""
    found = hashlib.sha256(GATE.read_bytes()).hexdigest() if GATE.is_file() else "missing"
    if found != GATE_SHA256:
        raise UnsupportedVersion(
            f"Omnigent's gate for Pi ({GATE.name}) was changed or is missing.", hint="Install Omnigent again."
        )


def _sweep(home: Path) -> None:
    """Remove what would be loaded; an agent that was once allowed to write here must not gain by it."""
    for name in _LOADED:
        place = home / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _flags(launch: Launch, session: Path) -> list[str]:
    flags = ["--mode", "rpc", "--offline", "--provider", PROVIDER, "--model", launch.model or _DEFAULT_MODEL]
    flags += ["--no-extensions", "--no-skills", "--no-prompt-templates", "--no-themes", "--no-approve"]
    flags += ["--tools", ",".join(_OFFERED), "--extension", str(GATE)]
    if launch.instructions:
        flags += ["--append-system-prompt", str(launch.private / "agent" / "instructions.md")]
    return [*flags, "--session-dir", str(session.parent), "--session", str(session)]


def _write_config(launch: Launch, home: Path) -> None:
    settings: JSON = {
        "enableInstallTelemetry": False,
        "enableAnalytics": False,
        "defaultProjectTrust": "never",
        "cacheWarming": "off",
        "quietStartup": True,
    }
    models = {"providers": {PROVIDER: _provider(launch, launch.model or _DEFAULT_MODEL)}}
    (home / "settings.json").write_text(json.dumps(settings, indent=1))
    (home / "models.json").write_text(json.dumps(models, indent=1))
    (home / "instructions.md").write_text(launch.instructions)
    _link_instructions(launch, home)


def _link_instructions(launch: Launch, home: Path) -> None:
    """The person's own instructions for Pi, by path; nothing else of theirs is taken."""
    theirs = Path(launch.environment.get("HOME", os.devnull)) / ".pi" / "agent"
    for name in ("AGENTS.override.md", "AGENTS.md", "CLAUDE.md"):
        link = home / name
        link.unlink(missing_ok=True)
        if (theirs / name).is_file():
            link.symlink_to(theirs / name)


def _provider(launch: Launch, model: str, reasoning: bool = False) -> JSON:
    """The gateway as a provider of Pi's. Without prices its own cost figures mean nothing."""
    price = launch.prices.get(model, Prices(0, 0))
    entry: JSON = {
        "id": model,
        "name": model,
        "reasoning": reasoning,
        "input": ["text", "image"],
        "contextWindow": _CONTEXT_WINDOW,
        "maxTokens": _MAX_TOKENS[launch.wire],
        "cost": {
            "input": price.input,
            "output": price.output,
            "cacheRead": price.cache_read,
            "cacheWrite": price.cache_write,
        },
    }
    if launch.wire == "openai-chat":
        # What every server that calls itself compatible understands.
        entry["compat"] = {"supportsDeveloperRole": False, "supportsStore": False}
    return {
        "baseUrl": launch.gateway_url,
        "api": _APIS[launch.wire],
        "apiKey": launch.placeholder,
        "models": [entry],
    }


def _session_file(launch: Launch) -> Path:
    """The file to start from: the one to resume, or a new one, seeded or empty."""
    if launch.native_ref:
        file = Path(launch.native_ref)
        if not file.is_file():
            raise NotFound(f"Pi's session file {file.name} is gone.", hint="Start from the history instead.")
        _pi_history.mend(file, launch.workspace)
        return file
    file = launch.private / "sessions" / f"{launch.run}.jsonl"
    origin = _pi_history.Origin(_APIS[launch.wire], PROVIDER, launch.model or _DEFAULT_MODEL)
    _pi_history.seed(file, launch.workspace, launch.history or _pi_history.History(), origin)
    return file
