"""The routes of the server itself: health, inbox, harnesses, blobs, devices, drain."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from omnigent import __version__
from omnigent.server import openapi as doc
from omnigent.server.answers import answer, encode, read_model
from omnigent.server.auth import caller
from omnigent.server.room import room

router = APIRouter(tags=["server"])

_HEALTH = encode({"status": "ok", "version": __version__})
_BLOB_HEADERS = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


class CreateDevice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[\w .:-]+$")] = Field(
        min_length=1, max_length=60
    )


class Drain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    keep_runners: bool = False


@router.get("/healthz", **doc.route("Health", public=True))
async def health() -> Response:
    """Whether the server answers, and its version."""
    return Response(_HEALTH, media_type="application/json")


@router.get("/v1/inbox", **doc.route("Inbox"))
async def inbox(request: Request) -> Response:
    """Every open approval and question, over all sessions."""
    caller(request, "read")
    return answer({"items": await room(request).sessions.inbox(), "next_cursor": None})


@router.get("/v1/harnesses", **doc.route("HarnessList"))
async def harnesses(request: Request) -> Response:
    """Every known harness: what it can, and whether it is installed."""
    caller(request, "read")
    return answer({"items": room(request).sessions.harnesses(), "next_cursor": None})


@router.get("/v1/blobs/{sha256}", **doc.route(None, binary_out="application/octet-stream"))
async def blob(request: Request, sha256: str) -> Response:
    """The bytes of a large output or an image. Never served as active content."""
    caller(request, "read")
    return Response(
        room(request).sessions.blobs.get(sha256), headers=_BLOB_HEADERS, media_type="application/octet-stream"
    )


@router.get("/v1/devices", **doc.route("DeviceList"))
async def devices(request: Request) -> Response:
    """Every face that holds a token. `current` marks the one that asks."""
    who = caller(request, "read")
    rows = [row | {"current": row["id"] == who.device_id} for row in room(request).devices.all()]
    return answer({"items": rows, "next_cursor": None})


@router.post("/v1/devices", status_code=201, **doc.route("NewDevice", body="CreateDevice"))
async def create_device(request: Request) -> Response:
    """A token of its own for another face. It is told only in this answer."""
    caller(request, "manage")
    wanted = await read_model(request, CreateDevice)
    device, token = room(request).devices.issue(wanted.name)
    return answer(device.json() | {"token": token}, 201, {"Cache-Control": "no-store"})


@router.delete("/v1/devices/{device_id}", status_code=204, **doc.route(None))
async def revoke_device(request: Request, device_id: str) -> Response:
    """End a device's access, its open streams included. The local device gets a new token in its file."""
    caller(request, "manage")
    room(request).devices.revoke(device_id)
    room(request).streams.end("revoked", device_id=device_id)
    return Response(status_code=204)


@router.post("/v1/server/drain", status_code=202, **doc.route("Draining", body="Drain"))
async def drain(request: Request) -> Response:
    """Stop the server: it takes no new work, lets open turns end, then ends the agents."""
    caller(request, "manage")
    wanted = await read_model(request, Drain)
    room(request).stop(wanted.keep_runners)
    return answer({"draining": True}, 202)
