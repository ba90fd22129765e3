"""Codex, the real program at both ends of the tested range, and its translator by recorded dialogues.

`OMNIGENT_RECORD=1` writes the dialogues in `tests/golden/codex` anew.
"""

import base64
import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from support import agent_binary

from omnigent.actions import Exec, FileWrite, Spawn, Unknown
from omnigent.events import (
    FileChanged,
    ItemUpdated,
    MessageCompleted,
    MessageDelivered,
    NoticeRaised,
    QuestionAsked,
    ReasoningCompleted,
    TextPart,
    ToolCompleted,
    ToolRequested,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    UsageReported,
)
from omnigent.harnesses import (
    Answer,
    Ask,
    Binary,
    Emit,
    Exited,
    Harness,
    Input,
    Interrupt,
    Launch,
    McpServer,
    Opened,
    Output,
    Ping,
    Pong,
    Raw,
    Ready,
    Refuse,
    Send,
    SetModel,
    SetTimer,
    StartTurn,
    Steer,
    Tick,
    Translator,
    Verdict,
)
from omnigent.harnesses._codex_tools import plain_command
from omnigent.harnesses._codex_translator import KEY, CodexTranslator
from omnigent.harnesses.codex import Codex
from omnigent.history import AssistantMessage, History, Image, ToolCall, UserMessage
from omnigent.ids import NewId, Prefix
from omnigent.testing.harness_rig import Rig, body_text, deny, hold, open_rig
from omnigent.testing.harness_suite import HarnessSuite, call, case, one_call
from omnigent.testing.scripted_model import history_of

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent.parent / "golden" / "codex"
RECORD = bool(os.environ.get("OMNIGENT_RECORD"))
PLAIN, PATCHING, CODE_MODE = "scripted-model", "gpt-5.5", "gpt-6.1-sol"
"""A model Codex doesn't know, one with `apply_patch`, one whose calls are in JavaScript."""
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478"
        "9c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    )
).decode()


def shell(command: str, **more: Any) -> dict[str, Any]:
    return {"tool": "exec_command", "input": {"cmd": command, **more}}


def turn(match: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"match": match, "steps": list(steps)}


PATCH = "*** Begin Patch\n*** Add File: p.txt\n+x\n*** Add File: ../outside.txt\n+y\n*** End Patch\n"
SCRIPT: dict[str, Any] = {
    "turns": [
        turn(
            "hello",
            {
                "reasoning": "They greet me.",
                "text": "Hello to you, whoever you may be.",
                "usage": {"input_tokens": 10, "output_tokens": 7, "cache_read_tokens": 3},
            },
        ),
        turn(
            "list",
            {"text": "Looking.", "tools": [{"tool": "$shell", "input": {"command": "ls"}}]},
            {"text": "Seen."},
        ),
        turn(
            "count",
            {"tools": [shell("for i in 1 2 3; do sleep 0.3; echo line$i; done; exit 3")]},
            {"text": "ok"},
        ),
        turn(
            "two calls", {"tools": [shell("echo one > one.txt"), shell("echo two > two.txt")]}, {"text": "ok"}
        ),
        turn("write them", {"tools": [{"tool": "apply_patch", "input": PATCH}]}, {"text": "ok"}),
        turn("heredoc", {"tools": [shell(f"apply_patch <<'EOF'\n{PATCH}EOF\n")]}, {"text": "ok"}),
        turn(
            "script",
            {
                "tools": [
                    {
                        "tool": "exec",
                        "input": "const one = tools.exec_command({cmd: 'echo one > one.txt'});"
                        "const two = tools.exec_command({cmd: 'echo two > two.txt'});"
                        "await Promise.allSettled([one, two]);"
                        "text(ALL_TOOLS.map(tool => tool.name).join())",
                    }
                ]
            },
            {"text": "Tools: {{last_result}}"},
        ),
        turn(
            "both",
            {
                "tools": [
                    {
                        "tool": "exec",
                        "input": "const one = tools.exec_command({cmd: 'echo one > one.txt'});"
                        "const two = tools.exec_command({cmd: 'echo two > two.txt'});"
                        "await Promise.allSettled([one, two]); text('END')",
                    }
                ]
            },
            # A denial makes the script yield.
            {"tools": [{"tool": "wait", "input": {"cell_id": "1"}}]},
            {"text": "ok"},
        ),
        turn(
            "type",
            {"tools": [shell("read line; echo got:$line > typed.txt; sleep 30", yield_time_ms=300)]},
            {"tools": [{"tool": "$stdin", "input": {"text": "secret\n"}}]},
            {"text": "Told: {{last_result}}"},
        ),
        turn(
            "terminal", {"tools": [shell("echo tty > tty.txt", tty=True)]}, {"text": "Told: {{last_result}}"}
        ),
        turn("background", {"tools": [shell("sleep 1; echo later", yield_time_ms=250)]}, {"text": "ok"}),
        turn(
            "sleep",
            {
                "tools": [
                    shell(
                        "(setsid nohup sleep 87654 >/dev/null 2>&1 &);"
                        " sleep 0.5; echo begun; sleep 30; echo > late"
                    )
                ]
            },
            {"text": "ok"},
        ),
        turn(
            "which",
            {"tools": [{"tool": "$ask", "input": {"question": "Which?", "options": ["A", "B"]}}]},
            {"text": "You want {{last_result}}"},
        ),
        turn(
            "delegate", {"tools": [{"tool": "$subagent", "input": {"prompt": "CHILD go"}}]}, {"text": "Sent."}
        ),
        turn(
            "CHILD",
            {"tools": [{"tool": "$shell", "input": {"command": "echo child > child.txt"}}]},
            {"text": "child done"},
        ),
        turn("refused", {"error": {"status": 400, "message": "no such thing"}}),
        turn("unauthorised", {"error": {"status": 401, "message": "who are you"}}),
        turn(
            "broken",
            {
                "text": "An answer that breaks off",
                "error": {"message": "gone", "mid_stream": True, "times": 1},
            },
        ),
        turn("environment", {"tools": [shell("env > env.txt")]}, {"text": "ok"}),
        turn("hang", {"text": "some words", "hang": True}),
    ]
}


