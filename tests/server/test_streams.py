"""Streams against a real server: from the past into live, resuming, and every way they end."""

import asyncio
import socket
from typing import Any

import pytest

from omnigent.server import streams

from .conftest import Served

pytestmark = pytest.mark.anyio


async def _title(served: Served, session_id: str, title: str) -> None:
    assert (await served.ask("PATCH", f"/v1/sessions/{session_id}", {"title": title}))[0] == 200


async def test_from_the_past_into_live(served: Served) -> None:
    session_id = (await served.session())["id"]
    await _title(served, session_id, "a")
    async with served.stream(f"/v1/sessions/{session_id}/events") as stream:
        assert await stream.next() == ("hello", {"head_seq": 3, "session_id": session_id}, None)
        first, rules, second = [await stream.next() for _ in range(3)]
        assert (first[0], first[2], first[1]["kind"]) == ("event", "1", "session.created")
        assert (rules[2], rules[1]["kind"]) == ("2", "policy.changed")
        assert (second[2], second[1]["body"]["title"]) == ("3", "a")
        await _title(served, session_id, "b")
        third = await stream.next()
        assert (third[2], third[1]["body"]["title"]) == ("4", "b")
        session = await served.sessions.get(session_id)
        await session.say([{"item_id": "msg_1", "stream": "text", "offset": 0, "text": "hé"}])
        delta = await stream.next()
        assert delta == ("delta", {"item_id": "msg_1", "stream": "text", "offset": 0, "text": "hé"}, None)
    async with served.stream(f"/v1/sessions/{session_id}/events?after=4") as late:
        assert [(await late.next())[0] for _ in range(2)] == ["hello", "delta"]


async def test_last_event_id_wins(served: Served) -> None:
    session_id = (await served.session())["id"]
    for title in "abc":
        await _title(served, session_id, title)
    path = f"/v1/sessions/{session_id}/events?after=0"
    async with served.stream(path, Last_Event_ID="3") as stream:
        await stream.next()
        assert (await stream.next())[2] == "4"
    accept = "text/event-stream"
    status, problem = await served.ask("GET", path, Accept=accept, Last_Event_ID="9")
    assert (status, problem["code"]) == (400, "bad_cursor")
    status, problem = await served.ask("GET", path, Accept=accept, Last_Event_ID="x")
    assert (status, problem["code"]) == (400, "malformed")
    status, problem = await served.ask("GET", "/v1/sessions/ses_x/events", Accept=accept)
    assert (status, problem["code"]) == (404, "not_found")


