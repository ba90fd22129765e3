"""A session as a dialogue: the test plays its people and its runner, the session is real.

`Port` is a double of the runners' port alone: what it is told is kept, and what a runner would say is said by
the test through `Talk`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnigent import commands
from omnigent import events as ev
from omnigent.audit import Audit
from omnigent.blobs import Blobs
from omnigent.config import ApprovalSettings, Config, ConfigFile, HarnessDefaults, Key, Provider
from omnigent.errors import OmnigentError
from omnigent.events import JSON, Actor, Approvals, Body, Draft, Event
from omnigent.house import House
from omnigent.ids import new_id
from omnigent.log import MemoryLog
from omnigent.policies.folding import TreeProjector
from omnigent.rulebook import Rulebook
from omnigent.session import Session
from omnigent.shell import understand
from omnigent.testing.log_suite import Hands
from omnigent.trees import Trees
from omnigent.views import SessionProjector, SessionView

ANN = Actor(kind="person", id="ann", via="cli")
BOB = Actor(kind="person", id="bob", via="web")
REAL_KEY = "real-key-0123456789"
SESSION = "ses_1"


class Port:
    """The runners. As with the real ones, what is sent to one that isn't connected is lost."""

    def __init__(self) -> None:
        self.now = "none"
        self.launches: list[JSON] = []
        self.frames: list[JSON] = []
        self.failure: OmnigentError | OSError | None = None

    async def launch(self, session_id: str, frame: JSON) -> None:
        if self.failure is not None:
            raise self.failure
        assert self.now == "none", "two runners for one session"
        self.launches.append(frame)
        self.now = "starting"

    def send(self, session_id: str, frame: JSON) -> None:
        if self.now == "live":
            self.frames.append(frame)

    def state(self, session_id: str) -> str:
        return self.now

    def told(self) -> list[JSON]:
        """The frames since the last look."""
        frames, self.frames = self.frames, []
        return frames


def config() -> Config:
    key = Key(secret="lab")
    lab = Provider(api="anthropic-messages", base_url="http://127.0.0.1:9", key=key)
    defaults = HarnessDefaults(provider="lab", model="m1")
    return Config(
        providers={"lab": lab, "spare": lab.model_copy()},
        harnesses={"scripted": defaults, "claude-code": defaults, "pi": defaults},
        approvals=ApprovalSettings(expire_seconds=60, detach_seconds=30),
    )


