"""The routes of control against a real server: policies, recorded calls, the ledger, the audit."""

import json
from pathlib import Path
from typing import Any

import pytest

from omnigent import events as ev
from omnigent.actions import Exec, Model
from omnigent.events import Draft
from omnigent.policies.language import defaults

from .conftest import Served, serving

pytestmark = pytest.mark.anyio

JSON = dict[str, Any]

PUSH = """\
policies:
  - name: push-after-install
    when: {exec: git push}
    after: {exec: ["npm install", "npm ci"]}
    then: ask
    reason: Dependencies changed before this push.
"""
NO_CURL = "policies:\n  - name: no-curl\n    when: {exec: curl}\n    then: deny\n"
ASK_CURL = NO_CURL.replace("deny", "ask")


def requested(item: str, command: str) -> Draft:
    words = command.split()
    action = Exec(
        command=command, argv=tuple(words), program=words[0], words=tuple(words[1:]), sole=True, everyday=True
    )
    body = ev.ToolRequested(
        tool="bash", title=command, actions=(action,), parsed="full", raw="{}", native_id=item
    )
    return Draft(body, item, turn_id="turn_1")


def done(item: str) -> Draft:
    return Draft(ev.ToolCompleted(outcome="ok", exit_code=0), item, turn_id="turn_1")


def used(call: str, model: str, cost: int | None, **more: Any) -> Draft:
    fields: JSON = {"source": "gateway", "scope": "call", "billing": "metered", "input_tokens": 100} | more
    return Draft(ev.UsageReported(call_id=call, model=model, cost_nanousd=cost, **fields))


async def recorded(served: Served, *drafts: Draft, **fields: Any) -> str:
    """A session whose log has these."""
    session_id: str = (await served.session(**fields))["id"]
    if drafts:
        await served.sessions.log.append(session_id, drafts, producer="test")
    return session_id


async def put(served: Served, scope: str, text: str = "", **more: Any) -> tuple[int, JSON]:
    return await served.ask("PUT", "/v1/policies", {"scope": scope, "policies": text, **more})


# What the rules are.


async def test_what_is_applied_is_listed_by_scope_with_its_author(served: Served) -> None:
    status, change = await put(served, "project", NO_CURL, key=str(served.workspace))
    assert (status, change) == (
        200, {"added": ["project.no-curl"], "removed": [], "changed": [], "loosens": False},
    )  # fmt: skip
    assert (await put(served, "user", PUSH))[0] == 200
    _, listed = await served.ask("GET", "/v1/policies")
    assert [(row["scope"], row["key"]) for row in listed["items"]] == [
        ("builtin", ""), ("user", "local"), ("project", str(served.workspace)),
    ]  # fmt: skip
    builtin, user, project = listed["items"]
    assert [row["name"] for row in builtin["policies"]] == [entry.name for entry in defaults()]
    assert project["actor"]["kind"] == "person" and project["at"] > 0
    assert user["policies"][0]["rule"]["then"] == "ask"
    assert project["policies"] == [
        {
            "name": "no-curl",
            "scope": "project",
            "rule": {"name": "no-curl", "when": {"exec": "curl"}, "then": "deny"},
            "description": "run curl: deny",
        }
    ]
    assert listed["proposed"] is None


async def test_a_new_session_shows_all_that_binds_it(served: Served) -> None:
    await put(served, "server", NO_CURL)
    session_id = (await served.session(policies=PUSH))["id"]
    _, shown = await served.ask("GET", f"/v1/policies?session={session_id}")
    scopes = [(row["scope"], row["name"]) for row in shown["items"]]
    assert scopes[-2:] == [("server", "no-curl"), ("session", "push-after-install")]
    assert {"builtin"} == {scope for scope, _ in scopes[:-2]}
    assert shown["items"][-1]["description"] == (
        "run git push after run npm install | npm ci: ask (Dependencies changed before this push.)"
    )


