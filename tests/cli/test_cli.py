"""The command line without a server: parsing, help, exit codes, what start-up imports."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from omnigent import cli, errors
from omnigent.cli import launch, naming, setup
from omnigent.cli.completions import whole_parser
from omnigent.cli.run import Turn, prompt_of, workspace_of
from omnigent.cli.sessions import facts, status_of
from omnigent.cli.table import COMMANDS, EXIT_CODES
from omnigent.cli.wait import verdict
from omnigent.client import Event, Session
from omnigent.config import Config, parse_config
from omnigent.errors import Conflict, HomeUnusable, NotFound, OmnigentError, ProviderMissing, WorkspaceMissing

HEAVY = {
    "pydantic",
    "fastapi",
    "yaml",
    "aiohttp",
    "uvicorn",
    "shtab",
    "rfc8785",
    "dataclasses",
    "subprocess",
    "cel",
    "tree_sitter",
    "tree_sitter_bash",
    "genai_prices",
}
"""What no daily command may import: each costs more than the command itself."""


def omnigent(
    *words: str, home: Path, stdin: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omnigent", *words],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "OMNIGENT_HOME": str(home / "o")} | env,
        input=stdin if stdin is not None else "",
        cwd=home,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def imported_by(*words: str, home: Path) -> set[str]:
    """The top-level modules a command has imported when it ends."""
    code = (
        "import sys\nfrom omnigent.__main__ import main\nsys.argv[1:] = sys.argv[1:]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('\\n', *sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "OMNIGENT_HOME": str(home / "o"),
             "OMNIGENT_SERVER": "http://127.0.0.1:1", "OMNIGENT_TOKEN": "t"},
        capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip
    return {name.partition(".")[0] for name in ran.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "name",
    [
        "ls", "send", "approve", "logs", "show", "attach", "run", "wait", "stop", "inbox", "policy", "budget",
        "grants", "revoke", "usage", "audit", "resume",
    ],
)  # fmt: skip
def test_daily_commands_import_the_standard_library_only(name: str, tmp_path: Path) -> None:
    assert not imported_by(name, "--help", home=tmp_path) & HEAVY


def test_a_daily_command_that_really_asks_imports_no_more(tmp_path: Path) -> None:
    """Up to the request, with a server named that isn't there."""
    modules = imported_by("server", "status", home=tmp_path)
    assert "http" in modules
    assert not modules & HEAVY


def test_version_imports_nothing_of_the_command_line(tmp_path: Path) -> None:
    assert not imported_by("--version", home=tmp_path) & {"argparse", "http", "json", *HEAVY}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_an_example_of_that_command(name: str) -> None:
    lines = cli.parser_of(name).format_help().splitlines()
    assert lines[0] == "Example:"
    assert f"omnigent {name}" in lines[1] or name in ("config",)


READING = ["ls", "show", "logs", "wait", "inbox", "doctor", "run"]


@pytest.mark.parametrize("name", READING)
def test_reading_commands_take_json(name: str) -> None:
    assert cli.parser_of(name).parse_args(["--json"]).json is True


@pytest.mark.parametrize(
    "words",
    [["harness", "ls"], ["harness", "doctor"], ["server", "status"], ["devices", "ls"], ["config", "show"]],
)
def test_reading_verbs_take_json(words: list[str]) -> None:
    name, *rest = words
    assert cli.parser_of(name).parse_args([*rest, "--json"]).json is True


def test_exit_codes_are_frozen(tmp_path: Path) -> None:
    assert list(EXIT_CODES) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 124, 130]
    shown = omnigent("help", "exit-codes", home=tmp_path).stdout
    assert [line.split()[0] for line in shown.splitlines()] == [str(code) for code in EXIT_CODES]