async def test_a_gap_in_the_connection_leaves_none_in_the_log(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = f"/v1/sessions/{session_id}/events"
    seen: list[str | None] = []
    async with served.stream(path) as stream:
        await stream.next()
        seen.append((await stream.next())[2])
    for title in "abcde":
        await _title(served, session_id, title)
    async with served.stream(path, Last_Event_ID=seen[-1] or "") as stream:
        await stream.next()
        seen += [(await stream.next())[2] for _ in range(5)]
    assert seen == [str(n) for n in range(1, 7)]


async def test_kinds(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = f"/v1/sessions/{session_id}/events?kinds=session.closed,session.reopened"
    async with served.stream(path) as stream:
        await stream.next()
        await _title(served, session_id, "unseen")
        for kind, key in (("close", "a"), ("resume", "b")):
            body = {"type": kind, "idempotency_key": key}
            assert (await served.ask("POST", f"/v1/sessions/{session_id}/commands", body))[0] == 202
        found = [await stream.next(), await stream.next()]
        assert [message[1]["kind"] for message in found] == ["session.closed", "session.reopened"]


async def test_items_follow_as_upserts(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = f"/v1/sessions/{session_id}"
    body = {"type": "prompt", "text": "hello", "idempotency_key": "p"}
    async with served.stream(f"{path}/items") as stream:
        assert (await stream.next())[0] == "hello"
        assert (await stream.next())[0] == "session"
        _, sent = await served.ask("POST", f"{path}/commands", body)
        messages = await stream.until("item")
        event, item, number = messages[-1]
        assert (event, item["id"], item["type"]) == ("item", sent["message_id"], "message")
        assert item["content"] == [{"type": "text", "text": "hello"}]
        assert number == str(item["view_seq"])
        turn = next(
            data for kind, data, _ in [*messages, *await stream.until("session")] if kind == "session"
        )
        assert turn["id"] == session_id
    # Whatever happened since, a page and the stream from its view_seq give it whole.
    _, page = await served.ask("GET", f"{path}/items")
    assert page["view_seq"] >= item["view_seq"]
    assert sent["message_id"] in {row["id"] for row in page["items"]}
    async with served.stream(f"{path}/items?after=1") as again:
        items = [message[1]["id"] for message in await again.until("session") if message[0] == "item"]
        assert sent["message_id"] in items


async def test_pages_of_items(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = f"/v1/sessions/{session_id}"
    body = {"type": "close", "idempotency_key": "c"}
    await served.ask("POST", f"{path}/commands", body)
    assert (await served.ask("GET", f"{path}/items"))[1]["next_cursor"] is None
    assert (await served.ask("GET", f"{path}/items?limit=0"))[0] == 400


async def test_the_end_of_a_deleted_session(served: Served) -> None:
    session_id = (await served.session())["id"]
    async with served.stream(f"/v1/sessions/{session_id}/events") as stream:
        await stream.until("event")
        assert (await served.ask("DELETE", f"/v1/sessions/{session_id}"))[0] == 204
        assert (await stream.until("end"))[-1][1] == {"reason": "deleted", "cursor": 2}
        assert (await stream.next())[0] == "closed"


async def test_the_end_of_the_server(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = f"/v1/sessions/{session_id}/events"
    async with served.stream(path) as stream:
        await stream.until("event")
        served.app.state.room.streams.end("shutdown")
        assert (await stream.until("end"))[-1][1] == {"reason": "shutdown", "cursor": 2}
    async with served.stream(path) as late:
        assert (await late.until("end"))[-1][1]["reason"] == "shutdown"


async def test_comments_keep_a_quiet_stream_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PING_SECONDS", 0.05)
    session_id = (await served.session())["id"]
    async with served.stream(f"/v1/sessions/{session_id}/events") as stream:
        assert len(await stream.until("comment")) == 4
        assert (await stream.next())[0] == "comment"


async def test_a_client_that_leaves_is_forgotten(served: Served) -> None:
    session_id = (await served.session())["id"]
    session = await served.sessions.get(session_id)
    async with served.stream(f"/v1/sessions/{session_id}/events") as stream:
        await stream.until("event")
        assert session.feed.followers == 1
    await _until(lambda: session.feed.followers == 0 and len(served.app.state.room.streams) == 0)


async def test_a_client_that_does_not_read_slows_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PING_SECONDS", 0.1)
    monkeypatch.setattr(streams, "STALL_SECONDS", 0.5)
    session_id = (await served.session())["id"]
    session = await served.sessions.get(session_id)
    path = f"/v1/sessions/{session_id}/events"
    host, port = served.url.removeprefix("http://").split(":")
    sleeper = socket.create_connection((host, int(port)))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n"
    sleeper.sendall(f"{request}Authorization: Bearer {served.token}\r\n\r\n".encode())
    room = served.app.state.room
    with sleeper:
        async with served.stream(path) as reader:
            await _until(lambda: len(room.streams) == 2)
            await reader.until("event")
            for number in range(200):
                piece = {
                    "item_id": "msg_1",
                    "stream": "text",
                    "offset": number * 60_000,
                    "text": "x" * 60_000,
                }
                await session.say([piece])
                assert (await reader.until("delta"))[-1][1]["offset"] == number * 60_000
            await _until(lambda: len(room.streams) == 1)  # let go, for it took nothing


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the condition has no event to wait on
            await asyncio.sleep(0.01)