@dataclass(slots=True)
class Talk:
    """One session with its port. `restarted` is the same log under a new server."""

    home: Path
    log: MemoryLog
    clock: Hands
    port: Port
    session: Session
    audit: Audit
    number: int = 0
    """Of the current run's last event."""
    run: str = ""
    keys: int = 0
    items: int = 0

    @property
    def view(self) -> SessionView:
        return self.session.view

    # People.

    async def do(self, type_: str, key: str | None = None, actor: Actor = ANN, **fields: Any) -> JSON:
        self.keys += 1
        raw = {"type": type_, "idempotency_key": key or f"k{self.keys}", **fields}
        answer, _ = await self.session.submit(commands.COMMAND.validate_python(raw), actor)
        return answer

    async def prompt(self, text: str, when: str = "auto") -> str:
        return (await self.do("prompt", text=text, when=when))["message_id"]

    # The runner.

    async def says(self, *drafts: Draft) -> None:
        launch = self.port.launches[-1]
        if launch["run"] != self.run:
            self.run, self.number = launch["run"], 0
        first, self.number = self.number + 1, self.number + len(drafts)
        drafts = tuple(
            Draft(d.body, d.item_id, turn_id=d.turn_id or self.turn_id(), run=launch["run"]) for d in drafts
        )
        await self.session.ingest(launch["run"], launch["epoch"], first, list(drafts))

    async def say(self, body: Body, item_id: str | None = None, turn_id: str | None = None) -> None:
        await self.says(Draft(body, item_id, turn_id=turn_id))

    def turn_id(self) -> str | None:
        return self.view.turn["id"] if self.view.turn else None

    async def ready(self, **more: Any) -> None:
        """The runner connects and its agent answers its handshake."""
        launch = self.port.launches[-1]
        self.port.now = "live"
        facts: JSON = {
            "harness": launch["harness"],
            "version": "1",
            "native_ref": "native-1",
            "covers_seq": launch["covers_seq"],
            "model": launch["model"],
            "provider": launch["provider"],
            "capabilities": {"steers": True, "sets_model": True},
        }
        await self.say(ev.HarnessStarted(**facts | more))

    async def takes(self) -> None:
        """The agent acknowledges the open turn's message."""
        turn = self.view.turn
        assert turn is not None
        await self.say(ev.MessageDelivered(as_="turn"), turn["message_id"])  # pyright: ignore[reportCallIssue]

    async def answers(self, text: str = "done") -> None:
        item_id = self.item("msg")
        await self.say(ev.MessageStarted(), item_id)
        await self.say(ev.MessageCompleted(content=(ev.TextPart(text=text),)), item_id)

    async def completes(self) -> None:
        await self.say(ev.TurnCompleted())

    async def serves(self, text: str = "done") -> None:
        await self.takes()
        await self.answers(text)
        await self.completes()

    def item(self, prefix: str) -> str:
        self.items += 1
        return f"{prefix}_{self.items}"

    async def calls(self, command: str = "make release", item_id: str | None = None) -> str:
        """The agent wants to run a command; the call's item id."""
        item_id = item_id or self.item("tc")
        actions, parsed = understand(command, self.home, self.home)
        body = ev.ToolRequested(
            tool="bash",
            title=command,
            actions=tuple(actions),
            parsed=parsed,
            raw=json.dumps({"command": command}),
            native_id="call_1",
        )
        await self.say(body, item_id)
        return item_id

    async def exits(self, reason: Any = "closed", detail: str = "") -> None:
        await self.say(ev.HarnessExited(reason=reason, stderr_tail=detail))
        await self.vanishes()

    async def vanishes(self) -> None:
        """The runner's process has ended."""
        self.port.now = "none"
        await self.session.gone(self.port.launches[-1]["epoch"])

    async def synced(
        self,
        seen: list[str] | None = None,
        held: list[str] | None = None,
        calls: list[str] | None = None,
    ) -> None:
        self.port.now = "live"
        await self.session.synced(seen or [], held or [], [], calls or [], True)

    # What is there to see.

    def command(self) -> JSON:
        """The one command sent since the last look."""
        frames = self.port.told()
        assert [frame["type"] for frame in frames] == ["command"], frames
        return frames[0]["command"]

    def told(self) -> list[str]:
        """What was sent since the last look, in short."""
        return [f["command"]["type"] if f["type"] == "command" else f["type"] for f in self.port.told()]

    async def events(self) -> list[Event]:
        return await self.log.read(SESSION, limit=1000)

    async def kinds(self, after: int = 0) -> list[str]:
        return [event.kind for event in await self.log.read(SESSION, after=after, limit=1000)]

    async def item_data(self, item_id: str) -> JSON:
        row = await self.log.item(SESSION, item_id)
        assert row is not None
        return row.data

    def approval(self) -> str:
        (approval_id,) = self.view.approvals_open
        return approval_id

    async def restarted(self, state: str = "away") -> "Talk":
        """A new server on the same log; its runner may still be there (`away`) or not (`none`)."""
        launches = self.port.launches
        self.port = Port()
        self.port.now, self.port.launches = state, launches
        house = make_house(self.home, self.log, self.clock, self.port, self.audit)
        self.session = Session(house, await self.log.view(SESSION))
        await self.session.recover()
        return self

    async def check(self) -> None:
        """The live view is the stored one, and the stored one is a replay of the events."""
        stored: SessionView = await self.log.view(SESSION)
        assert self.view.dump() == stored.dump()
        await self.log.rebuild(SESSION)
        assert (await self.log.view(SESSION)).dump() == stored.dump()


def make_house(home: Path, log: MemoryLog, clock: Hands, port: Port, audit: Audit) -> House:
    return House(
        home,
        ConfigFile(home, config()),
        log,
        Blobs(home),
        port,
        clock,
        new_id,
        {"PATH": "/usr/bin"},
        trees=Trees(log),
        audit=audit,
        rulebook=Rulebook(MemoryLog(SessionProjector(), clock)),
    )


async def begin_talk(home: Path, approvals: Approvals = "ask") -> Talk:
    """A new session on the scripted harness that has run nothing."""
    (home / "secrets").mkdir(parents=True, exist_ok=True)
    (home / "secrets" / "lab").write_text(REAL_KEY)
    clock = Hands()
    log, port = MemoryLog(SessionProjector(), clock, trees=TreeProjector()), Port()
    body = ev.SessionCreated(
        title="",
        harness="scripted",
        model="m1",
        provider="lab",
        workspace=str(home),
        approvals=approvals,
        owner="local",
    )
    await log.create(SESSION, [Draft(body)])
    audit = Audit(home, log, clock)
    session = Session(make_house(home, log, clock, port, audit), await log.view(SESSION))
    return Talk(home, log, clock, port, session, audit)
