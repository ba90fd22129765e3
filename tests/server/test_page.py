"""The live page in a real browser, on a desktop and on a phone, against a real session."""

import json
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from omnigent.client import Client

from .browser import SIZES, fits, open_browser, open_page
from .conftest import server_process

SCRIPT = {
    "turns": [
        {
            "match": "work",
            "steps": [
                {
                    "reasoning": "First a look round.",
                    "text": "Looking <img src=x onerror=alert(1)> at `files`.",
                    "chunk_delay_ms": 20,
                    "tools": [{"tool": "$shell", "input": {"command": "echo one; echo two"}}],
                },
                {"text": "All **done** now."},
            ],
        },
        {
            "match": "long",
            "steps": [{"text": " ".join(f"word{n}" for n in range(200)), "chunk": 6, "chunk_delay_ms": 50}],
        },
    ]
}


RULES = """
policies:
  - name: say-aloud
    when: {exec: echo}
    then: ask
    reason: Nothing is said unasked here.
"""


@dataclass
class House:
    client: Client
    home: Path
    workspace: Path

    def session(self, prompt: str) -> str:
        body = {"workspace": str(self.workspace), "prompt": prompt, "policies": RULES}
        return self.client.create(body)["id"]

    def link(self, session_id: str) -> str:
        return f"{self.client.url}/s/{session_id}#token={self.client.token}"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    base = tmp_path_factory.mktemp("page")
    home, workspace = base / "home", base / "work"
    home.mkdir()
    workspace.mkdir()
    (base / "script.json").write_text(json.dumps(SCRIPT))
    with _model(base / "script.json") as url:
        provider = {"api": "anthropic-messages", "base_url": url, "key": {"env": "PAGE_KEY"}}
        defaults = {"harness": "scripted", "scripted": {"provider": "lab", "model": "scripted-model"}}
        (home / "config.yaml").write_text(json.dumps({"providers": {"lab": provider}, "defaults": defaults}))
        with server_process(home, "--port", "0", PAGE_KEY="k") as (process, record):
            with Client(record["url"], (home / "token").read_text().strip()) as client:
                yield House(client, home, workspace)
            process.terminate()
            process.wait(60)


@contextmanager
def _model(script: Path) -> Generator[str]:
    command = [
        sys.executable,
        "-m",
        "omnigent.testing.scripted_model",
        "--until-eof",
        "--script",
        str(script),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    with open_page(browser, request.param) as found:
        yield found


def _button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


@pytest.mark.slow
def test_a_transcript_streams_and_an_approval_is_given(page: Page, house: House) -> None:
    session_id = house.session("do the work")
    page.goto(house.link(session_id))
    expect(page).to_have_url(f"{house.client.url}/s/{session_id}")
    expect(page.get_by_text("Looking <img src=x onerror=alert(1)> at")).to_be_visible(timeout=15_000)
    expect(page.locator("#facts")).to_contain_text("approvals: ask")
    expect(page.locator("#facts")).to_contain_text("sandbox: host")
    expect(page.locator("#status")).to_have_text("waiting", timeout=15_000)
    expect(page.locator("#link")).to_have_text("live")
    expect(page.get_by_text("First a look round.")).to_be_hidden()
    page.get_by_text("Thought").click()
    expect(page.get_by_text("First a look round.")).to_be_visible()
    fits(page)
    card = page.get_by_role("group", name="Approval needed")
    expect(card).to_contain_text("Nothing is said unasked here.")
    expect(card.locator(".rules code")).to_have_text(re.compile(r"say-aloud$"))
    expect(card.locator(".parts li")).to_have_text([re.compile("echo one"), re.compile("echo two")])
    _button(page, "Allow once").click()
    expect(page.get_by_text("All done now.")).to_be_visible(timeout=15_000)
    expect(page.locator(".tool pre")).to_have_text("one\ntwo\n")
    expect(page.get_by_text("Allowed by local")).to_be_visible()
    expect(page.locator("#status")).to_have_text("idle")
    expect(page.locator("#items strong")).to_have_text("done")
    assert page.locator("#items img").count() == 0
    fits(page)
    page.goto(house.client.url)
    expect(page.get_by_role("link", name="do the work").first).to_be_visible()
    fits(page)


@pytest.mark.slow
def test_a_denial_has_its_reason(page: Page, house: House) -> None:
    session_id = house.session("work again")
    page.goto(house.link(session_id))
    page.get_by_label("Reason for a denial").fill("not today")
    _button(page, "Deny").click()
    expect(page.get_by_text("Denied by local: not today")).to_be_visible()
    events = house.client.events(session_id, kinds="approval.resolved")["events"]
    assert [(event["body"]["outcome"], event["body"]["reason"]) for event in events] == [
        ("denied", "not today")
    ]
    assert events[0]["actor"]["via"] == "web"


@pytest.mark.slow
def test_the_agent_goes_on_from_the_inbox(page: Page, house: House) -> None:
    session_id = house.session("inbox work")
    page.goto(f"{house.client.url}/#token={house.client.token}")
    link = page.locator(f'a[href="/s/{session_id}"]')
    row = page.locator("#waiting > li").filter(has=link)
    row.get_by_role("button", name="Allow once").click()
    expect(row.locator(".settled")).to_contain_text("Allowed by local")
    expect(link.last).to_contain_text("idle")
    calls = house.client.events(session_id, kinds="tool.completed")["events"]
    assert [event["body"]["output"]["text"] for event in calls] == ["one\ntwo\n"]
    fits(page)


@pytest.mark.slow
def test_text_comes_as_it_is_written_and_can_be_interrupted(page: Page, house: House) -> None:
    session_id = house.session("be long")
    page.goto(house.link(session_id))
    expect(page.get_by_text("word3 ")).to_be_visible(timeout=15_000)
    assert "word199" not in page.locator("#items").inner_text()
    page.get_by_label("Message to the agent").fill("and then do the work")
    page.keyboard.press("Enter")
    expect(page.locator('li.user[data-status="queued"]')).to_contain_text("and then do the work")
    page.get_by_role("button", name="Interrupt").click()
    expect(page.get_by_text("The turn was interrupted.")).to_be_visible(timeout=15_000)
    expect(_button(page, "Allow once")).to_be_visible(timeout=15_000)
    fits(page)


@pytest.mark.slow
def test_it_mends_a_broken_link(page: Page, house: House) -> None:
    session_id = house.session("be long")
    page.goto(house.link(session_id))
    expect(page.get_by_text("word3 ")).to_be_visible(timeout=15_000)
    page.context.set_offline(True)
    page.evaluate("window.stop()")
    expect(page.locator("#link")).to_have_text("reconnecting", timeout=15_000)
    page.context.set_offline(False)
    expect(page.locator("#link")).to_have_text("live", timeout=15_000)
    expect(page.get_by_text("word199")).to_be_visible(timeout=30_000)
    shown = page.locator("#items .agent .prose").inner_text().split()
    assert shown == [f"word{n}" for n in range(200)]


@pytest.mark.slow
def test_without_a_token_it_says_how_to_get_one(page: Page, house: House) -> None:
    page.goto(f"{house.client.url}/s/ses_1")
    expect(page.get_by_text("omnigent show ses_1")).to_be_visible()
    expect(page.get_by_label("Message to the agent")).to_be_hidden()
    page.goto(f"{house.client.url}/s/ses_1#token=wrong")
    expect(page.get_by_role("heading", name="Signed out")).to_be_visible()
    page.goto(f"{house.client.url}/s/ses_1#token={house.client.token}")
    expect(page.get_by_role("heading", name="No such session")).to_be_visible()
