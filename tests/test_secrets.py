"""Keys are read where they are said to be, secrets are registered privately, what is known is complete."""

import json
import os
import pty
import re
import secrets as random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigent import secrets
from omnigent.config import Config, Key, parse_config
from omnigent.errors import ConfigInvalid, Malformed, NotFound, ProviderMissing
from omnigent.providers import Upstream
from omnigent.runner.orders import secrets_of
from omnigent.secrets import Redactor, known_secrets, read_key

SECRET = "sk-0123456789"


def made_up() -> str:
    return random.token_urlsafe(24)


@pytest.fixture
def keychain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A stand-in for the machine's key store, which is a part of the machine: the program `secret-tool` on
    the PATH, which answers as the real one does (nothing and 1 for what it hasn't). What is in it."""
    held = {"lab service": made_up(), "vpn": made_up()}
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "held.json").write_text(json.dumps(held))
    program = folder / ("security" if sys.platform == "darwin" else "secret-tool")
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"held = json.load(open({str(folder / 'held.json')!r}))\n"
        "assert sys.argv[1:-1] in (['lookup', 'service'], ['find-generic-password', '-w', '-s'])\n"
        "sys.stdout.write(held[sys.argv[-1]]) if sys.argv[-1] in held else sys.exit(1)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return held


def test_a_key_from_each_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keychain: dict[str, str]
) -> None:
    monkeypatch.setenv("LAB_KEY", "from-env")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "lab").write_text("from-file\n")
    assert read_key(Key(env="LAB_KEY"), tmp_path) == "from-env"
    assert read_key(Key(env="LAB_KEY"), tmp_path, {"LAB_KEY": "from-elsewhere"}) == "from-elsewhere"
    assert read_key(Key(secret="lab"), tmp_path) == "from-file"
    assert read_key(Key(command=("echo", "from-program")), tmp_path) == "from-program"
    assert read_key(Key(keychain="lab service"), tmp_path) == keychain["lab service"]


@pytest.mark.parametrize(
    ("key", "word"),
    [
        (Key(env="NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE"),
        (Key(secret="none"), "secrets/none"),
        (Key(secret="binary"), "secrets/binary"),
        (Key(command=("false", SECRET)), "'false'"),
        (Key(command=("/no/such/program",)), "/no/such/program"),
        (Key(command=("printf", r"\377\376")), "'printf'"),
        (Key(command=("true",)), "'true'"),
        (Key(keychain="nothing of that name"), "nothing of that name"),
    ],
)
def test_a_missing_key_says_where_it_was_looked_for(
    tmp_path: Path, keychain: dict[str, str], key: Key, word: str
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ProviderMissing) as missing:
        read_key(key, tmp_path)
    assert word in missing.value.detail and missing.value.hint
    assert SECRET not in str(missing.value.problem())


def test_a_machine_without_a_key_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderMissing):
        read_key(Key(keychain="lab"), tmp_path)


@pytest.mark.parametrize(
    "key", [{}, {"keychain": "-a"}, {"keychain": "a\nb"}, {"command": []}, {"keychain": "a", "env": "B"}]
)
def test_a_source_is_one_and_plain(key: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid):
        parse_config({"secrets": [key]})


# What is known.


def test_all_that_is_known(tmp_path: Path, keychain: dict[str, str]) -> None:
    values = {name: made_up() for name in ("env", "file", "command", "header", "mcp", "listed", "var", "url")}
    values["token"] = made_up()
    (tmp_path / "token").write_text(values["token"] + "\n")
    secrets.store(tmp_path, "lab", values["file"])
    provider = {"api": "openai-chat", "base_url": "http://127.0.0.1:9"}
    config = parse_config(
        {
            "providers": {
                "a": {**provider, "key": {"env": "A"}},
                "b": {**provider, "key": {"secret": "lab"}},
                "c": {**provider, "key": {"command": ["echo", values["command"]]}},
                "d": {
                    **provider,
                    "key": {"keychain": "lab service"},
                    "headers": {"X-Api-Key": values["header"]},
                },
                "gone": {**provider, "key": {"env": "NOT_SET"}},
            },
            "secrets": [{"keychain": "vpn"}, {"env": "PLAIN"}, {"secret": "missing"}],
            "mcp_servers": {"notes": {"command": ["x"], "environment": {"NOTES_TOKEN": values["mcp"]}}},
        }
    )
    environ = {
        "A": values["env"],
        "PLAIN": values["listed"],
        "DEPLOY_PASSWORD": values["var"],
        "DATABASE": f"postgres://me:{values['url']}@host/db",
        "HOME": "/home/someone-long",
    }
    found = known_secrets(config, tmp_path, environ)
    assert sorted(found) == sorted([*values.values(), *keychain.values()])


SAY_SO = [
    "API_KEY",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "PGPASSWORD",
    "DB_PASSWORD",
    "MY_CREDENTIAL",
    "apikey",
    "NPM_TOKEN",
    "SIGNING_KEY",
    "CLIENT_SECRET",
    "SSH_PASSPHRASE",
    "OPENAIKEY",
    "CI_JOB_TOKEN",
    "GITLAB_PAT",
]


