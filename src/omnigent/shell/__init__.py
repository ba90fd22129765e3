"""Shell text → actions: what a command will do, told before it runs.

What can't be told is doubt,
on the action it concerns; a text that can't be taken apart is one `Exec` in doubt.
"""

from pathlib import Path

from omnigent.actions import Action, Exec, Parsed
from omnigent.shell import programs
from omnigent.shell.grammar import Opaque
from omnigent.shell.simple import Around
from omnigent.shell.telling import arguments_of
from omnigent.shell.values import Said, Scope, Word
from omnigent.shell.walk import Walk

_UNREADABLE = "The command can't be taken apart."


def understand(
    text: str, cwd: Path, workspace: Path, *, background: bool = False, stdin: str | None = None
) -> tuple[list[Action], Parsed]:
    """The actions of a shell text in the order they would happen, and how far it was understood.

    `cwd` is where the shell stands, `stdin` what its commands get to read. A text that does nothing (a
    comment, an assignment) is one `Exec` of `:`. Files are looked at (links, patterns, git's configuration);
    nothing is run, nothing is raised.
    """
    try:
        return _understood(text, cwd, workspace, background=background, stdin=stdin)
    except Opaque as doubt:
        reason = str(doubt)
    except Exception:  # noqa: BLE001  (the boundary: a fault of ours is doubt, never a way past the gate)
        reason = _UNREADABLE
    return [Exec(command=text, cwd=str(cwd), background=background, stdin=stdin, doubt=reason)], "opaque"


def typed(text: str, process: str, cwd: Path, workspace: Path) -> tuple[list[Action], Parsed]:
    """What text does that is typed into a running process, which may be a shell.

    Only whole lines can be told: the rest of a line may come later. `process` names it for people.
    """
    if not text.endswith("\n") or not text.strip():
        reason = "What is typed into a running process isn't a whole line."
        return [Exec(command=process, cwd=str(cwd), stdin=text, doubt=reason)], "opaque"
    actions, parsed = understand(text, cwd, workspace)
    return [
        action.model_copy(update={"stdin": text, "sole": False, "background": True})
        if isinstance(action, Exec)
        else action
        for action in actions
    ], parsed


def canonical(argv: list[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Program, words and flags of plain words, spelled as in `Exec`: for patterns written by people."""
    program = programs.main_name(argv[0]) if argv else ""
    arguments = [Word(word) for word in argv[1:]]
    taken = arguments_of(programs.find(program), arguments)
    flags = {
        flag.name if flag.value is None else f"{flag.name}={flag.value.text}"
        for flag in taken.split.flags
        if flag.name
    }
    return program, taken.words(arguments), tuple(sorted(flags))


def _understood(
    text: str, cwd: Path, workspace: Path, *, background: bool, stdin: str | None
) -> tuple[list[Action], Parsed]:
    walk = Walk(workspace.resolve())
    around = Around(stdin=Said(stdin) if stdin is not None else None, background=background)
    walk.text(text, Scope(cwd.resolve()), around)
    actions = walk.actions or [
        Exec(command=text, argv=(":",), program=":", cwd=str(cwd), background=background, everyday=True)
    ]
    runs = [place for place, action in enumerate(actions) if isinstance(action, Exec)]
    if len(runs) == 1 and walk.own == [True]:
        actions[runs[0]] = actions[runs[0]].model_copy(update={"sole": True})
    return actions, "partial" if any(action.doubt for action in actions) else "full"


__all__ = ["canonical", "typed", "understand"]
