"""What a person waits for at the terminal: the commands, and the server's start."""

import os
import subprocess
import sys
import time
from pathlib import Path

from http_calls import JSON
from measure import Figure, compare
from servers import BareServer, Model, OurServer, scratch, until

PROGRAM = Path(sys.executable).with_name("omnigent")
QUESTIONS = 100
"""Shell commands the scripted agent asks about, one after another."""
SCRIPT: JSON = {
    "turns": [
        {
            "match": "ask me",
            "steps": [{"tools": [{"tool": "$shell", "input": {"command": "true"}}]}] * QUESTIONS,
        }
    ]
}


def measure_commands(quick: bool) -> list[Figure]:
    """The installed console script against `python -c pass`, turn by turn."""
    rounds = 5 if quick else 15
    with scratch() as place:
        model = Model(place, SCRIPT)
        server = OurServer(place / "ours", model.url)
        server.start()
        try:
            return _compare(server, rounds)
        finally:
            server.stop()
            model.close()


def _compare(server: OurServer, rounds: int) -> list[Figure]:
    connection = server.connect()
    workspace = str(server.workspace)
    create: JSON = {"harness": "scripted", "workspace": workspace, "title": "asking"}
    asking = connection.call("POST", "/v1/sessions", {**create, "prompt": "ask me"}, "k1")["id"]
    talking = connection.call("POST", "/v1/sessions", {**create, "title": "talking"}, "k2")["id"]
    environment = {**os.environ, "OMNIGENT_HOME": str(server.home)}
    lines = {
        "--version": ["--version"],
        "ls": ["ls"],
        "send": ["send", talking, "hello"],
        "approve": ["approve", asking],
        "logs": ["logs", talking],
    }
    bare: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in lines}

    def asked() -> bool:
        return connection.call("GET", f"/v1/sessions/{asking}")["pending"]["approvals"] > 0

    for number in range(rounds + 1):
        alone = _run([sys.executable, "-c", "pass"], environment)
        times: dict[str, float] = {}
        for name, arguments in lines.items():
            if name == "approve":
                until(asked, 30, "the next question", 0.01)
            times[name] = _run([str(PROGRAM), *arguments], environment)
        if number:  # the first round fills the page cache
            bare.append(alone)
            for name, took in times.items():
                ours[name].append(took)
    figures = [compare("`omnigent --version`", "ms", bare, ours["--version"], most=3)]
    return figures + [
        compare(f"`omnigent {name}`", "ms", bare, ours[name], most=8) for name in lines if name != "--version"
    ]


def _run(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    took = (time.perf_counter() - began) * 1000
    if done.returncode:
        raise RuntimeError(f"{command[:2]} exits with {done.returncode}: {done.stderr.decode()[-500:]}")
    return took


def measure_start(quick: bool) -> list[Figure]:
    """From the start of the process to the first 200 on /healthz, on a database that exists."""
    rounds = 2 if quick else 9
    with scratch() as place:
        servers = (BareServer(place / "bare"), OurServer(place / "ours"))
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds + 1):
            for server, samples in zip(servers, times, strict=True):
                took = server.start()
                server.stop()
                if number:  # the first start makes the database
                    samples.append(took)
    return [compare("server start to first 200", "ms", *times, most=5)]
