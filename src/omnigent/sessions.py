"""All sessions of a server: made, found, forked, exported; and how the server starts and stops."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from omnigent import archive, commands, content, session_policies, workspace
from omnigent import events as ev
from omnigent.audit import Audit
from omnigent.blobs import Blobs
from omnigent.config import Config, ConfigFile
from omnigent.deciding import protected
from omnigent.errors import (
    BadCursor,
    Conflict,
    Draining,
    KeyReused,
    MissingBinary,
    WorkspaceMissing,
)
from omnigent.events import JSON, Actor, Draft
from omnigent.harnesses.probe_results import standing
from omnigent.house import House
from omnigent.ids import Clock, NewId
from omnigent.link import RunnerHub, socket_path
from omnigent.log import CommandRecord, ListQuery, Log, open_log
from omnigent.metering import Spend
from omnigent.policies.folding import TreeProjector
from omnigent.providers import choose, payer
from omnigent.registry import harness as find_harness
from omnigent.registry import harness_name, harness_names
from omnigent.rulebook import HOUSE, Rulebook
from omnigent.session import Session
from omnigent.trees import Trees
from omnigent.views import SessionProjector, SessionView

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0
"""How long a stopping server waits for turns to end by themselves."""
GOODBYE_SECONDS = 10.0
"""How long runners get to end their agents and tell their last events."""
TICK_SECONDS = 2.0
ORG = "org:local"
OWNER = "local"


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CreateSession(_Request):
    harness: str | None = None
    model: str | None = None
    provider: str | None = None
    workspace: str | None = None
    title: str = Field(default="", max_length=500)
    prompt: str | None = None
    approvals: ev.Approvals = "ask"
    policies: str = ""
    """YAML text: the session's own policies, beside those of the wider scopes."""
    budget_usd: float | None = Field(default=None, ge=0)
    sandbox: Literal["host"] = "host"
    labels: dict[str, str] = {}


class ForkSession(_Request):
    at_seq: int | None = None
    harness: str | None = None
    model: str | None = None
    provider: str | None = None
    workspace: str | None = None
    share_workspace: bool = False
    title: str | None = None


class PatchSession(_Request):
    title: str | None = Field(default=None, max_length=500)
    archived: bool | None = None
    labels: dict[str, str] | None = None


