"""A page of a browser, on a desktop and on a phone."""

from collections.abc import Generator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

SIZES = {"desktop": (1200, 850), "phone": (390, 800)}


@contextmanager
def open_browser() -> Generator[Browser]:
    """For one module: while Playwright runs, nothing else in this thread can have an event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, size: str) -> Generator[Page]:
    """With storage of its own. Any script error or refused load fails the test."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.set_default_timeout(15_000)
    expect.set_options(timeout=15_000)
    yield page
    context.close()
    assert not [error for error in errors if "ERR_" not in error and "status of 4" not in error], errors


def fits(page: Page) -> None:
    """Nothing has to be scrolled sideways to be seen."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
