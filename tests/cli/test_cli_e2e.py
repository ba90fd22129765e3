"""The command line against the real server, the real scripted agent and the scripted model."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from omnigent import processes
from omnigent.client import Client
from omnigent.errors import Conflict, Unauthorized
from omnigent.testing.scripted_model import ScriptedModel, ThreadedModel, history_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def calls(tool: str, **given: Any) -> dict[str, Any]:
    return {"tools": [{"tool": tool, "input": given}]}


RUN = "perl -e 'print \"ran\\n\"' >> ran.txt"
"""A command that the default policies ask about."""

SCRIPT: dict[str, Any] = {
    "turns": [
        {"match": "say hello", "steps": [{"text": "hello there"}]},
        {
            "match": "run it",
            "steps": [
                {"text": "I'll run it.", **calls("$shell", command=RUN)},
                {"text": "It ran."},
            ],
        },
        {
            "match": "ask me",
            "steps": [
                calls("$ask", question="Which colour?", options=["red", "blue"]),
                {"text": "Noted."},
            ],
        },
        {"match": "hang on", "steps": [{"text": "thinking", "hang": True}]},
        {"match": "fail now", "steps": [{"error": {"status": 400, "message": "scripted refusal"}}]},
    ]
}


@dataclass
class House:
    """A home with a configuration, and the CLI run in a directory of its own."""

    home: Path
    here: Path
    model: ThreadedModel
    clients: list[Client] = field(default_factory=list[Client])
    """Closed at the test's end."""

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home.parent), "OMNIGENT_HOME": str(self.home)}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "omnigent", *words]

    def run(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.here, env=self.env | env, input=stdin, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    def ok(self, *words: str, stdin: str = "") -> str:
        ran = self.run(*words, stdin=stdin)
        assert ran.returncode == 0, (words, ran)
        return ran.stdout

    def start(self, prompt: str, *words: str) -> str:
        """A detached session's id."""
        return self.ok("run", "-H", "scripted", "-d", *words, prompt).strip()

    def client(self) -> Client:
        record = json.loads((self.home / "server.json").read_bytes())
        self.clients.append(Client(record["url"], (self.home / "token").read_text().strip()))
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.close()


def make_house(place: Path, model: ThreadedModel) -> House:
    home, here = place / "h", place / "w"
    home.mkdir()
    here.mkdir()
    (home / "secrets").mkdir()
    (home / "secrets" / "lab").write_text("lab-key")
    provider = f'{{api: anthropic-messages, base_url: "{model.url}", key: {{secret: lab}}}}'
    (home / "config.yaml").write_text(
        f"server: {{port: 0}}\nproviders:\n  lab: {provider}\n"
        "  chat: {api: openai-chat, key: {secret: lab}}\n"
        "defaults: {harness: scripted, scripted: {provider: lab, model: scripted-model}}\n"
    )
    return House(home, here, model)


@pytest.fixture(scope="module")
def model() -> Generator[ThreadedModel]:
    with ScriptedModel.in_thread(SCRIPT) as running:
        yield running


@contextmanager
def stopped_at_end(house: House) -> Generator[House]:
    try:
        yield house
    finally:
        house.close()
        with suppress(OSError, ValueError, KeyError):
            record = json.loads((house.home / "server.json").read_bytes())
            house.run("server", "stop", "--timeout", "20")
            processes.kill([(record["pid"], record["pid_started"])])


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory, model: ThreadedModel) -> Generator[House]:
    """One server for all tests that don't hurt it."""
    with stopped_at_end(make_house(tmp_path_factory.mktemp("h"), model)) as house:
        yield house


@pytest.fixture
def house(lived_in: House, tmp_path: Path) -> Generator[House]:
    """That server, and a workspace of the test's own."""
    house = House(lived_in.home, tmp_path, lived_in.model)
    yield house
    house.close()