def installed(version: str) -> Binary:
    return agent_binary("codex", version)


@pytest.fixture(scope="session", params=Codex.versions)
def binary(request: pytest.FixtureRequest) -> Binary:
    return installed(request.param)


@pytest.fixture(scope="session")
def newest() -> Binary:
    return installed(Codex.versions[1])


@asynccontextmanager
async def codex(
    place: Path, binary: Binary, model: str = PLAIN, harness: Codex | None = None
) -> AsyncGenerator[Rig]:
    async with open_rig(harness or Codex(), binary, "openai-responses", model, SCRIPT, place) as rig:
        yield rig


class Suite(HarnessSuite):
    """On a model with `apply_patch`: an edit of any other is a shell command to Codex."""

    __test__ = False
    pytestmark = pytest.mark.slow
    harness = "codex"
    model = PATCHING
    expected_file = Path(__file__).with_name("expected_capabilities.json")
    version = Codex.versions[1]

    def adapter(self) -> Harness:
        return Codex()

    def binary(self) -> Binary:
        return installed(self.version)

    @case("live_output")
    async def test_live_output(self, tmp_path: Path) -> None:
        """Codex tells no output of a command's first moment (0.15 s) before it ends."""
        command = "sleep 0.5; echo begun-1; while [ ! -e go ]; do sleep 0.05; done; echo ended-2"
        async with self.rig(tmp_path, one_call("run it", call("$shell", command=command))) as rig:
            running = await rig.start("run it")
            await rig.until(lambda: "begun-1" in running.said("output"), what="the first line")
            (ask,) = running.asks
            assert running.completion(ask) is None
            (rig.workspace / "go").touch()
            await rig.end(running)
            done = running.completion(ask)
            assert done and "ended-2" in done.output.text

    @case("background_commands")
    async def test_a_background_command_and_its_later_output(self, tmp_path: Path) -> None:
        """Any command becomes one that outlasts the time its caller waits; the request doesn't tell."""
        wait = "while [ ! -e go ]; do sleep 0.05; done"
        command = f"echo begun-3; {wait}; echo later-4; touch finished; sleep 60"
        look = {"match": "look", "steps": [{"tools": [self.later_output]}, {"text": "saw: {{last_result}}"}]}
        start = one_call("start it", shell(command, yield_time_ms=250))
        async with self.rig(tmp_path, look, start) as rig:
            begun = await rig.turn("start it")
            assert "begun-3" in begun.text and not (rig.workspace / "finished").exists()
            (rig.workspace / "go").touch()
            await rig.until(lambda: (rig.workspace / "finished").exists(), what="the background command")
            assert "later-4" in (await rig.turn("now look")).text


class TestNewest(Suite):
    __test__ = True


class TestOldest(Suite):
    __test__ = True
    version = Codex.versions[0]


