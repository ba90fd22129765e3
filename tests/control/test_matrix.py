"""Each verdict on each path an agent acts by, on the real agents, proved by what happened on disk.

With OMNIGENT_CONTROL_RESULTS set to a directory each cell leaves its outcome there, for the page
`docs/control-matrix.md` (`docs/generate.py`).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import JSON, House, body_of, fresh_home, wait_for

from omnigent import events as ev
from omnigent.client import Client
from omnigent.harnesses import Capabilities
from omnigent.registry import harness as find_harness
from omnigent.testing import mcp_server

RESULTS = "OMNIGENT_CONTROL_RESULTS"
KEPT = Path(__file__).with_name("results.json")
HARNESSES = ("scripted", "claude-code", "codex", "pi")
PATHS = ("shell", "edit", "mcp", "subagent", "background")
VERDICTS = ("allow", "deny", "ask", "pause")
SECONDS = 60
"""Patience for a step of an agent on a busy machine."""
WATCHED_SECONDS = 0.5
"""How long a held call is watched for doing something after all."""

LATER = 'echo begun; until [ -e "$1.go" ]; do sleep 0.05; done; echo ran >> "$1"'
"""A program that outlives its call: it does its work once the test lets it."""


@dataclass(frozen=True, slots=True)
class Cell:
    harness: str
    path: str
    verdict: str

    @property
    def word(self) -> str:
        return f"{self.path}-{self.harness}-{self.verdict}"

    @property
    def reason(self) -> str:
        return f"because-of-{self.word}"

    def steps(self) -> list[JSON]:
        """What the model wants of the agent."""
        match self.path:
            case "edit":
                edit = {"path": self.word, "old": "once", "new": "once more"}
                return [one("$read", path=self.word), one("$edit", **edit)]
            case "mcp":
                return [one("$mcp", server="notes", tool="note", args={"text": self.word})]
            case "subagent":
                return [one("$subagent", prompt=f"<errand {self.word}>")]
            case "background" if self.harness == "pi":
                return [one("$shell", command=f"later {self.word} > /dev/null 2>&1 &")]
            case "background":
                return [one("$shell", command=f"later {self.word}", background=True)]
            case _:
                return [self._writes()]

    def _writes(self) -> JSON:
        return one("$shell", command=f"echo ran >> {self.word}")

    def turns(self) -> list[JSON]:
        own = {"match": f"<{self.word}>", "steps": [*self.steps(), {"text": "done"}]}
        errand = {"match": f"<errand {self.word}>", "steps": [self._writes(), {"text": "done"}]}
        return [errand, own] if self.path == "subagent" else [own]

    def when(self) -> JSON:
        """The action this path comes to."""
        match self.path:
            case "edit":
                return {"write": self.word}
            case "mcp":
                return {"mcp": "notes/note"}
            case "background":
                return {"exec": f"later {self.word}"}
            case _:
                return {"exec": "echo ran"}

    def rules(self) -> str:
        rule = {"name": "cell", "when": self.when(), "then": self.verdict, "reason": self.reason}
        return json.dumps({"policies": [rule]})


def one(tool: str, /, **given: object) -> JSON:
    return {"tools": [{"tool": tool, "input": given}]}


def offers(harness: str, path: str) -> bool:
    """Whether the agent has this path at all."""
    can: Capabilities = find_harness(harness).capabilities
    return {"mcp": can.mcp_servers, "subagent": can.subagents}.get(path, True)


def cells() -> list[Cell]:
    return [Cell(h, p, v) for h in HARNESSES for p in PATHS for v in VERDICTS]


@pytest.fixture(scope="module")
def house() -> Generator[House]:
    """Where only a session's own rules, and what nobody can switch off, hold."""
    turns = [turn for cell in cells() for turn in cell.turns()]
    found = House(fresh_home("matrix"), {"turns": turns})
    server = {
        "command": (sys.executable, "-I", "-S", mcp_server.__file__),
        "environment": {"NOTES": str(found.home / "notes")},
    }
    config = found.home / "config.yaml"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mcp_servers": {"notes": server}}))
    found.place_program("later", LATER)
    try:
        found.start()
        rules = found.client().policies(found.create("scripted"))["items"]
        names = [rule["name"] for rule in rules if rule["scope"] == "builtin"]
        found.client().put_policies({"scope": "server", "remove": names})
        yield found
    finally:
        found.close()