class Sessions:
    """The living room. `open` makes one; there is one per server."""

    def __init__(
        self,
        home: Path,
        config: Config,
        log: Log,
        clock: Clock,
        new_id: NewId,
        environ: dict[str, str],
        api: str = "",
    ) -> None:
        self.home = home
        self._settings = ConfigFile(home, config)
        self.log = log
        self.blobs = Blobs(home)
        self.hub = RunnerHub(home, log, self.blobs, environ, self.get)
        self.draining = False
        self.audit = Audit(home, log, clock)
        self.rulebook = Rulebook(self.audit.log)
        self._house = House(
            home,
            self._settings,
            log,
            self.blobs,
            self.hub,
            clock,
            new_id,
            environ,
            trees=Trees(log),
            audit=self.audit,
            rulebook=self.rulebook,
            protected=(
                *protected(home, Path(environ.get("HOME") or Path.home())),
                str(socket_path(home).parent),
            ),
            api=api,
        )
        self._open: dict[str, asyncio.Task[Session]] = {}
        self._ticker: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        home: Path,
        config: Config,
        environ: dict[str, str],
        clock: Clock,
        new_id: NewId,
        api: str = "",
    ) -> "Sessions":
        """Open the log, take up the runners of an earlier server, end what was lost with it. `api` is our
        own address, host:port."""
        log = open_log(home, SessionProjector(), clock, trees=TreeProjector())
        sessions = cls(home, config, log, clock, new_id, environ, api)
        await sessions.rulebook.load()
        leased = set(await sessions.hub.start())
        for status in ("starting", "running", "waiting", "paused"):
            for session_id in await sessions._with_status(status):
                if session_id not in leased:  # else its runner comes back, or its end is told
                    await (await sessions.get(session_id)).recover()
        sessions._ticker = asyncio.get_running_loop().create_task(sessions._tick())
        return sessions

    async def _with_status(self, status: str) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            query = ListQuery(limit=200, cursor=cursor, status=status, archived=None)
            rows, cursor = await self.log.list(query)
            found += [row["id"] for row in rows]
            if cursor is None:
                return found

    # Finding.

    async def get(self, session_id: str) -> Session:
        """The session, loaded once. Raises `NotFound`."""
        task = self._open.get(session_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(session_id))
            self._open[session_id] = task
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception() is not None):
                self._open.pop(session_id, None)

    async def _load(self, session_id: str) -> Session:
        view = cast(SessionView, await self.log.view(session_id))
        session = Session(self._house, view)
        session.draining = self.draining
        return session

    async def describe(self, session_id: str) -> JSON:
        """The session object of the API, with what its family has spent: that is what a cap binds."""
        summary = self.summary((await self.get(session_id)).view)
        if summary["budget"] is not None:
            spend = (await self.log.spend(session_id, self._house.clock())).get("family", Spend())
            family: JSON = {"family_usd": spend.nanousd / 1e9, "unknown_calls": spend.unknown}
            summary["budget"] = summary["budget"] | family
        return summary

    def summary(self, view: SessionView) -> JSON:
        lost = view.turn is not None and self.hub.lost(view.session_id)
        usage: JSON = {name: view.usage.get(name, 0) for name in _USAGE}
        cost = view.cost_nanousd
        usage["cost_usd"] = None if cost is None else cost / 1e9
        usage["cost_partial"] = view.cost_partial
        run = view.run
        return {
            "id": view.session_id,
            "title": view.title,
            "harness": view.harness,
            "model": view.model,
            "provider": view.provider,
            "billing": view.billing,
            "credential": view.credential,
            "metering": view.metering,
            "workspace": view.workspace,
            "approvals": view.approvals,
            "sandbox": view.sandbox,
            "status": "lost" if lost else view.status,
            "status_reason": _reason(view, lost),
            "status_since": view.status_since,
            "last_seq": view.as_of_seq,
            "usage": usage,
            "budget": _budget(view),
            "paused": view.paused,
            "policies": view.policies,
            "grants": view.grants,
            "pending": {"approvals": len(view.approvals_open), "questions": len(view.questions_open)},
            "queue_length": len(view.queue),
            "turn": view.turn and {name: view.turn[name] for name in ("id", "message_id", "trigger")},
            "last_turn": view.last_turn,
            "owner": view.owner,
            "role": "owner",
            "parent_id": view.parent_id,
            "root_id": view.root_id,
            "forked_from": view.forked_from,
            "run": run and {name: run[name] for name in ("run", "harness", "version", "native_ref", "how")},
            "capabilities": run["capabilities"] if run else {},
            "created_at": view.created_at,
            "updated_at": view.updated_at,
            "archived": view.archived,
            "labels": view.labels,
        }

    async def _view(self, session_id: str) -> SessionView:
        """A live session's own view, else the stored one: listing loads no session."""
        task = self._open.get(session_id)
        if task is not None and task.done() and task.exception() is None:
            return task.result().view
        return cast(SessionView, await self.log.view(session_id))

    async def inbox(self) -> list[JSON]:
        """Open approvals and questions over all sessions."""
        found: list[JSON] = []
        for session_id, row in await self.log.open_items():
            view = await self._view(session_id)
            found.append({"session_id": session_id, "session_title": view.title, "item": item_json(row)})
        return found

    def harnesses(self) -> list[JSON]:
        return [self._harness(name) for name in harness_names()]

    def _harness(self, name: str) -> JSON:
        adapter = find_harness(name)
        capabilities = adapter.capabilities
        found: JSON = {
            "name": name,
            "wires": list(adapter.wires),
            "versions": list(adapter.versions),
            "capabilities": {key: getattr(capabilities, key) for key in capabilities.__slots__},
        }
        try:
            binary = adapter.locate(self.home)
        except MissingBinary as missing:
            return found | {"installed": False, "version": None, "hint": missing.hint}
        return found | {
            "installed": True,
            "version": binary.version,
            "source": binary.source,
            "in_range": binary.in_range,
            **({} if binary.in_range else {"hint": standing(adapter.versions, binary, self.home)}),
        }

    # Making.

    async def create(self, request: CreateSession, actor: Actor, key: str) -> tuple[JSON, bool]:
        """A session, and its first turn if there is a prompt. Raises what makes it impossible, by name."""
        self._refuse_if_draining()
        redactor = await self._house.redactor()
        request = CreateSession.model_validate(redactor.value(request.model_dump()))
        record, known = await self._replay(key, request)
        if known is not None:
            return await self.describe(known), True
        name = harness_name(request.harness or self._house.config.harness)
        adapter = find_harness(name)
        path = _workspace(request.workspace)
        choice = choose(self._house.config, adapter, request.provider, request.model)
        adapter.locate(self.home)
        session_id = self._house.new_id("ses")
        body = ev.SessionCreated(
            title=request.title,
            harness=name,
            model=choice.model,
            provider=choice.name,
            workspace=str(path),
            approvals=request.approvals,
            owner=OWNER,
            sandbox=request.sandbox,
            billing=choice.provider.billing,
            credential=payer(choice.provider),
            labels=request.labels,
        )
        first = session_policies.first(self._house, str(path), OWNER, request.policies)
        drafts = [Draft(body, actor=actor), Draft(first.body, actor=actor)]
        if request.budget_usd is not None:
            cap = ev.BudgetChanged(cap_nanousd=round(request.budget_usd * 1e9))
            drafts.append(Draft(cap, actor=actor))
        if request.prompt is not None:
            drafts += self._first_prompt(request.prompt, actor)
        record = CommandRecord(ORG, key, record.request_sha256, {"session_id": session_id})
        appended = await self.log.create(session_id, drafts, command=record)
        if appended.replay is not None:  # somebody else's request with this key came first
            return await self.describe(appended.replay.answer["session_id"]), True
        session = await self.get(session_id)
        if request.prompt is not None:
            await session.begin()
        return self.summary(session.view), False

    def _first_prompt(self, prompt: str, actor: Actor) -> list[Draft]:
        said = content.take([commands.TextInput(text=prompt)], self.blobs)
        message_id, turn_id = self._house.new_id("msg"), self._house.new_id("turn")
        return [
            Draft(ev.MessageSubmitted(content=said), message_id, actor=actor),
            Draft(ev.TurnStarted(trigger="prompt", message_id=message_id), turn_id=turn_id, actor=actor),
        ]

    async def _replay(self, key: str, request: BaseModel) -> tuple[CommandRecord, str | None]:
        """The record to store, and the session an earlier request with this key made. Raises `KeyReused`."""
        digest = ev.sha256(ev.canonical(request.model_dump(mode="json") | {"_": type(request).__name__}))
        known = await self.log.command(ORG, key)
        if known is not None and known.request_sha256 != digest:
            raise KeyReused("This Idempotency-Key was used with another request.", hint="Make a new key.")
        return CommandRecord(ORG, key, digest), known and known.answer["session_id"]

    async def fork(self, parent_id: str, request: ForkSession, actor: Actor, key: str) -> tuple[JSON, bool]:
        """A session that goes on from the parent at a seq. The parent isn't touched."""
        self._refuse_if_draining()
        record, known = await self._replay(key, request)
        if known is not None:
            return await self.describe(known), True
        parent = (await self.get(parent_id)).view
        at_seq = request.at_seq if request.at_seq is not None else parent.safe_seq
        if not 1 <= at_seq <= parent.as_of_seq:
            raise BadCursor(
                f"at_seq={at_seq} isn't in the log, which ends at {parent.as_of_seq}.", head=parent.as_of_seq
            )
        name = harness_name(request.harness or parent.harness)
        adapter = find_harness(name)
        same = name == parent.harness
        choice = choose(
            self._house.config,
            adapter,
            request.provider or (parent.provider if same else None),
            request.model or (parent.model if same else None),
        )
        adapter.locate(self.home)
        session_id = self._house.new_id("ses")
        path = await self._fork_workspace(parent, at_seq, request, session_id)
        at = await self.log.read(parent_id, after=at_seq - 1, limit=1)
        body = ev.SessionForked(
            parent_id=parent_id,
            at_seq=at_seq,
            parent_hash=at[0].hash,
            owner=OWNER,
            title=request.title if request.title is not None else f"{parent.title} (fork)",
            harness=name,
            model=choice.model,
            provider=choice.name,
            workspace=str(path),
            approvals=cast(ev.Approvals, parent.approvals),
            share_workspace=request.share_workspace,
        )
        record = CommandRecord(ORG, key, record.request_sha256, {"session_id": session_id})
        appended = await self.log.fork(
            parent_id, at_seq, session_id, [Draft(body, actor=actor)], command=record
        )
        if appended.replay is not None:
            return await self.describe(appended.replay.answer["session_id"]), True
        return await self.describe(session_id), False

    async def _fork_workspace(
        self, parent: SessionView, at_seq: int, request: ForkSession, session_id: str
    ) -> Path:
        """The fork's own files, as they were at the last checkpoint up to the cut if there is one."""
        if request.workspace is not None:
            return workspace.existing(request.workspace)
        if request.share_workspace:
            return workspace.existing(parent.workspace)
        kinds = [ev.WorkspaceCheckpointed.KIND]
        kept = await self.log.read(parent.session_id, before=at_seq + 1, kinds=kinds, newest=True, limit=1)
        body = kept[0].body if kept else None
        found = isinstance(body, ev.WorkspaceCheckpointed)
        at = workspace.Checkpoint(body.head, body.tree) if found else None
        source = Path(parent.workspace)
        return await asyncio.to_thread(workspace.fork, source, session_id, self.home, at)

    async def patch(self, session_id: str, request: PatchSession, actor: Actor) -> JSON:
        session = await self.get(session_id)
        redactor = await self._house.redactor()
        changes: JSON = redactor.value(request.model_dump(exclude_none=True))
        if changes:
            await session.record([ev.SessionUpdated(**changes)], actor)
        return self.summary(session.view)

    async def delete(self, session_id: str) -> None:
        """Hide it. A running session must be stopped first."""
        session = await self.get(session_id)
        if session.view.turn is not None:
            raise Conflict(
                "The session is running.", hint="Stop it first.", current=self.summary(session.view)["status"]
            )
        await session.close_idle()
        await self.log.delete(session_id)
        self._open.pop(session_id, None)
        session.deleted.set()

    async def refused_elsewhere(self, body: ev.AccessRefused) -> None:
        """What was refused from inside an agent and names no session."""
        await self.audit.note(HOUSE, [Draft(body)])

    # Export and import.

    async def export(self, session_id: str) -> bytes:
        return await archive.pack(session_id, self.log, self.blobs)

    async def import_session(self, data: bytes, key: str) -> JSON:
        """Store an exported session as it is, read-only. Raises `Malformed`, `Conflict`."""
        events = archive.unpack(data, self.blobs)
        record = CommandRecord(ORG, key, ev.sha256("".join(event.hash for event in events)), {})
        session_id = await self.log.import_events(events, command=record)
        return await self.describe(session_id)

    # Time and the end.

    async def _tick(self) -> None:
        """Close agents with nothing to do, keep a runner warm, forget sessions nobody looks at."""
        loop = asyncio.get_running_loop()
        busy_at = loop.time()
        await self.hub.warm()
        while True:
            await asyncio.sleep(TICK_SECONDS)  # the resolution of the idle time-out
            live = set(self.hub.live())
            if live:
                busy_at = loop.time()
            if loop.time() - busy_at > self._settings.start.runner.idle_seconds:
                await self.hub.cool()
            else:
                await self.hub.warm()
            for session_id, task in list(self._open.items()):
                if not task.done() or task.exception() is not None:
                    continue
                session = task.result()
                if session.view.approvals_open and session_id in live:
                    await session.let_go()
                idle = session.view.turn is None and not session.view.queue
                if not idle:
                    session.idle_since = loop.time()
                elif session_id in live:
                    if loop.time() - session.idle_since > self._settings.start.runner.idle_seconds:
                        await session.close_idle()
                elif not session.feed.followers and loop.time() - session.idle_since > 60:
                    self._open.pop(session_id, None)

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise Draining("The server is stopping.", hint="Try again when it has started anew.")

    async def drain(self, keep_runners: bool = False) -> None:
        """Take no more work; let turns end; end the runners (unless an upgrade keeps them)."""
        self.draining = True
        sessions = [t.result() for t in self._open.values() if t.done() and t.exception() is None]
        for session in sessions:
            session.draining = True
        if not keep_runners:
            running = [s.settled.wait() for s in sessions if s.view.status == "running"]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*running), DRAIN_SECONDS)
            for session_id in self.hub.live():
                self.hub.send(session_id, {"type": "close", "reason": "closed"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hub.nobody(), GOODBYE_SECONDS)
        await self.close()

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self.hub.close()
        await self.log.close()
        await self.audit.close()

    # The last, for its name hides the builtin from the annotations that follow.
    async def list(self, query: ListQuery) -> tuple[list[JSON], str | None]:
        rows, cursor = await self.log.list(query)
        return [self.summary(await self._view(row["id"])) for row in rows], cursor


_USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def _workspace(named: str | None) -> Path:
    """The directory that was named. Nothing is relative to the server's own, which is nobody's wish."""
    if named and (named.startswith("~") or Path(named).is_absolute()):
        return workspace.existing(named)
    detail = f"workspace is {named!r}, which is no absolute path." if named else "workspace is missing."
    raise WorkspaceMissing(detail, hint="Give a directory's absolute path.", path="workspace")


def item_json(row: Any) -> JSON:
    """An item as the API shows it."""
    return {**row.data, "view_seq": row.view_seq, "pos": row.pos}


def _budget(view: SessionView) -> JSON | None:
    """The cap, with what this session itself has spent and reserved; `describe` adds its family."""
    if view.budget_nanousd is None:
        return None
    reserved = sum(call["estimate_nanousd"] or 0 for call in view.reserved.values())
    return {
        "cap_usd": view.budget_nanousd / 1e9,
        "spent_usd": (view.cost_nanousd or 0) / 1e9,
        "reserved_usd": reserved / 1e9,
        "unknown_calls": int(view.cost_partial),
    }


def _reason(view: SessionView, lost: bool) -> str:
    if lost:
        return "The agent's runner doesn't answer."
    if view.approvals_open:
        return "approval"
    if view.questions_open:
        return "question"
    if view.paused is not None:
        return view.paused["reason"]
    return ""
