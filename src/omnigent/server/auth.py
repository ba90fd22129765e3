"""Who may come in: Host and Origin checked, a bearer token for everything but the page's shell.

No cookies: they ignore ports, and an agent's own dev server on this machine would receive them. No token in a
query either, since queries end up in logs. Loopback needs a token too.

A person's token isn't enough: an agent runs as the person and can read it. What a process of an agent asks is
refused, reading included; agents will have credentials of their own.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from omnigent.errors import Forbidden, OmnigentError, Unauthorized
from omnigent.events import Actor
from omnigent.server.answers import problem
from omnigent.server.devices import Devices
from omnigent.server.peers import Peers
from omnigent.server.refusals import Refusals

Right = Literal["read", "comment", "steer", "approve", "manage"]
Via = Literal["cli", "tui", "web", "mobile", "api", "mcp", "acp"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
PUBLIC = ("/healthz", "/openapi.json", "/")
PUBLIC_UNDER = ("/s/", "/static/")

_VIAS = frozenset(get_args(Via))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: an actor for the log, by a device that can be revoked."""

    actor: Actor
    device_id: str


def may(actor: Actor, right: Right) -> bool:
    """The one place that knows who has which right. Agents never approve and never manage."""
    if actor.kind == "person":
        return True
    return actor.kind == "agent" and right in ("read", "comment", "steer")


def caller(request: Request, right: Right) -> Caller:
    """Who makes this request. Raises `Forbidden` without the right."""
    found = cast(Caller, request.scope["caller"])
    if not may(found.actor, right):
        raise Forbidden(f"{found.actor.id} may not {right} here.", hint="Ask a person to do it.")
    return found


class Door:
    """The ASGI middleware in front of every route."""

    def __init__(
        self, app: ASGIApp, devices: Devices, hosts: frozenset[str], peers: Peers, refusals: Refusals
    ) -> None:
        self._app = app
        self._devices = devices
        self._hosts = LOOPBACK | hosts
        self._peers = peers
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict[bytes, bytes](scope["headers"])
        try:
            self._check_host(headers)
            path: str = scope["path"]
            if path not in PUBLIC and not path.startswith(PUBLIC_UNDER):
                scope["caller"] = found = self._caller(headers)
                if found.actor.kind == "person":
                    await self._check_peer(scope, receive)
        except OmnigentError as error:
            await problem(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in self._hosts:
            raise Forbidden(
                "This server doesn't answer to that host name.",
                hint=f"Use http://127.0.0.1 (allowed: {', '.join(sorted(self._hosts))}).",
            )
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1").lower()).netloc != host:
            raise Forbidden("Requests from other web pages are refused.", hint="Use the page of this server.")

    async def _check_peer(self, scope: Scope, receive: Receive) -> None:
        peer = await self._peers.of(scope["client"], scope["server"])
        if peer.where != "outside":
            raise await self._refusals.refuse(peer, scope, receive)

    def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        device = self._devices.find(token.strip()) if scheme.lower() == "bearer" else None
        if device is None:
            detail = "The token is unknown or was revoked." if token else "This needs a bearer token."
            raise Unauthorized(
                detail, hint="Send `Authorization: Bearer TOKEN`; it is in $OMNIGENT_HOME/token."
            )
        via = headers.get(b"x-omnigent-via", b"api").decode("latin-1")
        return _caller_of(device.id, device.name, via if via in _VIAS else "api")


@lru_cache(maxsize=256)
def _caller_of(device_id: str, name: str, via: str) -> Caller:
    return Caller(Actor(kind="person", id=name, via=cast(Via, via)), device_id)
