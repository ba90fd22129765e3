"""The scripted model over HTTP, as the agents see it: its answers, what it refuses, what it records."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.request import Request, urlopen

import aiohttp
import pytest
from pydantic import ValidationError

from omnigent.testing.scripted_model import Script, ScriptedModel, history_of, tools_of

pytestmark = pytest.mark.anyio

type Json = dict[str, Any]
type Say = Callable[..., Json]

CLAUDE_TOOLS: list[Json] = [
    {"name": "Bash", "input_schema": {"properties": {"command": {}, "run_in_background": {}}}},
    {"name": "Write", "input_schema": {"properties": {"file_path": {}, "content": {}}}},
    {"name": "Edit", "input_schema": {"properties": {"file_path": {}, "old_string": {}, "new_string": {}}}},
    {"name": "Read", "input_schema": {"properties": {"file_path": {}}}},
    {"name": "AskUserQuestion", "input_schema": {"properties": {"questions": {}}}},
    {"name": "Agent", "input_schema": {"properties": {"prompt": {}, "description": {}}}},
    {"name": "mcp__my-lab__ping", "input_schema": {"properties": {"x": {}}}},
]
EXEC: Json = {"type": "function", "name": "exec_command", "parameters": {"properties": {"cmd": {}}}}
STDIN: Json = {"type": "function", "name": "write_stdin", "parameters": {"properties": {}}}
PATCH: Json = {"type": "custom", "name": "apply_patch"}
LAB: Json = {"type": "namespace", "name": "mcp__lab", "tools": [{"type": "function", "name": "ping"}]}
CODE: Json = {
    "type": "additional_tools",
    "role": "developer",
    "tools": [
        {
            "type": "namespace",
            "name": "functions",
            "tools": [{"type": "custom", "name": "exec", "description": "tools.apply_patch(...)"}],
        }
    ],
}


def pi_tool(name: str, *properties: str) -> Json:
    parameters: Json = {"type": "object", "properties": {key: {} for key in properties}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


PI_TOOLS: list[Json] = [
    pi_tool("bash", "command"),
    pi_tool("write", "path", "content"),
    pi_tool("edit", "path", "edits"),
    pi_tool("read", "path"),
]


class Client:
    def __init__(self, http: aiohttp.ClientSession, model: ScriptedModel) -> None:
        self.http = http
        self.model = model

    async def post(self, path: str, body: Json, **headers: str) -> tuple[int, Json]:
        async with self.http.post(self.model.url + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def messages(self, messages: list[Json], **more: Any) -> Json:
        body: Json = {"model": "m", "max_tokens": 9, "messages": messages, "tools": CLAUDE_TOOLS, **more}
        status, answer = await self.post("/v1/messages?beta=true", body)
        assert status == 200, answer
        return answer

    async def responses(self, items: list[Json] | str, tools: list[Json] | None = None) -> Json:
        status, answer = await self.post(
            "/v1/responses", {"model": "m", "input": items, "tools": tools or []}
        )
        assert status == 200, answer
        return answer

    async def chat(self, messages: list[Json], **more: Any) -> Json:
        body: Json = {"model": "m", "messages": messages, "tools": PI_TOOLS, **more}
        status, answer = await self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["message"]

    async def events(self, path: str, body: Json) -> list[Json]:
        """The data of every SSE event; the name must be the type where there is one."""
        async with self.http.post(self.model.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            text = (await response.read()).decode()
        found: list[Json] = []
        for block in text.removesuffix("\n\n").split("\n\n"):
            lines = block.split("\n")
            data = lines[-1].removeprefix("data: ")
            if data == "[DONE]":
                continue
            found.append(json.loads(data))
            if len(lines) == 2:
                assert lines[0] == f"event: {found[-1]['type']}"
        return found


@asynccontextmanager
async def playing(script: Json | None = None, **options: Any) -> AsyncGenerator[Client]:
    async with ScriptedModel(script or {}, **options) as model, aiohttp.ClientSession() as http:
        yield Client(http, model)


def turn(*steps: Json, match: str = "go") -> Json:
    return {"turns": [{"match": match, "steps": list(steps)}]}


def shell(command: str) -> Json:
    return {"tools": [{"tool": "$shell", "input": {"command": command}}]}


def use(tool: str, /, **given: Any) -> Json:
    return {"tools": [{"tool": tool, "input": given}]}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def tool_use(call: str, name: str = "Bash") -> Json:
    return {"type": "tool_use", "id": call, "name": name, "input": {}}


def tool_result(call: str, text: str = "ok") -> Json:
    return {"type": "tool_result", "tool_use_id": call, "content": text}


def said(*blocks: Json) -> Json:
    return {"role": "assistant", "content": list(blocks)}


def got(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def call_item(call: str, name: str = "exec_command") -> Json:
    return {"type": "function_call", "call_id": call, "name": name, "arguments": "{}"}


def output_item(call: str, text: str = "ok") -> Json:
    return {"type": "function_call_output", "call_id": call, "output": text}


async def test_a_turn_is_played_step_by_step_on_the_messages_wire() -> None:
    async with playing(turn(shell("ls"), shell("pwd"), {"text": "end: {{last_result}}"})) as client:
        history = [user("please go")]
        commands: list[str] = []
        for result in ("one", "two"):
            answer = await client.messages(history)
            block = answer["content"][0]
            commands.append(block["input"]["command"])
            assert answer["stop_reason"] == "tool_use"
            history += [said(block), got(tool_result(block["id"], result))]
        answer = await client.messages(history)
        assert commands == ["ls", "pwd"]
        assert answer["content"] == [{"type": "text", "text": "end: two"}]
        assert answer["stop_reason"] == "end_turn"
        assert [request.step for request in client.model.requests] == [0, 1, 2]


async def test_the_same_history_gets_the_same_step() -> None:
    async with playing(turn(shell("a"), shell("b"))) as client:
        history = [user("go"), call_item("call_1"), output_item("call_1")]
        first, again = [(await client.responses(history, [EXEC]))["output"] for _ in range(2)]
        assert first[0]["arguments"] == again[0]["arguments"] == '{"cmd": "b"}'


async def test_parallel_calls_are_one_step() -> None:
    two = {"tools": [*shell("a")["tools"], *shell("b")["tools"]]}
    async with playing(turn(two, {"text": "both"})) as client:
        calls = (await client.responses("go", [EXEC]))["output"]
        assert [call["call_id"] for call in calls] == ["call_1", "call_2"]
        history = [user("go"), *calls, output_item("call_1"), output_item("call_2")]
        assert (await client.responses(history, [EXEC]))["output"][0]["content"][0]["text"] == "both"


async def test_a_harness_that_asks_for_more_gets_the_next_step() -> None:
    async with playing(turn({"text": "one"}, {"text": "two"})) as client:
        history = [user("go"), said({"type": "text", "text": "one"}), user("Stop hook feedback: go on")]
        assert (await client.messages(history))["content"][0]["text"] == "two"


async def test_call_ids_start_afresh_in_every_turn_and_may_be_reused() -> None:
    async with playing(turn(shell("a"), shell("b"), {"text": "x"})) as client:
        done = [user("go"), call_item("call_1"), output_item("call_1")]
        second = (await client.responses(done, [EXEC]))["output"][0]
        assert second["call_id"] == "call_2"
        again = (await client.responses([*done, user("go")], [EXEC]))["output"][0]
        assert again["call_id"] == "call_1"


async def test_call_ids_are_unique_in_a_messages_conversation() -> None:
    """Claude Code drops a call whose id the conversation had before."""
    async with playing(turn(shell("a"))) as client:
        first = (await client.messages([user("go")]))["content"][0]["id"]
        history = [user("go"), said(tool_use(first)), got(tool_result(first)), user("go")]
        assert (await client.messages(history))["content"][0]["id"] != first


async def test_what_a_harness_puts_into_user_messages_is_no_prompt() -> None:
    reminder = {"type": "text", "text": "<system-reminder>go away</system-reminder>"}
    async with playing(turn(shell("a"), {"text": "second"})) as client:
        history = [
            got(reminder, {"type": "text", "text": "go"}),
            said(tool_use("t1")),
            got(tool_result("t1"), reminder),
        ]
        assert (await client.messages(history))["content"][0]["text"] == "second"
        items = [
            user("# AGENTS.md instructions for /x\nbe nice"),
            user("<environment_context><cwd>/work</cwd></environment_context>"),
            user("hello"),
        ]
        assert (await client.responses(items))["output"][0]["content"][0]["text"] == "You said: hello"
        prompts = [request.prompt for request in client.model.requests]
        assert prompts == ["go", "hello"]


STEER = "The user sent a new message while you were working:\n{}\n\nThis is how Claude Code surfaces it."


@pytest.mark.parametrize(
    ("text", "expected"), [("hurry", "second"), ("other work", "another turn")], ids=["continues", "selects"]
)
async def test_a_message_sent_mid_turn(text: str, expected: str) -> None:
    script = turn(shell("a"), {"text": "second"})
    script["turns"].append({"match": "other", "steps": [{"text": "another turn"}]})
    async with playing(script) as client:
        start = [user("go"), said(tool_use("t1")), got(tool_result("t1"))]
        answer = await client.messages([*start, {"role": "system", "content": STEER.format(text)}])
        assert answer["content"][0]["text"] == expected
        assert client.model.requests[0].prompt == text
        items = [user("go"), call_item("call_1"), output_item("call_1"), user(text)]
        assert (await client.responses(items))["output"][0]["content"][0]["text"] == expected


@pytest.mark.parametrize(
    "tail",
    [
        [output_item("call_1", "aborted"), user("<turn_aborted>stopped</turn_aborted>"), user("plain")],
        [output_item("call_1", "Command aborted"), user("plain")],
        [output_item("call_1"), {"role": "assistant", "content": "done"}, user("plain")],
    ],
)
async def test_a_prompt_after_an_interruption_or_an_answer_is_a_new_turn(tail: list[Json]) -> None:
    async with playing(turn(shell("a"), {"text": "second"})) as client:
        answer = await client.responses([user("go"), call_item("call_1"), *tail])
        assert answer["output"][0]["content"][0]["text"] == "You said: plain"


async def test_two_prompts_in_one_message_are_told_apart_by_the_interruption_between() -> None:
    texts = ["go", "[Request interrupted by user]", "plain"]
    async with playing(turn({"text": "wrong"})) as client:
        answer = await client.messages([got(*({"type": "text", "text": text} for text in texts))])
        assert answer["content"][0]["text"] == "You said: plain"


async def test_default_echo_and_the_end_of_the_script() -> None:
    async with playing({"default": [{"text": "d"}]}) as client:
        assert (await client.chat([user("x")]))["content"] == "d"
        client.model.set_script({})
        assert (await client.chat([user("x")]))["content"] == "You said: x"
        client.model.set_script(turn(shell("a")))
        call = (await client.chat([user("go")]))["tool_calls"][0]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "ok"}
        answer = await client.chat([user("go"), {"role": "assistant", "tool_calls": [call]}, result])
        assert answer["content"] == "done"


async def test_templates() -> None:
    text = "{{n_users}} {{n_messages}} {{model}} {{prompt}} {{cwd}} {{unknown}}"
    async with playing({"default": [{"text": text}]}) as client:
        history = [user("a"), {"role": "assistant", "content": "b"}, user("c CWD=/w")]
        assert (await client.chat(history))["content"] == "2 3 m c CWD=/w /w {{unknown}}"


async def first_messages_call(step: Json) -> tuple[str, Any]:
    async with playing(turn(step)) as client:
        block = (await client.messages([user("go CWD=/w")]))["content"][0]
        assert block["type"] == "tool_use", block
        return block["name"], block["input"]


@pytest.mark.parametrize(
    ("step", "name", "given"),
    [
        (use("$shell", command="ls"), "Bash", {"command": "ls"}),
        (
            use("$shell", command="ls", background=True),
            "Bash",
            {"command": "ls", "run_in_background": True},
        ),
        (use("$write", path="a", content="x"), "Write", {"file_path": "/w/a", "content": "x"}),
        (
            use("$edit", path="/a", old="x", new="y"),
            "Edit",
            {"file_path": "/a", "old_string": "x", "new_string": "y"},
        ),
        (use("$read", path="{{cwd}}/b"), "Read", {"file_path": "/w/b"}),
        (use("$mcp", server="my-lab", tool="ping", args={"x": 1}), "mcp__my-lab__ping", {"x": 1}),
        (
            use("$subagent", prompt="p"),
            "Agent",
            {"description": "Scripted task", "prompt": "p"},
        ),
        (
            use("$ask", question="q?", options=["a"]),
            "AskUserQuestion",
            {
                "questions": [
                    {
                        "question": "q?",
                        "header": "Question",
                        "options": [{"label": "a", "description": "a"}],
                        "multiSelect": False,
                    }
                ]
            },
        ),
        (use("Read", file_path="/raw"), "Read", {"file_path": "/raw"}),
    ],
)
async def test_abstract_tools_for_claude(step: Json, name: str, given: Json) -> None:
    assert await first_messages_call(step) == (name, given)


@pytest.mark.parametrize(
    ("step", "name", "given"),
    [
        (use("$shell", command="ls"), "bash", {"command": "ls"}),
        (use("$write", path="a", content="x"), "write", {"path": "a", "content": "x"}),
        (
            use("$edit", path="a", old="x", new="y"),
            "edit",
            {"path": "a", "edits": [{"oldText": "x", "newText": "y"}]},
        ),
        (use("$read", path="a"), "read", {"path": "a"}),
    ],
)
async def test_abstract_tools_for_pi(step: Json, name: str, given: Json) -> None:
    async with playing(turn(step)) as client:
        function = (await client.chat([user("go")]))["tool_calls"][0]["function"]
        assert (function["name"], json.loads(function["arguments"])) == (name, given)


async def first_item(step: Json, tools: list[Json], *before: Json) -> Json:
    async with playing(turn(step, step)) as client:
        return (await client.responses([*before, user("go")], tools))["output"][0]


async def test_a_codex_patch() -> None:
    add = await first_item(use("$write", path="a", content="x\ny\n"), [EXEC, PATCH])
    assert add["type"] == "custom_tool_call"
    assert add["input"] == "*** Begin Patch\n*** Add File: a\n+x\n+y\n*** End Patch\n"
    change = await first_item(use("$edit", path="a", old="x", new="z"), [EXEC, PATCH])
    assert change["input"] == "*** Begin Patch\n*** Update File: a\n@@\n-x\n+z\n*** End Patch\n"


async def test_files_without_file_tools_really_change(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "it's"
    for content in ("one\n$two\n", "no newline"):
        for step, expected in (
            (use("$write", path=str(path), content=content), content),
            (use("$edit", path=str(path), old="o", new="$&'"), content.replace("o", "$&'", 1)),
        ):
            command = json.loads((await first_item(step, [EXEC]))["arguments"])["cmd"]
            process = await asyncio.create_subprocess_exec("bash", "-c", command)
            assert await process.wait() == 0
            assert path.read_text() == expected


async def test_namespaced_mcp_call() -> None:
    item = await first_item(use("$mcp", server="lab", tool="ping", args={"x": 1}), [EXEC, LAB])
    assert (item["namespace"], item["name"], item["arguments"]) == ("mcp__lab", "ping", '{"x": 1}')


async def test_code_mode_calls_in_javascript() -> None:
    item = await first_item(shell('echo "hi"'), [], CODE)
    assert (item["type"], item["namespace"], item["name"]) == ("custom_tool_call", "functions", "exec")
    assert r'await tools.exec_command({"cmd": "echo \"hi\""})' in item["input"]
    patch = await first_item(use("$write", path="a", content="x"), [], CODE)
    assert "await tools.apply_patch(" in patch["input"]


async def test_stdin_goes_to_the_session_of_the_last_result() -> None:
    async with playing(turn(shell("a"), use("$stdin", text="yes\n"))) as client:
        items = [
            user("go"),
            call_item("c"),
            output_item("c", "Process running with session ID 4711\nOutput:"),
        ]
        item = (await client.responses(items, [EXEC, STDIN]))["output"][0]
        assert json.loads(item["arguments"]) == {"session_id": 4711, "chars": "yes\n"}


async def test_a_tool_that_is_not_offered_is_told_as_text() -> None:
    async with playing(turn(use("$stdin", text="x"))) as client:
        answer = await client.chat([user("go")])
        assert answer["content"] == "tool $stdin not offered; offered: bash, write, edit, read"


async def test_a_deferred_claude_tool_is_loaded_first_and_the_loading_is_no_step() -> None:
    search: Json = {"name": "ToolSearch", "input_schema": {"properties": {"query": {}}}}
    told = {"role": "system", "content": "deferred tools, use ToolSearch:\nWebFetch\nmcp__far__ping\n"}
    step = use("$mcp", server="far", tool="ping", args={"x": 1})
    async with playing(turn(step, {"text": "end"})) as client:
        history = [user("go"), told]
        lookup = (await client.messages(history, tools=[search]))["content"][0]
        assert (lookup["name"], lookup["input"]["query"]) == ("ToolSearch", "select:mcp__far__ping")
        history += [said(lookup), got(tool_result(lookup["id"]), {"type": "text", "text": "Tool loaded."})]
        call = (await client.messages(history, tools=[search]))["content"][0]
        assert (call["name"], call["input"]) == ("mcp__far__ping", {"x": 1})
        history += [said(call), got(tool_result(call["id"]))]
        assert (await client.messages(history, tools=[search]))["content"][0]["text"] == "end"


async def test_a_deferred_codex_tool_is_searched_for_once() -> None:
    search: Json = {"type": "tool_search", "execution": "client", "parameters": {}}
    async with playing(turn(use("$mcp", server="lab", tool="ping", args={}))) as client:
        lookup = (await client.responses("go", [search]))["output"][0]
        assert (lookup["type"], lookup["arguments"]["query"]) == ("tool_search_call", "lab ping")
        found = {"type": "tool_search_output", "call_id": lookup["call_id"], "tools": [LAB]}
        call = (await client.responses([user("go"), lookup, found], [search]))["output"][0]
        assert (call["namespace"], call["name"]) == ("mcp__lab", "ping")
        nothing = {**found, "tools": []}
        missing = (await client.responses([user("go"), lookup, nothing], [search]))["output"][0]
        assert "not offered" in missing["content"][0]["text"]


async def test_a_codex_team_task_is_the_childs_prompt() -> None:
    head = "Message Type: NEW_TASK\nTask name: /root/t\nSender: /root\nPayload:\n"
    content = [
        {"type": "input_text", "text": head},
        {"type": "encrypted_content", "encrypted_content": "do it"},
    ]
    async with playing(turn(shell("a"))) as client:
        answer = await client.responses([user("go"), {"type": "agent_message", "content": content}], [EXEC])
        assert answer["output"][0]["content"][0]["text"] == "You said: do it"


FULL: Json = {
    "reasoning": "thinking hard",
    "text": "some text",
    "tools": [{"tool": "$shell", "input": {"command": "ls"}}],
    "chunk": 4,
    "usage": {
        "input_tokens": 100,
        "output_tokens": 20,
        "cache_read_tokens": 7,
        "cache_write_tokens": 3,
        "reasoning_tokens": 5,
    },
}


async def test_the_messages_stream() -> None:
    async with playing(turn(FULL)) as client:
        body: Json = {"model": "m", "max_tokens": 9, "messages": [user("go")], "tools": CLAUDE_TOOLS}
        events = await client.events("/v1/messages", body)
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "message_stop"
        usage = {**events[0]["message"]["usage"], **events[-2]["usage"]}
        assert (usage["input_tokens"], usage["output_tokens"]) == (100, 20)
        assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (7, 3)
        starts = [
            event["content_block"]["type"] for event in events if event["type"] == "content_block_start"
        ]
        assert starts == ["thinking", "text", "tool_use"]
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        assert "".join(delta.get("thinking", "") for delta in deltas) == "thinking hard"
        assert "".join(delta.get("text", "") for delta in deltas) == "some text"
        arguments = "".join(delta.get("partial_json", "") for delta in deltas)
        assert json.loads(arguments)["command"] == "ls"
        assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_the_responses_stream() -> None:
    async with playing(turn(FULL)) as client:
        events = await client.events("/responses", {"model": "m", "input": "go", "tools": [EXEC]})
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        deltas: dict[str, str] = {}
        for event in events:
            if "delta" in event:
                deltas[event["type"]] = deltas.get(event["type"], "") + event["delta"]
        assert deltas == {
            "response.reasoning_summary_text.delta": "thinking hard",
            "response.output_text.delta": "some text",
            "response.function_call_arguments.delta": '{"cmd": "ls"}',
        }
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        final = events[-1]["response"]
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
        assert final["output"] == done
        assert final["usage"] == {
            "input_tokens": 110,
            "input_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 3},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 5},
            "total_tokens": 130,
        }


async def test_the_chat_stream() -> None:
    async with playing(turn(FULL)) as client:
        body: Json = {"model": "m", "messages": [user("go")], "tools": PI_TOOLS}
        plain = await client.events("/v1/chat/completions", body)
        assert all(chunk["choices"] for chunk in plain)
        chunks = await client.events(
            "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
        )
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["prompt_tokens"] == 110
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "some text"
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "thinking hard"
        calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
        assert calls[0]["id"] == "call_1"
        arguments = "".join(call["function"]["arguments"] for call in calls)
        assert json.loads(arguments) == {"command": "ls"}
        assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("stop", "messages", "responses", "chat"),
    [
        ("max_tokens", "max_tokens", "max_output_tokens", "length"),
        ("refusal", "refusal", "content_filter", "content_filter"),
    ],
)
async def test_stop(stop: str, messages: str, responses: str, chat: str) -> None:
    async with playing({"default": [{"text": "x", "stop": stop}]}) as client:
        assert (await client.messages([user("a")]))["stop_reason"] == messages
        answer = await client.responses("a")
        assert (answer["status"], answer["incomplete_details"]["reason"]) == ("incomplete", responses)
        body: Json = {"model": "m", "messages": [user("a")]}
        _, completion = await client.post("/chat/completions", body)
        assert completion["choices"][0]["finish_reason"] == chat


async def test_reasoning_is_accepted_back_but_not_from_another_provider() -> None:
    async with playing(turn({"reasoning": "why", "text": "x"})) as client:
        answer = await client.messages([user("go")])
        await client.messages([user("go"), said(*answer["content"]), user("go")])
        answer["content"][0]["signature"] = "foreign"
        body: Json = {
            "model": "m",
            "max_tokens": 9,
            "messages": [user("go"), said(*answer["content"]), user("go")],
        }
        status, refusal = await client.post("/v1/messages", body)
        assert (status, "Invalid `signature`" in refusal["error"]["message"]) == (400, True)
        status, answer = await client.post(
            "/v1/responses", {"model": "m", "input": "go", "include": ["reasoning.encrypted_content"]}
        )
        items = [user("go"), *answer["output"], user("go")]
        await client.responses(items)
        items[1]["encrypted_content"] = "foreign"
        status, refusal = await client.post("/v1/responses", {"model": "m", "input": items})
        assert (status, refusal["error"]["code"]) == (400, "invalid_encrypted_content")


async def test_an_error_is_given_as_often_as_asked_and_then_the_answer() -> None:
    error = {"status": 529, "message": "busy", "times": 2, "retry_after": 0.5}
    async with playing(turn({"error": error}, shell("a"), {"text": "end"})) as client:
        body: Json = {"model": "m", "max_tokens": 9, "messages": [user("go")], "tools": CLAUDE_TOOLS}
        for _ in range(2):
            async with client.http.post(client.model.url + "/v1/messages", json=body) as response:
                assert (response.status, response.headers["retry-after"]) == (529, "0.5")
                problem = (await response.json())["error"]
                assert problem == {"type": "overloaded_error", "message": "busy"}
        block = (await client.messages([user("go")]))["content"][0]
        assert block["type"] == "tool_use"
        end = await client.messages([user("go"), said(block), got(tool_result(block["id"]))])
        assert end["content"][0]["text"] == "end"
        assert [request.outcome for request in client.model.requests[:3]] == ["failed", "failed", "answered"]


async def test_the_same_prompt_later_fails_afresh() -> None:
    async with playing(turn({"error": {"status": 500, "times": 1}}, {"text": "ok"})) as client:
        later = [user("go"), {"role": "assistant", "content": "ok"}, user("go")]
        for messages in ([user("go")], later):
            body: Json = {"model": "m", "messages": messages}
            assert (await client.post("/v1/chat/completions", body))[0] == 500
            assert (await client.post("/v1/chat/completions", body))[0] == 200


async def test_an_error_without_times_stays() -> None:
    async with playing({"default": [{"error": {"status": 401, "code": "expired"}}]}) as client:
        for _ in range(3):
            status, answer = await client.post("/v1/responses", {"model": "m", "input": "x"})
            assert (status, answer["error"]["code"]) == (401, "expired")


async def test_a_stream_that_breaks() -> None:
    fault = {"text": "partial", "error": {"message": "broke", "mid_stream": True}}
    async with playing({"default": [fault]}) as client:
        messages = {"model": "m", "max_tokens": 9, "messages": [user("x")]}
        events = await client.events("/v1/messages", messages)
        assert events[-1]["error"]["message"] == "broke"
        assert not any(event["type"] == "message_stop" for event in events)
        events = await client.events("/v1/responses", {"model": "m", "input": "x"})
        assert events[-1]["type"] == "response.failed"
        chunks = await client.events("/v1/chat/completions", {"model": "m", "messages": [user("x")]})
        assert chunks[-1]["error"]["message"] == "broke"


@pytest.mark.parametrize("step", [{"hang": True}, {"text": "partial", "hang": True}])
async def test_hanging_lasts_until_the_client_leaves(step: Json) -> None:
    async with playing({"default": [step]}) as client:
        body: Json = {"model": "m", "messages": [user("x")], "stream": True}
        path = client.model.url + "/v1/chat/completions"

        async def ask() -> None:
            async with client.http.post(path, json=body) as response:
                await response.read()

        asking = asyncio.create_task(ask())
        record = await client.model.wait_for(lambda request: request.prompt == "x")
        assert record.outcome == "open"
        asking.cancel()
        await client.model.wait_for(lambda request: request.outcome == "client_left")


async def test_a_hanging_answer_does_not_hold_up_the_end() -> None:
    async with aiohttp.ClientSession() as http:
        async with ScriptedModel({"default": [{"hang": True}]}) as model:
            body: Json = {"model": "m", "messages": [user("x")]}
            asking = asyncio.create_task(http.post(model.url + "/v1/chat/completions", json=body))
            await model.wait_for(lambda request: True)
        await asyncio.wait([asking], timeout=5)
        assert asking.done()
        asking.exception()


PROBLEMS_MESSAGES: list[tuple[str, Json]] = [
    ("model: Field required", {"model": None}),
    ("max_tokens: Field required", {"max_tokens": None}),
    ("at least one message", {"messages": []}),
    ('first message must use the "user" role', {"messages": [said(tool_use("a"))]}),
    ("non-empty content", {"messages": [user("")]}),
    ("text content blocks must be non-empty", {"messages": [got({"type": "text", "text": ""})]}),
    ("without `tool_result` blocks", {"messages": [user("x"), said(tool_use("a"))]}),
    ("without `tool_result` blocks", {"messages": [user("x"), said(tool_use("a")), user("y")]}),
    (
        "without `tool_result` blocks",
        {"messages": [user("x"), said(tool_use("a")), got({"type": "text", "text": "y"}, tool_result("a"))]},
    ),
    ("unexpected `tool_use_id`", {"messages": [user("x"), got(tool_result("a"))]}),
    (
        "without `tool_result` blocks",
        {
            "messages": [
                user("x"),
                said(tool_use("a")),
                said(tool_use("b")),
                got(tool_result("a")),
                said({"type": "text", "text": "y"}),
                got(tool_result("b")),
            ]
        },
    ),
    (
        "ids must be unique",
        {"messages": [user("x"), said(tool_use("a"), tool_use("a")), got(tool_result("a"))]},
    ),
    (
        "single result",
        {"messages": [user("x"), said(tool_use("a")), got(tool_result("a"), tool_result("a"))]},
    ),
    ("should match pattern", {"messages": [user("x"), said(tool_use("a|b")), got(tool_result("a|b"))]}),
    ("names must be unique", {"tools": [CLAUDE_TOOLS[0], CLAUDE_TOOLS[0]]}),
]


@pytest.mark.parametrize(("problem", "change"), PROBLEMS_MESSAGES)
async def test_the_messages_api_refuses(problem: str, change: Json) -> None:
    body: Json = {"model": "m", "max_tokens": 9, "messages": [user("x")], **change}
    async with playing() as client:
        status, answer = await client.post("/v1/messages", body)
        assert status == 400
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert problem.lower() in answer["error"]["message"].lower()
        assert client.model.requests[0].outcome == "refused"


async def test_the_messages_api_accepts() -> None:
    async with playing() as client:
        await client.messages(
            [
                user("x"),
                user("same role again"),
                said(tool_use("a")),
                said(tool_use("b")),
                got(tool_result("b")),
                got(tool_result("a"), {"type": "text", "text": "more"}),
                {"role": "system", "content": "a note"},
            ],
            unknown_field=1,
            betas=["unheard-of"],
        )


def assistant(*calls: str) -> Json:
    function = {"name": "bash", "arguments": "{}"}
    return {
        "role": "assistant",
        "tool_calls": [{"id": call, "type": "function", "function": function} for call in calls],
    }


def tool(call: str) -> Json:
    return {"role": "tool", "tool_call_id": call, "content": "ok"}


PROBLEMS_CHAT: list[tuple[str, list[Json]]] = [
    ("Missing required parameter: 'messages'", []),
    ("Invalid value: 'robot'", [{"role": "robot", "content": "x"}]),
    ("expected a string, got null", [{"role": "user", "content": None}]),
    ("empty array", [{"role": "user", "content": []}]),
    ("did not have response messages: a", [user("x"), assistant("a")]),
    ("did not have response messages: b", [user("x"), assistant("a", "b"), tool("a"), user("y")]),
    ("must be a response to a preceeding message", [user("x"), tool("a")]),
    (
        "did not have response messages: a",
        [user("x"), assistant("a"), assistant("b"), tool("a"), tool("b")],
    ),
    ("Duplicate value", [user("x"), assistant("a", "a"), tool("a")]),
    ("must be a response", [user("x"), assistant("a"), tool("a"), tool("a")]),
]


@pytest.mark.parametrize(("problem", "messages"), PROBLEMS_CHAT)
async def test_the_chat_api_refuses(problem: str, messages: list[Json]) -> None:
    async with playing() as client:
        status, answer = await client.post("/v1/chat/completions", {"model": "m", "messages": messages})
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
        assert problem in answer["error"]["message"]


CUSTOM_CALL: Json = {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": "x"}


@pytest.mark.parametrize(
    ("problem", "items"),
    [
        ("One of 'input'", []),
        ("No tool output found for function call a.", [user("x"), call_item("a")]),
        ("No tool call found", [user("x"), output_item("a")]),
        ("No tool call found", [user("x"), CUSTOM_CALL, output_item("a")]),
        ("No tool output found for custom tool call a.", [user("x"), CUSTOM_CALL]),
        ("Duplicate call_id", [user("x"), call_item("a"), call_item("a"), output_item("a")]),
        ("Supported values", [{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]),
        ("Supported values", [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]),
    ],
)
async def test_the_responses_api_refuses(problem: str, items: list[Json]) -> None:
    async with playing() as client:
        status, answer = await client.post("/v1/responses", {"model": "m", "input": items})
        assert status == 400
        assert problem in answer["error"]["message"]


async def test_the_key() -> None:
    async with playing(require_key="sesame") as client:
        body: Json = {"model": "m", "max_tokens": 9, "messages": [user("x")]}
        status, answer = await client.post("/v1/messages", body, **{"x-api-key": "wrong"})
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        status, answer = await client.post("/v1/responses", {"model": "m", "input": "x"})
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        status, _ = await client.post("/v1/messages", body, **{"x-api-key": "sesame"})
        assert status == 200
        status, _ = await client.post(
            "/responses", {"model": "m", "input": "x"}, Authorization="Bearer sesame"
        )
        assert status == 200
        assert [request.key_ok for request in client.model.requests] == [False, False, True, True]
        keys = [request.key for request in client.model.requests]
        assert keys[1] is None
        assert keys[0] != keys[2] == keys[3]
        assert "sesame" not in repr(client.model.requests)
        async with client.http.get(client.model.url + "/_requests") as response:
            assert response.status == 401


async def test_histories_are_alike_on_the_three_wires() -> None:
    async with playing(turn(shell("a"))) as client:
        call = {**tool_use("c1", "t"), "input": {"a": 1}}
        await client.messages([user("x"), said(call), got(tool_result("c1", "r")), user("y")], system="s")
        function = {"type": "function_call", "call_id": "c1", "name": "t", "arguments": '{"a": 1}'}
        await client.responses(
            [{"role": "developer", "content": "s"}, user("x"), function, output_item("c1", "r"), user("y")]
        )
        answer = assistant("c1")
        answer["tool_calls"][0]["function"] = {"name": "t", "arguments": '{"a": 1}'}
        result = {"role": "tool", "tool_call_id": "c1", "content": "r"}
        await client.chat([{"role": "system", "content": "s"}, user("x"), answer, result, user("y")])
        for request in client.model.requests:
            seen = [(item.role, item.kind, item.text, item.call_id) for item in history_of(request)]
            assert seen == [
                ("system", "text", "s", ""),
                ("user", "text", "x", ""),
                ("assistant", "call", '{"a": 1}', "c1"),
                ("user", "result", "r", "c1"),
                ("user", "text", "y", ""),
            ]


async def test_the_tools_of_a_request() -> None:
    async with playing() as client:
        await client.responses([CODE, user("x")], [EXEC, PATCH, LAB, {"type": "web_search"}])
        await client.chat([user("x")])
        codex, pi = client.model.requests
        assert tools_of(codex) == ["exec_command", "apply_patch", "mcp__lab__ping", "web_search", "exec"]
        assert tools_of(pi) == ["bash", "write", "edit", "read"]


async def test_images_are_counted() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}
    async with playing() as client:
        await client.messages([got({"type": "text", "text": "x"}, image)])
        assert client.model.requests[0].images == 1


async def test_counting_and_models() -> None:
    async with playing({"models": ["one", "two"]}) as client:
        body: Json = {"model": "m", "messages": [user("x")]}
        status, answer = await client.post("/v1/messages/count_tokens?beta=true", body)
        assert status == 200
        assert answer["input_tokens"] > 0
        async with client.http.get(client.model.url + "/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["one", "two"]
        status, _ = await client.post("/v1/embeddings", {})
        assert status == 404
        assert [request.api for request in client.model.requests] == ["count_tokens", "models", "other"]


async def test_waiting_in_vain_says_what_was_seen() -> None:
    async with playing() as client:
        await client.chat([user("hello there")])
        with pytest.raises(TimeoutError, match="hello there"):
            await client.model.wait_for(lambda request: request.prompt == "other", timeout=0.05)


def test_a_misspelt_script_is_refused() -> None:
    with pytest.raises(ValidationError, match="txt"):
        Script.model_validate(turn({"txt": "x"}))


def fetch(url: str, body: Json | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"content-type": "application/json"}, method=method)
    with urlopen(request, timeout=10) as response:
        return json.load(response)


def test_in_a_thread() -> None:
    with ScriptedModel.in_thread({"default": [{"text": "one"}]}) as model:
        body: Json = {"model": "m", "messages": [user("x")]}
        first = fetch(model.url + "/v1/chat/completions", body)
        model.set_script({"default": [{"text": "two"}]})
        second = fetch(model.url + "/v1/chat/completions", body)
        texts = [answer["choices"][0]["message"]["content"] for answer in (first, second)]
        assert texts == ["one", "two"]
        assert model.wait_for(lambda request: request.n == 2).prompt == "x"
        assert len(model.requests) == 2


def test_as_a_program(tmp_path: Path) -> None:
    script, log = tmp_path / "script.json", tmp_path / "log.jsonl"
    script.write_text(json.dumps({"default": [{"text": "from a file"}]}))
    command = [sys.executable, "-m", "omnigent.testing.scripted_model", "--until-eof"]
    program = subprocess.Popen(
        [*command, "--script", str(script), "--log", str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout and program.stdin
        url = json.loads(program.stdout.readline())["url"]
        body: Json = {"model": "m", "messages": [user("x")]}
        answer = fetch(url + "/v1/chat/completions", body)
        assert answer["choices"][0]["message"]["content"] == "from a file"
        fetch(url + "/_script", {"default": [{"text": "replaced"}]}, "PUT")
        answer = fetch(url + "/v1/chat/completions", body)
        assert answer["choices"][0]["message"]["content"] == "replaced"
        assert fetch(url + "/healthz")["ok"] is True
        assert [seen["prompt"] for seen in fetch(url + "/_requests")] == ["x", "x"]
        program.stdin.close()
        assert program.wait(10) == 0
    logged = [cast(Json, json.loads(line)) for line in log.read_text().splitlines()]
    assert [(line["outcome"], line["status"]) for line in logged] == [("answered", 200)] * 2
