"""The real runner process with a real agent: what it tells, what it keeps back, and what ends it."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from rooms import KEY, SESSION, eventually, open_room, plays, runs

from omnigent import events as ev
from omnigent import processes
from omnigent.events import Draft, ToolCompleted
from omnigent.runner.spool import HEAD, INLINE_BYTES, TAIL, Spool
from omnigent.session import Session

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WAIT = "until [ -e go ]; do sleep 0.02; done; echo finished"


async def test_a_turn_from_prompt_to_answer(tmp_path: Path) -> None:
    script = plays(runs("echo hello > out.txt; cat out.txt"), {"text": "It says {{last_result}}"})
    async with open_room(tmp_path, script) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        assert (room.home / "work" / "out.txt").read_text() == "hello\n"
        answers = [event.body for event in await room.events() if event.kind == "message.completed"]
        assert [ev.text_of(body.content) for body in answers if isinstance(body, ev.MessageCompleted)] == [
            "It says hello\n"
        ]
        assert {request.key_ok for request in room.model.requests} == {True}
        starts = [event for event in await room.events() if event.kind == "harness.started"]
        assert len(starts) == 1 and starts[0].actor.kind == "system"


async def test_a_long_output_is_a_blob_before_its_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[bool] = []
    ingest = Session.ingest

    async def watch(self: Session, run: str, epoch: int, first: int, drafts: list[Draft]) -> int:
        for draft in drafts:
            if isinstance(draft.body, ToolCompleted) and draft.body.output.blob:
                stored.append(bool(room.blobs.get(draft.body.output.blob)))
        return await ingest(self, run, epoch, first, drafts)

    monkeypatch.setattr(Session, "ingest", watch)
    async with open_room(tmp_path, plays(runs("seq 1 20000"), {"text": "done"})) as room:
        await room.do("prompt", text="go")
        body = (await room.until("tool.completed")).body
        assert isinstance(body, ToolCompleted)
        output, whole = body.output, "".join(f"{n}\n" for n in range(1, 20001))
        assert stored == [True]
        assert output.blob and room.blobs.get(output.blob).decode() == whole
        assert (output.text, output.tail, output.size) == (whole[:HEAD], whole[-TAIL:], len(whole))
        assert output.truncated
        await room.until("turn.completed")
        pieces = [event.body for event in await room.events() if event.kind == "item.updated"]
        long = sum(len(b.text) for b in pieces if isinstance(b, ev.ItemUpdated) and b.stream == "output")
        assert long <= INLINE_BYTES  # the rest is in the blob alone


async def test_the_real_key_is_shown_nowhere(tmp_path: Path) -> None:
    """In a short output, a long one, in pieces, in the model's words and in the command itself."""
    half = len(KEY) // 2
    slowly = f"printf {KEY[:half]}; sleep 0.1; printf {KEY[half:]}; echo"
    script = plays(runs(slowly), runs(f"seq 1 20000; echo {KEY}"), {"text": f"The key is {KEY}.", "chunk": 5})
    async with open_room(tmp_path, script) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        assert KEY not in "".join(event.json_text() for event in await room.events())
        assert KEY not in "".join(room.deltas)
        assert KEY not in str([row.data for row in await room.log.items(SESSION)])
        for path in (room.home / "blobs").rglob("*"):
            assert path.is_dir() or KEY.encode() not in path.read_bytes()
        assert "[redacted]" in "".join(event.body_text for event in await room.events())
        for pid, _ in await room.agent():
            assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        pid, _ = await room.runner()
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_server_that_ends_in_the_middle_of_a_turn_misses_nothing(tmp_path: Path) -> None:
    script = plays(runs(WAIT), {"text": "all is well"})
    async with open_room(tmp_path, script) as room:
        await room.do("prompt", text="go")
        await room.until("tool.started")
        runner = await room.runner()
        await room.leave()
        (room.home / "work" / "go").touch()
        await room.come_back()
        await room.until("turn.completed")
        kinds = await room.kinds()
        assert await room.runner() == runner
        for kind in ("harness.started", "turn.started", "message.delivered", "tool.requested"):
            assert kinds.count(kind) == 1, kind
        assert kinds.count("tool.completed") == kinds.count("message.completed") == 1
        assert len(room.model.requests) == 2
        assert room.session.view.status == "idle"


async def test_a_question_held_over_a_restart_is_answered_by_the_next_server(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays(runs("dd if=/dev/null of=ran"), {"text": "ok"}), "ask") as room:
        await room.do("prompt", text="go")
        asked = await room.until("approval.requested")
        await room.leave()
        await room.come_back()
        await eventually(lambda: room.hub.state(SESSION) == "live", "the runner's return")
        await room.do("resolve", approval_id=asked.item_id, decision="allow")
        await room.until("turn.completed")
        assert (room.home / "work" / "ran").exists()
        assert (await room.kinds()).count("approval.requested") == 1


async def test_a_runner_of_an_older_epoch_ends_with_its_agent(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays(runs(WAIT), {"text": "never"})) as room:
        await room.do("prompt", text="go")
        await room.until("tool.started")
        runner, agent = await room.runner(), await room.agent()
        assert agent
        await room.log.take_epoch(SESSION)
        (room.home / "work" / "go").touch()
        await eventually(lambda: not processes.alive(*runner), "the fenced runner's end")
        await eventually(lambda: not any(processes.alive(*p) for p in agent), "its agent's end")
        assert "tool.completed" not in await room.kinds()