async def test_the_rulebook_is_there_after_a_restart(tmp_path: Path) -> None:
    home, workspace = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    workspace.mkdir()
    async with serving(home, workspace) as served:
        await put(served, "server", NO_CURL)
    async with serving(home, workspace) as served:
        session_id = (await served.session())["id"]
        _, shown = await served.ask("GET", f"/v1/policies?session={session_id}")
        assert shown["items"][-1]["name"] == "no-curl"


async def test_a_projects_own_file_is_only_proposed(served: Served) -> None:
    session_id = (await served.session())["id"]
    path = served.workspace / ".omnigent" / "policies.yaml"
    path.parent.mkdir()
    path.write_text(NO_CURL)
    key = str(served.workspace)
    _, listed = await served.ask("GET", f"/v1/policies?workspace={key}")
    assert listed["proposed"] == {
        "path": str(path), "differs": True, "error": None, "added": ["project.no-curl"], "removed": [],
        "changed": [], "loosens": False,
        "commands": ["omnigent policy add .omnigent/policies.yaml --scope project"],
    }  # fmt: skip
    _, shown = await served.ask("GET", f"/v1/policies?session={session_id}")
    assert shown["proposed"]["differs"] is True
    assert "no-curl" not in [row["name"] for row in shown["items"]]

    await put(served, "project", NO_CURL, key=key)
    _, listed = await served.ask("GET", f"/v1/policies?workspace={key}")
    assert (listed["proposed"]["differs"], listed["proposed"]["commands"]) == (False, [])

    path.write_text("policies: []\n")
    _, listed = await served.ask("GET", f"/v1/policies?workspace={key}")
    assert (listed["proposed"]["removed"], listed["proposed"]["loosens"]) == (["project.no-curl"], True)
    assert listed["proposed"]["commands"] == ["omnigent policy rm no-curl --scope project"]

    path.write_text("policies: [{name: x}]\n")
    _, listed = await served.ask("GET", f"/v1/policies?workspace={key}")
    assert "1:12" in listed["proposed"]["error"] and listed["proposed"]["commands"] == []


async def test_a_change_is_previewed_and_reaches_sessions_that_are_there(served: Served) -> None:
    session_id = (await served.session())["id"]
    await put(served, "server", NO_CURL)
    _, change = await served.ask("POST", "/v1/policies/diff", {"scope": "server", "policies": ASK_CURL})
    assert (change["changed"], change["loosens"]) == (["server.no-curl"], True)
    _, change = await served.ask(
        "POST", "/v1/policies/diff", {"scope": "server", "remove": ["server.no-curl"]}
    )
    assert (change["removed"], change["loosens"]) == (["server.no-curl"], True)
    body = {"scope": "session", "key": session_id, "policies": PUSH}
    _, change = await served.ask("POST", "/v1/policies/diff", body)
    assert (change["added"], change["loosens"]) == (["session.push-after-install"], False)
    _, listed = await served.ask("GET", "/v1/policies")
    assert [row["name"] for row in listed["items"][1]["policies"]] == ["no-curl"]
    assert listed["items"][1]["policies"][0]["rule"]["then"] == "deny"


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        ({"scope": "session", "key": "ses_1", "policies": NO_CURL}, 422, "unprocessable", "set_policies"),
        ({"scope": "project", "policies": NO_CURL}, 422, "unprocessable", "absolute path"),
        ({"scope": "server", "key": "x", "policies": NO_CURL}, 422, "unprocessable", "Leave `key` out"),
        ({"scope": "planet", "policies": NO_CURL}, 400, "malformed", "server"),
        ({"scope": "server", "remove": ["nothing"]}, 404, "not_found", "There is"),
        ({"scope": "server", "polices": NO_CURL}, 400, "malformed", "openapi"),
    ],
)
async def test_a_wrong_change_is_told_its_mend(
    served: Served, body: JSON, status: int, code: str, told: str
) -> None:
    found, problem = await served.ask("PUT", "/v1/policies", body)
    assert (found, problem["code"]) == (status, code), problem
    assert told in json.dumps(problem)


