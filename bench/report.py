"""The result as a table on the terminal and as bench/results.md."""

import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from measure import Figure

from omnigent import __version__

CAUSES = {
    "warm first token": (
        "three durable commits lie on the way, one after another: the prompt, that the agent has it, and "
        "that it began to answer, which is stored before its first delta is shown. Each costs an fdatasync "
        "(see the top); the rest is the hops between six processes, each waiting for a core. With a model "
        "that takes time the second commit is hidden behind it."
    ),
    "cold first token": (
        "the agent's own start is most of it and takes a whole core; beside it runs the runner's launch."
    ),
    "log: fork in the middle": (
        "the view at the cut is folded on from the nearest kept one, up to 64 events or some 2 ms of "
        "processor time, whatever the log's length; beyond that it waited for a core or for the disk."
    ),
    "server start": "nearly all of it is imports, most of them FastAPI with its OpenAPI models.",
    "`omnigent": "imports of the standard library (argparse, http.client, typing) on a busy machine.",
}
"""Part of a figure's name → why it misses its target. Written by hand, after looking."""
LIBRARIES = ("fastapi", "starlette", "uvicorn", "uvloop", "pydantic")
HEADS = ("", "bare", "ours", "ratio (range)", "target", "")


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    baseline: str
    figures: list[Figure]


def show(section: Section) -> None:
    heads = ("", section.baseline.replace("`", "") or "", *HEADS[2:])
    rows = [heads, *(_cells(figure) for figure in section.figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    sys.stdout.write(f"\n{section.title}\n")
    for row in rows:
        sys.stdout.write(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
        sys.stdout.write("\n")
    sys.stdout.flush()


def write(path: Path, sections: Sequence[Section]) -> None:
    lines = [
        "# Measurements",
        "",
        "Written by `./dev bench`; not edited by hand. Medians with, in brackets, what the middle eight",
        "tenths of the samples span; a ratio's range is that of five consecutive parts of the run. Baseline",
        "and ours take turns within one run. Rows marked (blocks) fail the run when they miss; those on long",
        "logs are judged by the lower quartile, since the disk is shared and its noise only adds.",
        "",
        machine(),
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", ""]
        heads = ("", section.baseline or "–", *HEADS[2:])
        lines += [_row(heads), _row(["---"] * len(heads))]
        lines += [_row(_cells(figure)) for figure in section.figures] + [""]
    missed = [figure for section in sections for figure in section.figures if figure.ok is False]
    if missed:
        lines += ["## Missed, and why", ""]
        lines += [
            f"- **{figure.name}** ({figure.ratio}, target {figure.target}): {cause_of(figure)}"
            for figure in missed
        ]
        lines += [""]
    path.write_text("\n".join(lines))


def cause_of(figure: Figure) -> str:
    found = (cause for name, cause in CAUSES.items() if name in figure.name)
    return next(found, "not looked into yet")


def commit_ms() -> float:
    """What it costs now to make a few bytes durable; every append of either server pays it."""
    times: list[float] = []
    with tempfile.TemporaryFile(dir=Path(__file__).parent) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 512)
            file.flush()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def machine() -> str:
    """Where and with what, without naming the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{memory:.0f} GB, load {load} and {commit_ms():.2f} ms per fdatasync at the end. "
        f"Omnigent {__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{libraries}."
    )


def _cells(figure: Figure) -> tuple[str, ...]:
    mark = "" if figure.ok is None else "ok" if figure.ok else "MISSED"
    if figure.blocks:
        mark += " (blocks)"
    return (figure.name, figure.bare, figure.ours, figure.ratio, figure.target, mark)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
