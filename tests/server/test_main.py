"""The server as a process: how it starts, what it refuses, how it ends."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from omnigent.client import Client

from .conftest import DEADLINE, server_command, server_process


def _client(home: Path, record: dict[str, Any]) -> Client:
    return Client(record["url"], (home / "token").read_text().strip(), patience=0)


pytestmark = pytest.mark.slow


def _refused(home: Path, *more: str) -> tuple[int, dict[str, str]]:
    """The exit code and the `error` and `hint` lines of a server that doesn't start."""
    done = subprocess.run(
        server_command(home, *more), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    said = dict(line.split(": ", 1) for line in done.stderr.splitlines() if ": " in line)
    return done.returncode, said


def test_it_starts_serves_and_ends(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server_process(home, "--port", "0") as (process, record):
        assert record["pid"] == process.pid
        assert record["url"] == f"http://127.0.0.1:{record['port']}"
        assert (home / "server.json").stat().st_mode & 0o777 == 0o600
        with _client(home, record) as client:
            assert client.health()["version"] == record["version"]
            assert list(client.sessions()) == []
        token = (home / "token").read_text().strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None
        assert token not in process.stderr.read()
    assert not (home / "server.json").exists()


def test_open_streams_hear_the_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    provider = {"api": "anthropic-messages", "base_url": "http://127.0.0.1:9", "key": {"env": "K"}}
    (home / "config.yaml").write_text(json.dumps({"providers": {"lab": provider}}))
    with server_process(home, "--port", "0") as (process, record), _client(home, record) as client:
        session = client.create({"workspace": str(tmp_path), "harness": "scripted"})
        connection = client.connect(DEADLINE)
        path = f"/v1/sessions/{session['id']}/events"
        connection.request("GET", path, headers=client.headers({"Accept": "text/event-stream"}))
        stream = connection.getresponse()
        assert b"hello" in stream.read1()
        client.drain()
        told = b""
        while data := stream.read1():
            told += data
        assert b'event: end\ndata: {"reason": "shutdown", "cursor": 2}' in told
        assert process.wait(10) == 0
        connection.close()


def test_a_second_server_of_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server_process(home, "--port", "0") as (process, record):
        code, said = _refused(home, "--port", str(record["port"]))
        assert code == 5
        assert f"the server of this home (process {process.pid})" in said["error"]
        code, said = _refused(home, "--port", "0")
        assert code == 1
        assert str(process.pid) in said["error"]
        assert json.loads((home / "server.json").read_bytes()) == record


def test_a_port_taken_by_the_server_of_another_home(tmp_path: Path) -> None:
    with server_process(tmp_path / "one", "--port", "0") as (_, record):
        other = tmp_path / "two"
        other.mkdir()
        (other / "config.yaml").write_text(f"server: {{port: {record['port']}}}")
        code, said = _refused(other)
        assert code == 5
        assert "the Omnigent server of another home" in said["error"]
        assert "server.port" in said["hint"]
        assert "--port" in said["hint"]


class _Other(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_port_taken_by_another_program(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        code, said = _refused(tmp_path / "home", "--port", str(other.server_port))
        other.shutdown()
        thread.join()
    assert (code, "another program" in said["error"]) == (5, True)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        code, said = _refused(tmp_path / "home", "--port", str(silent.getsockname()[1]))
    assert (code, "another program" in said["error"]) == (5, True)


def test_homes_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = _refused(tmp_path / "file" / "home", "--port", "0")
    assert (code, "can't be written" in said["error"]) == (1, True)
    newer = tmp_path / "newer"
    newer.mkdir()
    with sqlite3.connect(newer / "omnigent.db") as db:
        db.execute("CREATE TABLE schema (number INTEGER PRIMARY KEY)")
        db.execute("INSERT INTO schema VALUES (9999)")
    db.close()
    code, said = _refused(newer, "--port", "0")
    assert (code, "newer" in said["error"]) == (1, True)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("server: {prot: 1}")
    code, said = _refused(damaged)
    assert (code, "server.prot" in said["error"]) == (2, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_it_serves_this_machine_only(tmp_path: Path, host: str) -> None:
    code, said = _refused(tmp_path / "home", "--host", host, "--port", "0")
    assert (code, "not supported yet" in said["error"]) == (2, True)


def test_it_comes_back_after_a_kill(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server_process(home, "--port", "0") as (process, record):
        os.kill(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
    (home / "server.json").unlink()
    with server_process(home, "--port", str(record["port"])) as (_, again):
        assert again["port"] == record["port"]
        with _client(home, again) as client:
            assert client.health()["status"] == "ok"
