"""Words on the terminal: data to stdout, talk to stderr, and nothing that an agent wrote moves the cursor."""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from omnigent.errors import OmnigentError

_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # cursor and colours
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links, the clipboard
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def clean(text: str) -> str:
    """Text of an agent or a model without what a terminal would obey; line ends and tabs stay."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n"))


def one_line(text: str, width: int = 200) -> str:
    """The text on one line, cut to a width."""
    line = " ".join(clean(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def colourful() -> bool:
    """Whether stdout is a terminal that wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, *names: str) -> str:
    codes = ";".join(STYLES[name] for name in names)
    return f"\x1b[{codes}m{text}\x1b[0m" if codes else text


def out(text: str = "") -> None:
    """A line of data."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """A line of talk."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def out_json(value: Any) -> None:
    out(json.dumps(value, ensure_ascii=False, indent=2))


def tell_error(error: OmnigentError) -> None:
    tell(f"error: {clean(error.detail)}")
    if error.hint:
        tell(f"hint: {clean(error.hint)}")


def width() -> int:
    """Columns of the terminal; without one, as much as is needed."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(40, int(os.environ["COLUMNS"]))
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 10_000


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], room: int) -> list[str]:
    """Aligned columns; the last one is cut so that no line is longer than `room`."""
    lines = [list(heads), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    done: list[str] = []
    for line in lines:
        text = "  ".join(cell.ljust(wide) for cell, wide in zip(line, widths, strict=True)).rstrip()
        done.append(text if len(text) <= room else text[: room - 1] + "…")
    return done


def ago(at: int, now: int | None = None) -> str:
    """How long ago a moment (UTC ms) was, in one unit."""
    seconds = max(0, ((now or time.time_ns() // 1_000_000) - at) // 1000)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def lasted(duration_ms: int | None) -> str:
    if duration_ms is None:
        return ""
    return f"{duration_ms} ms" if duration_ms < 1000 else f"{duration_ms / 1000:.1f} s"


def shorten_home(path: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 (pathlib would cost every daily command its import)
    return "~" + path[len(home) :] if path == home or path.startswith(home + "/") else path


def ask(question: str) -> str:
    """One line from the person; empty at the end of input. Asked on stderr: stdout is for data."""
    sys.stdout.flush()
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def both_terminals() -> bool:
    """Whether a person sits here: stdin and stdout are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()
