"""The server's end of the link: who is let in, and what becomes of what can't be taken."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from rooms import SESSION, eventually, open_room, plays, runs

from omnigent import events as ev
from omnigent import frames, processes, spawning
from omnigent.errors import HomeUnusable
from omnigent.events import JSON, Draft
from omnigent.link import LONGEST_SOCKET_PATH, RunnerHub, _draft, socket_path  # pyright: ignore[reportPrivateUsage]
from omnigent.testing.harness_rig import parent_of

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def hello(**more: object) -> JSON:
    return {"type": "hello", "token": "guess", "pid": os.getpid(), "session_id": None, **more}


async def answer(path: Path, frame: JSON) -> JSON | None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(frames.pack(frame))
    try:
        return await asyncio.wait_for(frames.read_frame(reader), 5)
    finally:
        writer.close()


async def test_only_we_may_reach_the_socket(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays()) as room:
        path = socket_path(room.home)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "frame", [hello(), hello(token=""), hello(session_id=SESSION, epoch=1), {"type": "events"}, {}]
)
async def test_a_stranger_is_sent_away(tmp_path: Path, frame: JSON) -> None:
    async with open_room(tmp_path, plays({"text": "hi"})) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        assert await answer(socket_path(room.home), frame) == {"type": "fenced"}
        assert room.hub.state(SESSION) == "live"


async def test_what_is_no_frame_is_dropped(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays()) as room:
        reader, writer = await asyncio.open_unix_connection(socket_path(room.home))
        writer.write(b"\xff\xff\xff\xffGET / HTTP/1.1")
        assert await asyncio.wait_for(frames.read_frame(reader), 5) == {"type": "fenced"}
        writer.close()


def test_a_long_home_gets_a_short_socket_in_a_private_directory(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    path = socket_path(home)
    assert len(os.fsencode(path)) <= LONGEST_SOCKET_PATH
    assert path == socket_path(home) != socket_path(tmp_path / ("y" * 120))
    assert socket_path(Path("/h")) == Path("/h/run/link.sock")


async def test_a_directory_somebody_else_made_first_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "theirs")
    async with open_room(tmp_path / "home", plays()) as room:
        hub = RunnerHub(tmp_path, room.log, room.blobs, {}, lambda session_id: asyncio.sleep(0, room.session))
        with pytest.raises(HomeUnusable):
            await hub.start()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("no.such.kind", {}),
        ("turn.failed", {"code": 3}),
        ("notice.raised", {"code": "x", "level": "info", "detail": "\ud800"}),
    ],
)
def test_an_event_that_cannot_be_stored_is_a_notice_and_not_a_wall(kind: str, body: JSON) -> None:
    raw: JSON = {
        "kind": kind,
        "body": body,
        "item_id": None,
        "parent_item_id": None,
        "turn_id": None,
        "observed_at": 1,
        "agent": True,
    }
    notice = _draft(raw, "scripted", "run_1").body
    assert isinstance(notice, ev.NoticeRaised) and (notice.code, kind in notice.detail) == ("bad_event", True)


def test_a_draft_survives_its_frame() -> None:
    body = ev.MessageDelivered(as_="turn")  # pyright: ignore[reportCallIssue]
    draft = Draft(body, "msg_1", "tc_1", "turn_1", observed_at=5)
    back = frames.unpack_draft(frames.pack_draft(draft, agent=True), "pi", "run_1")
    assert (back.body, back.item_id, back.parent_item_id, back.turn_id) == (body, "msg_1", "tc_1", "turn_1")
    assert (back.actor.kind, back.actor.id, back.run, back.observed_at) == ("agent", "pi", "run_1", 5)
    assert frames.unpack_draft(frames.pack_draft(draft, agent=False), "pi", "run_1").actor == ev.SYSTEM


async def test_runners_come_from_one_warm_process(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays({"text": "hi"})) as room:
        await room.hub.warm()
        spawner = room.spawner
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        pid, _ = await room.runner()
        assert parent_of(pid) == room.spawner == spawner
        assert os.getsid(pid) == pid
        handles = [str(Path(f"/proc/{pid}/fd/{n}").readlink()) for n in (0, 1)]
        assert handles == [os.devnull, str(room.home / "logs" / "runner.log")]


async def test_runners_outlive_what_forked_them(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays({"text": "hi"})) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        before, runner = room.spawner, await room.runner()
        os.kill(before, signal.SIGKILL)
        await room.do("prompt", text="again")
        await room.until("turn.completed", 2)
        assert await room.runner() == runner
        await room.do("stop")
        await eventually(lambda: room.hub.state(SESSION) == "none", "the runner's end")
        await room.do("prompt", text="once more")
        await room.until("turn.completed", 3)
        assert room.spawner != before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_spawner_that_does_not_answer_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(spawning, "ANSWER_SECONDS", 5.0)
    async with open_room(tmp_path, plays({"text": "hi"})) as room:
        await room.hub.warm()
        os.kill(room.spawner, number)  # the next prompt is there before anybody notices
        await room.do("prompt", text="go")
        await room.until("turn.completed")


async def test_what_forks_runners_goes_with_its_server(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays()) as room:
        await room.hub.warm()
        pid = room.spawner
        await room.hub.cool()
        assert not _runs(pid)
        await room.hub.warm()
        pid = room.spawner
        await room.leave()
        assert not _runs(pid)
        await room.come_back()


async def test_a_runner_that_cannot_be_made_fails_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_room(tmp_path, plays({"text": "hi"})) as room:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            await room.do("prompt", text="go")
        failed = (await room.until("turn.failed")).body
        assert isinstance(failed, ev.TurnFailed) and failed.code == "start_failed"
        assert "runner.log" in failed.detail
        await room.do("prompt", text="again")
        await room.until("turn.completed")


def _runs(pid: int) -> bool:
    return processes.start_time(pid) is not None


async def test_the_runner_of_a_deleted_session_ends(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays(runs("until [ -e go ]; do sleep 0.02; done"))) as room:
        await room.do("prompt", text="go")
        await room.until("tool.started")
        runner, agent = await room.runner(), await room.agent()
        await room.log.delete(SESSION)
        (room.home / "work" / "go").touch()
        await eventually(lambda: not processes.alive(*runner), "the runner's end")
        await eventually(lambda: not any(processes.alive(*p) for p in agent), "the agent's end")


async def test_a_runner_whose_launch_was_lost_with_its_server_ends(tmp_path: Path) -> None:
    """Killed between lease and launch: the lease names a runner that doesn't know its session."""
    async with open_room(tmp_path, plays()) as room:
        room.hub._write = lambda handle, frame: None  # pyright: ignore[reportPrivateUsage]
        frame = {"epoch": await room.log.take_epoch(SESSION), "run": "run_1", "harness": "scripted"}
        await room.hub.launch(SESSION, frame)
        runner = await room.runner()
        assert await answer(socket_path(room.home), hello(token="x", pid=runner[0])) == {"type": "fenced"}
        await room.leave()
        await room.come_back()
        await eventually(lambda: not processes.alive(*runner), "the unbound runner's end")