@pytest.fixture
def fresh(tmp_path: Path, model: ThreadedModel) -> Generator[House]:
    """A home of the test's own, no server yet."""
    with stopped_at_end(make_house(tmp_path, model)) as house:
        yield house


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """What `true` answers once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it didn't come true"
        threading.Event().wait(0.02)
    return found


# run -p.


def test_print_gives_the_final_text_and_nothing_else(house: House) -> None:
    ran = house.run("run", "-p", "-H", "scripted", "say hello")
    assert (ran.returncode, ran.stdout) == (0, "hello there\n")
    first, second = ran.stderr.splitlines()
    assert re.fullmatch(r"session ses_\w+  http://127\.0\.0\.1:\d+/s/ses_\w+", first)
    assert second.startswith("sandbox: host (it runs as you) · billing: metered (secret lab at 127.0.0.1:")


def test_bare_omnigent_is_run_and_a_pipe_is_the_prompt(house: House) -> None:
    assert house.ok("say hello please") == "hello there\n"
    assert house.ok(stdin="say hello\n") == "hello there\n"
    assert house.ok("run", "-", stdin="say hello\n") == "hello there\n"


def test_what_is_piped_in_follows_the_prompt(house: House) -> None:
    house.ok("run", "-p", "say hello to", stdin="the log\nof a build\n")
    assert "> say hello to\n> \n> the log\n> of a build\n" in house.ok("logs", "@last").replace(">\n", "> \n")


def test_stdin_that_is_no_pipe_and_never_ends_is_left_alone(house: House) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ran = subprocess.run(
            house.command("run", "-p", "say hello"), cwd=house.here, env=house.env, stdin=theirs.fileno(),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "hello there\n")


def test_no_token_is_written_where_no_person_reads(house: House) -> None:
    session = house.start("say hello")
    token = (house.home / "token").read_text().strip()
    for words in (("run", "-d", "say hello"), ("fork", session, "--share-workspace"), ("show", session)):
        ran = house.run(*words)
        assert ran.returncode == 0 and "/s/ses_" in ran.stdout + ran.stderr
        assert token not in ran.stdout + ran.stderr
    terminal = Terminal(house, "show", session)
    terminal.expect(f"#token={token}")
    assert terminal.end() == 0


def test_a_question_of_the_gate_exits_8_and_stays_answerable(house: House) -> None:
    ran = house.run("run", "-p", "run it")
    assert ran.returncode == 8
    assert RUN in ran.stderr
    assert house.run("wait").returncode == 8
    assert not (house.here / "ran.txt").exists()
    approval = next(
        row["item"]["id"] for row in json.loads(house.ok("inbox", "--json"))["items"]
        if row["session_id"] in ran.stderr
    )  # fmt: skip
    assert RUN in house.ok("inbox")
    house.ok("approve", approval[:20])
    assert house.run("wait", "--timeout", "30").returncode == 0
    assert (house.here / "ran.txt").read_text() == "ran\n"
    assert "It ran." in house.ok("logs")
    again = house.run("approve", approval)
    assert (again.returncode, "no open approval" in again.stderr) == (3, True)


def test_a_deny_reaches_the_model_with_its_reason(house: House) -> None:
    session = house.start("run it")
    until(lambda: house.client().session(session)["status"] == "waiting")
    house.ok("deny", session, "-m", "use the blue door")
    assert house.run("wait", session).returncode == 0
    assert not (house.here / "ran.txt").exists()
    told = [item.text for request in house.model.requests for item in history_of(request)]
    assert any("use the blue door" in text for text in told)


def test_yes_runs_without_asking_and_says_so(house: House) -> None:
    ran = house.run("run", "-p", "--yes", "run it")
    assert (ran.returncode, ran.stdout) == (0, "It ran.\n")
    assert "warning: --yes" in ran.stderr
    assert (house.here / "ran.txt").exists()


def test_no_ask_denies_and_goes_on(house: House) -> None:
    ran = house.run("run", "-p", "--no-ask", "run it")
    assert ran.returncode == 0
    assert not (house.here / "ran.txt").exists()


def test_json_prints_the_log_until_the_turn_ends(house: House) -> None:
    ran = house.run("run", "--json", "say hello")
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "turn.completed"
    logged = house.ok("logs", "--json", events[0]["session_id"]).splitlines()
    assert logged[: len(events)] == ran.stdout.splitlines()
    after = house.ok("logs", "--json", "--after", "3", events[0]["session_id"]).splitlines()
    assert after == logged[3:]


def test_a_failed_turn_is_exit_1_with_the_vendors_words(house: House) -> None:
    ran = house.run("run", "-p", "fail now")
    assert ran.returncode == 1
    assert "scripted refusal" in ran.stderr


def test_ctrl_c_interrupts_the_turn_and_exits_130(house: House) -> None:
    ran = subprocess.Popen(
        house.command("run", "-p", "--title", "Hung", "hang on"), cwd=house.here, env=house.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert ran.stderr
    session = ran.stderr.readline().split()[1]
    until(lambda: any(event["kind"] == "turn.started" for event in house.client().all_events(session)))
    ran.send_signal(signal.SIGINT)
    _, told = ran.communicate(timeout=30)
    assert ran.returncode == 130, told
    assert "Traceback" not in told
    assert house.client().session(session).get("last_turn") is not None


# Naming, looking, steering.


def test_a_session_is_named_in_every_way(house: House) -> None:
    session = house.start("say hello", "--title", f"The one of {house.here.name}")
    assert house.run("wait").returncode == 0
    url = json.loads(house.ok("show", "--json"))["web_url"]
    for named in (session, session[:29], f"The one of {house.here.name}", f"{url}#token=x", "@last"):
        assert json.loads(house.ok("show", named, "--json"))["id"] == session
    assert session in house.ok("ls")
    assert house.ok("ls", "-q", "--limit", "1").strip() == session
    assert json.loads(house.ok("ls", "--json", "--limit", "1"))["items"][0]["id"] == session
    missing = house.run("show", "ses_NONE")
    assert (missing.returncode, missing.stderr.count("error:")) == (3, 1)


def test_send_queues_and_wait_waits_for_all(house: House) -> None:
    session = house.start("say hello")
    house.ok("send", "say hello again")
    house.ok("send", session, "say hello once more")
    assert house.run("wait", session, "--timeout", "30").returncode == 0
    assert house.ok("logs", session).count("hello there") == 3


def test_wait_times_out_with_124(house: House) -> None:
    house.start("hang on")
    assert house.run("wait", "--timeout", "0.5").returncode == 124
    house.ok("interrupt")
    assert house.run("wait", "--timeout", "30").returncode == 130
    house.ok("stop")


def test_a_question_is_answered_by_number(house: House) -> None:
    ran = house.run("run", "-p", "ask me")
    assert ran.returncode == 8
    assert "1. red" in ran.stderr
    house.ok("answer", "2")
    assert house.run("wait", "--timeout", "30").returncode == 0
    assert "blue" in house.ok("logs", "--full")


def test_fork_model_switch_close_resume_rm(house: House) -> None:
    session = house.start("say hello")
    assert house.run("wait", session).returncode == 0
    fork = house.ok("fork", session, "--share-workspace").strip()
    assert json.loads(house.ok("show", fork, "--json"))["forked_from"]["session_id"] == session
    house.ok("model", session, "other-model")
    until(lambda: house.client().session(session)["model"] == "other-model")
    unknown = house.run("switch", session, "-H", "codx")
    assert (unknown.returncode, "Did you mean codex?" in unknown.stderr) == (2, True)
    house.ok("close", session)
    refused = house.run("send", session, "say hello")
    assert refused.returncode == 5
    house.ok("resume", session)
    asks = house.run("rm", session)
    assert (asks.returncode, "--yes" in asks.stderr) == (2, True)
    house.ok("stop", session)
    house.ok("rm", session, "--yes")
    assert house.run("show", session).returncode == 3


def test_export_and_import(house: House, fresh: House) -> None:
    session = house.start("say hello")
    assert house.run("wait", session).returncode == 0
    house.ok("stop", session)
    assert house.ok("export", session, "-o", "s.zip") == "s.zip\n"
    archive = str(house.here / "s.zip")
    before = (house.here / "s.zip").read_bytes()
    refused = house.run("export", session, "-o", "s.zip")
    assert (refused.returncode, "--force" in refused.stderr) == (5, True)
    assert (house.here / "s.zip").read_bytes() == before
    house.ok("export", session, "-o", "s.zip", "--force")
    first, again = fresh.run("import", archive), fresh.run("import", archive)
    assert first.stdout.strip() == again.stdout.strip() == session
    assert "read-only" in first.stderr and f"omnigent fork {session}" in first.stderr
    assert "here already" in again.stderr and "read-only" not in again.stderr
    assert "hello there" in fresh.ok("logs", session)


def test_following_logs_ends_quietly_when_the_reader_leaves(house: House) -> None:
    house.start("say hello")
    line = " ".join(house.command("logs", "-f", "@last"))
    ran = subprocess.Popen(
        f"{line} | head -n 1", shell=True, cwd=house.here, env=house.env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    house.ok("send", "@last", "say hello")  # a follower learns of a closed pipe at its next line
    out, err = ran.communicate(timeout=30)
    assert (out, err) == ("> say hello\n", "")


def test_following_logs_ends_when_the_reader_leaves_and_nothing_happens(house: House) -> None:
    session = house.start("say hello")
    assert house.run("wait", session).returncode == 0
    ran = subprocess.Popen(
        house.command("logs", "-f", session), cwd=house.here, env=house.env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert ran.stdout and ran.stderr
    with ran, ran.stderr:
        assert ran.stdout.readline() == "> say hello\n"
        ran.stdout.close()
        assert (ran.wait(20), ran.stderr.read()) == (0, "")


def test_lists_of_the_machine(house: House) -> None:
    assert "scripted" in [row["name"] for row in json.loads(house.ok("harness", "ls", "--json"))["items"]]
    assert "local" in house.ok("devices", "ls")
    assert house.ok("config", "path").strip() == str(house.home / "config.yaml")
    assert json.loads(house.ok("config", "show", "--json"))["providers"]["lab"]["key"] == {"secret": "lab"}
    assert json.loads(house.ok("server", "status", "--json"))["running"] is True


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run", "-p", "-H", "claud", "hi"], 2, "Did you mean claude"),
        (["run", "-p", "-P", "chat", "hi"], 2, "speaks anthropic-messages, not openai-chat"),
        (["run", "-p", "-P", "none", "hi"], 2, "no provider named 'none'"),
        (["logs", "--after", "99999", "@last", "-f"], 2, "beyond the log's head"),
        (["show", "ses_00000000000000000000000000"], 3, ""),
        (["approve", "ap_none"], 3, "no open approval"),
        (["model", "a", "b", "c"], 2, "one model"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_error_and_its_code(house: House, words: list[str], code: int, told: str) -> None:
    house.start("say hello")
    ran = house.run(*words)
    assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
    assert told in ran.stderr
    assert ran.stderr.count("error: ") == 1
    assert "Traceback" not in ran.stderr


# attach.


def test_piped_lines_are_a_conversation(house: House) -> None:
    session = house.start("say hello")
    ran = house.run("attach", session, stdin="run it\ny\nsay hello again\n/nonsense\n")
    assert ran.returncode == 0, ran
    assert (house.here / "ran.txt").read_text() == "ran\n"
    shown = ran.stdout
    order = [
        "> say hello",
        "hello there",
        "> run it",
        f"● bash  {RUN}",
        "allowed by local",
        "It ran.",
        "> say hello again",
    ]
    places = [shown.index(text) for text in order]
    assert places == sorted(places), shown
    assert "There is no command /nonsense" in ran.stderr


def test_piped_lines_that_end_at_an_approval_exit_8(house: House) -> None:
    session = house.start("say hello")
    ran = house.run("attach", session, stdin="run it\n")
    assert ran.returncode == 8
    assert "needs input: ap_" in ran.stderr
    joined_late = house.run("attach", session, stdin="n not today\n")
    assert joined_late.returncode == 0
    assert "denied by local (cli): not today" in joined_late.stdout


def test_a_question_is_answered_in_attach(house: House) -> None:
    session = house.start("ask me")
    ran = house.run("attach", session, stdin="2\n")
    assert ran.returncode == 0
    assert "answered: blue" in ran.stdout


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, house: House, *words: str) -> None:
        self.main, side = os.openpty()
        self.seen = ""
        self.child = subprocess.Popen(
            house.command(*words), cwd=house.here, env=house.env | {"TERM": "xterm"},
            stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=lambda: None,
        )  # fmt: skip
        os.close(side)

    def expect(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} didn't come: {self.seen!r}"
            ready, _, _ = select.select([self.main], [], [], left)
            if ready:
                try:
                    self.seen += os.read(self.main, 65536).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"{text!r} didn't come: {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def type(self, line: str) -> None:
        os.write(self.main, f"{line}\n".encode())

    def end(self) -> int:
        code = self.child.wait(30)
        os.close(self.main)
        return code


def test_a_person_at_a_terminal(house: House) -> None:
    """`run` attaches; y releases the command, Ctrl-C interrupts a turn, a second one leaves."""
    terminal = Terminal(house, "run", "run it")
    terminal.expect("session ses_")
    terminal.expect("#token=" + (house.home / "token").read_text().strip())
    terminal.expect("allow? ")
    terminal.type("what?")
    terminal.expect("It waits for an approval")
    terminal.type("y")
    terminal.expect("It ran.")
    terminal.expect("> ")
    assert (house.here / "ran.txt").exists()
    terminal.type("hang on")
    terminal.expect("thinking")
    terminal.child.send_signal(signal.SIGINT)
    terminal.expect("■ interrupted")
    terminal.expect("> ")
    terminal.child.send_signal(signal.SIGINT)
    assert terminal.end() == 130


def test_quit_leaves_the_session_running(house: House) -> None:
    terminal = Terminal(house, "run", "say hello")
    terminal.expect("hello there")
    terminal.expect("> ")
    terminal.type("/quit")
    assert terminal.end() == 0
    assert json.loads(house.ok("show", "--json"))["status"] == "idle"


# The server's life.


def server_of(house: House) -> dict[str, Any]:
    return json.loads((house.home / "server.json").read_bytes())


def test_many_commands_at_once_start_one_server(fresh: House) -> None:
    commands = [
        subprocess.Popen(
            fresh.command("ls", "--json"), cwd=fresh.here, env=fresh.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for command in commands:
        out, err = command.communicate(timeout=60)
        assert (command.returncode, json.loads(out)["items"]) == (0, []), err
    log = (fresh.home / "logs" / "server.log").read_text()
    assert log.count("listening on") == 1
    record = server_of(fresh)
    assert processes.alive(record["pid"], record["pid_started"])
    assert os.getsid(record["pid"]) == record["pid"], "it must outlive the terminal"
    assert fresh.run("server", "stop").returncode == 0
    assert not processes.alive(record["pid"], record["pid_started"])
    assert not (fresh.home / "server.json").exists()
    assert fresh.run("server", "status").returncode == 1
    assert fresh.run("server", "stop").returncode == 0


def test_a_killed_server_is_started_again(fresh: House) -> None:
    session = fresh.start("say hello")
    assert fresh.run("wait", session).returncode == 0
    record = server_of(fresh)
    processes.kill([(record["pid"], record["pid_started"])])
    assert session in fresh.ok("ls")
    assert server_of(fresh)["pid"] != record["pid"]


def test_the_server_sees_no_variable_that_was_not_named(fresh: House) -> None:
    fresh.run("ls", SOME_SECRET="hush-hush")
    environ = Path(f"/proc/{server_of(fresh)['pid']}/environ").read_bytes()
    assert b"hush-hush" not in environ


def test_a_bad_configuration_is_named_and_exits_2(fresh: House) -> None:
    (fresh.home / "config.yaml").write_text("server: {prot: 1}\n")
    ran = fresh.run("ls")
    assert ran.returncode == 2
    assert "config.yaml: server.prot" in ran.stderr


def test_a_home_of_a_newer_version_is_refused_in_the_servers_words(fresh: House) -> None:
    (fresh.home / "token").mkdir()
    ran = fresh.run("ls")
    assert ran.returncode == 1
    assert "the device list can't be used" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_demo_really_works_and_leaves_nothing_running(fresh: House) -> None:
    ran = fresh.run("demo", "-H", "scripted")
    assert ran.returncode == 0, ran
    assert "check.log: FAIL: greeting.txt must begin with Hello | ok" in ran.stdout
    assert "+Hello, world!" in ran.stdout
    assert "the demo allows it" in ran.stderr
    transcript = re.search(r"^transcript: (.+)$", ran.stderr, re.MULTILINE)
    assert transcript
    assert "sh check.sh" in Path(transcript[1]).read_text()
    assert [path.name for path in (fresh.home / "demo").iterdir()] == [Path(transcript[1]).name]
    assert not list(Path("/proc").glob("[0-9]*/cwd")) or not _processes_in(fresh.home / "demo")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_leaves_nothing(fresh: House, number: signal.Signals) -> None:
    terminal = Terminal(fresh, "demo", "-H", "scripted")
    terminal.expect("http://")
    assert not terminal.seen.startswith("127.0.0.1:6767/")
    terminal.expect("allow? ")
    assert _processes_in(fresh.home / "demo")
    terminal.child.send_signal(number)
    assert terminal.end() == 128 + number
    assert list((fresh.home / "demo").iterdir()) == []
    until(lambda: not _processes_in(fresh.home / "demo"))


def test_a_demo_without_an_answer_says_so(fresh: House) -> None:
    terminal = Terminal(fresh, "demo", "-H", "scripted")
    terminal.expect("allow? ")
    os.write(terminal.main, b"\x04")
    terminal.expect("the input ended before the approval was answered")
    terminal.expect("kept: ")
    assert terminal.end() == 1
    until(lambda: not _processes_in(fresh.home / "demo"))


def _processes_in(place: Path) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(place) in (path / "cmdline").read_bytes().decode("utf-8", "replace"):
                found.append(path.name)
    return found


# A network that loses things.


class Lossy:
    """A TCP proxy in front of the server that can swallow answers and cut connections."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.swallow = 0
        """So many more answers are read from the server and thrown away."""
        self.cuts = 0
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for one in self._open:
            one.close()

    def cut(self) -> None:
        self.cuts += 1
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._upstream))
                self._open += [near, far]
                self._start(self._pump, near, far, False)
                self._start(self._pump, far, near, True)

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=given, daemon=True))
        self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.swallow:
                    self.swallow -= 1
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def lossy(house: House) -> Generator[tuple[Lossy, Client]]:
    house.ok("ls")
    proxy = Lossy(server_of(house)["port"])
    with Client(proxy.url, (house.home / "token").read_text().strip()) as client:
        yield proxy, client
    proxy.close()


