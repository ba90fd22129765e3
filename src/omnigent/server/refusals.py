"""What an agent asked of the API with a person's token: refused, and written down where people see it."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from starlette.types import Message, Receive, Scope

from omnigent.errors import Forbidden, NotFound
from omnigent.events import SYSTEM, AccessRefused
from omnigent.ids import Clock
from omnigent.server.peers import Peer
from omnigent.sessions import Sessions

logger = logging.getLogger(__name__)

AGAIN_MS = 10_000
"""The same request by the same session's agent is written down once in this time."""
PER_MINUTE = 20
"""Refusals written down per session and minute: an agent must not be able to flood the log."""
LARGEST_BODY, BODY_SECONDS = 64 * 1024, 2.0
_SESSION = re.compile(r"/v1/sessions/(ses_\w{1,60})(?:/|$)")

Elsewhere = Callable[[AccessRefused], Awaitable[None]]
"""Where a refusal goes that no session is named in and that is no known session's."""


class Refusals:
    def __init__(self, sessions: Sessions, clock: Clock, elsewhere: Elsewhere | None = None) -> None:
        self._sessions = sessions
        self._clock = clock
        self._elsewhere = elsewhere
        self._recent: dict[tuple[str, str], int] = {}

    async def refuse(self, peer: Peer, scope: Scope, receive: Receive) -> Forbidden:
        """Writes it down; the error to answer with."""
        path: str = scope["path"]
        what = " ".join(filter(None, [scope["method"], path[:200], await _command(scope, receive)]))
        if peer.where == "inside":
            reason = f"A process of an agent ({peer.program or 'unknown'}) used a person's token."
        else:
            reason = "The process that asked has ended: it can't be told whose it was."
        if peer.where == "inside" or scope["method"] not in ("GET", "HEAD"):
            body = AccessRefused(what=what, reason=reason, pid=peer.pid, program=peer.program)
            await self._record(path, peer, body)
        return Forbidden(reason, hint="Agents have no business with the API: ask a person to do it.")

    async def _record(self, path: str, peer: Peer, body: AccessRefused) -> None:
        """In the session that the request names, and in the agent's own."""
        named = _SESSION.match(path)
        wanted = [named[1] if named else None, peer.session_id]
        places = [place for place in dict.fromkeys(wanted) if place is not None]
        if not self._is_new(peer.session_id or "", body.what):
            return
        logger.warning("refused %s: %s (process %s)", body.what, body.reason, body.pid)
        told = False
        for session_id in places:
            with suppress(NotFound):
                session = await self._sessions.get(session_id)
                await session.record([body], SYSTEM)
                told = True
        if not told and self._elsewhere is not None:
            await self._elsewhere(body)

    def _is_new(self, session_id: str, what: str) -> bool:
        """Whether it is to be written down: not said a moment ago, and not one of too many."""
        at = self._clock()
        self._recent = {key: then for key, then in self._recent.items() if at - then < 60_000}
        last = self._recent.get((session_id, what))
        if last is not None and at - last < AGAIN_MS:
            return False
        if sum(key[0] == session_id for key in self._recent) >= PER_MINUTE:
            return False
        self._recent[session_id, what] = at
        return True


async def _command(scope: Scope, receive: Receive) -> str:
    """Which command was asked for, if it says so in its first bytes: nobody else will read the body now."""
    if scope["method"] != "POST" or not scope["path"].endswith("/commands"):
        return ""
    data = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while len(data) < LARGEST_BODY:
                message: Message = await receive()
                data += message.get("body", b"")
                if not message.get("more_body", False):
                    break
    with suppress(ValueError):
        asked: Any = json.loads(data)
        if isinstance(asked, dict):
            return str(cast(dict[str, Any], asked).get("type", ""))[:40]
    return ""
