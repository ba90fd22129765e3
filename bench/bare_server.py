"""The yardstick: the least server that still keeps, pages, lists and broadcasts events.

Starlette over one `sqlite3` connection on the event loop, with the pragmas of the real one (WAL, synchronous
FULL), one commit per request, the same rows and the same JSON in size and shape, a bearer token, and nothing
else: no fold, no hashes, no idempotency, no followers from the past.
"""

import argparse
import asyncio
import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

JSON = dict[str, Any]

COLUMNS = (
    "session_id", "origin_id", "v", "id", "seq", "root_id", "tree_pos", "at", "observed_at", "turn_id",
    "item_id", "parent_item_id", "actor", "cause", "run", "producer", "producer_seq", "epoch", "kind", "body",
    "body_sha256", "hash",
)  # fmt: skip
"""Those of the real server's event table."""
ACTOR = {"kind": "person", "id": "local", "via": "api"}
DIGEST = "0" * 64
CAPABILITIES = ("streams_text", "interrupts", "steers", "resumes", "seeds_history", "images", "subagents")


def open_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"CREATE TABLE IF NOT EXISTS event ({', '.join(COLUMNS)})")
    database.execute("CREATE UNIQUE INDEX IF NOT EXISTS by_seq ON event (session_id, seq)")
    database.execute(
        "CREATE TABLE IF NOT EXISTS session"
        " (id TEXT PRIMARY KEY, head INTEGER, updated_at INTEGER, data TEXT)"
    )
    database.execute("CREATE INDEX IF NOT EXISTS by_time ON session (updated_at DESC, id DESC)")
    return database


def seed(path: Path, sessions: int) -> None:
    """A database that holds so many sessions."""
    database = open_database(path)
    with _transaction(database):
        for number in range(sessions):
            _insert(database, f"session {number}", "/workspace")
    database.close()


@contextmanager
def _transaction(database: sqlite3.Connection) -> Generator[None]:
    database.execute("BEGIN IMMEDIATE")
    yield
    database.execute("COMMIT")


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(13).upper()}"


def _now() -> int:
    return time.time_ns() // 1_000_000


def _insert(database: sqlite3.Connection, title: str, workspace: str) -> JSON:
    session_id, at = _new_id("ses"), _now()
    session: JSON = {
        "id": session_id, "title": title, "harness": "scripted", "model": "scripted-1",
        "provider": "messages", "billing": "metered", "workspace": workspace, "approvals": "ask",
        "sandbox": "host", "status": "idle",
        "status_reason": "", "status_since": at, "last_seq": 1,
        "usage": {"input_tokens": 0, "output_tokens": 0, "cost_usd": None, "cost_partial": False},
        "budget": None, "pending": {"approvals": 0, "questions": 0}, "queue_length": 0, "turn": None,
        "last_turn": None, "owner": "local", "role": "owner", "parent_id": None, "root_id": session_id,
        "forked_from": None, "run": None, "capabilities": dict.fromkeys(CAPABILITIES, True), "created_at": at,
        "updated_at": at, "archived": False, "labels": {}, "web_url": f"http://127.0.0.1/s/{session_id}",
    }  # fmt: skip
    database.execute("INSERT INTO session VALUES (?, 1, ?, ?)", (session_id, at, json.dumps(session)))
    body = {
        "title": title,
        "harness": "scripted",
        "workspace": workspace,
        "approvals": "ask",
        "owner": "local",
    }
    _append(database, session_id, 1, at, "session.created", body)
    return session


def _append(database: sqlite3.Connection, session_id: str, seq: int, at: int, kind: str, body: JSON) -> JSON:
    row = (
        session_id, None, 1, _new_id("evt"), seq, session_id, seq, at, at, None, None,
        None, json.dumps(ACTOR), None, None, "session", seq, None, kind, json.dumps(body), DIGEST,
        DIGEST,
    )  # fmt: skip
    database.execute(f"INSERT INTO event VALUES ({','.join('?' * len(COLUMNS))})", row)
    return _event(row)


