"""Who holds a token of this server: one named, revocable device per face.

`$OMNIGENT_HOME/token` holds the first device's token (`local`); `devices.json` knows every device, and of a
token only its SHA-256. Tokens have 256 bits of randomness, so an unsalted digest can't be guessed.
"""

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnigent.errors import HomeUnusable, NotFound
from omnigent.events import JSON
from omnigent.ids import Clock, NewId

LOCAL = "local"
"""The device whose token lies in the home: who can read the home may speak for it."""
SEEN_MS = 60_000
"""`last_seen` is written to disk at most this often."""


@dataclass(slots=True)
class Device:
    id: str
    name: str
    token_sha256: str
    created_at: int
    last_seen: int | None = None
    revoked_at: int | None = None

    def json(self) -> JSON:
        """As the API shows it: without the digest."""
        return {
            "id": self.id,
            "name": self.name,
            "created_at": self.created_at,
            "last_seen": self.last_seen,
            "revoked_at": self.revoked_at,
        }


class Devices:
    def __init__(self, home: Path, clock: Clock, new_id: NewId) -> None:
        """Reads the home's devices, and makes the local one if there is none. Raises `HomeUnusable`."""
        self._token_path = home / "token"
        self._path = home / "devices.json"
        self._clock = clock
        self._new_id = new_id
        self._by_digest: dict[str, Device] = {}
        self._written_at = 0
        try:
            self._load()
            self._ensure_local()
        except (OSError, ValueError, TypeError) as error:
            raise HomeUnusable(
                f"{home}: the device list can't be used: {error}.",
                hint=f"Make {self._path.name} and {self._token_path.name} yours, or delete both.",
            ) from error

    def find(self, token: str) -> Device | None:
        """The device of a token, unless it was revoked."""
        digest = _digest(token)
        device = self._by_digest.get(digest)
        if device is None or not hmac.compare_digest(device.token_sha256, digest):
            return None
        if device.revoked_at is not None:
            return None
        at = self._clock()
        device.last_seen = at
        if at - self._written_at > SEEN_MS:
            self.save()
        return device

    def issue(self, name: str) -> tuple[Device, str]:
        """A new device and its token, which is told only here."""
        token = secrets.token_urlsafe(32)
        device = Device(self._new_id("dev"), name, _digest(token), self._clock())
        self._by_digest[device.token_sha256] = device
        self.save()
        return device, token

    def revoke(self, device_id: str) -> Device:
        """End a device's access. The local one gets a new token in its file. Raises `NotFound`."""
        for device in self._by_digest.values():
            if device.id == device_id and device.revoked_at is None:
                break
        else:
            raise NotFound(f"There is no device {device_id}.")
        device.revoked_at = self._clock()
        self.save()
        if device.name == LOCAL:
            self._issue_local()
        return device

    def all(self) -> list[JSON]:
        """Those not revoked, the newest first."""
        live = [device for device in self._by_digest.values() if device.revoked_at is None]
        return [device.json() for device in sorted(live, key=lambda d: d.id, reverse=True)]

    def save(self) -> None:
        self._written_at = self._clock()
        rows = [asdict(device) for device in self._by_digest.values()]
        write_private(self._path, json.dumps({"devices": rows}, indent=1).encode())

    def _load(self) -> None:
        if not self._path.exists():
            return
        raw: Any = json.loads(self._path.read_bytes())
        devices = [Device(**row) for row in raw["devices"]]
        self._by_digest = {device.token_sha256: device for device in devices}

    def _ensure_local(self) -> None:
        token = self._token_path.read_text().strip() if self._token_path.exists() else ""
        known = self._by_digest.get(_digest(token)) if token else None
        if not token or (known is not None and known.revoked_at is not None):
            self._issue_local()
            return
        self._token_path.chmod(0o600)
        if known is None:
            device = Device(self._new_id("dev"), LOCAL, _digest(token), self._clock())
            self._by_digest[device.token_sha256] = device
            self.save()

    def _issue_local(self) -> None:
        _, token = self.issue(LOCAL)
        write_private(self._token_path, f"{token}\n".encode())


def write_private(path: Path, data: bytes) -> None:
    """Replace a file at once, never readable by others."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(path)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
