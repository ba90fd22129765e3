"""Many followers of one session: late, cut off and back, through two kills of the server. All end alike.

The turn streams text, calls a tool that is asked about, and streams again. Whoever looks, from when on and
through whatever connection, ends with the same log, and shows each item once.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from support import EVERY_COMMAND_ASKS, House, fresh_home, wait_for

from omnigent.client import FrameParser

WORDS = 60


def words(name: str) -> list[str]:
    """Words of eight characters with their blank, so that a chunk of eight never cuts one."""
    return [f"{name}{n:03d}" for n in range(WORDS)]


def says(name: str) -> dict[str, Any]:
    return {"text": " ".join(words(name)), "chunk": 8, "chunk_delay_ms": 60}


SCRIPT = {
    "turns": [
        {"match": "HELLO", "steps": [{"text": "Hello."}]},
        {
            "match": "LONG",
            "steps": [
                says("alfa") | {"tools": [{"tool": "$shell", "input": {"command": "echo x >> held.txt"}}]},
                says("beta"),
            ],
        },
    ]
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@pytest.fixture
def house() -> Iterator[House]:
    house = House(fresh_home("followers"), SCRIPT, grace_seconds=60)
    try:
        house.start()
        yield house
    finally:
        house.close()


class Door:
    """A TCP relay that can be shut: what is open breaks, what comes is turned away."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.shut = False
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for one in self._open:
            one.close()

    def cut(self) -> None:
        self.shut = True
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.shut = False

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=given, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    if self.shut:
                        raise ConnectionRefusedError
                    far = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                self._start(self._pump, near, far)
                self._start(self._pump, far, near)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Listener:
    """An event stream read with plain HTTP, resumed by `Last-Event-ID`. It keeps all that is sent to it, a
    repeat too."""

    def __init__(self, house: House, session_id: str, port: int) -> None:
        self.events: list[dict[str, Any]] = []
        self.breaks = 0
        self._port = port
        self._path = f"/v1/sessions/{session_id}/events"
        self._token = (house.home / "token").read_text().strip()
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._read()
            self.breaks += 1
            self._stopped.wait(0.1)

    def _read(self) -> None:
        last = self.events[-1]["seq"] if self.events else 0
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as link:
            link.connect()
            self._socket = link.sock
            link.request("GET", self._path, headers=headers | {"Last-Event-ID": str(last)})
            response = link.getresponse()
            assert response.status == 200, response.read()
            parser = FrameParser()
            while not self._stopped.is_set() and (data := response.read1(65536)):
                for frame in parser.feed(data):
                    if frame.event == "event":
                        self.events.append(frame.data)


class Terminal:
    """The real command on a terminal of its own; all it ever showed is kept."""

    def __init__(self, house: House, *command: str, port: int | None = None) -> None:
        self._main, side = os.openpty()
        self._seen = bytearray()
        environ = {**os.environ, "OMNIGENT_HOME": str(house.home), "TERM": "xterm", "NO_COLOR": "1"}
        if port is not None:
            environ["OMNIGENT_SERVER"] = f"http://127.0.0.1:{port}"
        self._child = subprocess.Popen(
            [sys.executable, "-m", "omnigent", *command],
            env=environ,
            cwd=house.workspace,
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
        )
        os.close(side)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._main, 65536):
                self._seen += data

    @property
    def seen(self) -> str:
        """Without prompts that were shown and wiped away."""
        text = self._seen.decode("utf-8", "replace").replace("\r\n", "\n")
        return re.sub(r"[^\n\r]*\r\x1b\[K", "", text)

    def expect(self, text: str, seconds: float = 30) -> None:
        wait_for(lambda: text in self._seen.decode("utf-8", "replace"), seconds, f"{text!r} in {self.seen!r}")

    def type(self, line: str) -> None:
        os.write(self._main, f"{line}\n".encode())

    def end(self) -> int:
        """Leave it. Its exit code."""
        self.type("/quit")
        return self._child.wait(20)

    def kill(self) -> None:
        if self._thread.is_alive():
            self._child.kill()
            self._child.wait()
            self._thread.join(10)
            os.close(self._main)


class Lines:
    """`omnigent logs -f --json` into a file."""

    def __init__(self, house: House, session_id: str, port: int) -> None:
        self._path = house.home / "lines.jsonl"
        environ = {**os.environ, "OMNIGENT_HOME": str(house.home)}
        environ["OMNIGENT_SERVER"] = f"http://127.0.0.1:{port}"
        with self._path.open("wb") as out:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "omnigent", "logs", "-f", "--json", session_id],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def events(self) -> list[dict[str, Any]]:
        *lines, _ = self._path.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()


def seqs_and_hashes(events: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(event["seq"], event["hash"]) for event in events]


