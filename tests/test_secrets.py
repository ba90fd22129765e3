"""Keys are read where they are said to be; known ones are taken out of whatever is shown."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigent.config import Key
from omnigent.errors import ProviderMissing
from omnigent.secrets import REDACTED, Redactor, read_key

SECRET = "sk-0123456789"


def test_a_key_from_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", "from-env")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "lab").write_text("from-file\n")
    assert read_key(Key(env="LAB_KEY"), tmp_path) == "from-env"
    assert read_key(Key(secret="lab"), tmp_path) == "from-file"
    assert read_key(Key(command=("echo", "from-program")), tmp_path) == "from-program"


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
    ],
)
def test_a_missing_key_says_where_it_was_looked_for(tmp_path: Path, key: Key, word: str) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ProviderMissing) as missing:
        read_key(key, tmp_path)
    assert word in missing.value.detail and missing.value.hint
    assert SECRET not in str(missing.value.problem())


def test_known_secrets_are_taken_out_of_values() -> None:
    redactor = Redactor([SECRET, 'quo"ted-secret'])
    value = {"a": [f"x {SECRET} y", 3, None], SECRET: {"raw": json.dumps({"k": 'quo"ted-secret'})}}
    assert redactor.value(value) == {
        "a": [f"x {REDACTED} y", 3, None],
        REDACTED: {"raw": f'{{"k": "{REDACTED}"}}'},
    }


def test_what_is_too_short_is_left_alone() -> None:
    assert Redactor(["", "a", "type"]).value({"type": "a"}) == {"type": "a"}


PIECES = [SECRET, SECRET[:5], SECRET[5:], "sk-", "s", "plain ", "sk-sk-0"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(1, 7))
def test_a_secret_cut_in_pieces_is_never_shown(parts: list[str], size: int) -> None:
    """Whatever the cuts, nothing but the last few characters is kept back, and nothing is lost."""
    text, redactor = "".join(parts), Redactor([SECRET])
    shown, held = "", ""
    for start in range(0, len(text), size):
        piece, held = redactor.split(held + text[start : start + size])
        shown += piece
        assert SECRET not in shown and len(held) < len(SECRET)
    assert shown + held == redactor.text(text)
