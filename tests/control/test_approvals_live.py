"""Approvals on a real server with the real agents: whatever dies or happens meanwhile, an approval that was
asked for is not lost, and the call it is about runs at most once.

A rule of the session asks for `echo`; each test has a file of its own that the command adds a line to.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from support import JSON, MODELS, House, body_of, fresh_home, wait_for

from omnigent import events as ev
from omnigent.errors import Conflict
from omnigent.testing.scripted_model import history_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HARNESSES = ("scripted", "claude-code", "codex", "pi")
RULE = """\
policies:
  - name: echoes
    when: {exec: echo}
    then: ask
    reason: Somebody should look at this.
"""
SOON = RULE.replace("then: ask", "then: ask\n    expires: 3s")


def command(name: str) -> str:
    return f"echo ran >> {name}.txt"


def runs(*commands: str) -> list[JSON]:
    """A step for each command."""
    return [{"tools": [{"tool": "$shell", "input": {"command": each}}]} for each in commands]


def turn(name: str, *commands: str) -> JSON:
    return {"match": f"<{name}>", "steps": [*runs(*(commands or (command(name),))), {"text": "done"}]}


ONCE = (
    "killed",
    "away",
    "interrupted",
    "switched",
    "stopped",
    "forked",
    "race",
    "expires",
    "refused",
    "late",
)
TURNS: list[JSON] = [
    # Of an agent that was started again by an answer. The first match counts.
    {
        "match": "A person has now allowed it",
        "steps": [*runs(command("revived"), command("revived")), {"text": "done"}],
    },
    {"match": "A person has denied it", "steps": [{"text": "Then not."}]},
    turn("revived"),
    turn("not-revived"),
    *(turn(name) for name in ONCE),
    turn("session", command("session"), command("session"), "echo other >> session.txt"),
    turn("pattern", command("pattern"), "echo ran twice >> pattern.txt", "echo other >> pattern.txt"),
    turn("edit"),
    turn("thrice", *[command("thrice")] * 4),
    turn("compound", "true && cat README.md && " + command("compound")),
    turn("parts", command("parts"), "echo ran first >> parts.txt && echo ran second >> parts.txt"),
    {"match": "<hello>", "steps": [{"text": "Hello."}]},
]


@pytest.fixture(scope="module", params=HARNESSES)
def lab(request: pytest.FixtureRequest) -> Generator[tuple[House, str]]:
    """A server with this module's script, where only the sessions' own rules hold."""
    house = House(fresh_home(f"approvals-{request.param}"), {"turns": TURNS})
    house.start()
    rules = house.client().policies(house.create("scripted"))["items"]
    names = [rule["name"] for rule in rules if rule["scope"] == "builtin"]
    house.client().put_policies({"scope": "server", "remove": names})
    yield house, request.param
    house.close()


class Case:
    """One session that runs a turn of the script."""

    def __init__(self, lab: tuple[House, str], name: str, policies: str = RULE) -> None:
        self.house, self.harness = lab
        self.name = name
        self.id = self.house.create(self.harness, f"<{name}> please", policies=policies)

    def asked(self, count: int = 1) -> str:
        """The id of the `count`-th approval, once it is asked for."""
        event = self.house.await_kind(self.id, "approval.requested", 60, count)
        assert event.item_id is not None
        return event.item_id

    def ends(self) -> float:
        """When the first approval's time is over, in seconds since 1970."""
        event = self.house.await_kind(self.id, "approval.requested")
        return body_of(event, ev.ApprovalRequested).expires_at / 1000

    def answer(self, approval: str, decision: str = "allow", **more: Any) -> JSON:
        return self.house.client().command(
            self.id, "resolve", approval_id=approval, decision=decision, **more
        )

    def late(self, approval: str) -> dict[str, Any]:
        """What one is told who answers when it is too late."""
        with pytest.raises(Conflict) as refused:
            self.answer(approval)
        return refused.value.facts

    def settled(self) -> JSON:
        return self.house.settled(self.id, 60)

    def completed(self) -> None:
        assert self.settled()["last_turn"]["outcome"] == "completed"

    def lines(self) -> int:
        """How often the command ran."""
        path: Path = self.house.workspace / f"{self.name}.txt"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def count(self, kind: str) -> int:
        return self.house.kinds(self.id).count(kind)

    def item(self, item_id: str) -> JSON:
        rows = self.house.client().items(self.id, limit=200)["items"]
        return next(row for row in rows if row["id"] == item_id)

    def kill_all(self) -> None:
        """Server, runner and agent, at once."""
        pid, _ = self.house.leases()[self.id]
        self.house.kill()
        os.kill(pid, signal.SIGKILL)
        self.house.nothing_runs(self.id, 10)

    def open_here(self) -> list[JSON]:
        """What somebody sees who connects now."""
        inbox = self.house.client().inbox()
        return [dict(row["item"]) for row in inbox if row["session_id"] == self.id]


