"""The configuration file: what it says, and where it is wrong."""

import os
from pathlib import Path

import pytest

from omnigent.config import (
    Config,
    ConfigFile,
    child_environment,
    home_path,
    load_config,
    parse_config,
    ready_home,
)
from omnigent.errors import ConfigInvalid, HomeUnusable

WHOLE = """
server: {host: 127.0.0.1, port: 7000}
providers:
  lab: {api: anthropic-messages, base_url: "http://127.0.0.1:8399", key: {env: LAB_KEY}}
  chat: {api: openai-chat, key: {command: [pass, show, lab]}}
defaults:
  harness: codex
  codex: {provider: lab, model: gpt-5.5}
runner: {grace_seconds: 5}
environment: [MY_VARIABLE]
"""


def written(home: Path, text: str) -> Config:
    (home / "config.yaml").write_text(text)
    return load_config(home)


def test_a_whole_file(tmp_path: Path) -> None:
    config = written(tmp_path, WHOLE)
    assert (config.server.port, config.harness) == (7000, "codex")
    assert config.harnesses["codex"].model == "gpt-5.5"
    assert config.providers["chat"].key.command == ("pass", "show", "lab")
    assert (config.runner.grace_seconds, config.runner.idle_seconds) == (5, 600)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, text) == Config() == load_config(tmp_path / "nowhere")


KEY = "key: {env: K}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("server: {prot: 1}", "server.prot"),
        ("server: {port: 99999}", "server.port"),
        ("sever: {}", "sever"),
        ("[]", "must be a mapping"),
        ("defaults: 3", "defaults"),
        ("defaults: {codex: {modle: x}}", "defaults.codex.modle"),
        ("defaults: {harness: [1]}", "defaults.harness"),
        ("harness: codex", "harness"),
        ("harnesses: {}", "harnesses"),
        ("providers: {p: {api: openai, %s}}" % KEY, "providers.p.api"),  # noqa: UP031
        ("providers: {p: {api: openai-chat}}", "providers.p.key"),
        ("providers: {p: {api: openai-chat, key: {}}}", "exactly one of env, secret, command"),
        ("providers: {p: {api: openai-chat, key: {env: A, secret: b}}}", "providers.p.key"),
        ("runner: {grace_seconds: 0}", "runner.grace_seconds"),
        ("mcp_servers: {a__b: {command: [x]}}", "mcp_servers.a__b"),
        ("providers: {p: {api: openai-chat, key: {env: A}, prices: {m: {input: 1}}}}", "prices.m.output"),
        ("a: b: c", "line 1"),
    ],
)
def test_an_error_names_the_file_and_the_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigInvalid) as wrong:
        written(tmp_path, text)
    assert place in wrong.value.detail
    assert "config.yaml" in wrong.value.detail


@pytest.mark.parametrize(
    "text", ['providers: {p: {api: openai-chat, key: "sk-secret"}}', "key: sk-secret: x", "k: [sk-secret"]
)
def test_an_error_shows_no_value(tmp_path: Path, text: str) -> None:
    """Somebody will write a key where it doesn't belong."""
    with pytest.raises(ConfigInvalid) as wrong:
        written(tmp_path, text)
    assert "sk-secret" not in str(wrong.value.problem())
    assert "sk-secret" not in repr(wrong.value.__context__) or wrong.value.__suppress_context__


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigInvalid, match=r"config\.yaml"):
        load_config(tmp_path)
    with pytest.raises(ConfigInvalid, match="must be a mapping"):
        parse_config([])


def test_the_home_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGENT_HOME", str(tmp_path / "home"))
    home = ready_home(home_path())
    assert home == tmp_path / "home"
    assert home.stat().st_mode & 0o777 == 0o700
    assert list(home.iterdir()) == []


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeUnusable) as wrong:
        ready_home(tmp_path / "file" / "home")
    assert "OMNIGENT_HOME" in wrong.value.hint


def test_an_agent_sees_the_listed_variables_only() -> None:
    environ = {
        "PATH": "p",
        "LC_ALL": "C",
        "LAB_KEY": "k",
        "OPENAI_API_KEY": "k",
        "MINE": "m",
        "PYTHONPATH": "x",
    }
    assert child_environment(environ) == {"PATH": "p", "LC_ALL": "C"}
    assert child_environment(environ, ("MINE",)) == {"PATH": "p", "LC_ALL": "C", "MINE": "m"}
    assert not {name for name in child_environment(dict(os.environ)) if "KEY" in name or "TOKEN" in name}


def test_an_edit_holds_from_the_next_look_on(tmp_path: Path) -> None:
    """A running server follows the file; an edit that can't be read is an error that names the place."""
    file = tmp_path / "config.yaml"
    settings = ConfigFile(tmp_path, load_config(tmp_path))
    assert settings.current().harness == "claude-code"
    file.write_text("defaults: {harness: pi}")
    assert settings.current().harness == "pi"
    assert settings.start.harness == "claude-code"
    file.write_text("provders: {}")
    for _ in range(2):
        with pytest.raises(ConfigInvalid, match="provders"):
            settings.current()
    file.unlink()
    assert settings.current().harness == "claude-code"
