"""Many prompts while responses are dropped and the server or the runner is killed between any two steps.

Every prompt ends delivered or visibly failed, none is run twice (counted at the model), nothing sticks.
"""

import contextlib
import os
import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

import pytest
from support import House, fresh_home, submitted_text, wait_for

from omnigent import processes
from omnigent.client import Client

SCRIPT = {"turns": [{"match": "PROMPT", "steps": [{"text": "Noted."}]}]}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class LossyDoor:
    """A TCP relay that sometimes swallows the answer: the request arrived, its answer doesn't."""

    def __init__(self, port: int, chance: float, dice: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._dice = dice
        self.swallowed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(caller,), daemon=True).start()

    def _relay(self, caller: socket.socket) -> None:
        with caller:
            try:
                server = socket.create_connection(("127.0.0.1", self._port), 5)
            except OSError:
                return
            with server:
                threading.Thread(target=_copy, args=(caller, server), daemon=True).start()
                self._answer(server, caller)
                for end in (caller, server):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)  # closing alone doesn't end what a thread still reads

    def _answer(self, server: socket.socket, caller: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                if self._dice.random() < self._chance:
                    self.swallowed += 1
                    return
                caller.sendall(data)
        except OSError:
            return


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass


class Chaos:
    """Kills the server or the runner shortly after a prompt was sent, then lets things be."""

    def __init__(self, house: House, session_id: str, dice: random.Random) -> None:
        self.house = house
        self.session_id = session_id
        self.dice = dice
        self.kills: Counter[str] = Counter()
        self._victims = cycle(["server", "runner"])

    def strike(self) -> threading.Thread:
        victim = next(self._victims)
        thread = threading.Thread(target=self._strike, args=(victim, self.dice.uniform(0, 0.06)))
        thread.start()
        return thread

    def _strike(self, victim: str, delay: float) -> None:
        threading.Event().wait(delay)
        if victim == "server":
            self.house.kill()
            self.house.restart()
        else:
            pid, _ = self.house.leases().get(self.session_id, (0, 0))
            if not pid or processes.start_time(pid) is None:
                return
            os.kill(pid, signal.SIGKILL)
        self.kills[victim] += 1


@pytest.fixture
def house() -> Iterator[House]:
    house = House(fresh_home("prompts"), SCRIPT, grace_seconds=60)
    try:
        house.start()
        yield house
    finally:
        house.close()


@pytest.mark.parametrize(
    ("harness", "prompts"), [("scripted", 200), ("claude-code", 30), ("codex", 30), ("pi", 30)]
)
def test_prompts_survive_kills(house: House, harness: str, prompts: int) -> None:
    dice = random.Random(20261122)
    session_id = house.create(harness, "PROMPT first.")
    house.settled(session_id)
    door = LossyDoor(house.port, 0.1, dice)
    chaos = Chaos(house, session_id, dice)
    chance = 0.15 if prompts > 100 else 0.3
    token = (house.home / "token").read_text().strip()
    with Client(f"http://127.0.0.1:{door.port}", token, patience=60) as client:
        for number in range(prompts):
            strike = chaos.strike() if dice.random() < chance else None
            client.command(session_id, "prompt", text=f"PROMPT {number:04d}.")
            if strike is not None:
                strike.join()
            elif dice.random() < 0.5:
                house.settled(session_id, 60)
    door.close()
    settled = house.settled(session_id, 120)
    assert settled["queue_length"] == 0
    assert chaos.kills["server"] and chaos.kills["runner"] and door.swallowed
    _judge(house, session_id, prompts)


def _judge(house: House, session_id: str, prompts: int) -> None:
    events = house.events(session_id)
    texts = {
        event.item_id or "": submitted_text(event) for event in events if event.kind == "message.submitted"
    }
    assert sorted(texts.values()) == [f"PROMPT {n:04d}." for n in range(prompts)] + ["PROMPT first."]
    fates = {
        kind: {event.item_id or "" for event in events if event.kind == f"message.{kind}"}
        for kind in ("delivered", "failed")
    }
    assert not fates["delivered"] & fates["failed"]
    assert fates["delivered"] | fates["failed"] == set(texts), "lost"
    runs = Counter(request.prompt for request in house.model.requests if request.outcome != "refused")
    twice = {prompt: count for prompt, count in runs.items() if count > 1}
    assert not twice, f"run twice: {twice}"
    started = sum(event.kind == "turn.started" for event in events)
    ended = sum(event.kind in ("turn.completed", "turn.failed", "turn.interrupted") for event in events)
    assert started == ended
    wait_for(lambda: len(house.leases()) <= 1, 15, "leases")
    print(f"{len(fates['delivered'])} delivered, {len(fates['failed'])} visibly failed")