def _event(row: tuple[Any, ...]) -> JSON:
    event: JSON = dict(zip(COLUMNS, row, strict=True))
    event["actor"], event["body"] = json.loads(event["actor"]), json.loads(event["body"])
    del event["origin_id"]
    return event


class Bare:
    """The five verbs."""

    def __init__(self, path: Path, token: str) -> None:
        self._database = open_database(path)
        self._authorization = f"Bearer {token}"
        self._followers: dict[str, set[asyncio.Queue[bytes]]] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.health),
            Route("/v1/sessions", self.create, methods=["POST"]),
            Route("/v1/sessions", self.list, methods=["GET"]),
            Route("/v1/sessions/{id}", self.append, methods=["PATCH"]),
            Route("/v1/sessions/{id}/events", self.events),
        ]

    def _refused(self, request: Request) -> bool:
        return not hmac.compare_digest(request.headers.get("authorization", ""), self._authorization)

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def create(self, request: Request) -> Response:
        if self._refused(request):
            return Response(status_code=401)
        wanted = json.loads(await request.body())
        with _transaction(self._database):
            session = _insert(self._database, wanted["title"], wanted["workspace"])
        return _json(session, 201)

    async def append(self, request: Request) -> Response:
        """A new title: one event, and the session's row."""
        if self._refused(request):
            return Response(status_code=401)
        session_id, changes, at = request.path_params["id"], json.loads(await request.body()), _now()
        with _transaction(self._database):
            found = self._database.execute("SELECT data FROM session WHERE id = ?", (session_id,)).fetchone()
            session = json.loads(found[0]) | changes
            session["last_seq"] += 1
            session["updated_at"] = at
            self._database.execute(
                "UPDATE session SET head = ?, updated_at = ?, data = ? WHERE id = ?",
                (session["last_seq"], at, json.dumps(session), session_id),
            )
            seq: int = session["last_seq"]
            event = _append(self._database, session_id, seq, at, "session.updated", changes)
        self._tell(session_id, seq, event)
        return _json(session)

    def _tell(self, session_id: str, seq: int, event: JSON) -> None:
        if followers := self._followers.get(session_id):
            frame = f"id: {seq}\nevent: event\ndata: {json.dumps(event)}\n\n".encode()
            for follower in followers:
                follower.put_nowait(frame)

    async def list(self, request: Request) -> Response:
        if self._refused(request):
            return Response(status_code=401)
        limit = int(request.query_params.get("limit", "50"))
        rows = self._database.execute(
            "SELECT data FROM session ORDER BY updated_at DESC, id DESC LIMIT ?", (limit,)
        )
        return _json({"items": [json.loads(data) for (data,) in rows], "next_cursor": None})

    async def events(self, request: Request) -> Response:
        if self._refused(request):
            return Response(status_code=401)
        session_id = request.path_params["id"]
        if request.headers.get("accept") == "text/event-stream":
            return StreamingResponse(self._stream(session_id), media_type="text/event-stream")
        after, limit = int(request.query_params.get("after", "0")), int(request.query_params["limit"])
        rows = self._database.execute(
            "SELECT * FROM event WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            (session_id, after, limit),
        )
        return _json({"events": [_event(row) for row in rows], "has_more": True})

    async def _stream(self, session_id: str) -> AsyncIterator[bytes]:
        frames: asyncio.Queue[bytes] = asyncio.Queue()
        followers = self._followers.setdefault(session_id, set())
        followers.add(frames)
        try:
            yield b"event: hello\ndata: {}\n\n"
            while True:
                yield await frames.get()
        finally:
            followers.discard(frames)


def _json(value: JSON, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--token", required=True, help="a made-up one: this server holds nothing")
    options = parser.parse_args()
    app = Starlette(routes=Bare(options.database, options.token).routes())
    config = uvicorn.Config(
        app,
        port=options.port,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    asyncio.run(uvicorn.Server(config).serve(), loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    main()
