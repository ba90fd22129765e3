"""The routes of sessions. What is asked often answers bytes made once, past all response models."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from omnigent import commands
from omnigent.content import LARGEST_IMAGE
from omnigent.errors import BadCursor, Draining, Malformed
from omnigent.events import JSON, Event
from omnigent.log import ListQuery
from omnigent.server import openapi as doc
from omnigent.server.answers import (
    SMALL_BODY,
    answer,
    encode,
    made,
    read_body,
    read_model,
    read_union,
    require_key,
)
from omnigent.server.auth import Right, caller
from omnigent.server.room import room
from omnigent.server.streams import Stream, event_chunks
from omnigent.sessions import CreateSession, ForkSession, PatchSession, item_json

LARGEST_COMMAND = SMALL_BODY + 2 * LARGEST_IMAGE * 4 // 3
"""Bytes: a prompt with two of the largest images in base64."""
LARGEST_IMPORT = 512 * 1024 * 1024

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

SessionId = Annotated[str, Path(description="A session's id (`ses_…`)")]
Cursor = Annotated[int | None, Query(ge=0)]
Status = Literal["starting", "idle", "running", "waiting", "paused", "lost", "closed"]

_BEGINS = (commands.Prompt, commands.Edit, commands.Switch, commands.SetModel, commands.Resume)
"""Commands that make work: refused while the server stops."""


def _shown(request: Request, session: JSON) -> JSON:
    base = request.app.state.url or f"{request.url.scheme}://{request.url.netloc}"
    return session | {"web_url": f"{base}/s/{session['id']}"}


@router.post("", status_code=201, **doc.route("Session", body="CreateSession", key=True))
async def create_session(request: Request) -> Response:
    """Make a session; with `prompt` its first turn begins at once."""
    actor = caller(request, "manage").actor
    key = require_key(request)
    wanted = await read_model(request, CreateSession)
    session, replayed = await room(request).sessions.create(wanted, actor, key)
    return made(_shown(request, session), replayed, 201)


@router.get("", **doc.route("SessionList"))
async def list_sessions(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: str | None = None,
    query: Annotated[str | None, Query(description="Part of a title")] = None,
    status: Status | None = None,
    harness: str | None = None,
    parent: str | None = None,
    archived: bool = False,
) -> Response:
    """Sessions, the last changed first."""
    caller(request, "read")
    wanted = ListQuery(limit, cursor, query, status, harness, parent, archived)
    found, next_cursor = await room(request).sessions.list(wanted)
    return answer({"items": [_shown(request, row) for row in found], "next_cursor": next_cursor})


@router.post("/import", status_code=201, **doc.route("Session", key=True, binary_in=True))
async def import_session(request: Request) -> Response:
    """Store an exported session, read-only; to go on with it, fork it."""
    caller(request, "manage")
    key = require_key(request)
    data = await read_body(request, LARGEST_IMPORT)
    session = await room(request).sessions.import_session(data, key)
    return answer(_shown(request, session), 201)


@router.get("/{session_id}", **doc.route("Session"))
async def read_session(request: Request, session_id: SessionId) -> Response:
    """A session as it is now."""
    caller(request, "read")
    return answer(_shown(request, await room(request).sessions.describe(session_id)))


@router.patch("/{session_id}", **doc.route("Session", body="PatchSession"))
async def patch_session(request: Request, session_id: SessionId) -> Response:
    """Change title, labels, or whether it is archived."""
    actor = caller(request, "manage").actor
    changes = await read_model(request, PatchSession)
    return answer(_shown(request, await room(request).sessions.patch(session_id, changes, actor)))


@router.delete("/{session_id}", status_code=204, **doc.route(None))
async def delete_session(request: Request, session_id: SessionId) -> Response:
    """Hide a session at once; forks of it keep what they share. A running one must be stopped first."""
    caller(request, "manage")
    await room(request).sessions.delete(session_id)
    room(request).streams.end("deleted", session_id=session_id)
    return Response(status_code=204)


@router.post("/{session_id}/commands", status_code=202, **doc.route("CommandAnswer", body="Command"))
async def command(request: Request, session_id: SessionId) -> Response:
    """Ask something of a session. The same key and body give the first answer again."""
    wanted: commands.Command = await read_union(request, commands.COMMAND, LARGEST_COMMAND)
    actor = caller(request, _right(wanted)).actor
    sessions = room(request).sessions
    if sessions.draining and isinstance(wanted, _BEGINS):
        raise Draining("The server is stopping.", hint="Try again when it has started anew.", retry_after=1)
    session = await sessions.get(session_id)
    told, replayed = await session.submit(wanted, actor)
    return made(told, replayed, 202)


def _right(wanted: commands.Command) -> Right:
    return "approve" if isinstance(wanted, commands.Resolve | commands.Answer) else "steer"


@router.post("/{session_id}/fork", status_code=201, **doc.route("Session", body="ForkSession", key=True))
async def fork_session(request: Request, session_id: SessionId) -> Response:
    """A new session that goes on from this one at `at_seq`; this one isn't touched."""
    actor = caller(request, "manage").actor
    key = require_key(request)
    wanted = await read_model(request, ForkSession)
    session, replayed = await room(request).sessions.fork(session_id, wanted, actor, key)
    return made(_shown(request, session), replayed, 201)


