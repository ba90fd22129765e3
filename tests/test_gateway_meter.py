"""The gateway and its meter: what is asked before a call, told after it, and heard by the agent."""

import asyncio
import gzip
import json
import socket
from typing import Any

import aiohttp
import pytest
from model_calls import BODIES, NOW, PATHS, TOKEN, Answer, Book, scene, until

from omnigent.gateway import Gateway
from omnigent.harnesses import Wire
from omnigent.metering import Grant, ModelCall, Refused, Usage
from omnigent.providers import Upstream
from omnigent.testing.scripted_model import ScriptedModel

pytestmark = pytest.mark.anyio

MESSAGES: Wire = "anthropic-messages"
RESPONSES: Wire = "openai-responses"
CHAT: Wire = "openai-chat"
WIRES = (MESSAGES, RESPONSES, CHAT)
JSON = dict[str, Any]


async def asked(wire: Wire, body: JSON) -> ModelCall:
    async with scene(wire) as at:
        await at.call(body)
        return at.book.calls[0]


async def left(wire: Wire, body: object, grant: Grant) -> bytes:
    """What leaves for a body under a grant."""
    async with scene(wire) as at:
        at.book.grant = grant
        assert (await at.call(body))[0] == 200
        ((_, sent),) = at.provider.seen
        return sent


@pytest.mark.parametrize(
    ("wire", "body", "bound"),
    [
        (MESSAGES, {"max_tokens": 32000}, 32000),
        (RESPONSES, {"max_output_tokens": 7}, 7),
        (RESPONSES, {}, None),
        (RESPONSES, {"max_output_tokens": 7, "previous_response_id": "resp_1"}, None),
        (CHAT, {"max_tokens": 5}, 5),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 6, "n": 3}, 18),
        (CHAT, {"max_tokens": True}, None),
    ],
)
async def test_a_call_is_described_before_it_leaves(wire: Wire, body: JSON, bound: int | None) -> None:
    body = {"model": "some-model", **body}
    call = await asked(wire, body)
    assert call.call_id.startswith("call_")
    assert (call.model, call.max_output_tokens, call.hosted) == ("some-model", bound, ())
    assert call.input_tokens == -(-len(json.dumps(body)) // 4)


@pytest.mark.parametrize(
    ("wire", "block"),
    [
        (MESSAGES, {"type": "image", "source": {"type": "base64", "data": "A" * 400_000}}),
        (RESPONSES, {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 400_000}),
        (CHAT, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}),
    ],
)
async def test_an_image_counts_as_an_image_and_not_by_its_bytes(wire: Wire, block: JSON) -> None:
    key = "input" if wire == RESPONSES else "messages"
    call = await asked(wire, {"model": "m", key: [{"role": "user", "content": [block, block]}]})
    assert 10_000 <= call.input_tokens <= 10_200