def shown_once(terminal: Terminal, session_id: str) -> None:
    """Each item of the session, once and in its order. A lost link may be told of within a word."""
    seen = terminal.seen.replace("\nthe server is away, reconnecting …\n", "")
    for name in ("alfa", "beta"):
        assert re.findall(rf"{name}\d\d\d", seen) == words(name), seen
    for line in ("> HELLO", "Hello.\n", "> LONG", "● bash  echo x >> held.txt", "allowed by local", "└ ok"):
        assert seen.count(line) == 1, (line, seen)
    assert len(re.findall(r"\? ap_\w+ asks: ", seen)) == 1, seen
    assert "! " not in seen and "✗" not in seen, (session_id, seen)


def restart(house: House) -> None:
    house.kill()
    house.restart()


def test_all_followers_end_alike(house: House) -> None:
    session_id = house.create("scripted", "HELLO", policies=EVERY_COMMAND_ASKS)
    house.settled(session_id)
    with Door(house.port) as door, contextlib.ExitStack() as ends:
        heard_cut = Listener(house, session_id, door.port)
        ends.callback(heard_cut.stop)
        lines_cut = Lines(house, session_id, door.port)
        ends.callback(lines_cut.kill)
        watched_cut = Terminal(house, "attach", session_id, port=door.port)
        ends.callback(watched_cut.kill)
        watched_cut.expect("Hello.")
        wait_for(lambda: lines_cut.events, 20, "the first line")
        house.prompt(session_id, "LONG")
        watched_cut.expect("alfa005")

        door.cut()  # in the middle of a text
        watched_cut.expect("the server is away")
        cut_at = heard_cut.events[-1]["seq"]
        house.await_kind(session_id, "approval.requested")
        heard_late = Listener(house, session_id, house.port)
        ends.callback(heard_late.stop)
        watched_late = Terminal(house, "attach", session_id)
        ends.callback(watched_late.kill)
        watched_late.expect("allow? ")

        restart(house)  # while the question is held
        door.mend()
        watched_cut.expect("allow? ")
        wait_for(lambda: heard_cut.events[-1]["kind"] == "approval.requested", 20, "what was missed")
        assert heard_cut.events[-1]["seq"] > cut_at
        watched_cut.type("y")
        watched_late.expect("beta005")
        restart(house)  # in the middle of a text

        settled = house.settled(session_id, 60)
        assert settled["last_turn"]["outcome"] == "completed", settled["last_turn"]
        # The files are kept after the turn's end: its last event.
        wait_for(lambda: house.kinds(session_id)[-1] == "workspace.checkpointed", 20, "the checkpoint")
        log = house.events(session_id)
        last = log[-1].seq
        for follower in (heard_cut, heard_late, lines_cut):
            wait_for(lambda f=follower: f.events and f.events[-1]["seq"] >= last, 30, "the last event")
            assert seqs_and_hashes(follower.events) == [(event.seq, event.hash) for event in log]
        assert heard_cut.breaks >= 2 and heard_late.breaks >= 1
        for terminal in (watched_cut, watched_late):
            terminal.expect(f"beta{WORDS - 1:03d}")
            assert terminal.end() == 0
            shown_once(terminal, session_id)
    assert (house.workspace / "held.txt").read_text() == "x\n"


def shown(page: Page) -> list[tuple[str, str]]:
    """(id, text) of every item on the page."""
    rows: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#items > li')].map((li) => [li.dataset.id || '', li.innerText])"
    )
    return [(row[0], row[1]) for row in rows]


def test_a_page_shows_the_same_after_restarts(house: House) -> None:
    session_id = house.create("scripted", "HELLO", policies=EVERY_COMMAND_ASKS)
    house.settled(session_id)
    token = (house.home / "token").read_text().strip()
    link = f"http://127.0.0.1:{house.port}/s/{session_id}#token={token}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium()), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        page.goto(link)
        expect(page.get_by_text("Hello.")).to_be_visible(timeout=15_000)
        house.prompt(session_id, "LONG")
        expect(page.get_by_text("alfa005")).to_be_visible(timeout=15_000)
        restart(house)
        page.get_by_role("button", name="Allow once").click(timeout=30_000)
        expect(page.get_by_text("beta005")).to_be_visible(timeout=15_000)
        restart(house)
        house.settled(session_id, 60)
        expect(page.locator("#status")).to_have_text("idle", timeout=30_000)
        expect(page.locator("#link")).to_have_text("live", timeout=15_000)
        for name in ("alfa", "beta"):
            text = page.locator(".agent .prose", has_text=f"{name}000").inner_text()
            assert text.split() == words(name)
        followed = shown(page)
        fresh = browser.new_page()
        fresh.goto(link)
        expect(fresh.get_by_text(f"beta{WORDS - 1:03d}")).to_be_visible(timeout=15_000)
        wait_for(lambda: shown(fresh) == followed, 15, f"{followed} on a fresh page, not {shown(fresh)}")
        browser.close()
    items = house.client().items(session_id, limit=1000)["items"]
    ids = [one for one, _ in followed if one]
    assert len(ids) == len(set(ids))
    people_see = ("message", "tool_call", "approval")
    assert {item["id"] for item in items if item["type"] in people_see} <= set(ids), followed


def chromium() -> Path:
    path = Path("/usr/bin/chromium")
    assert path.exists(), "Chromium isn't installed: run ./dev setup"
    return path
