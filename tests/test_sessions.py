"""All sessions of a server: making, forking, exporting, and what a start finds."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import make_repository

from omnigent import events as ev
from omnigent.commands import COMMAND
from omnigent.config import Config, HarnessDefaults, Key, Provider
from omnigent.errors import (
    BadCursor,
    Conflict,
    Draining,
    KeyReused,
    Malformed,
    NotFound,
    ProviderMissing,
    TooLarge,
    UnknownHarness,
    WorkspaceMissing,
)
from omnigent.events import Actor, Draft
from omnigent.ids import new_id, now
from omnigent.log import ListQuery
from omnigent.sessions import CreateSession, ForkSession, PatchSession, Sessions
from omnigent.testing.scripted_model import ScriptedModel
from omnigent.workspace import checkpoint

pytestmark = pytest.mark.anyio

ANN = Actor(kind="person", id="ann", via="api")


class Server:
    """A home, and the sessions of one server on it."""

    def __init__(self, home: Path, model: ScriptedModel) -> None:
        self.home = home
        self.workspace = make_repository(home / "repo")
        (home / "secrets").mkdir()
        (home / "secrets" / "lab").write_text("real-key-0123456789")
        lab = Provider(api="anthropic-messages", base_url=model.url, key=Key(secret="lab"))
        self.config = Config(
            harness="scripted", providers={"lab": lab}, harnesses={"scripted": HarnessDefaults(model="m")}
        )
        self.sessions: Sessions
        self.keys = 0

    async def start(self) -> None:
        self.sessions = await Sessions.open(self.home, self.config, {"PATH": "/usr/bin:/bin"}, now, new_id)

    def key(self) -> str:
        self.keys += 1
        return f"k{self.keys}"

    async def create(self, **fields: Any) -> str:
        fields = {"workspace": str(self.workspace), **fields}
        made, _ = await self.sessions.create(CreateSession.model_validate(fields), ANN, self.key())
        return made["id"]

    async def fork(self, parent: str, **fields: Any) -> str:
        made, _ = await self.sessions.fork(parent, ForkSession.model_validate(fields), ANN, self.key())
        return made["id"]

    async def settled(self, session_id: str) -> None:
        session = await self.sessions.get(session_id)
        await asyncio.wait_for(session.settled.wait(), 20)

    async def do(self, session_id: str, type_: str, **fields: Any) -> None:
        raw = {"type": type_, "idempotency_key": self.key(), **fields}
        await (await self.sessions.get(session_id)).submit(COMMAND.validate_python(raw), ANN)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with ScriptedModel({"default": [{"text": "You said: {{prompt}}"}]}) as model:
        server = Server(tmp_path, model)
        await server.start()
        yield server
        await server.sessions.drain()


async def test_a_session_with_a_prompt_runs_it(server: Server) -> None:
    session_id = await server.create(prompt="hello")
    await server.settled(session_id)
    items = [row.data for row in await server.sessions.log.items(session_id)]
    said = [item["content"][0]["text"] for item in items if item["type"] == "message"]
    assert said == ["You said: hello", "hello"]
    shown = await server.sessions.describe(session_id)
    assert (shown["status"], shown["title"], shown["usage"]["cost_usd"]) == ("idle", "hello", None)


async def test_the_same_key_makes_one_session(server: Server) -> None:
    request = CreateSession(workspace=str(server.workspace))
    made = await asyncio.gather(*(server.sessions.create(request, ANN, "same") for _ in range(3)))
    assert len({session["id"] for session, _ in made}) == 1
    assert sorted(replayed for _, replayed in made) == [False, True, True]
    with pytest.raises(KeyReused):
        await server.sessions.create(CreateSession(title="other"), ANN, "same")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"harness": "scriptd"}, UnknownHarness),
        ({"workspace": "/no/such/place"}, WorkspaceMissing),
        ({"provider": "nobody"}, ProviderMissing),
        ({"prompt": " \n"}, Malformed),
        ({"prompt": "x" * 1_000_001}, TooLarge),
    ],
)
async def test_what_cannot_be_makes_nothing(
    server: Server, fields: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await server.create(**fields)
    assert await server.sessions.list(ListQuery()) == ([], None)


async def test_a_fork_has_its_parents_talk_and_files_and_leaves_both_alone(server: Server) -> None:
    parent = await server.create(prompt="one")
    await server.settled(parent)
    head = await server.sessions.log.head(parent)
    child = await server.fork(parent)
    view = (await server.sessions.get(child)).view
    assert view.forked_from == {"session_id": parent, "seq": head}
    assert Path(view.workspace) != server.workspace and (Path(view.workspace) / "README.md").exists()
    await server.do(child, "prompt", text="two")
    await server.settled(child)
    texts = [row.data["content"][0]["text"] for row in await server.sessions.log.items(child)
             if row.data["type"] == "message"]  # fmt: skip
    assert texts == ["You said: two", "two", "You said: one", "one"]
    assert await server.sessions.log.head(parent) == head


async def test_a_fork_is_cut_where_it_is_said(server: Server) -> None:
    parent = await server.create(prompt="one")
    await server.settled(parent)
    child = (await server.sessions.get(await server.fork(parent, at_seq=1, share_workspace=True))).view
    assert (child.as_of_seq, child.workspace) == (2, str(server.workspace))
    for at_seq in (0, 10_000):
        with pytest.raises(BadCursor):
            await server.fork(parent, at_seq=at_seq)


async def test_a_fork_has_the_files_of_its_moment(server: Server) -> None:
    """Two checkpoints; the cut is between them."""
    parent = await server.create()
    session = await server.sessions.get(parent)
    cuts: list[int] = []
    for text in ("first", "second"):
        (server.workspace / "file").write_text(text)
        kept = await asyncio.to_thread(_checkpoint, server.workspace, parent)
        await session.record([ev.WorkspaceCheckpointed(head=kept[0], tree=kept[1])], ANN)
        cuts.append(session.view.as_of_seq)
    for cut, text in zip(cuts, ("first", "second"), strict=True):
        child = await server.fork(parent, at_seq=cut)
        assert (Path((await server.sessions.get(child)).view.workspace) / "file").read_text() == text


def _checkpoint(path: Path, session_id: str) -> tuple[str, str]:
    kept = checkpoint(path, session_id, None)
    assert kept is not None
    return kept.head, kept.tree


async def test_what_is_exported_comes_back_as_it_was(server: Server, tmp_path: Path) -> None:
    text = "separators of lines that are none: \u2028 \u2029 \x85"
    session_id = await server.create(prompt=text)
    await server.settled(session_id)
    session = await server.sessions.get(session_id)
    blob = server.sessions.blobs.put(b"a long output")
    output = ev.Output(text="a lo", blob=blob)
    await session.record([ev.ToolCompleted(outcome="ok", output=output)], ANN)
    data = await server.sessions.export(session_id)
    before = await server.sessions.log.read(session_id, limit=1000)
    async with ScriptedModel({}) as model:
        other = Server(tmp_path / "other", model)
        await other.start()
        try:
            shown = await other.sessions.import_session(data, "k")
            assert await other.sessions.log.read(session_id, limit=1000) == before
            assert other.sessions.blobs.get(blob) == b"a long output"
            assert shown["title"] == (await server.sessions.describe(session_id))["title"]
            assert (await other.sessions.import_session(data, "k2"))["id"] == session_id
            with pytest.raises(Conflict):
                await other.do(session_id, "prompt", text="go on")
        finally:
            await other.sessions.drain()


@pytest.mark.parametrize("name", ["events.jsonl", "other"])
async def test_what_is_no_export_is_refused(server: Server, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "{}\n")
    for data in (b"", b"not a zip", buffer.getvalue()):
        with pytest.raises(Malformed):
            await server.sessions.import_session(data, server.key())


async def test_a_session_is_hidden_once_it_is_stopped(server: Server) -> None:
    session_id = await server.create()
    session = await server.sessions.get(session_id)
    turn = Draft(ev.TurnStarted(trigger="agent"), turn_id="turn_1")
    await server.sessions.log.append(session_id, [turn])
    session.view.turn = (await server.sessions.log.view(session_id)).turn
    with pytest.raises(Conflict):
        await server.sessions.delete(session_id)
    session.view.turn = None
    await server.sessions.delete(session_id)
    assert session.deleted.is_set()
    with pytest.raises(NotFound):
        await server.sessions.get(session_id)


async def test_a_change_of_title_archive_and_labels(server: Server) -> None:
    session_id = await server.create(title="old")
    patch = PatchSession(title="new", archived=True, labels={"a": "b"})
    shown = await server.sessions.patch(session_id, patch, ANN)
    assert (shown["title"], shown["archived"], shown["labels"]) == ("new", True, {"a": "b"})
    assert await server.sessions.list(ListQuery()) == ([], None)
    head = await server.sessions.log.head(session_id)
    await server.sessions.patch(session_id, PatchSession(), ANN)
    assert await server.sessions.log.head(session_id) == head


async def test_a_server_that_stops_makes_nothing_new(server: Server) -> None:
    session_id = await server.create()
    server.sessions.draining = True
    with pytest.raises(Draining):
        await server.create()
    assert (await server.sessions.describe(session_id))["status"] == "idle"


async def test_a_turn_that_was_never_given_to_a_runner_is_begun_at_the_next_start(server: Server) -> None:
    session_id = await server.create()
    drafts = [
        Draft(ev.MessageSubmitted(content=(ev.TextPart(text="kept"),)), "msg_1"),
        Draft(ev.TurnStarted(trigger="prompt", message_id="msg_1"), turn_id="turn_1"),
    ]
    await server.sessions.log.append(session_id, drafts)
    await server.sessions.close()
    await server.start()
    await server.settled(session_id)
    row = await server.sessions.log.item(session_id, "msg_1")
    assert row is not None and row.data["status"] == "delivered"
