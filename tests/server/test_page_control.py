"""Control in a real browser: approvals, money, pauses, grants. The page, the server and the log are real.

No agent runs here: what one would have led to is appended as events, and what the page then sends is looked
at on its way. `test_page.py` has the same page before a real agent.
"""

import asyncio
import json
import re
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from omnigent import events as ev
from omnigent.actions import Exec, FileRead, Net
from omnigent.client import Client
from omnigent.events import JSON, Draft
from omnigent.ids import new_id, now

from .browser import SIZES, fits, open_browser, open_page
from .conftest import CONFIG, Served, serving

HOUR = 3_600_000
PUSH = "npm ci && cat .env && git push origin main"


class Hall:
    """A server in a thread of its own: this one is Playwright's."""

    def __init__(self, home: Path, workspace: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._serving = serving(home, workspace, dict(CONFIG))
        self.served: Served = self.run(self._serving.__aenter__())
        self.client = Client(self.served.url, self.served.token, via="cli")
        self._appended: dict[str, int] = {}

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self.client.close()
        self.run(self._serving.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def session(self, title: str = "A task") -> str:
        return self.run(self.served.session(title=title))["id"]

    def link(self, session_id: str) -> str:
        return f"{self.served.url}/s/{session_id}#token={self.served.token}"

    def add(self, session_id: str, *drafts: Draft) -> None:
        """What a runner would have told."""
        first = self._appended.get(session_id, 0) + 1
        self._appended[session_id] = first + len(drafts) - 1
        self.run(self._add(session_id, first, list(drafts)))

    async def _add(self, session_id: str, first: int, drafts: list[Draft]) -> None:
        session = await self.served.sessions.get(session_id)
        await session.ingest("hall", 0, first, drafts)

    def ask(self, session_id: str, **fields: Any) -> str:
        """Raise an approval; its id."""
        approval_id = new_id("ap")
        self.add(session_id, Draft(asking(**fields), approval_id))
        return approval_id

    def bodies(self, session_id: str, kind: str) -> list[JSON]:
        return [event["body"] for event in self.client.events(session_id, kinds=kind)["events"]]


def asking(**fields: Any) -> ev.ApprovalRequested:
    env = FileRead(path=".env", real_path="/work/.env", in_workspace=True)
    actions = (
        Exec(command="npm ci", argv=("npm", "ci")),
        Exec(command="cat .env", argv=("cat", ".env")),
        env,
        Exec(
            command="git push origin main",
            argv=("git", "push", "origin", "main"),
            program="git",
            words=("push", "origin", "main"),
        ),
        Net(method="", url="", host="git.example.org"),
    )
    given: JSON = {
        "call_id": new_id("tc"),
        "actions": actions,
        "action_sha256": "0" * 64,
        "title": PUSH,
        "reason": "Dependencies changed before this push.",
        "rule_ids": ("push-after-install",),
        "asked": (3,),
        "expires_at": now() + 2 * HOUR - 1000,
        "patterns": ("exec: git push origin main", "exec: git push"),
        "edit": PUSH,
    }
    return ev.ApprovalRequested.model_validate(given | fields)


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    base = tmp_path_factory.mktemp("hall")
    for name in ("home", "work"):
        (base / name).mkdir()
    served = Hall(base / "home", base / "work")
    yield served
    served.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    with open_page(browser, request.param) as found:
        yield found


@pytest.fixture
def sent(page: Page) -> list[JSON]:
    """The commands that leave the page, in order."""
    found: list[JSON] = []

    def note(request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/commands"):
            assert request.post_data
            found.append(json.loads(request.post_data))

    page.on("request", note)
    return found


def _said(commands: list[JSON]) -> list[JSON]:
    """Commands without their keys."""
    return [{name: value for name, value in one.items() if name != "idempotency_key"} for one in commands]


def _card(page: Page) -> Locator:
    return page.get_by_role("group", name="Approval needed")


# Approvals.


@pytest.mark.slow
def test_a_card_says_what_asks_and_why(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    hall.ask(session_id)
    page.goto(hall.link(session_id))
    card = _card(page)
    expect(card.locator("pre")).to_have_text(f"$ {PUSH}")
    parts = card.get_by_role("list", name="Parts of the call").get_by_role("listitem")
    expect(parts).to_have_text(
        [
            re.compile(r"runs\s*npm ci\s*passes"),
            re.compile(r"runs\s*cat \.env\s*passes"),
            re.compile(r"reads\s*/work/\.env\s*passes"),
            re.compile(r"runs\s*git push origin main\s*asks"),
            re.compile(r"connects\s*git\.example\.org\s*passes"),
        ]
    )
    expect(card).to_contain_text("Dependencies changed before this push.")
    expect(card.locator(".rules")).to_have_text("Rule: push-after-install")
    expect(card).to_contain_text("May be answered by: owner.")
    expect(card).to_contain_text("Expires in 2 h, then it is denied.")
    expect(page).to_have_title("(1) A task · Omnigent")
    fits(page)


@pytest.mark.slow
def test_what_is_not_understood_is_said(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    whole = "eval <b>$x</b>"
    doubt = Exec(command=whole, doubt="What eval runs can't be told.")
    hall.ask(session_id, actions=(doubt,), title=whole, edit="", patterns=(), asked=())
    page.goto(hall.link(session_id))
    expect(_card(page).locator("pre")).to_have_text(f"$ {whole}")
    expect(_card(page)).to_contain_text("What eval runs can't be told.")
    expect(_card(page).get_by_text("Allow by a pattern")).to_have_count(0)
    expect(_card(page).get_by_text("Edit before allowing")).to_have_count(0)
    assert page.locator("#items b").count() == 0


@pytest.mark.slow
def test_a_pattern_is_shown_and_may_be_changed(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    approval_id = hall.ask(session_id)
    page.goto(hall.link(session_id))
    page.get_by_text("Allow by a pattern").click()
    text = page.get_by_label("Pattern", exact=True)
    expect(text).to_have_value("exec: git push origin main")
    page.get_by_label("Suggested patterns").select_option("exec: git push")
    expect(text).to_have_value("exec: git push")
    text.fill("exec: npm *")
    page.get_by_role("button", name="Allow pattern").click()
    expect(_card(page).get_by_role("alert")).to_contain_text("doesn't cover this call")
    expect(text).to_have_value("exec: npm *")
    sent.clear()
    text.fill("exec: git push origin *")
    expect(page.get_by_label("How long")).to_have_value("")
    page.get_by_label("How long").select_option("for 8 hours")
    fits(page)
    page.get_by_role("button", name="Allow pattern").click()
    expect(page.locator(".settled")).to_contain_text("Allowed for “exec: git push origin *” until")
    [command] = _said(sent)
    until = command["grant"].pop("until")
    assert abs(until - now() - 8 * HOUR) < 120_000
    grant = {"scope": "pattern", "pattern": "exec: git push origin *"}
    assert command == {
        "type": "resolve",
        "approval_id": approval_id,
        "decision": "allow",
        "grant": grant,
    }
    [resolved] = hall.bodies(session_id, "approval.resolved")
    assert resolved["grant"] == {**grant, "until": until}


@pytest.mark.slow
def test_the_command_is_edited_before_it_is_allowed(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    approval_id = hall.ask(session_id)
    page.goto(hall.link(session_id))
    page.get_by_text("Edit before allowing").click()
    text = page.get_by_label("Command to run instead")
    expect(text).to_have_value(PUSH)
    text.fill("git push --dry-run")
    page.get_by_role("button", name="Allow as edited").click()
    expect(page.locator(".settled")).to_contain_text("Changed to git push --dry-run")
    edited = {"type": "resolve", "approval_id": approval_id, "decision": "allow"}
    assert _said(sent) == [edited | {"edited": "git push --dry-run"}]


@pytest.mark.slow
def test_a_double_click_sends_once(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    hall.ask(session_id)
    page.goto(hall.link(session_id))
    page.get_by_role("button", name="Allow for the session").dblclick()
    settled = page.locator(".settled")
    expect(settled).to_contain_text("Allowed for the session by local")
    expect(settled).to_contain_text("through the web page")
    expect(page).to_have_title("A task · Omnigent")
    assert len(sent) == 1


@pytest.mark.slow
def test_an_answer_that_got_lost_is_the_same_answer_when_given_again(
    page: Page, hall: Hall, sent: list[JSON]
) -> None:
    """The server took it, the page never heard so: pressed again it is a replay, not a conflict."""
    session_id = hall.session()
    hall.ask(session_id)
    page.goto(hall.link(session_id))
    page.get_by_role("button", name="Deny").is_visible()
    drops = iter([True, True])

    def drop(route: Route) -> None:
        if next(drops, False):
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.route("**/commands", drop)
    page.get_by_label("Reason for a denial").fill("not now")
    page.keyboard.press("Enter")
    expect(page.locator(".settled")).to_contain_text("Denied by local: not now")
    expect(page.locator(".trouble:visible")).to_have_count(0)
    page.unroute_all(behavior="wait")
    assert len({command["idempotency_key"] for command in sent}) == 1
    assert len(hall.bodies(session_id, "approval.resolved")) == 1


@pytest.mark.slow
def test_half_an_answer_and_the_keyboard_stay_through_live_changes(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    approval_id = hall.ask(session_id)
    page.goto(hall.link(session_id))
    page.get_by_label("Reason for a denial").fill("because")
    page.keyboard.press("End")
    hall.add(session_id, Draft(ev.ApprovalDetached(), approval_id))
    expect(_card(page)).to_contain_text("Its agent is gone; answering starts it again.")
    page.keyboard.type(" of this")
    expect(page.get_by_label("Reason for a denial")).to_have_value("because of this")
    hall.client.command(session_id, "resolve", approval_id=approval_id, decision="allow")
    settled = page.locator(".settled")
    expect(settled).to_contain_text("Allowed by local")
    expect(settled).to_contain_text("through the command line")
    expect(settled).to_be_focused()


@pytest.mark.slow
def test_who_was_too_late_is_told(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    approval_id = hall.ask(session_id)
    page.goto(hall.link(session_id))

    def outrun(route: Route) -> None:
        hall.client.command(
            session_id, "resolve", approval_id=approval_id, decision="deny", reason="I was first"
        )
        route.continue_()

    page.route("**/commands", outrun)
    page.get_by_role("button", name="Allow once").click()
    settled = page.locator(".settled")
    expect(settled).to_contain_text("Denied by local: I was first")
    expect(settled.get_by_role("alert")).to_contain_text("Your answer came too late.")
    expect(settled.get_by_role("alert")).to_contain_text("already denied by local")
    assert [one["outcome"] for one in hall.bodies(session_id, "approval.resolved")] == ["denied"]


@pytest.mark.slow
def test_a_card_is_answered_by_keyboard_alone(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    hall.ask(session_id)
    page.goto(hall.link(session_id))
    expect(_card(page)).to_be_visible()
    names: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent || document.activeElement.ariaLabel"))
        if names[-1] == "Deny":
            break
    asked = ["Allow once", "Allow for the session", "Allow by a pattern", "Edit before allowing", "Deny"]
    assert [name for name in names if name in asked] == asked
    page.keyboard.press("Tab")
    page.keyboard.type("no")
    page.keyboard.press("Enter")
    expect(page.locator(".settled")).to_contain_text("Denied by local: no")
    assert [command["reason"] for command in sent] == ["no"]


@pytest.mark.slow
def test_a_call_that_a_rule_paused_says_so(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    hall.ask(session_id, hold="pause", rule_ids=("three-dollars",), reason="$3.00 are spent.")
    page.goto(hall.link(session_id))
    expect(_card(page)).to_contain_text("A rule paused the turn at this call")
    expect(_card(page)).to_contain_text("$3.00 are spent.")
    expect(page.locator("#status")).to_have_text("paused")
    expect(page.locator("#paused")).to_contain_text("allow or deny it where it stands")
    # A grant silences what asks, never what pauses.
    expect(_card(page).get_by_role("button", name="Allow for the session")).to_have_count(0)
    expect(_card(page).get_by_text("Allow by a pattern")).to_have_count(0)
    fits(page)
    _card(page).get_by_role("button", name="Allow once").click()
    expect(page.locator(".settled")).to_contain_text("Allowed by local")
    assert [command["decision"] for command in sent] == ["allow"]
    expect(page.locator("#paused")).to_be_hidden()


# The header: what runs where, at whose cost.


@pytest.mark.slow
def test_the_header_says_what_the_sandbox_is_and_who_pays(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    page.goto(hall.link(session_id))
    explanation = page.get_by_text("the agent runs as you")
    expect(explanation).to_be_hidden()
    page.get_by_role("button", name="sandbox: host").click()
    expect(explanation).to_be_visible()
    fits(page)
    expect(page.locator("#facts")).to_contain_text("env K")
    expect(page.locator("#facts")).to_contain_text("m-1")


@pytest.mark.slow
def test_a_budget_shows_what_is_spent_and_what_is_unknown(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    page.goto(hall.link(session_id))
    page.get_by_role("button", name="Control").click()
    page.get_by_label("Cap in USD", exact=True).fill("3")
    page.get_by_role("button", name="Set cap").click()
    spent = page.locator('[data-fact="spent"]')
    expect(spent).to_contain_text("$0.00 of $3.00")
    expect(page.locator("#items")).to_contain_text("The budget’s cap is now $3.00 by local.")
    usage = ev.UsageReported(call_id="call_1", source="gateway", scope="call", input_tokens=1000)
    hall.add(session_id, Draft(usage.model_copy(update={"basis": "unknown"})))
    expect(spent).to_contain_text("spent: unknown of $3.00")
    expect(page.locator("#control")).to_contain_text("Not every call has a known price")
    priced = usage.model_copy(update={"call_id": "call_2", "cost_nanousd": 1_500_000_000, "basis": "table"})
    hall.add(session_id, Draft(priced))
    expect(spent).to_contain_text("≥ $1.50 of $3.00")
    nearly = usage.model_copy(update={"call_id": "call_3", "cost_nanousd": 1_498_300_000, "basis": "table"})
    width = "document.querySelector('#facts .meter i').getBoundingClientRect().width"
    whole = "document.querySelector('#facts .meter').getBoundingClientRect().width"
    assert page.evaluate(f"Math.round(100 * {width} / {whole})") == 50
    fits(page)
    hall.add(session_id, Draft(nearly))
    expect(spent).to_contain_text("≥ $2.9983 of $3.00")
    page.get_by_role("button", name="Lift the cap").click()
    expect(spent).to_have_text("≥ $3.00 spent")
    assert _said(sent) == [
        {"type": "set_budget", "cap_usd": 3},
        {"type": "set_budget", "cap_usd": None},
    ]


@pytest.mark.slow
def test_a_pause_says_why_and_what_to_do(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session("Long work")
    paused = ev.TurnPaused(reason="budget", rule_ids=("three-dollars",), detail="$3.00 of $3.00 are spent.")
    hall.add(session_id, Draft(paused, turn_id=new_id("turn")))
    page.goto(hall.link(session_id))
    panel = page.locator("#paused")
    expect(page.locator("#status")).to_have_text("paused")
    expect(page).to_have_title("(paused) Long work · Omnigent")
    expect(panel).to_contain_text("Paused: the budget is used up")
    expect(panel).to_contain_text("$3.00 of $3.00 are spent.")
    expect(panel).to_contain_text("Rule: three-dollars")
    fits(page)
    page.get_by_label("New cap in USD").fill("5.5")
    with page.expect_response("**/commands"):
        panel.get_by_role("button", name="Set cap").click()
    assert _said(sent) == [{"type": "set_budget", "cap_usd": 5.5}]


@pytest.mark.slow
def test_a_quota_says_until_when(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    until = now() + 2 * HOUR - 1000
    quota = ev.TurnPaused(reason="quota", detail="The plan's limit is reached.", until=until)
    hall.add(session_id, Draft(quota, turn_id=new_id("turn")))
    page.goto(hall.link(session_id))
    panel = page.locator("#paused")
    expect(panel).to_contain_text("the provider’s quota is used up")
    expect(panel).to_contain_text(re.compile(r"It goes on by itself at .*\d.*, in 2 h\."))
    expect(panel.get_by_label("New cap in USD")).to_be_hidden()
    expect(panel.get_by_role("button", name="Resume")).to_be_visible()


@pytest.mark.slow
def test_grants_are_listed_and_revoked(page: Page, hall: Hall, sent: list[JSON]) -> None:
    session_id = hall.session()
    rules = ("builtin.approve",)
    first, second = new_id("gr"), new_id("gr")
    hall.add(
        session_id,
        Draft(ev.GrantAdded(scope="pattern", rule_ids=rules, pattern="exec: npm run *"), first),
        Draft(ev.GrantAdded(scope="session", rule_ids=rules, title="make deploy"), second),
    )
    page.goto(hall.link(session_id))
    page.get_by_role("button", name="Control").click()
    rows = page.get_by_role("region", name="Grants").get_by_role("listitem")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("exec: npm run *")
    fits(page)
    page.get_by_role("button", name="Revoke exec: npm run *").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("make deploy")
    assert _said(sent) == [{"type": "revoke_grant", "grant_id": first}]
    expect(page.get_by_role("button", name="Control")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#control")).to_be_hidden()


@pytest.mark.slow
def test_the_policies_in_effect_are_shown(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    page.goto(hall.link(session_id))
    page.get_by_role("button", name="Control").click()
    page.get_by_text("Policies in effect").click()
    effective = hall.client.policies(session_id)["items"]
    names = [policy["name"] for policy in effective]
    rows = page.locator(".policies > li")
    expect(rows).to_have_count(len(names))
    assert [row.locator("summary code").inner_text() for row in rows.all()] == names
    rows.first.locator("summary").click()
    expect(rows.first.locator("pre")).to_be_visible()
    fits(page)


@pytest.mark.slow
def test_what_was_refused_is_shown_with_its_rule(page: Page, hall: Hall) -> None:
    session_id = hall.session()
    call, secret = new_id("tc"), FileRead(path=".env", real_path="/work/.env", in_workspace=True)
    requested = ev.ToolRequested(
        tool="Read", title=".env", actions=(secret,), parsed="full", raw="{}", native_id="1", gated=False
    )
    decided = ev.PolicyDecided(verdict="deny", rule_ids=("no-env-files",), reason="Secrets stay here.")
    refused = ev.AccessRefused(what="POST /v1/drain", reason="Only a person may.", pid=7, program="curl")
    hall.add(session_id, Draft(requested, call), Draft(decided, call), Draft(refused))
    page.goto(hall.link(session_id))
    tool = page.locator(".tool")
    expect(tool).to_contain_text("Secrets stay here.")
    expect(tool.locator(".rules")).to_have_text("Rule: no-env-files")
    notice = page.locator('.notice[data-level="error"]')
    expect(notice).to_contain_text("POST /v1/drain")
    fits(page)


# The inbox.


@pytest.mark.slow
def test_the_inbox_is_answered_where_it_stands(page: Page, hall: Hall) -> None:
    one, other = hall.session("First <i>task</i>"), hall.session("Second task")
    asked = [hall.ask(one, title="make one"), hall.ask(other, title="make other")]
    page.goto(f"{hall.served.url}/#token={hall.served.token}")
    inbox = page.get_by_role("region", name="Waiting for you")
    rows = [inbox.locator("#waiting > li").filter(has=page.locator(f'[data-id="{id_}"]')) for id_ in asked]
    expect(rows[0].get_by_role("link")).to_have_text("First <i>task</i>")
    waiting = len(hall.client.inbox())
    expect(page).to_have_title(f"({waiting}) Sessions · Omnigent")
    fits(page)
    rows[0].get_by_label("Reason for a denial").fill("not this")
    page.keyboard.press("Home")
    third = hall.ask(hall.session("Third task"))
    expect(page).to_have_title(f"({waiting + 1}) Sessions · Omnigent")
    page.keyboard.type("no, ")
    rows[0].get_by_role("button", name="Deny").click()
    expect(rows[0]).to_contain_text("Denied by local: no, not this")
    hall.client.command(other, "resolve", approval_id=asked[1], decision="allow")
    expect(rows[1]).to_contain_text("Allowed by local")
    expect(rows[1]).to_contain_text("through the command line")
    expect(page).to_have_title(f"({waiting - 1}) Sessions · Omnigent")
    expect(inbox.locator(f'[data-id="{third}"] pre')).to_be_visible()
    fits(page)
