"""MCP servers of the configuration, from `config.yaml` to the agent."""

import json
import sys
from pathlib import Path

import pytest
from rooms import open_room, plays
from support import House, fresh_home

from omnigent.config import McpServerSection
from omnigent.testing import mcp_server

COMMAND = (sys.executable, "-I", "-S", mcp_server.__file__)


@pytest.mark.anyio
async def test_a_harness_that_takes_none_says_which_were_left_out(tmp_path: Path) -> None:
    servers = {"notes": McpServerSection(command=COMMAND)}
    async with open_room(tmp_path, plays({"text": "hello"})) as room:
        await room.leave()
        room.config = room.config.model_copy(update={"mcp_servers": servers})
        await room.come_back()
        await room.do("prompt", text="go")
        notice = (await room.until("notice.raised")).body.model_dump()
        assert notice["code"] == "mcp_servers_left_out"
        assert "notes" in notice["detail"]
        assert (await room.until("harness.started")).body.model_dump()["mcp_servers"] == ()


@pytest.mark.slow
@pytest.mark.parametrize("harness", ["claude-code", "codex"])
def test_a_call_of_a_configured_server_asks_and_runs(harness: str) -> None:
    given = {"server": "notes", "tool": "note", "args": {"text": "kept"}}
    steps = [{"tools": [{"tool": "$mcp", "input": given}]}, {"text": "after: {{last_result}}"}]
    house = House(fresh_home("mcp"), {"turns": [{"match": "note it", "steps": steps}]})
    notes = house.home / "notes"
    file = house.home / "config.yaml"
    server = {"command": COMMAND, "environment": {"NOTES": str(notes)}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mcp_servers": {"notes": server}}))
    try:
        house.start()
        session = house.create(harness, "note it")
        asked = house.await_kind(session, "approval.requested")
        assert not notes.exists()
        started = house.await_kind(session, "harness.started").body.model_dump()
        assert started["mcp_servers"] == ("notes",)
        house.client().command(session, "resolve", approval_id=asked.item_id, decision="allow")
        house.settled(session)
        assert notes.read_text() == "kept\n"
    finally:
        house.close()
