"""The door: HTTP and server-sent events over the sessions, for every face alike."""

import json
from collections.abc import Iterable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from omnigent import __version__
from omnigent.errors import OmnigentError
from omnigent.ids import Clock, now
from omnigent.server import page, policy_routes, server_routes, session_routes
from omnigent.server.answers import show_problem
from omnigent.server.auth import Door
from omnigent.server.devices import Devices
from omnigent.server.openapi import describe
from omnigent.server.peers import Peers
from omnigent.server.refusals import Elsewhere, Refusals
from omnigent.server.room import Room, Stop
from omnigent.server.streams import Streams
from omnigent.sessions import Sessions


def build_app(
    sessions: Sessions,
    devices: Devices,
    stop: Stop,
    *,
    hosts: Iterable[str] = (),
    url: str | None = None,
    clock: Clock = now,
    refused_elsewhere: Elsewhere | None = None,
) -> FastAPI:
    """The ASGI application. `stop(keep_runners)` begins the server's end; whoever runs the application ends
    its streams with `app.state.room.streams.end("shutdown")`. `url` is its own address, for links.

    It must be given connections as they are, no proxy's headers put in: the peer's address tells who asks.
    `refused_elsewhere` hears what was refused and is no session's."""
    app = _bare_app()
    app.state.room = Room(sessions, devices, Streams(), stop)
    app.state.url = url
    app.add_middleware(
        Door,
        devices=devices,
        hosts=frozenset(host.lower() for host in hosts),
        peers=Peers(sessions.home, sessions.log.leases),
        refusals=Refusals(sessions, clock, refused_elsewhere or sessions.refused_elsewhere),
    )
    return app


def openapi_text() -> str:
    """The published API description, docs/openapi.json."""
    described = describe(_bare_app(), server_routes.CreateDevice, server_routes.Drain, *policy_routes.BODIES)
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def _bare_app() -> FastAPI:
    app = FastAPI(title="Omnigent", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    for routes in (session_routes, policy_routes, server_routes, page):
        app.include_router(routes.router)
    app.add_api_route("/openapi.json", _openapi, include_in_schema=False)
    for error in (OmnigentError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, show_problem)
    return app


async def _openapi(request: Request) -> Response:
    return Response(openapi_text(), media_type="application/json")
