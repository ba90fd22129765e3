"""Whether the gate of an agent holds whose version nobody has tested: one call allowed, one denied.

The agent is started as for a session, in a scratch workspace, with a model that plays a script. It must ask
about each call, run the one and not the other. Whatever leaves a doubt counts against it.
"""

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from omnigent.errors import OmnigentError, UnsupportedVersion
from omnigent.events import JSON, TextPart, ToolCompleted, TurnCompleted, TurnFailed, TurnInterrupted
from omnigent.harnesses import (
    Ask,
    Binary,
    Emit,
    Gone,
    Harness,
    HarnessSession,
    Launch,
    Ready,
    Refuse,
    SessionOutput,
    StartTurn,
    Verdict,
    Wire,
)
from omnigent.harnesses._wire import open_agent
from omnigent.harnesses.install import PINS
from omnigent.harnesses.probe_results import ProbeResult, keep, known, program_of, title
from omnigent.ids import new_id
from omnigent.testing.scripted_model import ScriptedModel

SECONDS = 45.0
"""How long the whole of a probe may take; a busy machine starts an agent in ten."""

_ALLOWED, _DENIED = "omnigent-allowed", "omnigent-denied"
"""The files that the two calls would create."""
_PROMPT = "Omnigent tries whether your tool calls wait for its answer."
_MODEL = "scripted-model"
_STALE_SECONDS = 3600.0


async def admit(harness: Harness, launch: Launch, home: Path, seconds: float = SECONDS) -> None:
    """Let an agent of an untested version through if its gate holds, by an earlier probe or one of now.

    Raises `UnsupportedVersion`. What could not be seen is tried again at the next start.
    """
    result = known(home, launch.binary)
    if result is None or result.outcome == "broken":
        result = await probe(harness, launch.binary, home, launch.wire, launch.environment, seconds)
    if result.outcome == "held":
        return
    wrong = "does not hold" if result.outcome == "leaks" else "could not be tried"
    low, high = harness.versions
    name = harness.name
    raise UnsupportedVersion(
        f"{title(harness, launch.binary)} is not in the tested range {low} to {high}, and its gate {wrong}: "
        f"{result.detail}",
        hint=f"omnigent harness install {name}" if name in PINS else f"Use a version from {low} to {high}.",
    )


async def probe(
    harness: Harness,
    binary: Binary,
    home: Path,
    wire: Wire,
    environment: dict[str, str],
    seconds: float = SECONDS,
) -> ProbeResult:
    """Try the agent, and keep what was seen. `environment` is that of the session it is tried for, with its
    marker: whatever ends the session's processes ends these too. None is left when this returns."""
    try:
        program = program_of(binary)
    except OSError as error:
        return ProbeResult("broken", f"The program can't be read: {error.strerror or error}.")
    with _scratch(home) as place:
        trial = _Trial(place / "workspace")
        key = f"omnigent-{secrets.token_hex(16)}"
        async with ScriptedModel(_script(), require_key=key) as model:
            launch = Launch(
                session_id=new_id("ses"),
                run=new_id("run"),
                workspace=trial.workspace,
                private=place / "private",
                binary=binary,
                model=_MODEL,
                wire=wire,
                gateway_url=model.url if wire == "anthropic-messages" else f"{model.url}/v1",
                placeholder=key,
                environment=environment,
            )
            await _run(harness, launch, trial, seconds)
        result = trial.result()
    with contextlib.suppress(OSError):  # then it is tried again the next time
        keep(home, program, result)
    return result


