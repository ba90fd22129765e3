"""What the routes reach through the application's state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from fastapi import Request

from omnigent.server.devices import Devices
from omnigent.server.streams import Streams
from omnigent.sessions import Sessions

Stop = Callable[[bool], None]
"""Begin to stop the server; True keeps the runners for the next one."""


@dataclass(frozen=True, slots=True)
class Room:
    sessions: Sessions
    devices: Devices
    streams: Streams
    stop: Stop


def room(request: Request) -> Room:
    return cast(Room, request.app.state.room)
