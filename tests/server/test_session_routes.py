"""The routes of sessions against a real server: answers, paging, errors."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from omnigent.server import openapi_text

from .conftest import Served

pytestmark = pytest.mark.anyio


async def _titles(served: Served, session_id: str, count: int) -> None:
    for number in range(count):
        status, _ = await served.ask("PATCH", f"/v1/sessions/{session_id}", {"title": f"t{number}"})
        assert status == 200


async def test_health_needs_no_token(served: Served) -> None:
    status, body = await served.ask("GET", "/healthz", Authorization="")
    assert (status, body["status"]) == (200, "ok")


async def test_create_once_per_key(served: Served) -> None:
    body = {"workspace": str(served.workspace), "title": "one"}
    first = await served.ask("POST", "/v1/sessions", body, Idempotency_Key="k1")
    assert first[0] == 201
    assert first[1]["web_url"] == f"{served.url}/s/{first[1]['id']}"
    headers = {"Authorization": f"Bearer {served.token}", "Idempotency-Key": "k1"}
    async with served.client.post(f"{served.url}/v1/sessions", json=body, headers=headers) as again:
        assert again.status == 201
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (await again.json())["id"] == first[1]["id"]
    status, other = await served.ask("POST", "/v1/sessions", body | {"title": "two"}, Idempotency_Key="k1")
    assert (status, other["code"]) == (422, "idempotency_key_reused")
    status, missing = await served.ask("POST", "/v1/sessions", body)
    assert (status, missing["header"]) == (400, "Idempotency-Key")


async def test_list_filters_and_pages(served: Served) -> None:
    made = [(await served.session(title=f"title {n}"))["id"] for n in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        status, page = await served.ask("GET", f"/v1/sessions?limit=2{cursor}")
        assert status == 200
        assert len(page["items"]) <= 2
        found += [row["id"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert sorted(found) == sorted(made)
    _, page = await served.ask("GET", "/v1/sessions?query=TITLE%203")
    assert [row["id"] for row in page["items"]] == [made[3]]
    status, problem = await served.ask("GET", "/v1/sessions?status=asleep")
    assert (status, problem["code"]) == (400, "malformed")
    assert "idle" in problem["allowed"]


async def test_patch_and_delete(served: Served) -> None:
    session_id = (await served.session(title="old"))["id"]
    status, changed = await served.ask(
        "PATCH", f"/v1/sessions/{session_id}", {"title": "new", "labels": {"a": "b"}, "archived": True}
    )
    assert status == 200
    assert (changed["title"], changed["labels"], changed["archived"]) == ("new", {"a": "b"}, True)
    assert (await served.ask("DELETE", f"/v1/sessions/{session_id}"))[0] == 204
    status, problem = await served.ask("GET", f"/v1/sessions/{session_id}")
    assert (status, problem["code"]) == (404, "not_found")


async def test_pages_of_events_both_ways(served: Served) -> None:
    session_id = (await served.session())["id"]
    await _titles(served, session_id, 5)
    base = f"/v1/sessions/{session_id}/events"

    async def page(query: str) -> tuple[list[int], Any]:
        status, body = await served.ask("GET", f"{base}?{query}")
        assert status == 200, body
        return [event["seq"] for event in body.pop("events")], body

    assert await page("limit=3") == (
        [1, 2, 3],
        {"next_after": 3, "prev_before": None, "head_seq": 7, "has_more": True},
    )
    assert await page("after=3&limit=4") == (
        [4, 5, 6, 7],
        {"next_after": 7, "prev_before": 4, "head_seq": 7, "has_more": False},
    )
    assert await page("after=7") == (
        [],
        {"next_after": 7, "prev_before": 8, "head_seq": 7, "has_more": False},
    )
    assert (await page("tail=2"))[0] == [6, 7]
    assert (await page("tail=2"))[1]["prev_before"] == 6
    seqs, body = await page("before=6&limit=3")
    assert (seqs, body["prev_before"], body["has_more"]) == ([3, 4, 5], 3, True)
    seqs, body = await page("before=3&limit=3")
    assert (seqs, body["prev_before"], body["has_more"]) == ([1, 2], None, False)
    seqs, body = await page("kinds=session.created")
    assert (seqs, body["next_after"], body["has_more"]) == ([1], 7, False)
    status, problem = await served.ask("GET", f"{base}?after=8")
    assert (status, problem["code"], problem["head"]) == (400, "bad_cursor", 7)
    status, problem = await served.ask("GET", f"{base}?limit=1001")
    assert (status, problem["path"]) == (400, "limit")


async def test_events_are_served_as_they_were_hashed(served: Served) -> None:
    session_id = (await served.session(title="ü 🙂"))["id"]
    stored = await served.sessions.log.read(session_id)
    headers = {"Authorization": f"Bearer {served.token}"}
    url = f"{served.url}/v1/sessions/{session_id}/events"
    async with served.client.get(url, headers=headers) as response:
        assert stored[0].body_text in await response.text()


async def test_a_command_and_its_replay(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = f"/v1/sessions/{session_id}/commands"
    status, closed = await served.ask("POST", path, {"type": "close", "idempotency_key": "a"})
    assert status == 202
    assert closed["state"] == "accepted"
    headers = {"Authorization": f"Bearer {served.token}"}
    body = {"type": "close", "idempotency_key": "a"}
    async with served.client.post(served.url + path, json=body, headers=headers) as again:
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (await again.json())["command_id"] == closed["command_id"]
    status, problem = await served.ask("POST", path, {"type": "stop", "idempotency_key": "a"})
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    status, problem = await served.ask("POST", path, {"type": "prompt", "text": "x", "idempotency_key": "b"})
    assert (status, problem["current"]) == (409, "closed")


@pytest.mark.parametrize(
    ("body", "path", "allowed"),
    [
        (b"{", "", ""),
        (b"[]", "", ""),
        (b'{"type": "dance", "idempotency_key": "a"}', "", "interrupt"),
        (b'{"idempotency_key": "a"}', "", ""),
        (b'{"type": "interrupt"}', "idempotency_key", ""),
        (b'{"type": "prompt", "text": 3, "idempotency_key": "a"}', "text", ""),
        (b'{"type": "prompt", "text": "x", "when": "soon", "idempotency_key": "a"}', "when", "queue"),
        (b'{"type": "prompt", "texts": "x", "idempotency_key": "a"}', "texts", ""),
        (b'{"type": "prompt", "content": [{"type": "film"}], "idempotency_key": "a"}', "content.0", "image"),
    ],
)
async def test_a_malformed_command_names_its_place(
    served: Served, body: bytes, path: str, allowed: str
) -> None:
    session_id = (await served.session())["id"]
    status, problem = await served.ask("POST", f"/v1/sessions/{session_id}/commands", body)
    assert (status, problem["code"]) == (400, "malformed")
    assert problem.get("path", "") == path
    assert problem["detail"]
    assert not allowed or allowed in problem["allowed"]


async def test_a_body_beyond_its_limit(served: Served) -> None:
    session_id = (await served.session())["id"]
    big = json.dumps({"type": "prompt", "text": "x" * 1_000_001, "idempotency_key": "a"}).encode()
    status, problem = await served.ask("POST", f"/v1/sessions/{session_id}/commands", big)
    assert (status, problem["code"]) == (413, "too_large")
    status, problem = await served.ask("PATCH", f"/v1/sessions/{session_id}", b"x" * 3_000_000)
    assert (status, problem["code"]) == (413, "too_large")


async def test_a_chunked_body_beyond_its_limit(served: Served) -> None:
    session_id = (await served.session())["id"]

    async def chunks() -> Any:
        for _ in range(48):
            yield b" " * 65536

    headers = {"Authorization": f"Bearer {served.token}"}
    url = f"{served.url}/v1/sessions/{session_id}"
    async with served.client.patch(url, data=chunks(), headers=headers) as response:
        assert response.status == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/sessions/ses_unknown", 404, "not_found"),
        ("GET", "/v1/sessions/ses_unknown/events", 404, "not_found"),
        ("GET", "/v1/sessions/ses_unknown/items", 404, "not_found"),
        ("DELETE", "/v1/sessions/ses_unknown", 404, "not_found"),
        ("PUT", "/v1/sessions", 405, "method_not_allowed"),
        ("GET", "/v1/blobs/../token", 404, "not_found"),
        ("GET", "/v1/blobs/" + "0" * 64, 404, "not_found"),
        ("DELETE", "/v1/devices/dev_unknown", 404, "not_found"),
    ],
)
async def test_problems(served: Served, method: str, path: str, status: int, code: str) -> None:
    found, problem = await served.ask(method, path)
    assert (found, problem["code"], problem["status"]) == (status, code, status)
    assert problem["type"] == f"urn:omnigent:error:{code}"
    assert problem["detail"]


async def test_fork(served: Served) -> None:
    parent = await served.session(title="p")
    await _titles(served, parent["id"], 3)
    body = {"at_seq": 3, "workspace": str(served.workspace)}
    status, fork = await served.ask("POST", f"/v1/sessions/{parent['id']}/fork", body, Idempotency_Key="f")
    assert status == 201
    assert fork["forked_from"] == {"session_id": parent["id"], "seq": 3}
    _, page = await served.ask("GET", f"/v1/sessions/{fork['id']}/events")
    assert [event["kind"] for event in page["events"]] == [
        "session.created",
        "policy.changed",
        "session.updated",
        "session.forked",
    ]
    status, problem = await served.ask(
        "POST", f"/v1/sessions/{parent['id']}/fork", body | {"at_seq": 99}, Idempotency_Key="g"
    )
    assert (status, problem["code"]) == (400, "bad_cursor")


async def test_export_and_import(served: Served) -> None:
    session = await served.session(title="to go")
    await _titles(served, session["id"], 2)
    status, archive = await served.ask("GET", f"/v1/sessions/{session['id']}/export")
    assert status == 200
    assert archive.startswith(b"PK")
    status, same = await served.ask("POST", "/v1/sessions/import", archive, Idempotency_Key="i")
    assert (status, same["id"]) == (201, session["id"])
    status, problem = await served.ask("POST", "/v1/sessions/import", b"no zip", Idempotency_Key="j")
    assert (status, problem["code"]) == (400, "malformed")
    status, problem = await served.ask("POST", "/v1/sessions/import", archive)
    assert (status, problem["header"]) == (400, "Idempotency-Key")


async def test_blobs_are_never_active_content(served: Served) -> None:
    name = served.sessions.blobs.put(b"<script>alert(1)</script>")
    headers = {"Authorization": f"Bearer {served.token}"}
    async with served.client.get(f"{served.url}/v1/blobs/{name}", headers=headers) as response:
        assert await response.read() == b"<script>alert(1)</script>"
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in response.headers["Content-Security-Policy"]


async def test_inbox_harnesses_and_drain(served: Served) -> None:
    assert (await served.ask("GET", "/v1/inbox"))[1] == {"items": [], "next_cursor": None}
    _, found = await served.ask("GET", "/v1/harnesses")
    assert {"claude-code", "codex", "pi", "scripted"} <= {row["name"] for row in found["items"]}
    assert (await served.ask("POST", "/v1/server/drain", {"keep_runners": True}))[0] == 202
    assert served.stopped == [True]


async def test_a_stopping_server_takes_no_new_work(served: Served) -> None:
    session_id = (await served.session())["id"]
    served.sessions.draining = True
    path = f"/v1/sessions/{session_id}/commands"
    status, problem = await served.ask("POST", path, {"type": "prompt", "text": "x", "idempotency_key": "a"})
    assert (status, problem["code"], problem["retry_after"]) == (503, "draining", 1)
    status, problem = await served.ask("POST", "/v1/sessions", {}, Idempotency_Key="b")
    assert (status, problem["code"]) == (503, "draining")
    assert (await served.ask("POST", path, {"type": "interrupt", "idempotency_key": "c"}))[0] == 202


async def test_many_at_once_are_all_answered(served: Served) -> None:
    session_id = (await served.session())["id"]
    answers = await asyncio.gather(
        *(served.ask("PATCH", f"/v1/sessions/{session_id}", {"title": str(n)}) for n in range(40))
    )
    assert {status for status, _ in answers} == {200}
    assert (await served.ask("GET", f"/v1/sessions/{session_id}"))[1]["last_seq"] == 42


def test_the_published_description_is_current() -> None:
    path = Path(__file__).parents[2] / "docs" / "openapi.json"
    assert path.read_text() == openapi_text()