HOSTED: list[tuple[Wire, JSON, tuple[str, ...]]] = [
    (MESSAGES, {"tools": [{"name": "Bash", "input_schema": {}}, {"type": "custom", "name": "x"}]}, ()),
    (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, ()),
    (MESSAGES, {"tools": [{"type": "text_editor_20250728", "name": "e"}, {"type": "memory_20250818"}]}, ()),
    (MESSAGES, {"tools": [{"type": "tool_search_tool_bm25_20251119", "name": "s"}]}, ()),
    (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ("web_search",)),
    (MESSAGES, {"tools": [{"type": "web_fetch_20250910", "name": "Bash"}]}, ("web_fetch",)),
    (MESSAGES, {"tools": [{"type": "code_execution_20250825"}, {"type": "computer_20250124"}]},
     ("code_execution", "computer")),
    (MESSAGES, {"tools": [{"type": "bash_from_the_future", "name": "bash"}]}, ("bash_from_the_future",)),
    (MESSAGES, {"mcp_servers": [{"type": "url", "url": "https://example.com"}]}, ("mcp",)),
    (RESPONSES, {"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "p"}]}, ()),
    (RESPONSES, {"tools": [{"type": "local_shell"}, {"type": "tool_search", "execution": "client"}]}, ()),
    (RESPONSES, {"tools": [{"type": "shell", "environment": {"type": "local"}}]}, ()),
    (RESPONSES, {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, ("shell",)),
    (RESPONSES, {"tools": [{"type": "web_search_preview_2025_03_11"}, {"type": "web_search"}]},
     ("web_search",)),
    (RESPONSES, {"tools": [{"type": "computer_use_preview"}, {"type": "mcp", "server_label": "x"}]},
     ("computer_use", "mcp")),
    (RESPONSES,
     {"tools": [{"type": "file_search"}, {"type": "code_interpreter"}, {"type": "image_generation"}]},
     ("file_search", "code_interpreter", "image_generation")),
    (RESPONSES, {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]},
     ("web_search",)),
    (RESPONSES, {"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]},
     ("web_search",)),
    (RESPONSES, {"prompt": {"id": "pmpt_1"}}, ("prompt",)),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, ()),
    (CHAT, {"tools": [{"type": "browser"}, "nonsense"]}, ("browser", "unknown")),
    (CHAT, {"web_search_options": {"search_context_size": "low"}}, ("web_search",)),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "body", "names"), HOSTED)
async def test_tools_that_run_at_the_provider_are_seen_and_can_be_cut_out(
    wire: Wire, body: JSON, names: tuple[str, ...]
) -> None:
    own = {"type": "function", "name": "mine"} if wire != MESSAGES else {"name": "mine"}
    body = {"model": "m", **body, "tools": [own, *body.get("tools", [])]}
    assert (await asked(wire, body)).hosted == names
    sent = json.loads(await left(wire, body, Grant("granted", strip=names)))
    assert own in sent["tools"]
    assert (await asked(wire, sent)).hosted == ()
    if not names:
        assert sent == body


async def test_what_remains_of_a_choice_after_its_tool_is_cut_out() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    body: JSON = {"tools": [search], "model": "m", "x": 1.50}
    body["tool_choice"] = {"type": "tool", "name": "web_search"}
    assert json.loads(await left(MESSAGES, body, Grant("granted", strip=("web_search",)))) == {
        "model": "m",
        "x": 1.5,
    }
    body["tools"] = [{"name": "mine"}, search]
    sent = json.loads(await left(MESSAGES, body, Grant("granted", strip=("web_search",))))
    assert sent == {"model": "m", "x": 1.5, "tools": [{"name": "mine"}]}
    body["tool_choice"] = {"type": "tool", "name": "mine"}
    sent = json.loads(await left(MESSAGES, body, Grant("granted", strip=("web_search",))))
    assert sent["tool_choice"] == {"type": "tool", "name": "mine"}


async def test_a_grant_can_name_another_model() -> None:
    async with scene(MESSAGES) as at:
        at.book.grant = Grant("granted", model="claude-haiku-4-5")
        whole = {"type": "message", "usage": {"input_tokens": 5, "output_tokens": 6}}
        at.provider.answer = Answer([json.dumps(whole).encode()])
        await at.call({"model": "claude-opus-5", "ä": "\ud83d", "messages": []})
        ((_, sent),) = at.provider.seen
        assert at.book.calls[0].model == "claude-opus-5"
        assert at.book.usage is not None
        assert (at.book.usage.model, at.book.usage.output_tokens) == ("claude-haiku-4-5", 6)
    assert b'"model":"claude-haiku-4-5"' in sent


@pytest.mark.parametrize("wire", WIRES)
async def test_a_request_is_asked_for_before_it_leaves_and_held_until_then(wire: Wire) -> None:
    async with scene(wire) as at:
        at.book.open.clear()
        call = asyncio.create_task(at.call())
        await until(lambda: bool(at.book.calls))
        assert (at.gateway.in_flight, at.provider.seen) == (1, [])
        at.book.open.set()
        assert (await call)[0] == 200
        await until(lambda: at.gateway.in_flight == 0)


@pytest.mark.parametrize(
    ("wire", "outcome", "status", "kind", "code"),
    [
        (MESSAGES, "paused", 402, "billing_error", None),
        (MESSAGES, "denied", 403, "permission_error", None),
        (RESPONSES, "paused", 429, "insufficient_quota", "insufficient_quota"),
        (RESPONSES, "denied", 400, "invalid_request_error", "permission_denied"),
        (CHAT, "paused", 429, "insufficient_quota", "insufficient_quota"),
        (CHAT, "denied", 403, "invalid_request_error", "permission_denied"),
    ],
)
async def test_what_is_not_granted_never_leaves_and_says_why(
    wire: Wire, outcome: Any, status: int, kind: str, code: str | None
) -> None:
    async with scene(wire) as at:
        at.book.grant = Grant(outcome, "three-dollars: 3.01 of 3.00 USD are spent")
        async with at.post() as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["type"], error.get("code")) == (status, kind, code)
            assert error["message"] == "three-dollars: 3.01 of 3.00 USD are spent"
            assert answer.headers["x-should-retry"] == "false"
        assert (at.provider.seen, at.book.settled) == ([], [])


