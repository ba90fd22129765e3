"""A command's text read into simple commands, for patterns and edited commands."""

import shlex

from omnigent.actions import Action, Exec, Parsed


def understand(text: str) -> list[Exec]:
    """The one simple command a text is; none if it can't be read."""
    words = shlex.split(text)
    plain = tuple(word for word in words[1:] if not word.startswith("-"))
    flags = sorted(
        flag
        for word in words[1:]
        if word.startswith("-")
        for flag in ([word[2:]] if word.startswith("--") else word[1:])
    )
    return [
        Exec(command=text, argv=tuple(words), program=words[0], words=plain, flags=tuple(flags), sole=True)
    ]


def read(text: str, cwd: str, workspace: str) -> tuple[tuple[Action, ...], Parsed]:
    """The actions of a command that is to run there."""
    return tuple(understand(text)), "full"