def test_a_lost_answer_is_asked_for_again_and_nothing_happens_twice(
    house: House, lossy: tuple[Lossy, Client]
) -> None:
    proxy, client = lossy
    title = f"once {house.here.name}"
    proxy.swallow = 2
    session = client.create({"harness": "scripted", "workspace": str(house.here), "title": title})
    assert proxy.swallow == 0
    assert [one["id"] for one in client.sessions(query=title)] == [session["id"]]
    proxy.swallow = 2
    answer = client.command(session["id"], "prompt", text="say hello")
    assert proxy.swallow == 0
    until(lambda: client.session(session["id"]).get("last_turn"))
    kinds = [event["kind"] for event in client.all_events(session["id"])]
    assert kinds.count("message.submitted") == 1
    assert answer["state"] in ("accepted", "queued")
    proxy.swallow = 1
    client.command(session["id"], "stop")
    proxy.swallow = 1
    client.delete(session["id"])
    assert proxy.swallow == 0


def test_a_cut_stream_goes_on_without_gap_or_repeat(house: House, lossy: tuple[Lossy, Client]) -> None:
    proxy, client = lossy
    session = client.create({"harness": "scripted", "workspace": str(house.here)})["id"]
    seen: list[int] = []
    lost, done = 0, 0
    client.command(session, "prompt", text="say hello")
    with closing(client.follow(session)) as follow:
        for frame in follow:
            lost += frame.event == "lost"
            if frame.event != "event":
                continue
            seen.append(frame.data["seq"])
            if frame.data["kind"] == "turn.started":
                proxy.cut()
            if frame.data["kind"] == "turn.completed":
                done += 1
                if done == 4:
                    break
                client.command(session, "prompt", text="say hello")
    assert lost > 1
    assert seen == list(range(1, len(seen) + 1))
    assert [event["seq"] for event in client.all_events(session)][: len(seen)] == seen