def test_every_error_exits_with_a_code_of_the_table() -> None:
    def kinds(root: type[OmnigentError]) -> list[type[OmnigentError]]:
        return [root, *(deeper for kind in root.__subclasses__() for deeper in kinds(kind))]

    assert {kind.exit_code for kind in kinds(errors.OmnigentError)} <= set(EXIT_CODES)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["lss"], 2, "Did you mean `omnigent ls`?"),
        (["atach", "@last"], 2, "Did you mean `omnigent attach`?"),
        (["ls", "--nonsense"], 2, "omnigent ls --help"),
        (["run", "--modle", "gpt-5.5", "hi"], 2, "there is no option --modle\nhint: Did you mean --model?"),
        (
            ["harness", "install", "--verzion=1", "pi"],
            2,
            "no option --verzion\nhint: Did you mean --version?",
        ),
        (["config"], 2, "omnigent config wants a verb: path, show"),
        (["policy"], 2, "omnigent policy wants a verb: ls, add, rm, check, test, explain, replay"),
        (["policy", "tets"], 2, "Did you mean test?"),
        (["policy", "add", "f", "--scope", "projct"], 2, "Did you mean project?"),
        (["policy", "test", "f"], 2, "--events"),
        (["audit"], 2, "omnigent audit wants a verb: verify, export"),
        (["usage", "--by", "modle"], 2, "Did you mean model?"),
        (["usage", "--since", "yesterday"], 2, "--since takes a time like 30m, 2h or 1d, not 'yesterday'"),
        (["usage", "--since", "2026-13-01"], 2, "a day like 2026-11-01, not '2026-13-01'"),
        (["budget", "a", "b", "c"], 2, "Give one session and one amount"),
        (["budget", "@last", "lots"], 2, "US dollars like 3 or 2.50, not 'lots'"),
        (["approve", "--until", "2h"], 2, "Add --session, or --pattern P."),
        (["approve", "--session", "--pattern", "x"], 2, "not allowed with"),
        (["approve", "--session", "--until", "soon"], 2, "--until takes a time like 30m"),
        (["approve", "--edit", " "], 2, "To refuse it: omnigent deny ID -m 'why'"),
        (["policy", "add", "nowhere.yaml"], 2, "The policy file nowhere.yaml can't be read"),
        (["policy", "test", "nowhere.yaml", "--events", "x"], 2, "nowhere.yaml can't be read"),
        (["revoke"], 2, "omnigent revoke --help"),
        (["devices"], 2, "omnigent devices wants a verb: ls, revoke"),
        (["harness"], 2, "omnigent harness wants a verb: ls, install, doctor"),
        (["server"], 2, "omnigent server wants a verb: start, stop, status, logs"),
        (["server", "strat"], 2, "there is no verb 'strat'"),
        (["server", "strat"], 2, "Did you mean start?"),
        (["wait", "--until", "dome"], 2, "Did you mean done?"),
        (["help", "nonsense"], 3, "no help on 'nonsense'"),
        (["run", "-C", "nowhere", "hi"], 2, "There is no directory nowhere"),
        (["run", "-p"], 2, "There is no prompt"),
        (["run", "--yes", "--no-ask", "hi"], 2, "not allowed with"),
        (["rm"], 2, "Name the session"),
        (["import", "nowhere.zip"], 3, "can't be read"),
        (["harness", "install", "claud"], 2, "Did you mean claude"),
        (["server", "logs"], 3, "server.log can't be read"),
    ],
    ids=lambda value: "-".join(cast(list[str], value)) if isinstance(value, list) else "",
)
def test_wrong_input_gets_one_clear_error(words: list[str], code: int, told: str, tmp_path: Path) -> None:
    ran = omnigent(*words, home=tmp_path)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("error: ")


def test_no_server_is_exit_9(tmp_path: Path) -> None:
    ran = omnigent("server", "status", home=tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "not running\n")
    token = {"OMNIGENT_SERVER": "http://127.0.0.1:1", "OMNIGENT_TOKEN": "t"}
    assert (
        json.loads(omnigent("server", "status", "--json", home=tmp_path, **token).stdout)["running"] is False
    )


def test_a_remote_server_needs_a_token(tmp_path: Path) -> None:
    ran = omnigent("ls", home=tmp_path, OMNIGENT_SERVER="https://omnigent.example")
    assert ran.returncode == 4
    assert "Set OMNIGENT_TOKEN" in ran.stderr


def test_completions_know_every_command(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "tcsh"):
        script = omnigent("completions", shell, home=tmp_path).stdout
        assert all(name in script for name in COMMANDS)
    whole_parser().parse_args(["switch", "-H", "codex"])


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    ran = subprocess.run(
        f"{sys.executable} -m omnigent completions bash | head -c 10", shell=True, capture_output=True,
        text=True, check=True, timeout=50, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )  # fmt: skip
    assert ran.stderr == ""


# Which session.