async def test_a_text_is_checked_with_its_place(served: Served) -> None:
    status, found = await served.ask("POST", "/v1/policies/check", {"policies": PUSH + NO_CURL[10:]})
    assert (status, [row["name"] for row in found["items"]]) == (200, ["push-after-install", "no-curl"])
    wrong = {"policies": NO_CURL.replace("when", "wen")}
    status, problem = await served.ask("POST", "/v1/policies/check", wrong)
    assert (status, problem["code"], problem["line"], problem["column"]) == (422, "policy_invalid", 3, 5)
    assert "when" in problem["hint"]


# Recorded calls.


async def test_rules_are_tried_on_a_recorded_session_and_on_its_exported_events(served: Served) -> None:
    session_id = await recorded(
        served, requested("tc_1", "npm ci"), done("tc_1"), requested("tc_2", "git push"), done("tc_2")
    )
    status, found = await served.ask(
        "POST", "/v1/policies/test", {"policies": PUSH, "session_id": session_id}
    )
    assert (status, found["counts"]) == (200, {"allow": 1, "ask": 1, "pause": 0, "deny": 0})
    last = found["items"][-1]
    assert (last["item_id"], last["verdict"], last["rule_ids"]) == (
        "tc_2", "ask", ["session.push-after-install"],
    )  # fmt: skip
    _, page = await served.ask("GET", f"/v1/sessions/{session_id}/events?limit=1000")
    status, again = await served.ask(
        "POST", "/v1/policies/test", {"policies": PUSH, "events": page["events"]}
    )
    assert (status, again) == (200, found)
    both: JSON = {"policies": PUSH, "session_id": session_id, "events": []}
    for body in ({"policies": PUSH}, both):
        status, problem = await served.ask("POST", "/v1/policies/test", body)
        assert (status, problem["path"]) == (400, "events")
    status, problem = await served.ask("POST", "/v1/policies/test", {"policies": PUSH, "events": [{"x": 1}]})
    assert (status, problem["detail"].startswith("events.0:")) == (400, True)
    status, problem = await served.ask(
        "POST", "/v1/policies/test", {"policies": "x", "session_id": session_id}
    )
    assert (status, problem["code"]) == (422, "policy_invalid")


async def test_a_replay_says_what_todays_rules_would_have_said(served: Served) -> None:
    session_id = await recorded(served, requested("tc_1", "curl http://x"), approvals="yes")
    _, found = await served.ask("POST", f"/v1/sessions/{session_id}/replay", {})
    assert [row["verdict"] for row in found["items"]] == ["allow"]
    await put(served, "server", NO_CURL)
    _, found = await served.ask("POST", f"/v1/sessions/{session_id}/replay", {})
    assert [(row["verdict"], row["rule_ids"]) for row in found["items"]] == [("deny", ["server.no-curl"])]
    more = NO_CURL.replace("no-curl", "mine")
    _, found = await served.ask("POST", f"/v1/sessions/{session_id}/replay", {"policies": more})
    assert found["items"][0]["rule_ids"] == ["server.no-curl", "session.mine"]
    status, _ = await served.ask("POST", "/v1/sessions/ses_unknown/replay", {})
    assert status == 404


async def test_an_explanation_names_the_rule_and_the_events_it_looks_back_at(served: Served) -> None:
    asked = ev.ApprovalRequested(
        call_id="tc_3", actions=(), action_sha256="", title="git push", reason="r", expires_at=1 << 50
    )
    session_id = await recorded(
        served,
        requested("tc_1", "npm ci"),
        done("tc_1"),
        requested("tc_2", "npm install"),
        Draft(ev.PolicyDecided(verdict="deny", rule_ids=("x",), reason="no"), "tc_2"),
        requested("tc_3", "git push"),
        Draft(ev.PolicyDecided(verdict="ask", rule_ids=("session.push-after-install",), reason="r"), "tc_3"),
        Draft(asked, "ap_1"),
        policies=PUSH,
    )
    for item in ("tc_3", "ap_1"):
        status, found = await served.ask("GET", f"/v1/sessions/{session_id}/explain?item={item}")
        assert (status, found["item_id"], found["verdict"]) == (200, "tc_3", "ask")
        named = {row["name"]: row for row in found["rules"]}
        assert named["push-after-install"]["scope"] == "session"
        assert [row["title"] for row in found["after"]] == ["npm ci"]
        assert found["after"][0]["session_id"] == session_id
        _, page = await served.ask("GET", f"/v1/sessions/{session_id}/events?limit=1000")
        (event,) = [one for one in page["events"] if one["seq"] == found["after"][0]["seq"]]
        assert event["body"]["title"] == "npm ci"
        assert found["recorded_verdict"]["verdict"] == "ask"
        assert found["approval"]["id"] == "ap_1" and found["approval"]["status"] == "open"
        assert any("push-after-install" in fact for fact in found["facts"])
        assert found["actions"][0]["command"] == "git push"
    for item in ("tc_none", "", session_id):
        status, problem = await served.ask("GET", f"/v1/sessions/{session_id}/explain?item={item}")
        assert (status, problem["code"]) == (404, "not_found"), problem