async def test_a_client_that_leaves_while_it_is_asked_for_is_settled_with_nothing() -> None:
    async with scene(MESSAGES) as at:
        at.book.open.clear()
        call = asyncio.create_task(at.call())
        await until(lambda: bool(at.book.calls))
        call.cancel()
        await until(lambda: at.gateway.in_flight == 0)
        assert at.book.usage is None
        assert at.provider.seen == []


async def test_a_meter_that_fails_lets_nothing_through() -> None:
    class Broken:
        settled = 0

        async def reserve(self, call: ModelCall) -> Grant:
            raise RuntimeError("no link")

        def settle(self, call_id: str, usage: object) -> None:
            self.settled += 1

        def refused(self, call_id: str, kind: Refused, until: int | None, detail: str) -> None:
            raise AssertionError

    async with scene(MESSAGES) as at:
        meter = Broken()
        listener = socket.create_server(("127.0.0.1", 0))
        upstream = Upstream(MESSAGES, at.provider.url, {"x-api-key": "real"})
        gateway = Gateway(upstream, "placeholder-1", listener, meter)
        await gateway.start()
        url = gateway.url(MESSAGES) + "/v1/messages"
        async with at.client.post(url, data=b"{}", headers={"x-api-key": "placeholder-1"}) as answer:
            assert answer.status == 500
            assert "no link" not in await answer.text()
        await gateway.close()
        assert (at.provider.seen, meter.settled, gateway.in_flight) == ([], 1, 0)


@pytest.mark.parametrize("wire", WIRES)
async def test_calls_that_leave_in_the_middle_are_settled_as_aborted(wire: Wire) -> None:
    async with scene(wire) as at:
        at.provider.answer = Answer(
            [b": begun\n\n"], headers={"content-type": "text/event-stream"}, then="hang"
        )
        answer = await at.post({**BODIES[wire], "stream": True})
        answer.close()
        await asyncio.wait_for(at.provider.left.wait(), 5)
        await until(lambda: bool(at.book.settled))
        assert at.book.usage is not None
        assert (at.book.usage.outcome, at.book.usage.output_tokens) == ("aborted", 0)
        assert at.book.usage.input_tokens == at.book.calls[0].input_tokens


async def test_closing_settles_what_is_open() -> None:
    async with scene(MESSAGES) as at:
        at.provider.answer = Answer(
            [b": begun\n\n"], headers={"content-type": "text/event-stream"}, then="hang"
        )
        answer = await at.post()
        await answer.content.readline()
        await at.gateway.close()
        answer.close()
        assert at.book.usage is not None
        assert at.book.usage.outcome == "aborted"