# Kills.


def test_server_killed_while_held_and_answered_by_another(lab: tuple[House, str]) -> None:
    case = Case(lab, "killed")
    approval = case.asked()
    case.house.kill()
    case.house.restart()
    (seen,) = case.open_here()
    assert (seen["id"], seen["detached"]) == (approval, False)
    case.answer(approval)
    case.completed()
    assert case.lines() == 1
    assert (case.count("approval.requested"), case.count("harness.started")) == (1, 1)


def test_server_and_runner_killed_while_held_the_answer_revives_the_agent(lab: tuple[House, str]) -> None:
    """It proposes the call again, which runs without a second ask; a third proposal asks."""
    case = Case(lab, "revived")
    approval = case.asked()
    case.kill_all()
    case.house.restart()
    wait_for(lambda: [row for row in case.open_here() if row["detached"]], 30, "a detached approval")
    assert case.house.session(case.id)["status"] == "waiting"
    case.answer(approval)
    third = case.asked(2)
    assert case.lines() == 1
    assert case.count("harness.started") == 2
    calls = [event.item_id for event in case.house.events(case.id) if event.kind == "tool.requested"]
    assert len(calls) == len(set(calls)) == 3
    case.answer(third, "deny")
    case.completed()
    assert case.lines() == 1


def test_server_and_runner_killed_while_held_and_denied(lab: tuple[House, str]) -> None:
    case = Case(lab, "not-revived")
    approval = case.asked()
    case.kill_all()
    case.house.restart()
    wait_for(lambda: [row for row in case.open_here() if row["detached"]], 30, "a detached approval")
    case.answer(approval, "deny", reason="never on a friday")
    case.house.await_kind(case.id, "turn.completed", 60)
    assert case.lines() == 0
    said = [item.text for item in history_of(case.house.model.requests[-1]) if item.role == "user"]
    assert any("never on a friday" in text for text in said)


# Ends without an answer.


def _interrupt(case: Case) -> None:
    case.house.client().command(case.id, "interrupt")


def _switch(case: Case) -> None:
    other = "pi" if case.harness != "pi" else "claude-code"
    provider, model = MODELS[other]
    case.house.client().command(case.id, "switch", harness=other, provider=provider, model=model, now=True)


def _stop(case: Case) -> None:
    case.house.client().command(case.id, "stop")


ENDS: list[tuple[str, Callable[[Case], None], str]] = [
    ("interrupted", _interrupt, "interrupted"),
    ("switched", _switch, "switched"),
    ("stopped", _stop, "closed"),
]


@pytest.mark.parametrize(("name", "act", "by"), ENDS, ids=[name for name, _, _ in ENDS])
def test_what_ends_a_held_call_is_told_to_a_late_answer(
    lab: tuple[House, str], name: str, act: Callable[[Case], None], by: str
) -> None:
    case = Case(lab, name)
    approval = case.asked()
    act(case)
    told = case.late(approval)
    assert (told["current"], told["cancelled_by"]) == ("cancelled", by)
    case.settled()
    assert case.open_here() == []
    assert case.lines() == 0


