"""The audit log: every verdict, model call and refusal, in a second chained log of the same code.

One stream per session, under the session's own id, and one for the house. It is kept in `audit.db` beside
the sessions' log, opened with the first fact, and never shortened. It isn't written with what it tells of: a
session's own log has what matters to it, in its own transaction; this one follows within a moment, and says
where it couldn't (`audit.dropped`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnigent.errors import Malformed, NotFound, OmnigentError
from omnigent.events import GENESIS, JSON, AuditDropped, Draft, Event, verify
from omnigent.ids import Clock
from omnigent.log import Log, SqliteLog

HOUSE = "org_local"
"""The stream of what belongs to no session."""

MAX_WAITING = 10_000
"""Facts kept in memory until they are written. Beyond, they are counted and lost."""

GATHER_SECONDS = 0.05
"""Facts are gathered this long and written together: whoever noted them is busy with what they tell of."""

_PAGE = 1000
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Nothing:
    """The view of a stream: there is nothing to see but the stream."""

    as_of_seq: int = 0

    def dump(self) -> JSON:
        return {"as_of_seq": self.as_of_seq}

    def columns(self) -> JSON:
        return {}


class _NoFold:
    version = 1

    def empty(self) -> _Nothing:
        return _Nothing()

    def load(self, data: JSON) -> _Nothing:
        return _Nothing(**data)

    def fold(self, view: _Nothing, event: Event, item: Callable[[str], JSON | None]) -> dict[str, JSON]:
        view.as_of_seq = event.seq
        return {}


class Audit:
    """Of one home. Belongs to the event loop of its first `note`."""

    def __init__(self, home: Path, sessions: Log, clock: Clock, *, max_waiting: int = MAX_WAITING) -> None:
        self._path = home / "audit.db"
        self._sessions = sessions
        self._clock = clock
        self._max_waiting = max_waiting
        self._log: SqliteLog | None = None
        self._waiting: deque[tuple[str, Draft]] = deque()
        self._dropped: dict[str, int] = {}
        """Facts lost since the stream last said so."""
        self._writing: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def log(self) -> Log:
        """The second log itself, opened."""
        if self._log is None:
            self._log = self._open()
        return self._log

    async def note(self, session_id: str, drafts: Sequence[Draft]) -> None:
        """Write them down soon. Waits for nothing and raises nothing: what doesn't fit is counted."""
        room = 0 if self._closed else max(0, self._max_waiting - len(self._waiting))
        self._waiting.extend((session_id, draft) for draft in drafts[:room])
        self._drop(session_id, len(drafts[room:]))
        if self._writing is None and self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._begin)

    def _begin(self) -> None:
        self._soon = None
        self._writing = asyncio.get_running_loop().create_task(self._write())

    async def verify(self, session_id: str) -> JSON:
        """Whether the session's log and its audit stream are the chains that were written.

        `{ok, session, audit}`, each of the two `{events, broken_at}` or None where there is none; `broken_at`
        is the seq of the first event that isn't as it was written. `NotFound` if there is neither.
        """
        found = {name: await _check(log, session_id) for name, log in await self._both()}
        if not any(found.values()):
            raise NotFound(f"no session {session_id}", hint="`omnigent ls` shows those there are")
        ok = all(chain is None or chain["broken_at"] is None for chain in found.values())
        return {"ok": ok, "session": found.get("session"), "audit": found.get("audit")}

    async def export(self, session_id: str) -> bytes:
        """The session's log and its audit stream as JSON lines: `{"log": "session"|"audit", "event": …}`.

        An event's text is that of an exported session: its chain can be verified from the lines alone.
        """
        lines: list[str] = []
        for name, log in await self._both():
            async for event in _events(log, session_id):
                lines.append(f'{{"log":"{name}","event":{event.json_text()}}}\n')
        if not lines:
            raise NotFound(f"no session {session_id}", hint="`omnigent ls` shows those there are")
        return "".join(lines).encode()

    async def flush(self) -> None:
        """Until everything noted so far is written, or counted as lost."""
        if self._soon is not None:
            self._soon.cancel()
            self._begin()
        while self._writing is not None:
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write what waits, then let go of the file."""
        self._closed = True
        await self.flush()
        if self._log is not None:
            await self._log.close()

    async def _both(self) -> list[tuple[str, Log]]:
        await self.flush()
        if self._log is None and self._path.exists():
            self._log = await asyncio.to_thread(self._open)
        return [("session", self._sessions), *([("audit", self._log)] if self._log is not None else [])]

    def _open(self) -> SqliteLog:
        return SqliteLog(self._path, _NoFold(), self._clock)

    # Writing

    async def _write(self) -> None:
        try:
            while self._waiting or self._dropped:
                batch = self._take()
                if not await self._store(batch):
                    return
        finally:
            self._writing = None

    def _take(self) -> dict[str, list[Draft]]:
        """All that waits, by stream, with what is to be said of losses."""
        batch: dict[str, list[Draft]] = {}
        while self._waiting:
            session_id, draft = self._waiting.popleft()
            batch.setdefault(session_id, []).append(draft)
        for session_id, number in self._dropped.items():
            batch.setdefault(session_id, []).append(Draft(AuditDropped(events=number)))
        self._dropped.clear()
        return batch

    async def _store(self, batch: dict[str, list[Draft]]) -> bool:
        """Whether there is any use in going on: False where nothing could be written."""
        try:
            self._log = self._log or await asyncio.to_thread(self._open)
        except OmnigentError as error:
            _log.error("the audit log can't be opened: %s", error.detail)
            for session_id, drafts in batch.items():
                self._lose(session_id, drafts)
            return False
        stored = await asyncio.gather(
            *(self._append(self._log, session_id, drafts) for session_id, drafts in batch.items())
        )
        return any(stored)

    async def _append(self, log: Log, session_id: str, drafts: Sequence[Draft]) -> bool:
        try:
            await _append_or_create(log, session_id, drafts)
        except Exception as error:  # noqa: BLE001 - the boundary: who noted it has long gone on
            if isinstance(error, Malformed) and len(drafts) > 1:
                # One of them can't be stored: the others can.
                return any([await self._append(log, session_id, [draft]) for draft in drafts])
            detail = error.detail if isinstance(error, OmnigentError) else type(error).__name__
            _log.error("the audit log of %s lost %d events: %s", session_id, len(drafts), detail)
            self._lose(session_id, drafts)
            return False
        return True

    def _lose(self, session_id: str, drafts: Sequence[Draft]) -> None:
        """Count them, and those that an account of losses among them counts."""
        for draft in drafts:
            self._drop(session_id, draft.body.events if isinstance(draft.body, AuditDropped) else 1)

    def _drop(self, session_id: str, number: int) -> None:
        if number:
            self._dropped[session_id] = self._dropped.get(session_id, 0) + number


async def _append_or_create(log: Log, session_id: str, drafts: Sequence[Draft]) -> None:
    try:
        await log.append(session_id, drafts)
    except NotFound:
        await log.create(session_id, drafts)


async def _check(log: Log, session_id: str) -> JSON | None:
    """One chain, or None if there is none."""
    try:
        head = await log.head(session_id)
    except NotFound:
        return None
    events, broken_at, prev = 0, None, GENESIS
    async for event in _events(log, session_id):
        if broken_at is None:
            expected = events + 1
            broken_at = verify([event], prev) if event.seq == expected else expected
            prev = event.hash
        events += 1
    if broken_at is None and events < head:
        broken_at = events + 1  # the end is missing
    return {"events": events, "broken_at": broken_at}


async def _events(log: Log, session_id: str) -> AsyncIterator[Event]:
    """Every event of a stream, none if there is no such stream."""
    after = 0
    try:
        while page := await log.read(session_id, after=after, limit=_PAGE):
            for event in page:
                yield event
            after = page[-1].seq
    except NotFound:
        return
