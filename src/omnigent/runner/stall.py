"""An agent that has gone silent: told once, pinged once, then interrupted."""

from typing import Literal

PING_SECONDS = 10.0


class Stall:
    """Times are loop times."""

    def __init__(self) -> None:
        self._heard_at = 0.0
        self._told = False
        self._pinged_at: float | None = None

    def heard(self, at: float) -> None:
        self._heard_at, self._told, self._pinged_at = at, False, None

    def begin(self, at: float) -> None:
        """A turn begins: silence counts from here."""
        self._heard_at = at

    def look(self, at: float, after: float, *, explained: bool) -> Literal["ping", "interrupt"] | None:
        """What is to be done. `after` seconds of silence are a stall; what is `explained` doesn't count."""
        if explained:
            if not self._told:
                self._heard_at = at
        elif not self._told and at - self._heard_at >= after:
            self._told, self._pinged_at = True, at
            return "ping"
        elif self._pinged_at is not None and at - self._pinged_at >= PING_SECONDS:
            self._pinged_at = None
            return "interrupt"
        return None

    def silent_seconds(self, at: float) -> int:
        return int(at - self._heard_at)
