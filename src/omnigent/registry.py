"""Names → objects, loaded only when used: the one place that imports by name.

Harnesses outside the tree register an entry point in the group `omnigent.harnesses` that names their class.
"""

import difflib
import importlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from omnigent.errors import UnknownHarness
from omnigent.harnesses import HARNESSES, Harness, Launch


def harness_names() -> list[str]:
    """All known harnesses, the built-in ones first."""
    return [*HARNESSES, *(point.name for point in entry_points(group="omnigent.harnesses"))]


def harness_name(name: str) -> str:
    """The canonical name (aliases resolved). Raises `UnknownHarness` with the nearest name."""
    for known, row in HARNESSES.items():
        if name == known or name in row.aliases:
            return known
    names = harness_names()
    if name in names:
        return name
    near = difflib.get_close_matches(name, [*names, *(a for r in HARNESSES.values() for a in r.aliases)], n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known harnesses: {', '.join(names)}."
    raise UnknownHarness(f"There is no harness named {name!r}.", hint=hint, allowed=names)


@cache
def harness(name: str) -> Harness:
    """The adapter of a harness. Raises `UnknownHarness`."""
    known = harness_name(name)
    if known in HARNESSES:
        row = HARNESSES[known]
        return cast(Harness, getattr(importlib.import_module(row.module), row.cls)())
    (point,) = entry_points(group="omnigent.harnesses", name=known)
    return cast(Harness, point.load()())


def admission() -> Callable[[Harness, Launch, Path], Awaitable[None]]:
    """`probe.admit`, which tries an agent of an untested version; hardly any runner has to load it."""
    return importlib.import_module("omnigent.harnesses.probe").admit
