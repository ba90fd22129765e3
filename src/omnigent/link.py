"""The server's end of the link: starts runners, hears them, knows when one is gone.

Runners come to a Unix socket of mode 0600 in a directory of mode 0700 and prove themselves with a token that
only the two know. What a runner is bound to is a lease row, so that a server that starts again finds it.
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from omnigent import frames, processes
from omnigent.blobs import Blobs
from omnigent.errors import Fenced, Gap, HomeUnusable, NotFound, OmnigentError
from omnigent.events import JSON, Draft, NoticeRaised, canonical, encode_body
from omnigent.log import Lease, Log
from omnigent.metering import ModelCall
from omnigent.spawning import Spawner

logger = logging.getLogger(__name__)

LOST_SECONDS = 12.0
"""A runner not heard of for this long, whose process lives, has lost contact."""
LONGEST_SOCKET_PATH = 100
POLL_SECONDS = 0.05
"""How often a process that is not our child is looked at."""


class Ear(Protocol):
    """A session, as its runner speaks to it."""

    async def ingest(self, run: str, epoch: int, first: int, drafts: list[Draft]) -> int: ...

    async def say(self, deltas: list[JSON]) -> None: ...

    async def synced(
        self, seen: list[str], held: list[str], questions: list[str], calls: list[str], ready: bool
    ) -> None: ...

    async def reserve(self, epoch: int, call: ModelCall) -> None: ...

    async def gone(self, epoch: int) -> None: ...


Listen = Callable[[str], Awaitable[Ear]]
"""session id → its session."""


@dataclass(slots=True)
class _Handle:
    """One runner process."""

    pid: int
    pid_started: int
    token_sha256: str
    lease: Lease | None = None
    harness: str = ""
    launch: JSON | None = None
    """Sent at every hello until the runner has said something as this session's."""
    writer: asyncio.StreamWriter | None = None
    heard_at: float = 0.0
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it isn't connected and all it said is stored."""

    def __post_init__(self) -> None:
        self.quiet.set()