async def test_a_provider_that_drops_the_call_may_have_used_it() -> None:
    async with scene(MESSAGES) as at:
        at.provider.answer = Answer(then="drop")
        assert (await at.call())[0] == 502
        assert at.book.usage is not None
        assert at.book.usage.outcome == "aborted"


async def test_a_provider_that_is_not_there_used_nothing() -> None:
    async with scene(MESSAGES) as at:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        listener = socket.create_server(("127.0.0.1", 0))
        upstream = Upstream(MESSAGES, f"http://127.0.0.1:{port}", {})
        gateway = Gateway(upstream, "placeholder-1", listener, at.book)
        await gateway.start()
        url = gateway.url(MESSAGES) + "/v1/messages"
        async with at.client.post(url, data=b"{}", headers={"x-api-key": "placeholder-1"}) as answer:
            assert answer.status == 502
        await gateway.close()
        assert at.book.usage is None


def refusal(kind: str, message: str, **more: object) -> JSON:
    return {"error": {"type": kind, "message": message, **more}}


REFUSALS: list[tuple[Wire, int, dict[str, str], JSON, Refused | None, int | None]] = [
    # A subscription's window is used up until its reset.
    (MESSAGES, 429, {"anthropic-ratelimit-unified-status": "rejected",
                     "anthropic-ratelimit-unified-reset": "1760003600", "retry-after": "3600"},
     refusal("rate_limit_error", "m"), "quota", NOW + 3_600_000),
    (MESSAGES, 429, {"retry-after": "7200"}, refusal("rate_limit_error", "m"), "quota", NOW + 7_200_000),
    (RESPONSES, 429, {}, refusal("usage_limit_reached", "m", plan_type="plus", resets_at=1760000500),
     "quota", NOW + 500_000),
    (RESPONSES, 429, {}, refusal("usage_limit_reached", "m", resets_in_seconds=60), "quota", NOW + 60_000),
    (RESPONSES, 429, {"retry-after": "86400"}, refusal("insufficient_quota", "m"), "quota", NOW + 86_400_000),
    # Somebody has to pay.
    (MESSAGES, 402, {}, refusal("billing_error", "m"), "billing", None),
    (MESSAGES, 400, {}, refusal("invalid_request_error", "Your credit balance is too low to go on."),
     "billing", None),
    (RESPONSES, 429, {}, refusal("insufficient_quota", "m", code="insufficient_quota"), "billing", None),
    (CHAT, 402, {}, refusal("", "Insufficient credits"), "billing", None),
    # Busy: the harness tries again by itself.
    (MESSAGES, 429, {"retry-after": "9"}, refusal("rate_limit_error", "m"), "rate_limit", NOW + 9_000),
    (MESSAGES, 529, {}, refusal("overloaded_error", "m"), "rate_limit", None),
    (RESPONSES, 429, {"retry-after": "Thu, 09 Oct 2025 08:53:40 GMT"},
     refusal("requests", "m", code="rate_limit_exceeded"), "rate_limit", NOW + 20_000),
    (CHAT, 503, {}, {}, "rate_limit", None),
    # None of them.
    (MESSAGES, 400, {}, refusal("invalid_request_error", "m"), None, None),
    (RESPONSES, 401, {}, refusal("invalid_request_error", "m", code="invalid_api_key"), None, None),
    (CHAT, 500, {}, {}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "status", "headers", "body", "kind", "moment"), REFUSALS)
async def test_a_providers_refusal_is_of_one_of_three_kinds_and_costs_nothing(
    wire: Wire, status: int, headers: dict[str, str], body: JSON, kind: Refused | None, moment: int | None
) -> None:
    async with scene(wire) as at:
        sent = json.dumps(body).encode()
        at.provider.answer = Answer(
            [sent], status, {"content-type": "application/json", "x-own": "1", **headers}
        )
        async with at.post() as answer:
            got = await answer.read()
            if kind in ("quota", "billing"):
                assert answer.status == (402 if wire == MESSAGES else 429)
                assert json.loads(got)["error"]["message"] == body["error"]["message"]
                assert answer.headers["x-should-retry"] == "false"
            else:
                assert (answer.status, got, answer.headers["x-own"]) == (status, sent, "1")
        assert at.book.usage is None
        call_id = at.book.calls[0].call_id
        message = body.get("error", {}).get("message", "")
        assert at.book.refusals == ([(call_id, kind, moment, message)] if kind else [])


