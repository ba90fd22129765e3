"""Who may come in, and what a revoked device still gets."""

import json
from pathlib import Path

import pytest

from omnigent.errors import HomeUnusable
from omnigent.events import Actor
from omnigent.ids import new_id, now
from omnigent.server.auth import may
from omnigent.server.devices import Devices

from .conftest import Served

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", "Basic eDp5", "bearer  "])
async def test_no_token_no_entry(served: Served, value: str) -> None:
    for path in ("/v1/sessions", "/v1/devices", "/v1/nothing"):
        status, problem = await served.ask("GET", path, Authorization=value)
        assert (status, problem["code"]) == (401, "unauthorized")
    assert served.token not in json.dumps(problem)


async def test_the_token_counts_only_in_the_header(served: Served) -> None:
    status, _ = await served.ask("GET", f"/v1/sessions?token={served.token}", Authorization="")
    assert status == 401
    status, _ = await served.ask("GET", "/v1/sessions", Authorization="", Cookie=f"token={served.token}")
    assert status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:{port}", 200),
        ("[::1]:{port}", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil:80", 403),
        ("", 403),
    ],
)
async def test_hosts(served: Served, host: str, status: int) -> None:
    port = served.url.rsplit(":", 1)[1]
    assert (await served.ask("GET", "/v1/sessions", Host=host.format(port=port)))[0] == status
    assert (await served.ask("GET", "/healthz", Host=host.format(port=port)))[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("{url}", 200), ("http://evil.example", 403), ("http://127.0.0.1:1", 403), ("null", 403), ("", 403)],
)
async def test_origins(served: Served, origin: str, status: int) -> None:
    assert (await served.ask("GET", "/v1/sessions", Origin=origin.format(url=served.url)))[0] == status


async def test_the_actor_is_the_device_and_its_face(served: Served) -> None:
    _, device = await served.ask("POST", "/v1/devices", {"name": "phone"})
    session = await served.session()
    path = f"/v1/sessions/{session['id']}"
    status, _ = await served.ask(
        "PATCH", path, {"title": "x"}, Authorization=f"Bearer {device['token']}", X_Omnigent_Via="mobile"
    )
    assert status == 200
    await served.ask("PATCH", path, {"title": "y"}, X_Omnigent_Via="runner")
    _, page = await served.ask("GET", f"{path}/events?tail=2")
    actors = [event["actor"] for event in page["events"]]
    assert actors == [
        {"kind": "person", "id": "phone", "via": "mobile"},
        {"kind": "person", "id": "local", "via": "api"},
    ]


async def test_a_revoked_device_and_its_streams_end(served: Served) -> None:
    _, device = await served.ask("POST", "/v1/devices", {"name": "tablet"})
    session = await served.session()
    path = f"/v1/sessions/{session['id']}/events"
    bearer = f"Bearer {device['token']}"
    async with served.stream(path, Authorization=bearer) as theirs, served.stream(path) as ours:
        await theirs.until("event")
        await ours.until("event")
        _, listed = await served.ask("GET", "/v1/devices")
        assert {(row["name"], row["current"]) for row in listed["items"]} == {
            ("tablet", False),
            ("local", True),
        }
        assert device["token"] not in json.dumps(listed)
        assert (await served.ask("DELETE", f"/v1/devices/{device['id']}"))[0] == 204
        assert (await theirs.until("end"))[-1][1] == {"reason": "revoked", "cursor": 2}
        assert (await theirs.next())[0] == "closed"
        await served.ask("PATCH", f"/v1/sessions/{session['id']}", {"title": "goes on"})
        assert (await ours.until("event"))[-1][2] == "2"
    assert (await served.ask("GET", "/v1/sessions", Authorization=bearer))[0] == 401
    _, listed = await served.ask("GET", "/v1/devices")
    assert [row["name"] for row in listed["items"]] == ["local"]


async def test_revoking_the_local_device_renews_its_token(served: Served) -> None:
    _, listed = await served.ask("GET", "/v1/devices")
    assert (await served.ask("DELETE", f"/v1/devices/{listed['items'][0]['id']}"))[0] == 204
    assert (await served.ask("GET", "/v1/sessions"))[0] == 401
    token = (served.home / "token").read_text().strip()
    assert token != served.token
    assert (await served.ask("GET", "/v1/sessions", Authorization=f"Bearer {token}"))[0] == 200


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 61}, {"nam": "x"}])
async def test_a_device_needs_a_plain_name(served: Served, body: dict[str, str]) -> None:
    assert (await served.ask("POST", "/v1/devices", body))[0] == 400


async def test_secrets_are_private_and_devices_outlive_the_server(tmp_path: Path) -> None:
    devices = Devices(tmp_path, now, new_id)
    token = (tmp_path / "token").read_text().strip()
    _, other = devices.issue("laptop")
    for name in ("token", "devices.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert token not in (tmp_path / "devices.json").read_text()
    again = Devices(tmp_path, now, new_id)
    assert (tmp_path / "token").read_text().strip() == token
    found = again.find(token), again.find(other), again.find(token[:-1])
    assert [device and device.name for device in found] == ["local", "laptop", None]


async def test_a_damaged_device_list_is_no_open_door(tmp_path: Path) -> None:
    (tmp_path / "devices.json").write_text("{")
    with pytest.raises(HomeUnusable):
        Devices(tmp_path, now, new_id)


async def test_rights() -> None:
    person = Actor(kind="person", id="local", via="cli")
    agent = Actor(kind="agent", id="codex", via="mcp")
    system = Actor(kind="system", id="omnigent", via="runner")
    assert all(may(person, right) for right in ("read", "comment", "steer", "approve", "manage"))
    assert [right for right in ("read", "comment", "steer", "approve", "manage") if may(agent, right)] == [
        "read",
        "comment",
        "steer",
    ]
    assert not may(system, "read")