def test_a_fork_made_while_held_inherits_no_approval(lab: tuple[House, str]) -> None:
    case = Case(lab, "forked")
    approval = case.asked()
    client = case.house.client()
    head = case.house.session(case.id)["last_seq"]
    fork = client.fork(case.id, {"at_seq": head, "share_workspace": True})
    assert fork["status"] == "idle"
    (inherited,) = [row for row in client.items(fork["id"])["items"] if row["type"] == "approval"]
    assert (inherited["id"], inherited["status"]) == (approval, "cancelled")
    with pytest.raises(Conflict):
        client.command(fork["id"], "resolve", approval_id=approval, decision="allow")
    assert [row["id"] for row in case.open_here()] == [approval]
    case.answer(approval)
    case.completed()
    assert case.lines() == 1


def test_two_answers_at_the_same_instant(lab: tuple[House, str]) -> None:
    case = Case(lab, "race")
    approval = case.asked()
    clients = [case.house.client(), case.house.client()]
    line = threading.Barrier(len(clients))
    told: list[JSON | Conflict] = []

    def answer(place: int) -> None:
        line.wait()
        try:
            told.append(clients[place].command(case.id, "resolve", approval_id=approval, decision="allow"))
        except Conflict as late:
            told.append(late)

    threads = [threading.Thread(target=answer, args=(place,)) for place in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (late,) = [each for each in told if isinstance(each, Conflict)]
    assert late.facts["current"] == "allowed"
    (resolved,) = [event for event in case.house.events(case.id) if event.kind == "approval.resolved"]
    assert late.facts["by"] == resolved.actor.model_dump()
    assert resolved.actor.kind == "person"
    case.completed()
    assert case.lines() == 1


def test_an_approval_that_expires_denies_and_the_model_is_told(lab: tuple[House, str]) -> None:
    case = Case(lab, "expires", SOON)
    approval = case.asked()
    case.completed()
    assert case.late(approval)["current"] == "expired"
    assert case.lines() == 0
    assert in_last_request(case, "Nobody answered in time")


def test_an_approval_that_expired_while_all_was_down_denies(lab: tuple[House, str]) -> None:
    case = Case(lab, "late", SOON)
    approval, ends = case.asked(), case.ends()
    case.kill_all()
    wait_for(lambda: time.time() > ends, 30, "the approval's time is over")
    case.house.restart()
    assert case.late(approval)["current"] == "expired"
    assert case.open_here() == []
    assert case.lines() == 0
    assert case.count("harness.started") == 1


def test_an_approval_that_expired_while_the_server_was_down_denies_the_call_its_runner_holds(
    lab: tuple[House, str],
) -> None:
    case = Case(lab, "away", SOON)
    approval, ends = case.asked(), case.ends()
    case.house.kill()
    wait_for(lambda: time.time() > ends, 30, "the approval's time is over")
    case.house.restart()
    assert case.late(approval)["current"] == "expired"
    case.completed()
    assert case.lines() == 0
    assert case.count("harness.started") == 1


def test_the_configuration_says_when_an_approval_expires() -> None:
    house = House(fresh_home("expiry"), {"turns": TURNS})
    try:
        path = house.home / "config.yaml"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"approvals": {"expire_seconds": 2}}))
        house.start()
        case = Case((house, "scripted"), "expires")
        approval = case.asked()
        case.completed()
        assert case.late(approval)["current"] == "expired"
        assert case.lines() == 0
    finally:
        house.close()


# Answers with more to them.


def in_last_request(case: Case, text: str) -> bool:
    """Whether the model was told, beside what else it was."""
    return any(text in item.text for item in history_of(case.house.model.requests[-1]))