def session(id_: str = "ses_" + "0" * 26, **more: Any) -> Session:
    made: Any = {
        "id": id_, "title": "", "harness": "pi", "model": None, "provider": None, "workspace": "/w",
        "status": "idle", "last_seq": 0, "updated_at": 0, "created_at": 0,
    }  # fmt: skip
    return made | more


ONE, TWO = "ses_01AAA" + "0" * 21, "ses_01AAB" + "0" * 21


@pytest.mark.parametrize("named", ["ses_01AAA", "01aaa", ONE, "mend it"])
def test_a_session_is_found_by_the_start_of_its_id_or_its_title(named: str) -> None:
    assert naming.choose([session(ONE, title="Mend it"), session(TWO)], named)["id"] == ONE


def test_a_session_that_is_not_clear_is_a_conflict_that_names_them() -> None:
    with pytest.raises(Conflict, match="ses_01AAB"):
        naming.choose([session(ONE), session(TWO)], "01AA")
    with pytest.raises(NotFound):
        naming.choose([session(ONE)], "nothing")


# What `wait` waits for.


@pytest.mark.parametrize(
    ("now", "done", "idle", "needs"),
    [
        ({"status": "running"}, None, None, None),
        ({"status": "starting"}, None, None, None),
        ({"status": "waiting", "pending": {"approvals": 1, "questions": 0}}, 8, None, 0),
        ({"status": "idle", "last_turn": {"outcome": "completed"}}, 0, 0, None),
        ({"status": "idle", "last_turn": {"outcome": "failed"}}, 1, 0, None),
        ({"status": "idle", "last_turn": {"outcome": "interrupted"}}, 130, 0, None),
        ({"status": "idle", "queue_length": 1}, None, None, None),
        ({"status": "lost"}, 1, 0, None),
        ({"status": "closed"}, 0, 0, 1),
    ],
)
def test_wait_ends_when(now: dict[str, Any], done: int | None, idle: int | None, needs: int | None) -> None:
    is_ = session(**now)
    assert (verdict(is_, "done"), verdict(is_, "idle"), verdict(is_, "needs-input")) == (done, idle, needs)


def test_show_says_only_what_there_is_to_say() -> None:
    names = [name for name, _ in facts(session(pending={"approvals": 1, "questions": 0}))]
    assert "queue" not in names
    assert ("waits for", "1 approvals") in facts(session(pending={"approvals": 1, "questions": 0}))
    assert status_of(session(last_turn={"outcome": "failed"})) == "idle (failed)"


# The first turn of `run -p`.


def event(kind: str, item: str = "", **body: Any) -> Event:
    return {
        "seq": 1, "at": 0, "kind": kind, "session_id": "", "item_id": item, "turn_id": None, "actor": {},
        "cause": None, "body": body,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("last", "answers", "code"),
    [
        (event("turn.completed"), True, 0),
        (event("turn.failed", code="agent_error", detail="no"), True, 1),
        (event("turn.failed", code="budget", detail="no"), True, 7),
        (event("turn.interrupted"), True, 130),
        (event("approval.requested", "ap_1", title="rm", reason=""), True, 8),
        (event("approval.requested", "ap_1", title="rm", reason=""), False, None),
        (event("question.asked", "q_1", questions=[{"question": "Which?"}]), True, 8),
        (event("tool.started"), True, None),
    ],
)
def test_the_turns_end_is_the_exit_code(last: Event, answers: bool, code: int | None) -> None:
    turn = Turn(answers=answers)
    turn.take(event("message.completed", content=[{"type": "text", "text": "thinking"}], status="complete"))
    turn.take(event("message.completed", content=[{"type": "text", "text": "done"}], status="complete"))
    assert turn.take(last) == code
    assert turn.text == "done"


# Workspaces, prompts, first run.


def test_a_workspace_is_absolute_and_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w").mkdir()
    (tmp_path / "link").symlink_to("w")
    (tmp_path / "file").touch()
    assert workspace_of("~/link") == str((tmp_path / "w").resolve())
    for wrong in ("~/none", "~/file", "~nobody-here/x"):
        with pytest.raises(WorkspaceMissing):
            workspace_of(wrong)


def test_a_prompt_is_its_words() -> None:
    assert prompt_of(["fix", "the test"], required=True) == "fix the test"
    assert prompt_of([], required=False) is None


