"""The content-addressed store."""

import hashlib
from pathlib import Path

import pytest

from omnigent.blobs import Blobs
from omnigent.errors import NotFound


def files(home: Path) -> list[Path]:
    return [path for path in (home / "blobs").rglob("*") if path.is_file()]


def test_what_is_put_is_got_by_its_digest(tmp_path: Path) -> None:
    name = Blobs(tmp_path).put(b"data")
    assert name == hashlib.sha256(b"data").hexdigest()
    assert Blobs(tmp_path).get(name) == b"data"


def test_the_same_twice_is_one_file_nobody_else_can_read(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.put(b"data")
    blobs.put(b"data")
    (file,) = files(tmp_path)
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "g" * 64, "A" * 64, "ab" * 31, f"{'a' * 64}/"])
def test_a_name_that_is_none_reads_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match="no blob name"):
        Blobs(tmp_path).get(name)


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no blob"):
        Blobs(tmp_path).get("a" * 64)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnigent.blobs.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Blobs(tmp_path).put(b"data")
    assert files(tmp_path) == []