@router.get("/{session_id}/export", **doc.route(None, binary_out="application/zip"))
async def export_session(request: Request, session_id: SessionId) -> Response:
    """The session as a zip: manifest, events, blobs."""
    caller(request, "read")
    data = await room(request).sessions.export(session_id)
    name = f'attachment; filename="{session_id}.zip"'
    return Response(data, headers={"Content-Disposition": name}, media_type="application/zip")


# Events.


@router.get("/{session_id}/events", **doc.route("EventPage", stream=True))
async def read_events(
    request: Request,
    session_id: SessionId,
    after: Cursor = None,
    before: Cursor = None,
    tail: Annotated[int | None, Query(ge=0, le=1000)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    kinds: Annotated[str | None, Query(description="Comma-separated event kinds")] = None,
) -> Response:
    """The log: a page of it, or as a stream from `after` (or `Last-Event-ID`) into live."""
    who = caller(request, "read")
    wanted = None if kinds is None else frozenset(kind.strip() for kind in kinds.split(","))
    if _streams(request):
        session = await room(request).sessions.get(session_id)
        start = _start(request, after, session.feed.head)
        chunks = event_chunks(session, start, wanted)
        return Stream(room(request).streams, session_id, who.device_id, chunks, start)
    return await _event_page(request, session_id, after, before, tail, limit, wanted)


async def _event_page(
    request: Request,
    session_id: str,
    after: int | None,
    before: int | None,
    tail: int | None,
    limit: int,
    kinds: frozenset[str] | None,
) -> Response:
    log = room(request).sessions.log
    head = await log.head(session_id)
    _within(after, head)
    backward = tail is not None or (before is not None and after is None)
    count = limit if tail is None else tail
    only = None if kinds is None else tuple(kinds)
    events: list[Event] = []
    if count:
        events = await log.read(
            session_id, after=after or 0, before=before, limit=count, kinds=only, newest=backward
        )
    first = events[0].seq if events else (before or head + 1)
    full = len(events) == count
    # A page that isn't full has seen everything up to the head (or to `before`).
    last = events[-1].seq if events and (full or backward) else min(head, (before or head + 1) - 1)
    older = first if first > 1 else None
    more = full and (first > (after or 0) + 1 if backward else last < min(head, (before or head + 1) - 1))
    return Response(_page(events, last, older, head, more), media_type="application/json")


def _page(events: list[Event], last: int, first: int | None, head: int, more: bool) -> bytes:
    body = ",".join([event.json_text() for event in events])
    tail = encode({"next_after": last, "prev_before": first, "head_seq": head, "has_more": more})
    return b'{"events":[%s],%s' % (body.encode(), tail[1:])


# Items.


@router.get("/{session_id}/items", **doc.route("ItemPage", stream=True))
async def read_items(
    request: Request,
    session_id: SessionId,
    before: Cursor = None,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """The folded transcript, newest first; or as a stream of upserts after a `view_seq`, then live."""
    who = caller(request, "read")
    here = room(request)
    if _streams(request):
        session = await here.sessions.get(session_id)
        start = _start(request, after, session.feed.head)

        def summary() -> JSON:
            return _shown(request, here.sessions.summary(session.view))

        chunks = here.streams.items.chunks(here.sessions.log, session, start, summary)
        return Stream(here.streams, session_id, who.device_id, chunks, start)
    view_seq = await here.sessions.log.head(session_id)
    rows = await here.sessions.log.items(session_id, before=before, limit=limit)
    older = rows[-1].pos if len(rows) >= limit and rows[-1].pos > 1 else None
    return answer(
        {
            "items": [item_json(row) for row in rows],
            "view_seq": view_seq,
            "next_before": older,
            "next_cursor": None if older is None else str(older),
        }
    )


def _streams(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _start(request: Request, after: int | None, head: int) -> int:
    """Where a stream begins: `Last-Event-ID` wins, since a browser sends it when it comes back."""
    told = request.headers.get("last-event-id", "")
    if told and not told.isdigit():
        raise Malformed("Last-Event-ID must be a number.", header="Last-Event-ID")
    start = int(told) if told else after or 0
    _within(start, head)
    return start


def _within(after: int | None, head: int) -> None:
    if after is not None and after > head:
        raise BadCursor(
            f"after={after} is beyond the log's head {head}.",
            hint="Start again from 0, or from head_seq.",
            head=head,
        )