@pytest.mark.parametrize(
    "keys", [["ANTHROPIC_API_KEY"], ["OPENAI_API_KEY"], ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"]]
)
def test_the_proposed_lines_are_a_valid_configuration(keys: list[str]) -> None:
    import yaml

    offers = setup.found(dict.fromkeys(keys, "sk-secret"))
    lines = setup.lines_for(offers)
    config = parse_config(yaml.safe_load(lines))
    assert [row.key.env for row in config.providers.values()] == keys
    assert config.harnesses[config.harness].provider in config.providers
    assert "sk-secret" not in lines


def test_a_key_is_proposed_and_never_used_silently(tmp_path: Path) -> None:
    ran = omnigent("run", "-p", "hi", home=tmp_path, ANTHROPIC_API_KEY="sk-secret")
    assert ran.returncode == 2
    assert "anthropic: {api: anthropic-messages, key: {env: ANTHROPIC_API_KEY}}" in ran.stderr
    assert "sk-secret" not in ran.stderr
    assert not (tmp_path / "o" / "config.yaml").exists()


@pytest.mark.parametrize("harness", [[], ["-H", "scripted"]])
def test_a_comment_on_providers_is_no_provider(tmp_path: Path, harness: list[str]) -> None:
    """The text has the word: the server finds that there is none, and the first run's advice follows."""
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "config.yaml").write_text("server: {port: 0}\n# providers: none yet\n")
    try:
        ran = omnigent("run", "-p", *harness, "hi", home=tmp_path, ANTHROPIC_API_KEY="sk-secret")
    finally:
        omnigent("server", "stop", home=tmp_path)
    assert ran.returncode == 2
    assert "anthropic: {api: anthropic-messages, key: {env: ANTHROPIC_API_KEY}}" in ran.stderr


def test_a_configuration_that_is_wrong_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "config.yaml").write_text("provider: {}\n")
    ran = omnigent("run", "-p", "hi", home=tmp_path, ANTHROPIC_API_KEY="sk-secret")
    assert ran.returncode == 2
    assert "config.yaml" in ran.stderr and "provider" in ran.stderr
    assert "is set here" not in ran.stderr


def test_lines_are_never_added_to_a_file_that_has_their_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(setup, "both_terminals", lambda: True)
    (tmp_path / "config.yaml").write_text("providers: {}\n")
    with pytest.raises(ProviderMissing, match="OPENAI_API_KEY is set here"):
        setup.propose(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "providers: {}\n"


def test_a_directory_that_was_deleted_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$0" -m omnigent run -p hi', sys.executable], cwd=gone,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMNIGENT_HOME": str(tmp_path / "o")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr == "error: The current directory no longer exists; give one with -C.\n"


def test_without_any_key_the_demo_is_named(tmp_path: Path) -> None:
    ran = omnigent("run", "-p", "hi", home=tmp_path)
    assert ran.returncode == 2
    assert "omnigent demo" in ran.stderr


def test_nothing_is_proposed_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pytest.raises(ProviderMissing):
        setup.propose(tmp_path)
    assert not (tmp_path / "config.yaml").exists()


# Starting a server.


def test_a_taken_port_is_named_with_the_key_that_mends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "config.yaml").write_text(f"server: {{port: {port}}}\n")
        with pytest.raises(Conflict) as caught:
            launch.launch(tmp_path)
    assert f"Port {port} on 127.0.0.1 is taken" in caught.value.detail
    assert "server.port" in caught.value.hint
    assert str(tmp_path / "config.yaml") in caught.value.hint


def test_a_home_that_cannot_be_is_home_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeUnusable):
        launch.launch(tmp_path / "file" / "home")


def test_the_server_gets_the_allowed_environment_and_the_named_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", "1")
    monkeypatch.setenv("OTHER_TOKEN", "2")
    monkeypatch.setenv("PROJECT_VARIABLE", "3")
    raw = {
        "providers": {"lab": {"api": "openai-chat", "key": {"env": "LAB_KEY"}}},
        "environment": ["PROJECT_VARIABLE"],
    }
    given = launch.server_environment(parse_config(raw))
    assert (given["LAB_KEY"], given["PROJECT_VARIABLE"]) == ("1", "3")
    assert "OTHER_TOKEN" not in given
    assert "LAB_KEY" not in launch.server_environment(Config())