@dataclass(slots=True)
class Scene:
    """One cell, in the session of its harness and path."""

    house: House
    client: Client
    session_id: str
    cell: Cell

    def done(self) -> int:
        """How often the call did its work."""
        if self.cell.path == "mcp":
            notes = self.house.home / "notes"
            return notes.read_text().split().count(self.cell.word) if notes.exists() else 0
        file = self.house.workspace / self.cell.word
        if self.cell.path == "edit":
            return file.read_text().count("more")
        return file.read_text().count("ran") if file.exists() else 0

    def play(self) -> None:
        """Prompt under the cell's rule, and see the verdict through."""
        if self.cell.path == "edit":
            (self.house.workspace / self.cell.word).write_text("once\n")
        self.command("prompt", text=f"<{self.cell.word}>")
        match self.cell.verdict:
            case "ask":
                asked = self.holds("waiting")
                self.command("resolve", approval_id=asked, decision="allow")
            case "pause":
                self.holds("paused")
                self.command("resume")
            case _:
                pass
        self.settled()
        self.check()

    def command(self, type_: str, **fields: str) -> None:
        self.client.command(self.session_id, type_, **fields)

    def settled(self) -> None:
        wait_for(lambda: self.status() == "idle", SECONDS, f"{self.cell.word} is over")

    def holds(self, status: str) -> str:
        """The approval that holds the call, while nothing of it happens."""
        wait_for(lambda: self.status() == status, SECONDS, f"{self.cell.word} is {status}")
        opened = [e for e in self.house.events(self.session_id) if e.kind == "approval.requested"]
        asked = body_of(opened[-1], ev.ApprovalRequested)
        assert asked.rule_ids == ("session.cell",) and asked.reason == self.cell.reason
        self.let_go()
        limit = time.monotonic() + WATCHED_SECONDS
        watched: Callable[[], bool] = lambda: self.done() == 0 and self.status() == status  # noqa: E731
        while time.monotonic() < limit:
            assert watched(), f"{self.cell.word} went on by itself"
            time.sleep(0.05)
        return str(opened[-1].item_id)

    def status(self) -> str:
        return str(self.client.session(self.session_id)["status"])

    def let_go(self) -> None:
        """What runs in the background may do its work from here on, if it runs."""
        if self.cell.path == "background":
            (self.house.workspace / f"{self.cell.word}.go").touch()

    def check(self) -> None:
        if self.cell.verdict == "deny":
            self.let_go()
            wait_for(self.told, SECONDS, f"the reason of {self.cell.word} reaches the model")
            assert self.done() == 0
            return
        if self.cell.path == "background":
            if self.cell.verdict == "allow":
                assert self.done() == 0, "it didn't outlive its turn"
            self.let_go()
            wait_for(lambda: self.done() == 1, SECONDS, f"{self.cell.word} ends")
            self.settled()
        assert self.done() == 1

    def told(self) -> bool:
        return any(self.cell.reason in json.dumps(request.body) for request in self.house.model.requests)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("harness", HARNESSES)
def test_every_verdict_holds(house: House, harness: str, path: str) -> None:
    if not offers(harness, path):
        for verdict in VERDICTS:
            record(find_harness(harness).versions[-1], Cell(harness, path, verdict), "not offered")
        check_not_offered(house, harness, path)
        return
    session_id, client = house.create(harness), house.client()
    version = find_harness(harness).versions[-1]
    for verdict in VERDICTS:
        cell = Cell(harness, path, verdict)
        record(version, cell, "failed")
        if verdict != "allow":
            client.command(session_id, "set_policies", policies=cell.rules())
        Scene(house, client, session_id, cell).play()
        record(version, cell, "holds")
    check_requests(house, session_id, harness, path, version)


def test_the_kept_results_are_whole() -> None:
    """What the page in docs/ is made of is a full run, on the versions that are tested now."""
    cells = {h: {f"{p} {v}": _expected(h, p) for p in PATHS for v in VERDICTS} for h in HARNESSES}
    expected = {h: {find_harness(h).versions[-1]: outcomes} for h, outcomes in cells.items()}
    assert json.loads(KEPT.read_text()) == expected, "run it anew (docs/testing.md says how)"


def _expected(harness: str, path: str) -> str:
    return "holds" if offers(harness, path) else "not offered"


def check_requests(house: House, session_id: str, harness: str, path: str, version: str) -> None:
    """The calls went the way the cell names, on the version it names."""
    events = house.events(session_id)
    assert [body_of(e, ev.HarnessStarted).version for e in events if e.kind == "harness.started"] == [version]
    called = [body_of(e, ev.ToolRequested) for e in events if e.kind == "tool.requested"]
    kinds = {action.type for body in called for action in body.actions}
    assert {"edit": "file.write", "mcp": "mcp", "subagent": "spawn"}.get(path, "exec") in kinds
    if path == "edit":
        writing = [{a.type for a in body.actions} for body in called]
        assert [types for types in writing if "file.write" in types] == [{"file.write"}] * len(VERDICTS)
    if path == "subagent":
        inner = [e for e in events if e.kind == "tool.requested" and e.parent_item_id]
        assert len(inner) == len(VERDICTS)


def check_not_offered(house: House, harness: str, path: str) -> None:
    """The agent offers its model nothing of the kind."""
    cell = Cell(harness, path, "allow")
    session_id = house.create(harness, f"<{cell.word}>")
    house.settled(session_id, SECONDS)
    assert Scene(house, house.client(), session_id, cell).done() == 0
    called = [body_of(e, ev.ToolRequested) for e in house.events(session_id) if e.kind == "tool.requested"]
    assert not {"mcp", "spawn"} & {action.type for body in called for action in body.actions}


def record(version: str, cell: Cell, outcome: str) -> None:
    if folder := os.environ.get(RESULTS):
        path = Path(folder) / cell.harness / version / f"{cell.path} {cell.verdict}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(outcome + "\n")