async def test_a_refusal_inside_a_stream_is_told_too() -> None:
    error = refusal("", "m", code="insufficient_quota")
    events = b"data: " + json.dumps({"type": "response.failed", "response": error}).encode() + b"\n\n"
    async with scene(RESPONSES) as at:
        at.provider.answer = Answer([events], headers={"content-type": "text/event-stream"})
        assert (await at.call({"model": "m", "stream": True}))[1] == events
        assert at.book.usage is None
        assert [(kind, detail) for _, kind, _, detail in at.book.refusals] == [("billing", "m")]


BAD = [
    (b"", 400),
    (b"[]", 400),
    (b'{"model": "cheap", "model": "dear"}', 400),
    (b'{"tools": [{"type": "custom", "type": "web_search_20250305"}]}', 400),
    (b'{"model": ' + b"[" * 100_000, 400),
    (b'\xff{"model": "m"}', 400),
    (b'{"model": "m", "background": true}', 400),
    (b"{}" + b" " * (64 << 20), 413),
]


@pytest.mark.parametrize(("body", "status"), BAD, ids=lambda value: str(value)[:30])
async def test_what_can_not_be_counted_does_not_leave(body: bytes, status: int) -> None:
    async with scene(RESPONSES) as at:
        assert (await at.call(body))[0] == status
        assert (at.provider.seen, at.book.calls) == ([], [])


async def test_a_packed_request_is_unpacked_and_counted() -> None:
    body = b'{"model": "packed", "messages": []}'
    async with scene(MESSAGES) as at:
        await at.call(gzip.compress(body), **{"content-encoding": "gzip"})
        ((headers, sent),) = at.provider.seen
        assert at.book.calls[0].model == "packed"
    assert sent == body
    assert "content-encoding" not in headers
    assert headers["accept-encoding"] == "identity"
    assert headers["content-length"] == str(len(body))


FREE: list[tuple[Wire, str, str]] = [
    (MESSAGES, "POST", "/v1/messages/count_tokens?beta=true"),
    (MESSAGES, "GET", "/v1/models"),
    (MESSAGES, "GET", "/v1/models/claude-opus-5"),
    (RESPONSES, "GET", "/models?client_version=1"),
    (RESPONSES, "POST", "/responses/input_tokens"),
    (CHAT, "GET", "/v1/models"),
]
CLOSED: list[tuple[Wire, str, str, int]] = [
    (MESSAGES, "GET", "/v1/messages", 405),
    (MESSAGES, "POST", "/v1/messages/batches", 404),
    (MESSAGES, "POST", "/v1/complete", 404),
    (MESSAGES, "POST", "/v1/messages/", 404),
    (MESSAGES, "POST", "/v1/chat/completions", 404),
    (MESSAGES, "POST", "/v1/models", 405),
    (MESSAGES, "POST", "/v1/files", 404),
    (RESPONSES, "GET", "/responses/resp_1", 404),
    (RESPONSES, "POST", "/chat/completions", 404),
    (CHAT, "POST", "/v1/responses", 404),
    (CHAT, "POST", "/v1/embeddings", 404),
]


@pytest.mark.parametrize(("wire", "method", "path"), FREE)
async def test_what_is_free_is_handed_on_and_not_asked_for(wire: Wire, method: str, path: str) -> None:
    async with scene(wire) as at:
        url = at.gateway.url(wire) + path
        headers = {"authorization": "Bearer placeholder-1"}
        data = b"{not read}" if method == "POST" else None
        async with at.client.request(method, url, data=data, headers=headers) as answer:
            assert answer.status == 200
        assert len(at.provider.seen) == 1
        assert (at.book.calls, at.book.settled) == ([], [])