def test_a_denial_reaches_the_model_with_its_reason(lab: tuple[House, str]) -> None:
    case = Case(lab, "refused")
    case.answer(case.asked(), "deny", reason="use the printer instead")
    case.completed()
    assert case.lines() == 0
    assert in_last_request(case, "use the printer instead")


def test_who_connects_afterwards_sees_what_is_open(lab: tuple[House, str]) -> None:
    case = Case(lab, "refused")
    approval = case.asked()
    (seen,) = case.open_here()
    assert (seen["id"], seen["rule_ids"]) == (approval, ["session.echoes"])
    assert "Somebody should look at this." in seen["reason"]
    assert case.house.session(case.id)["pending"]["approvals"] == 1
    case.answer(approval, "deny")
    assert case.open_here() == []
    assert case.item(approval)["by"]["kind"] == "person"
    case.completed()


def test_an_allow_for_the_session_is_for_that_call_and_ends_when_revoked(lab: tuple[House, str]) -> None:
    case = Case(lab, "session")
    case.answer(case.asked(), grant={"scope": "session"})
    other = case.asked(2)  # the second call passed, the third is another
    assert case.lines() == 2
    (grant,) = case.house.session(case.id)["grants"]
    case.house.client().command(case.id, "revoke_grant", grant_id=grant["grant_id"])
    assert case.house.session(case.id)["grants"] == []
    case.answer(other, "deny")
    case.completed()
    case.house.prompt(case.id, "<session> again")
    case.asked(3)
    _interrupt(case)
    case.settled()
    assert case.lines() == 2


def test_an_allow_for_a_pattern_covers_what_it_says(lab: tuple[House, str]) -> None:
    case = Case(lab, "pattern")
    approval = case.asked()
    offered = case.item(approval)["patterns"]
    assert "exec: echo ran *" in offered
    case.answer(approval, grant={"scope": "pattern", "pattern": "exec: echo ran *"})
    case.answer(case.asked(2), "deny")
    case.completed()
    assert case.lines() == 2
    (grant,) = case.house.session(case.id)["grants"]
    assert grant["pattern"] == "exec: echo ran *"


def test_an_edited_command_runs_instead_where_the_harness_takes_one(lab: tuple[House, str]) -> None:
    case = Case(lab, "edit")
    approval = case.asked()
    offers = bool(case.item(approval)["edit"])
    assert offers == case.house.session(case.id)["capabilities"]["rewrites"]
    if offers:
        case.answer(approval, edited="printf 'one\\ntwo\\nthree\\n' >> edit.txt")
    else:
        case.answer(approval)
    case.completed()
    assert case.lines() == (3 if offers else 1)


def test_three_identical_denied_calls_end_the_turn(lab: tuple[House, str]) -> None:
    case = Case(lab, "thrice")
    for count in (1, 2, 3):
        case.answer(case.asked(count), "deny", reason="no")
    last = case.settled()["last_turn"]
    assert (last["outcome"], last["code"]) == ("failed", "denied_repeatedly")
    assert case.count("approval.requested") == 3
    assert case.lines() == 0
    case.house.prompt(case.id, "<hello>")
    case.house.await_kind(case.id, "turn.completed", 60)


def test_of_a_compound_command_the_part_that_is_asked_about_is_named(lab: tuple[House, str]) -> None:
    case = Case(lab, "compound")
    approval = case.asked()
    item = case.item(approval)
    asked = [item["actions"][place] for place in item["asked"]]
    assert [action["program"] for action in asked] == ["echo"]
    assert len(item["actions"]) > 2
    case.answer(approval)
    case.completed()
    assert case.lines() == 1


def test_a_compound_command_passes_when_each_of_its_parts_does(lab: tuple[House, str]) -> None:
    case = Case(lab, "parts")
    case.answer(case.asked(), grant={"scope": "pattern", "pattern": "exec: echo ran *"})
    case.completed()
    assert case.count("approval.requested") == 1
    assert case.lines() == 3