async def test_a_model_call_is_explained_too(served: Served) -> None:
    model = Model(wire="messages", provider="p", model="m", estimate_nanousd=5_000_000_000, bounded=True)
    rule = "policies:\n  - {name: three, when: {spend_usd: 3.0, model: '*'}, then: pause}\n"
    stopped = ev.PolicyDecided(verdict="pause", rule_ids=("session.three",), reason="r", action=model)
    session_id = await recorded(served, Draft(stopped, "call_1"), policies=rule)
    status, found = await served.ask("GET", f"/v1/sessions/{session_id}/explain?item=call_1")
    assert (status, found["kind"], found["verdict"]) == (200, "model", "pause")
    assert [row["name"] for row in found["rules"]] == ["three"]


# The ledger and the audit.


async def test_usage_is_summed_and_an_unknown_price_is_null(served: Served) -> None:
    session_id = await recorded(
        served,
        used("call_1", "m-1", 1_500_000_000),
        used("call_2", "m-2", None),
        used("call_3", "m-3", 2_000_000_000, billing="subscription"),
    )
    _, found = await served.ask("GET", "/v1/usage?by=model")
    rows = {row["key"]: row for row in found["items"]}
    assert (rows["m-1"]["cost_usd"], rows["m-1"]["unknown_calls"]) == (1.5, 0)
    assert (rows["m-2"]["cost_usd"], rows["m-2"]["unknown_calls"]) == (None, 1)
    assert rows["m-3"]["notional_usd"] == 2.0 and not rows["m-3"]["cost_usd"]
    assert rows["m-1"]["input_tokens"] == 100
    for by in ("day", "project", "harness", "user", "session", "provider"):
        _, found = await served.ask("GET", f"/v1/usage?by={by}&session={session_id}")
        assert sum(row["calls"] for row in found["items"]) == 3
    _, found = await served.ask("GET", "/v1/usage?until=1")
    assert found["items"] == []
    status, problem = await served.ask("GET", "/v1/usage?by=week")
    assert (status, "day" in problem["allowed"]) == (400, True)
    status, _ = await served.ask("GET", "/v1/usage?session=ses_unknown")
    assert status == 404


async def test_both_chains_are_exported_and_verified(served: Served) -> None:
    session_id = await recorded(served)
    await served.sessions.audit.note(session_id, [requested("tc_1", "ls")])
    status, found = await served.ask("GET", f"/v1/sessions/{session_id}/audit/verify")
    assert (status, found["ok"], found["session"]["broken_at"]) == (200, True, None)
    assert found["audit"] == {"events": 1, "broken_at": None}
    url = f"{served.url}/v1/sessions/{session_id}/audit"
    async with served.client.get(url, headers={"Authorization": f"Bearer {served.token}"}) as response:
        lines = [json.loads(line) for line in (await response.text()).splitlines()]
    assert {line["log"] for line in lines} == {"session", "audit"}
    await put(served, "server", NO_CURL)
    _, house = await served.ask("GET", "/v1/sessions/org_local/audit/verify")
    assert house == {"ok": True, "session": None, "audit": {"events": 1, "broken_at": None}}
    status, _ = await served.ask("GET", "/v1/sessions/ses_unknown/audit/verify")
    assert status == 404
