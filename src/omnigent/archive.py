"""An exported session: a zip of its events as they are stored, and of the blobs they name."""

import contextlib
import io
import json
import zipfile
from typing import Any, cast

from omnigent import __version__
from omnigent.blobs import Blobs
from omnigent.errors import Malformed, NotFound
from omnigent.events import Event, parse_event
from omnigent.log import Log


async def pack(session_id: str, log: Log, blobs: Blobs) -> bytes:
    """`manifest.json`, `events.jsonl` (as stored, with a fork's prefix), `blobs/`. Raises `NotFound`."""
    await log.head(session_id)
    lines: list[str] = []
    named: set[str] = set()
    after = 0
    while page := await log.read(session_id, after=after, limit=1000):
        after = page[-1].seq
        for event in page:
            lines.append(event.json_text())
            named |= _blobs_in(json.loads(event.body_text))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("events.jsonl", "\n".join(lines) + "\n")
        for name in sorted(named):
            with contextlib.suppress(NotFound):
                archive.writestr(f"blobs/{name}", blobs.get(name))
        manifest = {"format": 1, "session_id": session_id, "events": len(lines), "omnigent": __version__}
        archive.writestr("manifest.json", json.dumps(manifest, indent=1))
    return buffer.getvalue()


def unpack(data: bytes, blobs: Blobs) -> list[Event]:
    """The events; their blobs are stored. Raises `Malformed`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            lines = archive.read("events.jsonl").decode().split("\n")  # a text may hold U+2028
            events = [parse_event(line) for line in lines if line]
            found = [archive.read(name) for name in archive.namelist() if name.startswith("blobs/")]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise Malformed(
            f"This is no exported session: {error}.", hint="Give a file made by export."
        ) from error
    for blob in found:
        blobs.put(blob)
    return events


def _blobs_in(value: Any) -> set[str]:
    """Every blob a body names."""
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        here = {fields["blob"]} if isinstance(fields.get("blob"), str) else set[str]()
        return here.union(*(_blobs_in(inner) for inner in fields.values()))
    if isinstance(value, list):
        return set[str]().union(*(_blobs_in(inner) for inner in cast(list[Any], value)))
    return set()