@pytest.mark.parametrize("name", SAY_SO)
def test_a_variable_whose_name_says_so(tmp_path: Path, name: str) -> None:
    for value in (made_up(), "/" + made_up(), "Xq7" + made_up().lower()):
        assert known_secrets(Config(), tmp_path, {name: value}) == [value]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/account.json"),
        ("SSH_AUTH_SOCK", "/run/user/1000/keyring/ssh"),
        ("MAX_OUTPUT_TOKENS", "1000000000"),
        ("TOKEN_URL", "https://auth.example/token"),
        ("TOKENIZERS_PARALLELISM", "disabled"),
        ("PATH", "/usr/local/bin:/usr/bin"),
        ("EDITOR", "emacsclient"),
        ("KEYBOARD", "de-latin1-nodeadkeys"),
        ("API_KEY", "short"),
        ("AUTHOR", "Somebody With A Name"),
    ],
)
def test_what_is_no_secret_stays_readable(tmp_path: Path, name: str, value: str) -> None:
    assert known_secrets(Config(), tmp_path, {name: value}) == []


def test_credentials_of_a_request_are_known_to_its_runner() -> None:
    upstream = Upstream(
        "openai-chat", "http://127.0.0.1:9", {"authorization": f"Bearer {SECRET}", "accept": "everything"}
    )
    assert secrets_of(upstream) == [SECRET]


# What people register.


def test_registered_secrets_are_private(tmp_path: Path) -> None:
    value = made_up()
    assert secrets.store(tmp_path, "deploy-key", value) and not secrets.store(
        tmp_path, "deploy-key", value * 2
    )
    file = tmp_path / "secrets" / "deploy-key"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert secrets.names(tmp_path) == ["deploy-key"]
    assert read_key(Key(secret="deploy-key"), tmp_path) == value * 2
    secrets.remove(tmp_path, "deploy-key")
    assert secrets.names(tmp_path) == []
    with pytest.raises(NotFound):
        secrets.remove(tmp_path, "deploy-key")


@pytest.mark.parametrize("name", ["", "../token", "a/b", ".hidden", "-x", "x" * 101, "a\nb", "a b"])
def test_a_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(Malformed):
        secrets.store(tmp_path, name, made_up())
    with pytest.raises(Malformed):
        secrets.remove(tmp_path, name)


def omnigent(home: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omnigent", "secret", *words],
        env=os.environ | {"OMNIGENT_HOME": str(home)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_command_line(tmp_path: Path) -> None:
    value = made_up()
    done = omnigent(tmp_path, "set", "lab", stdin=value + "\n")
    assert (done.returncode, done.stderr) == (0, "stored lab\n")
    assert (tmp_path / "secrets" / "lab").read_text() == value + "\n"
    listed = omnigent(tmp_path, "ls", "--json")
    assert json.loads(listed.stdout) == {"items": [{"name": "lab"}]}
    assert omnigent(tmp_path, "set", "lab", value).returncode == 2  # never an argument
    short = omnigent(tmp_path, "set", "lab", stdin="short")
    assert short.returncode == 2 and "short" not in short.stderr.replace("shorter", "")
    assert omnigent(tmp_path, "rm", "lab").returncode == 0
    assert omnigent(tmp_path, "rm", "lab").returncode == 3


def test_a_value_typed_at_the_prompt_is_not_shown(tmp_path: Path) -> None:
    value = made_up()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "omnigent", "secret", "set", "typed"],
        env=os.environ | {"OMNIGENT_HOME": str(tmp_path)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"typed: " not in shown:  # the prompt comes after the echo is off
        shown += os.read(ours, 1000)
    os.write(ours, value.encode() + b"\n")
    assert process.wait(30) == 0
    shown += os.read(ours, 1000)
    os.close(ours)
    assert value.encode() not in shown
    assert (tmp_path / "secrets" / "typed").read_text() == value + "\n"


# A stream.

PIECES = [SECRET, SECRET[:5], SECRET[5:], "sk-", "s", "plain ", "sk-sk-0"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(1, 7))
def test_a_secret_cut_in_pieces_is_never_shown(parts: list[str], size: int) -> None:
    """Whatever the cuts, nothing of it is shown, little is kept back, and nothing else is lost.

    What begins right after a cut may look like a key of its own: then more is taken out."""
    text, redactor = "".join(parts), Redactor([SECRET])
    shown, held = "", ""
    for start in range(0, len(text), size):
        piece, held = redactor.split(held + text[start : start + size])
        shown += piece
        assert SECRET not in shown and len(held) <= len(text)
    total = shown + redactor.text(held)
    assert SECRET not in total
    assert total == redactor.text(text) or "openai key" in total
    kept = re.split(r"\[redacted[^]]*\]", total)
    assert re.fullmatch(".*".join(map(re.escape, kept)), text, re.DOTALL)
    assert "[redacted" in redactor.text(text) or SECRET not in text