async def test_a_turn_streams_and_reports_usage(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        ready = await rig.open()
        assert (ready.version, ready.model, ready.how) == (binary.version, PLAIN, "new")
        done = await rig.turn("hello")
        assert done.said("text") == done.text == "Hello to you, whoever you may be."
        assert done.said("reasoning") == done.bodies(ReasoningCompleted)[0].text == "They greet me."
        (usage,) = done.bodies(UsageReported)
        tokens = (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens)
        assert (usage.scope, usage.model, *tokens) == ("call", PLAIN, 10, 3, 7)
        kinds = [output.body.KIND for output in done.outputs if isinstance(output, Emit)]
        assert kinds.index("message.delivered") < kinds.index("message.started")
        delivered = next(
            o for o in done.outputs if isinstance(o, Emit) and o.body.KIND == "message.delivered"
        )
        assert delivered.item_id == done.message_id
        assert rig.native_ref
        harness = Codex()
        assert harness.holds(rig.native_ref, rig.launch.private, done.message_id, "hello")
        assert not harness.holds(rig.native_ref, rig.launch.private, "msg_other", "hello")


@pytest.mark.parametrize("model", [PLAIN, PATCHING, CODE_MODE])
async def test_a_harmless_command_asks(tmp_path: Path, binary: Binary, model: str) -> None:
    async with codex(tmp_path, binary, model) as rig:
        await rig.open()
        rig.judge = hold
        held = await rig.start("list")
        ask = await rig.asked(held)
        (action,) = ask.body.actions
        assert isinstance(action, Exec) and (action.argv, action.cwd) == (("ls",), str(rig.workspace))
        assert (ask.body.tool, ask.body.title, ask.body.parsed) == ("exec_command", "ls", "full")
        await rig.send(Verdict(ask.item_id, allow=True))
        await rig.end(held)
        done = held.completion(ask)
        assert done and (done.outcome, done.exit_code) == ("ok", 0)


@pytest.mark.parametrize(("model", "prompt"), [(PLAIN, "two calls"), (CODE_MODE, "both")])
async def test_each_call_asks_and_the_reason_of_a_deny_reaches_the_model(
    tmp_path: Path, binary: Binary, model: str, prompt: str
) -> None:
    async with codex(tmp_path, binary, model) as rig:
        await rig.open()

        def judge(ask: Ask) -> Verdict:
            return Verdict(ask.item_id, "two" in ask.body.raw, reason="BECAUSE-OF-THIS")

        rig.judge = judge
        done = await rig.turn(prompt)
        assert len(done.asks) == 2
        assert (rig.workspace / "two.txt").exists() and not (rig.workspace / "one.txt").exists()
        denied = [body for body in done.bodies(ToolCompleted) if body.outcome == "denied"]
        assert [body.reason for body in denied] == ["BECAUSE-OF-THIS"]
        assert "BECAUSE-OF-THIS" in body_text(rig.requests()[1])
        assert [body.as_ for body in done.bodies(MessageDelivered)] == ["turn"]


async def test_output_is_live_and_the_exit_code_known(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        done = await rig.turn("count")
        end = done.completion(done.asks[0])
        assert end and (end.outcome, end.exit_code, end.output.text) == ("error", 3, "line1\nline2\nline3\n")
        assert "line2\n" in done.said("output")


@pytest.mark.parametrize(("model", "prompt"), [(PATCHING, "write them"), (PLAIN, "heredoc")])
async def test_a_patch_asks_with_its_paths(tmp_path: Path, binary: Binary, model: str, prompt: str) -> None:
    async with codex(tmp_path, binary, model) as rig:
        await rig.open()
        rig.judge = deny("no")
        done = await rig.turn(prompt)
        assert not (rig.workspace / "p.txt").exists()
        rig.judge = lambda ask: Verdict(ask.item_id, allow=True)
        done = await rig.turn(prompt)
        (ask,) = done.asks
        writes = [action for action in ask.body.actions if isinstance(action, FileWrite)]
        inside = {Path(write.real_path).name: write.in_workspace for write in writes}
        assert (ask.body.tool, ask.body.parsed) == ("apply_patch", "full")
        assert inside == {"p.txt": True, "outside.txt": False}
        changed = {Path(body.path).name: body.change for body in done.bodies(FileChanged)}
        assert changed == {"p.txt": "added", "outside.txt": "added"}
        assert (tmp_path / "outside.txt").read_text() == "y\n"


async def test_nothing_can_be_typed_into_a_process(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        done = await rig.turn("type")
        assert "stdin is closed" in done.text
        assert len(done.asks) == 1
        refused = await rig.turn("terminal")
        assert "TTY execution is disabled" in refused.text and not refused.asks
        assert not (rig.workspace / "tty.txt").exists()
        typed = rig.workspace / "typed.txt"
        assert not typed.exists() or "secret" not in typed.read_text()


async def test_a_background_command_is_told_to_its_end(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        done = await rig.turn("background")
        end = done.completion(done.asks[0])
        assert end and end.outcome == "ok" and "background" in end.reason

        def rest() -> list[Emit]:
            found = [output for output in rig.outputs if isinstance(output, Emit)]
            return [emit for emit in found if isinstance(emit.body, ItemUpdated)]

        await rig.until(lambda: bool(rest()), what="the rest of the output")
        assert rest() == [
            Emit(
                ItemUpdated(stream="output", offset=0, text="later\n"),
                done.asks[0].item_id,
                None,
                done.turn_id,
            )
        ]


async def test_interrupt_ends_the_command_and_the_session_goes_on(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        running = await rig.start("sleep")
        await rig.until(lambda: "begun" in running.said("output"), what="the command")
        await rig.send(Interrupt())
        assert await rig.end(running) == TurnInterrupted()
        end = running.completion(running.asks[0])
        assert end and end.outcome == "cancelled" and "begun" in end.output.text
        assert not [line for line in rig.command_lines().values() if "sleep" in line]
        assert (await rig.turn("hello")).text


async def test_interrupt_while_the_gate_holds(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        rig.judge = hold
        held = await rig.start("two calls")
        await rig.until(lambda: len(held.asks) == 2, what="both asks")
        await rig.send(Interrupt())
        assert await rig.end(held) == TurnInterrupted()
        assert [body.outcome for body in held.bodies(ToolCompleted)] == ["cancelled", "cancelled"]
        await rig.send(Verdict(held.asks[0].item_id, allow=True))
        assert (await rig.turn("hello")).text
        assert not (rig.workspace / "one.txt").exists()


async def test_interrupt_before_codex_named_the_turn(tmp_path: Path, newest: Binary) -> None:
    async with codex(tmp_path, newest) as rig:
        await rig.open()
        stopped = await rig.start("hang")
        await rig.send(Interrupt())
        assert await rig.end(stopped) == TurnInterrupted()
        assert (await rig.turn("hello")).text


async def test_a_steer_goes_into_the_running_turn(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        rig.judge = hold
        running = await rig.start("list")
        ask = await rig.asked(running)
        message_id = await rig.steer("and mind the gap")
        await rig.send(Verdict(ask.item_id, allow=True))
        await rig.end(running)
        steers = [
            o.item_id
            for o in running.outputs
            if isinstance(o, Emit) and o.body == MessageDelivered(as_="steer")
        ]
        assert steers == [message_id]
        assert "and mind the gap" in body_text(rig.requests()[1])


async def test_a_steer_that_was_never_taken_is_not_run_later(tmp_path: Path, binary: Binary) -> None:
    """Codex may take the first one up as it is interrupted; then it says so, and it is told later."""
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        hanging = await rig.start("hang")
        await rig.until(lambda: "some words" in hanging.said("text"), what="the answer")
        await rig.steer("and mind the gap")
        await rig.send(Interrupt())
        await rig.end(hanging)
        await rig.steer("too late")
        taken = [body.as_ for body in hanging.bodies(MessageDelivered)]
        await rig.turn("hello")
        told = body_text(rig.requests()[-1])
        assert taken == (["turn", "steer"] if "mind the gap" in told else ["turn"])
        assert "too late" not in told


async def test_a_question_of_the_agent(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        asking = await rig.start("which")
        await rig.until(lambda: bool(asking.bodies(QuestionAsked)), what="the question")
        asked = next(o for o in asking.outputs if isinstance(o, Emit) and isinstance(o.body, QuestionAsked))
        assert asked.item_id and [
            option.label for option in asking.bodies(QuestionAsked)[0].questions[0].options
        ] == [
            "A",
            "B",
        ]
        await rig.send(Answer(asked.item_id, (("B",),)))
        await rig.end(asking)
        assert '"answers":["B"]' in asking.text


@pytest.mark.parametrize("model", [PLAIN, CODE_MODE])
async def test_the_calls_of_a_sub_agent_ask(tmp_path: Path, binary: Binary, model: str) -> None:
    async with codex(tmp_path, binary, model) as rig:
        await rig.open()
        rig.judge = hold
        delegating = await rig.start("delegate")
        ask = await rig.asked(delegating, "child.txt")
        spawned = next(
            o for o in delegating.outputs if isinstance(o, Emit) and isinstance(o.body, ToolRequested)
        )
        assert isinstance(spawned.body, ToolRequested) and isinstance(spawned.body.actions[0], Spawn)
        assert ask.parent_item_id == spawned.item_id
        await rig.send(Interrupt())
        assert isinstance(await rig.end(delegating), TurnInterrupted | TurnCompleted)
        assert not (rig.workspace / "child.txt").exists()


async def test_errors_of_the_model(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        for prompt, part in (("refused", "no such thing"), ("unauthorised", "who are you")):
            failing = await rig.start(prompt)
            end = await rig.end(failing)
            assert isinstance(end, TurnFailed) and end.code == "agent_error" and part in end.detail
        mended = await rig.turn("broken")
        assert [body.status for body in mended.bodies(MessageCompleted)] == ["lost", "complete"]
        assert "retrying" in [notice.code for notice in mended.bodies(NoticeRaised)]
        assert len(mended.bodies(UsageReported)) == 1


async def test_the_model_changes_before_the_next_prompt(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        await rig.turn("hello")
        await rig.send(SetModel("another-model"))
        done = await rig.turn("hello")
        assert [request.body["model"] for request in rig.requests()] == [PLAIN, "another-model"]
        assert done.bodies(UsageReported)[0].model == "another-model"
        await rig.send(Ping())
        await rig.until(lambda: any(isinstance(output, Pong) for output in rig.outputs), what="a pong")


async def test_an_image_reaches_the_model(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        await rig.turn("hello", (Image(media_type="image/png", data=PNG),))
        assert rig.requests()[0].images == 1


async def test_no_placeholder_in_what_commands_see(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        await rig.turn("environment")
        seen = (rig.workspace / "env.txt").read_text()
        assert KEY not in seen and rig.launch.placeholder not in seen


def plant(place: Path, mark: Path) -> None:
    """What a workspace or a person's home may hold to get calls past the gate, or rewritten."""
    (place / "rules").mkdir(parents=True)
    (place / "agents").mkdir()
    hook = {"type": "command", "command": f"touch {mark}-hook"}
    (place / "hooks.json").write_text(
        json.dumps({"hooks": {"PreToolUse": [{"matcher": "*", "hooks": [hook]}]}})
    )
    (place / "rules" / "default.rules").write_text(
        'prefix_rule(pattern=["ls"], decision="allow")\nprefix_rule(pattern=["bash"], decision="allow")\n'
    )
    (place / "agents" / "default.toml").write_text('name = "default"\napproval_policy = "never"\n')
    (place / "config.toml").write_text(
        f"""approval_policy = "never"
developer_instructions = "PLANTED"
[features]
unified_exec_tty = true
hooks = true
[mcp_servers.planted]
command = "touch"
args = ["{mark}-mcp"]
[[hooks.PreToolUse]]
matcher = "*"
[[hooks.PreToolUse.hooks]]
type = "command"
command = "touch {mark}-hook"
"""
    )


@pytest.mark.parametrize("layout", ["repository", "subdirectory", "link"])
async def test_nothing_planted_is_honoured(tmp_path: Path, binary: Binary, layout: str) -> None:
    async with codex(tmp_path, binary) as rig:
        top = rig.workspace
        (top / ".git").mkdir()
        plant(top / ".codex", tmp_path / "mark-top")
        plant(rig.home / ".codex", tmp_path / "mark-home")
        plant(rig.launch.private / "codex", tmp_path / "mark-private")
        if layout != "repository":
            below = top / "a"
            plant(below / ".codex", tmp_path / "mark-below")
            (tmp_path / "link").symlink_to(below)
            rig.launch = replace(
                rig.launch, workspace=below if layout == "subdirectory" else tmp_path / "link"
            )
        await rig.open()
        done = await rig.turn("list")
        assert len(done.asks) == 1
        assert "PLANTED" not in json.dumps(rig.requests()[0].body)
        assert list(tmp_path.glob("mark*")) == []
        refused = await rig.turn("terminal")
        assert "TTY execution is disabled" in refused.text


async def test_instructions_are_read(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        (rig.home / ".codex").mkdir()
        (rig.home / ".codex" / "AGENTS.md").write_text("OF-THE-PERSON")
        (rig.workspace / "AGENTS.md").write_text("OF-THE-WORKSPACE")
        rig.launch = replace(rig.launch, instructions="OF-THE-SESSION")
        await rig.open()
        await rig.turn("hello")
        told = json.dumps(rig.requests()[0].body)
        assert [word in told for word in ("OF-THE-PERSON", "OF-THE-WORKSPACE", "OF-THE-SESSION")] == [
            True
        ] * 3


async def test_every_tool_of_every_model_has_a_row(tmp_path: Path, binary: Binary) -> None:
    """The tools offered are checked when the rig closes; these are the ones inside code mode."""
    async with codex(tmp_path, binary, CODE_MODE) as rig:
        await rig.open()
        done = await rig.turn("script")
        told = done.text.rpartition("\n")[2].removeprefix("Tools: ").strip()
        names = set(told.split(","))
        assert "exec_command" in names
        assert {name for name in names if Codex.tools[name].kind not in ("gated", "harmless")} == set()


async def test_resume_after_a_kill_while_a_question_is_held(tmp_path: Path, binary: Binary) -> None:
    async with codex(tmp_path, binary) as rig:
        await rig.open()
        await rig.turn("hello there")
        rig.judge = hold
        held = await rig.start("two calls")
        await rig.asked(held)
        os.kill(rig.agent(), signal.SIGKILL)
        end = await rig.end(held)
        assert isinstance(end, TurnFailed) and end.code == "agent_exited"
        assert rig.session and rig.native_ref
        await rig.session.close()
        rig.judge = lambda ask: Verdict(ask.item_id, allow=True)
        ready = await rig.open(native_ref=rig.native_ref)
        assert (ready.how, ready.native_ref) == ("native_resume", rig.native_ref)
        done = await rig.turn("hello again")
        assert len(done.bodies(UsageReported)) == 1
        told = history_of(rig.requests()[-1])
        assert [item.text for item in told if item.role == "user" and item.kind == "text"] == [
            "hello there",
            "two calls",
            "hello again",
        ]
        assert not (rig.workspace / "one.txt").exists()


async def test_a_seeded_history_is_native(tmp_path: Path, binary: Binary) -> None:
    history = History(
        entries=(
            UserMessage(text="look", images=(Image(media_type="image/png", data=PNG),)),
            AssistantMessage(text="I look."),
            ToolCall(call_id="tc_1", tool="Bash", input='{"command": "ls"}', output="a b", outcome="ok"),
            ToolCall(call_id="tc_2", tool="mcp/x y", input="{}", output="", outcome="denied"),
            AssistantMessage(text="Two files."),
        )
    )
    async with codex(tmp_path, binary) as rig:
        ready = await rig.open(history=history)
        assert ready.how == "seeded" and ready.carried
        assert (ready.carried.messages, ready.carried.tool_calls, ready.carried.images) == (3, 2, 1)
        await rig.turn("hello")
        request = rig.requests()[0]
        told = [(item.role, item.kind, item.text) for item in history_of(request) if item.role != "system"]
        assert told == [
            ("user", "text", "look\n[image]"),
            ("assistant", "text", "I look."),
            ("assistant", "call", '{"command": "ls"}'),
            ("user", "result", "a b"),
            ("assistant", "call", "{}"),
            ("user", "result", "(denied, no output)"),
            ("assistant", "text", "Two files."),
            ("user", "text", "hello"),
        ]
        assert rig.session and rig.native_ref
        os.kill(rig.agent(), signal.SIGKILL)
        await rig.until(lambda: rig.over, what="the end")
        await rig.session.close()
        await rig.open(native_ref=rig.native_ref)
        await rig.turn("hello again")
        assert "Two files." in body_text(rig.requests()[-1])


# The translator by itself.


def number() -> NewId:
    count = 0

    def new(prefix: Prefix) -> str:
        nonlocal count
        count += 1
        return f"{prefix}_{count}"

    return new


def pure_launch(**more: Any) -> Launch:
    return Launch(
        session_id="ses_1",
        run="run_1",
        workspace=Path("/place/workspace"),
        private=Path("/place/private"),
        binary=Binary("codex", ("codex",), "0.169.0", "managed", True),
        model=PLAIN,
        wire="openai-responses",
        gateway_url="http://127.0.0.1:1/m",
        placeholder="placeholder",
        environment={},
        **more,
    )


def answer(translator: Translator, outputs: list[Output], result: dict[str, Any]) -> list[Output]:
    """Codex's answer to the last request among the outputs."""
    sent = [output.message for output in outputs if isinstance(output, Send) and "id" in output.message][-1]
    return translator.step(Raw({"id": sent["id"], "result": result}))


def started(mcp_servers: tuple[McpServer, ...] = (), **thread: Any) -> tuple[Translator, list[Output]]:
    translator = CodexTranslator(pure_launch(mcp_servers=mcp_servers), number())
    out = answer(translator, translator.step(Opened()), {"userAgent": "omnigent/0.169.0 (x)"})
    out = answer(translator, out, {"layers": []})
    told = {"approvalPolicy": "untrusted", "approvalsReviewer": "user", "thread": {"id": "t1"}, **thread}
    return translator, answer(translator, out, told)


def in_turn() -> Translator:
    translator, _ = started()
    out = translator.step(StartTurn("turn_1", "msg_1", (TextPart(text="go"),)))
    answer(translator, out, {"turn": {"id": "n1"}})
    return translator


def told(method: str, **params: Any) -> Raw:
    return Raw({"method": method, "params": {"threadId": "t1", "turnId": "n1", **params}})


@pytest.mark.parametrize(
    ("thread", "word"),
    [
        ({"approvalPolicy": "on-request"}, "on-request"),
        ({"approvalPolicy": None}, "null"),
        ({"approvalsReviewer": "guardian"}, "guardian"),
    ],
)
def test_a_thread_that_does_not_ask_is_refused(thread: dict[str, Any], word: str) -> None:
    _, (refusal,) = started(**thread)
    assert isinstance(refusal, Refuse) and refusal.code == "unsupported_version"
    assert word in refusal.detail and "0.163.0 to 0.169.0" in refusal.detail


def test_a_workspace_configuration_that_is_honoured_is_refused() -> None:
    translator = CodexTranslator(pure_launch(), number())
    out = answer(translator, translator.step(Opened()), {"userAgent": "omnigent/0.169.0 (x)"})
    layer = {"name": {"type": "project", "dotCodexFolder": "/place/workspace/.codex"}, "disabledReason": None}
    (refusal,) = answer(translator, out, {"layers": [layer]})
    assert isinstance(refusal, Refuse) and "/place/workspace/.codex" in refusal.detail


def test_a_command_that_ran_unasked_ends_the_session() -> None:
    translator = in_turn()
    item = {"type": "commandExecution", "id": "call_1", "command": "ls", "status": "inProgress"}
    assert translator.step(told("item/started", item=item)) == []
    (refusal,) = translator.step(told("item/completed", item=item | {"status": "completed", "exitCode": 0}))
    assert isinstance(refusal, Refuse) and refusal.code == "unsupported_version"


def test_a_policy_that_changes_on_the_way_ends_the_session() -> None:
    settings = {"approvalPolicy": "never", "approvalsReviewer": "user"}
    (refusal,) = in_turn().step(told("thread/settings/updated", threadSettings=settings))
    assert isinstance(refusal, Refuse)


def test_ready_waits_for_mcp_servers_and_tells_of_those_that_failed() -> None:
    servers = (McpServer("one", ("one",)), McpServer("two", ("two", "-v"), {"KEY": "k"}))
    translator, out = started(mcp_servers=servers)
    assert [type(output) for output in out] == [SetTimer]

    def moved(name: str, status: str, **more: Any) -> list[Output]:
        return translator.step(told("mcpServer/startupStatus/updated", name=name, status=status, **more))

    assert moved("one", "starting") == moved("one", "ready") == moved("planted", "failed") == []
    notice, _, ready = moved("two", "failed", error="no such program")
    assert isinstance(notice, Emit) and isinstance(notice.body, NoticeRaised)
    assert notice.body.code == "mcp_server_failed" and "no such program" in notice.body.detail
    assert isinstance(ready, Ready) and ready.mcp_servers == ("one",)


def test_an_mcp_server_that_says_nothing_is_not_waited_for_for_ever() -> None:
    translator, (timer,) = started(mcp_servers=(McpServer("one", ("one",)),))
    assert isinstance(timer, SetTimer)
    _, ready = translator.step(Tick(timer.timer))
    assert isinstance(ready, Ready) and ready.mcp_servers == ()


def test_an_mcp_call_asks() -> None:
    translator = in_turn()
    item = {"type": "mcpToolCall", "id": "call_1", "server": "lab", "tool": "ping", "arguments": {"x": 1}}
    translator.step(told("item/started", item=item))
    meta = {"codex_approval_kind": "mcp_tool_call", "tool_params": {"x": 1}}
    request = told("mcpServer/elicitation/request", serverName="lab", _meta=meta)
    (ask,) = translator.step(Raw(request.message | {"id": 7}))
    assert isinstance(ask, Ask) and ask.body.tool == "mcp__lab__ping" and ask.body.native_id == "call_1"
    out = translator.step(Verdict(ask.item_id, allow=True))
    assert out[0] == Send({"id": 7, "result": {"action": "accept", "content": {}}})
    done = item | {"status": "completed", "result": {"content": [{"type": "text", "text": "pong"}]}}
    (end,) = translator.step(told("item/completed", item=done))
    assert isinstance(end, Emit) and isinstance(end.body, ToolCompleted)
    assert (end.body.outcome, end.body.output.text) == ("ok", "pong")


def test_what_is_not_known_is_not_granted() -> None:
    translator = in_turn()
    for method in ("item/permissions/requestApproval", "item/tool/call", "execCommandApproval", "new/thing"):
        (sent,) = translator.step(Raw(told(method).message | {"id": 9}))
        assert isinstance(sent, Send)
        assert "error" in sent.message or sent.message["result"] == {"permissions": {}}
    request = told(
        "item/commandExecution/requestApproval", kind="writeStdin", itemId="call_1", command="rm -rf x"
    )
    (ask,) = translator.step(Raw(request.message | {"id": 10}))
    assert isinstance(ask, Ask) and ask.body.actions == (Unknown(tool="writeStdin"),)


def test_usage_is_counted_once() -> None:
    translator = in_turn()
    tokens = {"inputTokens": 50, "cachedInputTokens": 10, "cacheWriteInputTokens": 5, "outputTokens": 7}
    usage = {"total": tokens, "last": tokens}
    assert translator.step(told("thread/tokenUsage/updated", tokenUsage=usage, turnId="n0")) == []
    fresh = {"total": tokens | {"outputTokens": 14}, "last": tokens}
    (report,) = translator.step(told("thread/tokenUsage/updated", tokenUsage=fresh))
    assert isinstance(report, Emit) and isinstance(report.body, UsageReported)
    body = report.body
    assert (body.input_tokens, body.cache_read_tokens, body.cache_write_tokens, body.output_tokens) == (
        35,
        10,
        5,
        7,
    )
    assert translator.step(told("thread/tokenUsage/updated", tokenUsage=fresh)) == []


def test_an_exit_closes_what_is_open() -> None:
    translator = in_turn()
    request = told("item/commandExecution/requestApproval", itemId="call_1", command="ls")
    translator.step(Raw(request.message | {"id": 10}))
    kinds = [o.body for o in translator.step(Exited(9, "boom")) if isinstance(o, Emit)]
    assert [type(body) for body in kinds] == [ToolCompleted, TurnFailed]
    assert translator.step(Exited(9, "boom")) == []


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": "x"},
        {"id": 77, "result": 1},
        {"method": 3},
        {"method": "item/started", "params": []},
        {"method": "item/completed", "params": {"item": "x"}},
        {"method": "turn/completed", "params": {"turn": None}},
        {"method": "thread/tokenUsage/updated", "params": {"tokenUsage": 3}},
        {"method": "error", "params": {"willRetry": True, "error": "x"}},
    ],
)
def test_garbage_is_survived(message: dict[str, Any]) -> None:
    in_turn().step(Raw(message))


@pytest.mark.parametrize(
    ("command", "plain"),
    [
        ("/bin/bash -lc 'echo \"a b\"'", 'echo "a b"'),
        ("/usr/bin/zsh -c ls", "ls"),
        ("/bin/bash -lc ls; rm x", "/bin/bash -lc ls; rm x"),
        ("python -c ls", "python -c ls"),
        ("it's", "it's"),
    ],
)
def test_the_shell_around_a_command_is_taken_off(command: str, plain: str) -> None:
    assert plain_command(command) == plain


# Recorded dialogues.

DIALOGUES: dict[str, tuple[str, str]] = {
    "hello": (PLAIN, "hello"),
    "count": (PLAIN, "count"),
    "patch": (PATCHING, "write them"),
    "script": (CODE_MODE, "script"),
    "which": (PLAIN, "which"),
    "delegate": (CODE_MODE, "delegate"),
    "sleep": (PLAIN, "sleep"),
}
INPUTS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (Opened, Raw, StartTurn, Steer, Interrupt, SetModel, Verdict, Answer, Ping, Tick, Exited)
}
IDLE = {
    "thread/status/changed",
    "thread/readState/changed",
    "thread/started",
    "account/rateLimits/updated",
    "remoteControl/status/changed",
    "turn/diff/updated",
    "serverRequest/resolved",
    "configWarning",
}


@dataclass(slots=True)
class Recorder:
    """A translator that remembers its dialogue."""

    inner: Translator
    steps: list[tuple[Input, list[Output]]] = field(default_factory=list[tuple[Input, list[Output]]])

    def step(self, given: Input) -> list[Output]:
        out = self.inner.step(given)
        self.steps.append((given, out))
        return out


class Recorded(Codex):
    recorder: Recorder | None = None

    def translator(self, launch: Launch, new_id: NewId) -> Translator:
        self.recorder = Recorder(super().translator(launch, number()))
        return self.recorder


def plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def tagged(value: Input | Output) -> dict[str, Any]:
    """As JSON, by its class; without the class's name an `Emit` of two kinds could look the same."""
    shallow = {name: getattr(value, name) for name in value.__dataclass_fields__}
    tag = {"kind": value.body.KIND} if isinstance(value, Emit) else {}
    return {type(value).__name__: plain(shallow) | tag}


def idle(given: Input) -> bool:
    return isinstance(given, Raw) and given.message.get("method") in IDLE


def slimmed(given: Input) -> Input:
    """Without the configuration of the machine that recorded it."""
    if not isinstance(given, Raw) or "layers" not in given.message.get("result", {}):
        return given
    told = given.message["result"]["layers"]
    layers = [{key: layer.get(key) for key in ("name", "disabledReason")} for layer in told]
    return Raw(given.message | {"result": {"layers": layers}})


@pytest.mark.parametrize("name", DIALOGUES)
async def record_dialogue(tmp_path: Path, newest: Binary, name: str) -> None:
    model, prompt = DIALOGUES[name]
    harness = Recorded()
    async with codex(tmp_path, newest, model, harness) as rig:
        await rig.open()
        running = await rig.start(prompt)
        if name == "sleep":
            await rig.until(lambda: "begun" in running.said("output"))
            await rig.send(Interrupt())
        if name == "which":
            await rig.until(lambda: bool(running.bodies(QuestionAsked)))
            asked = next(
                o for o in running.outputs if isinstance(o, Emit) and isinstance(o.body, QuestionAsked)
            )
            await rig.send(Answer(str(asked.item_id), (("B",),)))
        await rig.end(running)
        gateway = rig.launch.gateway_url
    assert harness.recorder
    steps = [
        {"in": tagged(slimmed(given)), "out": [tagged(output) for output in out]}
        for given, out in harness.recorder.steps
        if not (idle(given) and not out)
    ]
    text = json.dumps({"model": model, "steps": steps}, indent=1, ensure_ascii=False)
    text = text.replace(str(tmp_path), "/place").replace(gateway, pure_launch().gateway_url)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    (GOLDEN / f"{name}.json").write_text(text + "\n")


if RECORD:
    test_record_dialogue = record_dialogue


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    translator = CodexTranslator(replace(pure_launch(), model=golden["model"]), number())
    for step in golden["steps"]:
        ((kind, fields),) = step["in"].items()
        given: Input = INPUTS[kind].validate_python(fields)
        assert [tagged(output) for output in translator.step(given)] == step["out"]
