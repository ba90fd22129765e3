"""What was seen when agents of untested versions were tried, kept in `HOME/harnesses/probes.json`.

One entry per program. It counts only for the same file, of the same version, under the same Omnigent.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from omnigent import __version__
from omnigent.harnesses import HARNESSES, Binary, Harness

Outcome = Literal["held", "leaks", "broken"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """`held`: the allowed call ran, the denied one didn't. `leaks`: a call ran that was denied or not asked
    about. `broken`: neither could be seen. `detail` says what happened instead of `held`."""

    outcome: Outcome
    detail: str = ""


class Program(BaseModel, frozen=True):
    """The state of a program's file; it changes when the agent is updated in place."""

    path: str
    size: int
    changed: int
    """Of its last change, in nanoseconds."""
    version: str
    omnigent: str = __version__
    """Another Omnigent drives the agent in another way."""


class _Entry(BaseModel, frozen=True):
    program: Program
    outcome: Outcome
    detail: str


_ENTRIES: TypeAdapter[list[_Entry]] = TypeAdapter(list[_Entry])


def program_of(binary: Binary) -> Program:
    """The program as it is now. Raises OSError if it isn't there."""
    path = Path(binary.argv[-1]).resolve()
    state = path.stat()
    return Program(path=str(path), size=state.st_size, changed=state.st_mtime_ns, version=binary.version)


def known(home: Path, binary: Binary) -> ProbeResult | None:
    """What was seen of this very program, None if it hasn't been tried."""
    try:
        program = program_of(binary)
    except OSError:
        return None
    found = next((entry for entry in _read(home) if entry.program == program), None)
    return ProbeResult(found.outcome, found.detail) if found else None


def keep(home: Path, program: Program, result: ProbeResult) -> None:
    """In place of what is known of that path. Of two who keep at once one may be lost, and is tried again."""
    entries = [entry for entry in _read(home) if entry.program.path != program.path]
    entries.append(_Entry(program=program, outcome=result.outcome, detail=result.detail))
    path = _path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".probes-", delete=False) as file:
        try:
            json.dump(_ENTRIES.dump_python(entries), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise


def title(harness: Harness, binary: Binary) -> str:
    """The agent and its version, for people."""
    row = HARNESSES.get(harness.name)
    return f"{row.title if row else harness.name} {binary.version}"


def untested(harness: Harness, binary: Binary) -> str:
    """The warning before such an agent starts."""
    low, high = harness.versions
    return (
        f"{title(harness, binary)} is not in the tested range {low} to {high}: "
        "it starts only if its gate is seen to hold."
    )


def standing(tested: tuple[str, str], binary: Binary, home: Path) -> str:
    """How it stands with a binary that is out of range: the range, and what was seen when it was tried."""
    low, high = tested
    match known(home, binary):
        case ProbeResult("held"):
            seen = "its gate held when it was tried"
        case ProbeResult("leaks", detail):
            seen = f"its gate does not hold: {detail}"
        case ProbeResult(_, detail):
            seen = f"its gate could not be tried: {detail}"
        case None:
            seen = "its gate is tried when a session first starts it"
    return f"not in the tested range {low} to {high}; {seen}"


def _path(home: Path) -> Path:
    return home / "harnesses" / "probes.json"


def _read(home: Path) -> list[_Entry]:
    """Nothing if it isn't there or can't be read: then all are tried again."""
    try:
        return _ENTRIES.validate_json(_path(home).read_bytes())
    except (OSError, ValidationError):
        return []