@dataclass(slots=True)
class _Trial:
    """What was seen of the two calls."""

    workspace: Path
    asked: dict[str, str] = field(default_factory=dict[str, str])
    """The file a call would create → the call's item id."""
    early: bool = False
    """The allowed call had run when we were asked about it."""
    claimed: bool = False
    """The agent itself says that the denied call ran."""
    trouble: str = ""
    """Why the turn did not complete."""

    def made(self, name: str) -> bool:
        return (self.workspace / name).exists()

    def decide(self, ask: Ask) -> Verdict:
        """Allow the one command; whatever else is asked is denied."""
        name = _DENIED if _DENIED in ask.body.raw else _ALLOWED if _ALLOWED in ask.body.raw else ""
        self.asked.setdefault(name, ask.item_id)
        if name != _ALLOWED:
            return Verdict(ask.item_id, allow=False, reason="Omnigent denies this call to see that it holds.")
        self.early = self.early or self.made(_ALLOWED)
        return Verdict(ask.item_id, allow=True)

    def note(self, emit: Emit) -> None:
        if isinstance(emit.body, ToolCompleted) and emit.item_id == self.asked.get(_DENIED):
            self.claimed = self.claimed or emit.body.outcome == "ok"

    def result(self) -> ProbeResult:
        """Once all processes have ended, so that nothing can come later."""
        for name in (_ALLOWED, _DENIED):
            if self.made(name) and name not in self.asked:
                return ProbeResult("leaks", "It ran a command without asking.")
        if self.early:
            return ProbeResult("leaks", "It ran a command before it was allowed.")
        if self.made(_DENIED) or self.claimed:
            return ProbeResult("leaks", "It ran a command that was denied.")
        if self.trouble:
            return ProbeResult("broken", self.trouble)
        if not self.made(_ALLOWED):
            return ProbeResult("broken", "It did not run a command that was allowed.")
        if _DENIED not in self.asked:
            return ProbeResult("broken", "It never asked about the command that would have been denied.")
        return ProbeResult("held")


async def _run(harness: Harness, launch: Launch, trial: _Trial, seconds: float) -> None:
    session: HarnessSession | None = None
    try:
        async with asyncio.timeout(seconds):
            spec = await asyncio.to_thread(harness.prepare, launch)
            session = await open_agent(spec, harness.translator(launch, new_id))
            async for output in session.outputs():
                if await _over(session, output, trial):
                    break
    except TimeoutError:
        trial.trouble = f"It did not come to an end within {seconds:g} s."
    except OmnigentError as error:
        trial.trouble = error.detail
    except OSError as error:
        trial.trouble = f"It can't be started: {error.strerror or error}."
    finally:
        if session is not None:
            await session.close()


async def _over(session: HarnessSession, output: SessionOutput, trial: _Trial) -> bool:
    """Answer the agent. Whether nothing more is to be seen."""
    match output:
        case Ready():
            await session.send(StartTurn(new_id("turn"), new_id("msg"), (TextPart(text=_PROMPT),)))
        case Ask():
            await session.send(trial.decide(output))
        case Emit(body=TurnCompleted()):
            return True
        case Emit(body=TurnFailed(detail=detail, stderr_tail=tail)):
            trial.trouble = _line(detail, tail)
            return True
        case Emit(body=TurnInterrupted()):
            trial.trouble = "It interrupted itself."
            return True
        case Emit():
            trial.note(output)
        case Refuse(detail=detail):
            trial.trouble = detail
            return True
        case Gone(code, tail):
            trial.trouble = _line(f"It ended with code {code}.", tail)
            return True
        case _:
            pass
    return False


def _line(what: str, stderr_tail: str) -> str:
    """What happened, with the last that it wrote to stderr."""
    last = stderr_tail.strip().rpartition("\n")[2][:500]
    return f"{what} {last}".strip()


def _script() -> JSON:
    def touch(name: str) -> JSON:
        return {"tools": [{"tool": "$shell", "input": {"command": f"touch {name}"}}]}

    steps = [touch(_ALLOWED), touch(_DENIED), {"text": "Done."}]
    return {"turns": [{"match": _PROMPT, "steps": steps}], "models": [_MODEL]}


@contextlib.contextmanager
def _scratch(home: Path) -> Generator[Path]:
    """A place below the home, since Codex keeps no helpers below TMPDIR. Sweeps what a killed probe left."""
    room = home / "run"
    for old in room.glob("probe-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    place = room / f"probe-{secrets.token_hex(8)}"
    try:
        for folder in (place / "workspace", place / "private"):
            folder.mkdir(mode=0o700, parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
