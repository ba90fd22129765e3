"""Policy files as the command line reads them: their text, and errors that point into them."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from omnigent.cli.talk import clean
from omnigent.errors import Malformed, PolicyInvalid

LARGEST = 1024 * 1024


def read_rules(named: str) -> str:
    """The text of a policy file. Raises `Malformed` if there is none to read."""
    try:
        data = Path(named).expanduser().read_bytes()
    except OSError as error:
        raise Malformed(
            f"The policy file {named} can't be read: {error.strerror}.", hint="Examples: examples/policies/"
        ) from error
    if len(data) > LARGEST:
        raise Malformed(f"{named} is larger than {LARGEST} bytes: is it a policy file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{named} is not UTF-8 text: is it a policy file?") from error


@contextmanager
def placed(*files: str) -> Generator[None]:
    """Inside, a policy that the server can't use is told with its place in the file and the line itself."""
    try:
        yield
    except PolicyInvalid as error:
        if not files:
            raise
        raise _placed(files[0], error) from error


def _placed(named: str, error: PolicyInvalid) -> PolicyInvalid:
    line, column = error.facts.get("line"), error.facts.get("column")
    if not isinstance(line, int):
        return PolicyInvalid(f"{named}: {error.detail}", hint=error.hint, **error.facts)
    column = column if isinstance(column, int) else 1
    # The server names the place too, in a text that has no file name there.
    detail = error.detail.split(f":{line}:{column}: ", 1)[-1]
    shown = _line_of(named, line, column)
    return PolicyInvalid(f"{named}:{line}:{column}: {detail}{shown}", hint=error.hint, **error.facts)


def _line_of(named: str, line: int, column: int) -> str:
    """The line that is wrong, and below it a mark under the place."""
    lines = read_rules(named).splitlines()
    if not 1 <= line <= len(lines):
        return ""
    text = clean(lines[line - 1]).expandtabs(1)
    gutter = f"{line:>5} | "
    return f"\n{gutter}{text}\n{' ' * (len(gutter) - 2)}| {' ' * (column - 1)}^"
