"""Lets agents act in working hours only; outside of them they ask, or pause.

    - name: working-hours
      use: hours
      with: {zone: Europe/Berlin, days: [mon, tue, wed, thu, fri], start: "08:00", end: "18:00", then: ask}

`end` before `start` is a night: the hours then belong to the day they begin on.
"""

from datetime import UTC, datetime, time, timedelta
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from omnigent.actions import Action
from omnigent.policies.builtins._base import Builtin, Params, one
from omnigent.policies.contract import Facts, Opinion

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Acting = Literal["exec", "file.read", "file.write", "net", "mcp", "model", "spawn"]
_ACTING: tuple[Acting, ...] = ("exec", "file.write", "net", "mcp", "spawn")


class HoursParams(Params):
    zone: str
    """A name of the tz database."""
    days: tuple[Day, ...] = Field(default=("mon", "tue", "wed", "thu", "fri"), min_length=1)
    start: time = time(8)
    end: time = time(18)
    actions: tuple[Acting, ...] = Field(default=_ACTING, min_length=1)
    """Types of action that are held outside the hours."""
    then: Literal["ask", "pause", "deny"] = "ask"

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{zone!r} is no time zone: write one like Europe/Berlin") from error
        return zone

    @field_validator("start", "end", mode="before")
    @classmethod
    def _clock(cls, value: object) -> object:
        # YAML reads 18:00 without quotes as a number in base 60.
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
            return time(value // 60, value % 60)
        return value


class Hours(Builtin[HoursParams]):
    NAME: ClassVar[str] = "hours"
    PARAMS: ClassVar[type[Params]] = HoursParams

    def __init__(self, params: HoursParams) -> None:
        super().__init__(params)
        self.types: frozenset[str] | None = frozenset(params.actions)
        self._zone = ZoneInfo(params.zone)

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        if action.type not in self.params.actions:
            return None
        now = datetime.fromtimestamp(facts.setting.at / 1000, UTC).astimezone(self._zone)
        if self._working(now):
            return None
        params = self.params
        hours = f"{params.start:%H:%M} to {params.end:%H:%M}, {', '.join(params.days)} ({params.zone})"
        return one(params.then, f"It is outside working hours ({hours}).", f"local time {now:%a %H:%M}")

    def _working(self, now: datetime) -> bool:
        start, end, clock = self.params.start, self.params.end, now.time()
        if start < end:
            return start <= clock < end and self._counts(now)
        if clock >= start:
            return self._counts(now)
        return clock < end and self._counts(now - timedelta(days=1))

    def _counts(self, day: datetime) -> bool:
        return _DAYS[day.weekday()] in self.params.days