class RunnerHub:
    """All runners of a server. Implements `house.Runners`."""

    def __init__(self, home: Path, log: Log, blobs: Blobs, environ: dict[str, str], listen: Listen) -> None:
        self._home = home
        self._log = log
        self._blobs = blobs
        self._spawner = Spawner(home, environ)
        self._spawning = asyncio.Lock()
        """Held until a new runner is known here: it may say hello before we are told of it."""
        self._listen = listen
        self._path = socket_path(home)
        self._by_session: dict[str, _Handle] = {}
        self._by_token: dict[str, _Handle] = {}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._nobody = asyncio.Event()
        """Set while no session has a runner."""
        self._nobody.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> list[str]:
        """Listen, and take up the leases of an earlier server. The sessions whose runner may come back."""
        _make_private(self._path.parent)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=2**20)
        self._path.chmod(0o600)
        leases = await self._log.leases()
        for lease in leases:
            handle = _Handle(lease.pid, lease.pid_started, lease.token_sha256, lease)
            handle.heard_at = self._loop.time()
            self._by_session[lease.session_id] = handle
            self._nobody.clear()
            self._by_token[lease.token_sha256] = handle
            self._watch(handle)
        return [lease.session_id for lease in leases]

    async def close(self) -> None:
        """Stop listening; runners are left to their grace."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for handle in self._by_token.values():
            if handle.writer is not None:
                handle.writer.close()
        await self._spawner.cool()

    # What a session asks of us.

    def state(self, session_id: str) -> str:
        handle = self._by_session.get(session_id)
        if handle is None:
            return "none"
        if handle.writer is not None:
            return "live"
        return "starting" if handle.launch is not None else "away"

    def lost(self, session_id: str) -> bool:
        """Its process lives but hasn't been heard for `LOST_SECONDS`."""
        handle = self._by_session.get(session_id)
        return handle is not None and self._loop.time() - handle.heard_at > LOST_SECONDS

    def live(self) -> list[str]:
        return list(self._by_session)

    async def nobody(self) -> None:
        """Until no session has a runner."""
        await self._nobody.wait()

    def send(self, session_id: str, frame: JSON) -> None:
        handle = self._by_session.get(session_id)
        if handle is not None and handle.writer is not None:
            handle.writer.write(frames.pack(frame))

    async def launch(self, session_id: str, frame: JSON) -> None:
        handle = await self._spawn()
        lease = Lease(
            session_id, frame["epoch"], frame["run"], handle.pid, handle.pid_started, handle.token_sha256
        )
        await self._log.put_lease(lease)
        handle.lease, handle.harness, handle.heard_at = lease, frame["harness"], self._loop.time()
        handle.launch = frame
        self._by_session[session_id] = handle
        self._nobody.clear()
        self._write(handle, frame)

    async def warm(self) -> None:
        """Have ready what the next runner comes from, so that its agent starts without waiting for ours."""
        if not self._closing:
            await self._spawner.warm()

    async def cool(self) -> None:
        """Let that go."""
        await self._spawner.cool()

    async def _spawn(self) -> _Handle:
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        async with self._spawning:
            pid, started = await self._spawner.spawn({"socket": str(self._path), "token": token})
            handle = _Handle(pid, started, digest, heard_at=self._loop.time())
            self._by_token[digest] = handle
        self._watch(handle)
        return handle

    # What a runner says.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await frames.read_frame(reader)
        async with self._spawning:
            handle = self._known(hello)
        if hello is None or handle is None:
            writer.write(frames.pack({"type": "fenced"}))
            writer.close()
            return
        if handle.writer is not None:
            handle.writer.close()
        handle.writer, handle.heard_at = writer, self._loop.time()
        handle.quiet.clear()
        try:
            await self._greet(handle, hello)
            while (frame := await frames.read_frame(reader)) is not None:
                handle.heard_at = self._loop.time()
                await self._hear(handle, frame)
        except Fenced:
            writer.write(frames.pack({"type": "fenced"}))
        except (OmnigentError, ValidationError, KeyError, TypeError):
            if await self._deleted(handle):
                writer.write(frames.pack({"type": "fenced"}))
            else:
                logger.exception("a runner's frame can't be taken; its link is closed so that it tells again")
        finally:
            if handle.writer is writer:
                handle.writer = None
                handle.quiet.set()
            writer.close()

    async def _deleted(self, handle: _Handle) -> bool:
        """Whether the runner's session is no longer there."""
        try:
            if handle.lease is not None:
                await self._log.head(handle.lease.session_id)
        except NotFound:
            return True
        return False

    def _known(self, hello: JSON | None) -> _Handle | None:
        if hello is None or hello.get("type") != "hello":
            return None
        digest = hashlib.sha256(str(hello.get("token", "")).encode()).hexdigest()
        handle = self._by_token.get(digest)
        if handle is None or handle.pid != hello.get("pid"):
            return None
        lease = handle.lease
        bound = hello.get("session_id")
        if bound is None:  # one that was leased by an earlier server, and whose launch was lost with it
            return None if lease is not None and handle.launch is None else handle
        if lease is None or (bound, hello.get("epoch")) != (lease.session_id, lease.epoch):
            return None
        return handle

    async def _greet(self, handle: _Handle, hello: JSON) -> None:
        lease = handle.lease
        if hello.get("session_id") is None:
            if handle.launch is not None:
                self._write(handle, handle.launch)
        elif lease is not None:
            handle.launch = None
            handle.harness = handle.harness or hello.get("harness") or ""
            known = await self._log.append(lease.session_id, [], producer=lease.run, epoch=lease.epoch)
            self._write(handle, {"type": "resume", "acked": known.acked})

    async def _hear(self, handle: _Handle, frame: JSON) -> None:
        lease = handle.lease
        if lease is None:
            return
        ear = await self._listen(lease.session_id)
        match frame["type"]:
            case "events":
                handle.launch = None
                for data in frame["blobs"].values():
                    await asyncio.to_thread(self._blobs.put, base64.b64decode(data))
                drafts = [_draft(raw, handle.harness or "agent", lease.run) for raw in frame["drafts"]]
                acked = await self._ingest(ear, lease, frame["first"], drafts)
                self._write(handle, {"type": "ack", "acked": acked})
            case "deltas":
                await ear.say(frame["items"])
            case "synced":
                await ear.synced(
                    frame["seen"], frame["held"], frame["questions"], frame["calls"], frame["ready"]
                )
            case "reserve":
                await ear.reserve(lease.epoch, _model_call(frame["call"]))
            case _:
                pass  # a heartbeat: being heard is all it says

    async def _ingest(self, ear: Ear, lease: Lease, first: int, drafts: list[Draft]) -> int:
        try:
            return await ear.ingest(lease.run, lease.epoch, first, drafts)
        except Gap as gap:
            # What is missing was sent on an earlier connection and comes again after `resume`.
            return int(gap.facts["expected"]) - 1

    def _write(self, handle: _Handle, frame: JSON) -> None:
        if handle.writer is not None:
            handle.writer.write(frames.pack(frame))

    # Ends.

    def _watch(self, handle: _Handle) -> None:
        task = self._loop.create_task(self._wait(handle))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait(self, handle: _Handle) -> None:
        """Until the process has ended and its connection is read to the end; then tell its session."""
        await _end_of(handle.pid, handle.pid_started)
        await handle.quiet.wait()
        self._by_token.pop(handle.token_sha256, None)
        lease = handle.lease
        if lease is None or self._closing:
            return
        if self._by_session.get(lease.session_id) is handle:
            del self._by_session[lease.session_id]
        try:
            with contextlib.suppress(NotFound):  # deleted meanwhile
                ear = await self._listen(lease.session_id)
                await ear.gone(lease.epoch)
        finally:
            if not self._by_session:
                self._nobody.set()


def _draft(raw: JSON, harness: str, run: str) -> Draft:
    """A runner's event; for one that can't be stored a notice, since, refused, it would come for ever."""
    try:
        draft = frames.unpack_draft(raw, harness, run)
        canonical(encode_body(draft.body))
    except (ValidationError, KeyError, ValueError) as error:
        detail = f"The runner sent an event ({raw['kind']}) that can't be stored: {type(error).__name__}."
        logger.error("%s", detail)
        return Draft(NoticeRaised(code="bad_event", level="error", detail=detail), run=run)
    return draft


def _model_call(raw: JSON) -> ModelCall:
    return ModelCall(
        raw["call_id"], raw["model"], raw["input_tokens"], raw["max_output_tokens"], tuple(raw["hosted"])
    )


async def _end_of(pid: int, started: int) -> None:
    """Until a process has ended. None is our child: an earlier server, or the spawner, started it."""
    loop = asyncio.get_running_loop()
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            if processes.alive(pid, started):
                await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    while processes.alive(pid, started):  # macOS has no pidfd  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


def _make_private(directory: Path) -> None:
    """Raises `HomeUnusable` if it is another's: in a shared temp directory anybody may have made it first."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise HomeUnusable(f"{directory} belongs to somebody else.", hint="Remove it, or set TMPDIR.")
    directory.chmod(0o700)


def socket_path(home: Path) -> Path:
    """The link's socket: in the home, or where that path would be too long, in a private temp directory."""
    path = home / "run" / "link.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"omnigent-{os.getuid()}-{name}" / "link.sock"
