"""What all sessions of a server share, and the one thing they need of the link: its runners."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omnigent.blobs import Blobs
from omnigent.config import Config, ConfigFile
from omnigent.events import JSON
from omnigent.ids import Clock, NewId
from omnigent.log import Log


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


@dataclass(frozen=True, slots=True)
class House:
    home: Path
    settings: ConfigFile
    log: Log
    blobs: Blobs
    runners: Runners
    clock: Clock
    new_id: NewId
    environ: dict[str, str]

    @property
    def config(self) -> Config:
        """As the file says now. Raises `ConfigInvalid` for an edit that can't be read."""
        return self.settings.current()

    def private(self, session_id: str, harness: str) -> Path:
        """Where a session's agent of one kind keeps its configuration and its own transcript."""
        return self.home / "run" / session_id / harness
