"""`./dev bench [--quick] [NAME …]`: every figure as a ratio to a bare baseline measured in the same run.

Exits with 1 when a target that blocks is missed. A whole run writes bench/results.md.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from commands import measure_commands, measure_start
from decisions import measure_decisions
from fanout import measure_fanout
from gate import measure_gate
from gateway import measure_gateway
from growth import measure_growth
from idle import measure_idle
from measure import Figure
from report import Section, show, write
from stalled import measure_stalled
from tokens import measure_tokens
from verbs import measure_verbs

GROUPS: dict[str, tuple[str, str, Callable[[bool], list[Figure]]]] = {
    "commands": ("The command line", "`python -c pass`", measure_commands),
    "start": ("The server's start", "the bare server", measure_start),
    "verbs": ("Verbs over HTTP", "the bare server", measure_verbs),
    "fanout": ("Fan-out, 20 events/s on one session", "the bare broadcaster", measure_fanout),
    "tokens": ("First token, model of zero latency", "the agent alone", measure_tokens),
    "gateway": ("The model gateway", "a direct call", measure_gateway),
    "growth": ("A long log costs what a short one does", "100 events", measure_growth),
    "stalled": ("Followers that never read", "none of them", measure_stalled),
    "decisions": ("A decision", "50 closures", measure_decisions),
    "gate": ("A decision over the link", "the same frame echoed", measure_gate),
    "idle": ("An idle server", "", measure_idle),
}
"""Name → title, what its baseline is, what measures it."""


def main() -> int:
    parser = argparse.ArgumentParser("./dev bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer samples and smaller logs: about a minute")
    options = parser.parse_args()
    names: list[str] = options.names or list(GROUPS)
    if unknown := [name for name in names if name not in GROUPS]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(GROUPS)}")
    sections: list[Section] = []
    for name in names:
        title, baseline, work = GROUPS[name]
        began = time.monotonic()
        sys.stderr.write(f"{name} … ")
        sys.stderr.flush()
        section = Section(title, baseline, work(options.quick))
        sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")
        show(section)
        sections.append(section)
    if not options.names and not options.quick:
        write(Path(__file__).with_name("results.md"), sections)
    figures = [figure for section in sections for figure in section.figures]
    missed = [figure.name for figure in figures if figure.ok is False]
    blocked = [figure.name for figure in figures if figure.ok is False and figure.blocks]
    if missed:
        sys.stdout.write(f"\nmissed: {', '.join(missed)}\n")
    if blocked:
        sys.stdout.write(f"these block: {', '.join(blocked)}\n")
    return 1 if blocked else 0


if __name__ == "__main__":
    sys.exit(main())
