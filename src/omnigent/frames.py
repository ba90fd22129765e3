"""The link's frames: what a runner and its server say to each other, as length-prefixed JSON.

Runner → server: `hello` (token; session, epoch and run once bound), `events` (drafts from `first`, with the
blobs they name), `synced` (after a reconnect: what it has seen and what it holds), `deltas`, `heartbeat`,
`reserve` (a model call that its gateway holds).
Server → runner: `launch` (bind to a session), `resume` (drop what is stored up to `acked`), `ack`, `command`,
`grant` (may a model call leave), `ask_again` (a person answered for it), `close`, `fenced`. A command is
identified by its `key`, so that sending it again is harmless.
"""

import asyncio
import json
import struct
from typing import Any, cast

from omnigent.events import BODIES, JSON, SYSTEM, Actor, Draft, encode_body

MAX_FRAME = 256 * 1024 * 1024
"""Bytes; larger is a protocol error. A launch carries a whole history with its images."""

_LENGTH = struct.Struct(">I")


def pack(frame: JSON) -> bytes:
    data = json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> JSON | None:
    """The next frame, or None at the end of the stream."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            return None
        return cast(JSON, json.loads(await reader.readexactly(length)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def pack_draft(draft: Draft, agent: bool) -> JSON:
    """A runner's event. `agent` tells the agent's own from the runner's."""
    return {
        "kind": draft.body.KIND,
        "body": encode_body(draft.body),
        "item_id": draft.item_id,
        "parent_item_id": draft.parent_item_id,
        "turn_id": draft.turn_id,
        "observed_at": draft.observed_at,
        "agent": agent,
    }


def unpack_draft(raw: dict[str, Any], harness: str, run: str) -> Draft:
    """Raises pydantic's `ValidationError` for a body not one of ours, `KeyError` for an unknown kind."""
    actor = Actor(kind="agent", id=harness, via="runner") if raw["agent"] else SYSTEM
    return Draft(
        body=BODIES[raw["kind"]].model_validate(raw["body"]),
        item_id=raw["item_id"],
        parent_item_id=raw["parent_item_id"],
        turn_id=raw["turn_id"],
        observed_at=raw["observed_at"],
        actor=actor,
        run=run,
    )