@pytest.mark.slow
async def test_after_the_grace_nothing_is_left(tmp_path: Path) -> None:
    command = "setsid sleep 60 & (sleep 4; touch late) & sleep 60"
    async with open_room(tmp_path, plays(runs(command)), grace_seconds=0.5) as room:
        await room.do("prompt", text="go")
        await room.until("tool.started")
        runner, agent = await room.runner(), await room.agent()
        await room.leave()
        await eventually(lambda: not processes.alive(*runner), "the runner's end")
        await eventually(lambda: not any(processes.alive(*p) for p in agent), "the agent's end")
        assert await room.agent() == []
        await room.come_back()
        await asyncio.wait_for(room.hub.nobody(), 5)
        await eventually(lambda: room.session.view.status == "idle", "a truthful status")
        assert not (room.home / "work" / "late").exists()


@pytest.mark.slow
async def test_a_killed_runner_takes_its_agent_along_and_the_next_prompt_goes_on(tmp_path: Path) -> None:
    async with open_room(tmp_path, {"turns": [{"match": "one", "steps": [runs(WAIT)]}]}) as room:
        await room.do("prompt", text="one")
        await room.until("tool.started")
        runner, agent = await room.runner(), await room.agent()
        os.kill(runner[0], signal.SIGKILL)
        failed = (await room.until("turn.failed")).body
        assert isinstance(failed, ev.TurnFailed) and failed.code == "runner_lost"
        await eventually(lambda: not any(processes.alive(*p) for p in agent), "the agent's end")
        await room.do("prompt", text="two")
        await room.until("turn.completed")
        bodies = [event.body for event in await room.events()]
        assert [b.how for b in bodies if isinstance(b, ev.HarnessStarted)] == ["new", "seeded"]


async def test_a_killed_agent_fails_its_turn_and_the_queue_goes_on(tmp_path: Path) -> None:
    async with open_room(tmp_path, {"turns": [{"match": "one", "steps": [runs(WAIT)]}]}) as room:
        await room.do("prompt", text="one")
        await room.until("tool.started")
        await room.do("prompt", text="two", when="queue")
        for pid, _ in await room.agent():
            if b"scripted_agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        failed = (await room.until("turn.failed")).body
        assert isinstance(failed, ev.TurnFailed) and failed.code == "agent_exited"
        await room.until("turn.completed")
        kinds = await room.kinds()
        assert (kinds.count("turn.failed"), kinds.count("message.failed")) == (1, 0)
        assert room.session.view.status == "idle"


async def test_a_prompt_the_agent_swallows_is_noticed(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays({"text": "hi"}), stall_seconds=0.3) as room:
        await room.do("prompt", text="one")
        await room.until("turn.completed")
        frozen = [
            pid
            for pid, _ in await room.agent()
            if b"scripted_agent.py\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        await room.do("prompt", text="two")
        notice = (await room.until("notice.raised")).body
        assert isinstance(notice, ev.NoticeRaised) and notice.code == "stalled"
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        await room.until("turn.completed", 2)  # it answers the ping, so it is left alone


@pytest.mark.slow
async def test_a_silent_command_and_a_slow_model_are_no_stall(tmp_path: Path) -> None:
    script = plays(runs("sleep 0.7"), {"text": "slow", "delay_ms": 700})
    async with open_room(tmp_path, script, stall_seconds=0.3) as room:
        await room.do("prompt", text="go")
        await room.until("turn.completed")
        assert "notice.raised" not in await room.kinds()


async def test_stop_ends_agent_and_runner_and_says_why(tmp_path: Path) -> None:
    async with open_room(tmp_path, plays(runs(f"touch begun; {WAIT}"))) as room:
        await room.do("prompt", text="go")
        await eventually((room.home / "work" / "begun").exists, "the command's start")
        agent = await room.agent()
        await room.do("stop")
        exited = (await room.until("harness.exited")).body
        assert isinstance(exited, ev.HarnessExited) and exited.reason == "closed"
        await asyncio.wait_for(room.hub.nobody(), 10)
        assert not any(processes.alive(*process) for process in agent)
        assert room.session.view.last_turn and room.session.view.last_turn["outcome"] == "interrupted"


async def test_work_in_a_repository_is_checkpointed_and_the_runner_still_ends(tmp_path: Path) -> None:
    command = "git init -q . && echo x > x"
    async with open_room(tmp_path, plays(runs(command), {"text": "done"})) as room:
        await room.do("prompt", text="go")
        kept = (await room.until("workspace.checkpointed")).body
        assert isinstance(kept, ev.WorkspaceCheckpointed) and kept.tree
        await room.session.close_idle()
        await asyncio.wait_for(room.hub.nobody(), 10)
        assert await room.log.leases() == []


def test_the_spool_forgets_what_is_stored_and_nothing_else() -> None:
    spool = Spool()
    for number in range(5):
        spool.add({"n": number}, {})
    spool.acknowledge(3)
    assert [entry.number for entry in spool.entries] == [4, 5]
    spool.acknowledge(2)
    assert spool.size == sum(entry.size for entry in spool.entries) > 0
    spool.acknowledge(5)
    assert (list(spool.entries), spool.size, spool.add({}, {}).number) == ([], 0, 6)