@pytest.mark.parametrize(("wire", "method", "path", "status"), CLOSED)
async def test_other_paths_and_methods_are_refused_in_the_wires_form(
    wire: Wire, method: str, path: str, status: int
) -> None:
    async with scene(wire) as at:
        url = at.gateway.url(wire) + path
        headers = {"authorization": "Bearer placeholder-1"}
        async with at.client.request(method, url, headers=headers) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["message"]
        assert at.provider.seen == []


async def test_calls_at_once_are_counted_each_by_itself() -> None:
    async with scene(MESSAGES) as at:
        whole = {"usage": {"input_tokens": 1, "output_tokens": 2}}
        at.provider.answer = Answer([json.dumps(whole).encode()])
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(at.call())
        ids = [call.call_id for call in at.book.calls]
        assert len(set(ids)) == 20
        assert sorted(call_id for call_id, _ in at.book.settled) == sorted(ids)


async def test_the_first_event_is_passed_on_while_the_next_is_still_awaited() -> None:
    async with scene(CHAT) as at:
        first = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        at.provider.answer = Answer([first], headers={"content-type": "text/event-stream"}, then="hang")
        async with at.post({"model": "m", "stream": True}) as answer:
            assert await asyncio.wait_for(answer.content.readexactly(len(first)), 5) == first
            answer.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wire", WIRES)
async def test_the_scripted_model_is_counted_as_it_was_told(wire: Wire, stream: bool) -> None:
    told = {"input_tokens": 10, "cache_read_tokens": 20, "cache_write_tokens": 30, "cache_write_1h_tokens": 5}
    step = {"text": "Hi.", "usage": {**told, "output_tokens": 40, "reasoning_tokens": 7}}
    bodies: dict[Wire, JSON] = {
        MESSAGES: {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
        RESPONSES: {"input": [{"role": "user", "content": "x"}]},
        CHAT: {"messages": [{"role": "user", "content": "x"}]},
    }
    book = Book()
    async with ScriptedModel({"turns": [{"steps": [step]}]}) as model, aiohttp.ClientSession() as client:
        listener = socket.create_server(("127.0.0.1", 0))
        gateway = Gateway(Upstream(wire, f"{model.url}/v1", {}), TOKEN, listener, book)
        await gateway.start()
        body = {"model": "m", "stream": stream, **bodies[wire]}
        headers = {"x-api-key": TOKEN, "anthropic-version": "2023-06-01"}
        async with client.post(gateway.url(wire) + PATHS[wire], json=body, headers=headers) as answer:
            assert answer.status == 200
            assert "Hi." in await answer.text()
        await until(lambda: bool(book.settled))
        await gateway.close()
    kept, thought = (5, 0) if wire == MESSAGES else (0, 7)
    assert book.usage == Usage("m", 10, 20, 30, kept, 40, thought)


async def test_the_scripted_model_can_be_used_up() -> None:
    reset = {
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": "1760000500",
    }
    fault = {"status": 429, "message": "used up", "headers": reset}
    book = Book()
    async with ScriptedModel({"turns": [{"steps": [{"error": fault}]}]}) as model:
        listener = socket.create_server(("127.0.0.1", 0))
        gateway = Gateway(Upstream(MESSAGES, model.url, {}), TOKEN, listener, book, clock=lambda: NOW)
        await gateway.start()
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        headers = {"x-api-key": TOKEN, "anthropic-version": "2023-06-01"}
        url = gateway.url(MESSAGES) + "/v1/messages"
        async with aiohttp.ClientSession() as client, client.post(url, json=body, headers=headers) as answer:
            assert answer.status == 402
        await gateway.close()
    assert [found[1:] for found in book.refusals] == [("quota", NOW + 500_000, "used up")]
    assert book.usage is None