def test_the_stream_ends_when_the_device_is_revoked(house: House) -> None:
    house.ok("ls")
    owner = house.client()
    session = owner.create({"harness": "scripted", "workspace": str(house.here)})["id"]
    device = owner._json("POST", "/v1/devices", body={"name": "phone"})  # pyright: ignore[reportPrivateUsage]
    with closing(Client(owner.url, device["token"]).follow(session)) as follow:
        assert next(follow).event == "hello"
        house.ok("devices", "revoke", device["id"])
        with pytest.raises(Unauthorized):
            for _ in follow:
                pass


def test_the_same_key_with_another_body_is_refused(house: House) -> None:
    house.ok("ls")
    client = house.client()
    body = {"harness": "scripted", "workspace": str(house.here)}
    first = client.create(body, key=f"k-{house.here.name}")
    assert client.create(body, key=f"k-{house.here.name}")["id"] == first["id"]
    with pytest.raises(Exception, match="another request") as caught:
        client.create(body | {"title": "other"}, key=f"k-{house.here.name}")
    assert getattr(caught.value, "exit_code", None) == 2
    with pytest.raises(Conflict):
        client.command(first["id"], "close")
        client.command(first["id"], "prompt", text="hi")


def test_a_silent_pipe_beside_a_prompt_is_not_waited_for(house: House) -> None:
    """A script's inherited pipe may never end."""
    ours, theirs = os.pipe()
    try:
        ran = subprocess.run(
            house.command("run", "-p", "say hello"), cwd=house.here, env=house.env, stdin=ours,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert (ran.returncode, ran.stdout) == (0, "hello there\n")
    assert "going on without it" in ran.stderr
