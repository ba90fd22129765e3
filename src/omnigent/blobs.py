"""The content-addressed store: large outputs and images, as files named by their sha256.

A blob is on disk before an event names it.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from omnigent.errors import NotFound


class Blobs:
    def __init__(self, home: Path) -> None:
        self._root = home / "blobs"

    def put(self, data: bytes) -> str:
        """Store and return the sha256 (hex). Storing what is there already costs nothing."""
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if path.exists():
            return name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).rename(path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
        return name

    def get(self, name: str) -> bytes:
        """The bytes. Raises `NotFound`."""
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise NotFound(f"{name!r} is no blob name.")
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"There is no blob {name}.") from None

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name
