"""What all sessions of a server share, and the one thing they need of the link: its runners."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from omnigent.audit import Audit
from omnigent.blobs import Blobs
from omnigent.config import Config, ConfigFile
from omnigent.events import JSON
from omnigent.ids import Clock, NewId
from omnigent.log import Log
from omnigent.redaction import Redactor
from omnigent.rulebook import Rulebook
from omnigent.secrets import known_secrets
from omnigent.trees import Trees


class Runners(Protocol):
    """The processes that run agents, as a session sees them."""

    async def launch(self, session_id: str, frame: JSON) -> None:
        """Start a runner for it. Its words come back through `ingest`, `synced` and `gone`."""
        ...

    def send(self, session_id: str, frame: JSON) -> None:
        """Nothing if it isn't connected: `synced` will tell what it missed."""
        ...

    def state(self, session_id: str) -> str:
        """`none`, `starting`, `live` (connected) or `away` (its process may live, the link doesn't)."""
        ...


@dataclass(slots=True)
class House:
    home: Path
    settings: ConfigFile
    log: Log
    blobs: Blobs
    runners: Runners
    clock: Clock
    new_id: NewId
    environ: dict[str, str]
    trees: Trees
    audit: Audit
    rulebook: Rulebook
    protected: tuple[str, ...] = ()
    """Paths no agent may touch; see `deciding.protected`."""
    api: str = ""
    """host:port of our own API."""
    _known: tuple[object, list[str], Redactor] = field(default=(None, [], Redactor(())), repr=False)

    async def redactor(self) -> Redactor:
        """Takes out every secret known by the configuration as it is now."""
        return (await self._secrets())[2]

    async def known_secrets(self) -> list[str]:
        """Their values, for a runner's own redactor: they travel on the link alone."""
        return (await self._secrets())[1]

    async def _secrets(self) -> tuple[object, list[str], Redactor]:
        """Read anew when the configuration or the stored secrets changed: some come from programs."""
        config, kept = self.config, self.home / "secrets"
        stamp = (config, kept.stat().st_mtime_ns if kept.is_dir() else 0)
        if self._known[0] != stamp:
            known = await asyncio.to_thread(known_secrets, config, self.home, self.environ)
            self._known = (stamp, known, Redactor(known))
        return self._known

    @property
    def config(self) -> Config:
        """As the file says now. Raises `ConfigInvalid` for an edit that can't be read."""
        return self.settings.current()

    def private(self, session_id: str, harness: str) -> Path:
        """Where a session's agent of one kind keeps its configuration and its own transcript."""
        return self.home / "run" / session_id / harness
