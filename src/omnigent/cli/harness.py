"""`omnigent harness ls|install|doctor`: the agents of this machine."""

import argparse
import sys
import time
from pathlib import Path

from omnigent.cli import local
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import FAILED, OK
from omnigent.cli.talk import one_line, out, out_json, table, tell, width
from omnigent.config import ready_home
from omnigent.harnesses.doctor import Finding, doctor
from omnigent.harnesses.fetch import Progress
from omnigent.harnesses.install import PINS, Installed, install
from omnigent.registry import harness_name


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent harness ls\nomnigent harness install claude-code codex pi"
    verbs = parser.verbs()
    listing = verbs.add_parser("ls", help="the known harnesses, and which are installed")
    listing.example = "omnigent harness ls --json"
    add_json(listing)
    listing.set_defaults(call=ls)
    installing = verbs.add_parser("install", help="install pinned agents, under $OMNIGENT_HOME only")
    installing.example = "omnigent harness install codex\nomnigent harness install codex --version 0.163.0"
    installing.add_argument("names", nargs="+", metavar="HARNESS", help=", ".join(PINS))
    installing.add_argument("--version", help="another pinned version than the newest")
    installing.set_defaults(call=install_all)
    checking = verbs.add_parser("doctor", help="what is missing, and the command that mends it")
    checking.example = "omnigent harness doctor"
    add_json(checking)
    checking.set_defaults(call=check)


def ls(options: argparse.Namespace) -> int:
    rows = local.connect().harnesses()
    if options.json:
        out_json({"items": rows})
        return OK
    cells = [
        (
            row["name"],
            "yes" if row["installed"] else "no",
            row.get("version") or "",
            ", ".join(row.get("wires") or ()),
            one_line(row.get("hint") or ""),
        )
        for row in rows
    ]
    for line in table(("HARNESS", "INSTALLED", "VERSION", "SPEAKS", "HINT"), cells, width()):
        out(line)
    return OK


def install_all(options: argparse.Namespace) -> int:
    home = ready_home(local.home_path())
    names = [harness_name(name) for name in options.names]
    for name in names:
        if name not in PINS:
            tell(f"{name} needs no installation.")
            continue
        done = install_shown(name, home, options.version)
        out(f"{name} {done.version}  {done.root}")
    return OK


def install_shown(name: str, home: Path, version: str | None = None) -> Installed:
    """Install, with the progress on stderr."""
    meter = Meter()
    try:
        return install(name, home, version, meter.report)
    finally:
        meter.end()


class Meter:
    """Progress on stderr: one moving line on a terminal, else a line per step and per ten seconds."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._last = ("", "")
        self._said_at = 0.0
        self._open = False

    def report(self, progress: Progress) -> None:
        step, now = (progress.what, progress.step), time.monotonic()
        pause = 0.1 if self._moving else 10.0
        if step == self._last and now - self._said_at < pause and progress.done != progress.total:
            return
        if step != self._last:
            self.end()
        elif not self._moving and progress.done == progress.total and now - self._said_at < 1:
            return
        self._last, self._said_at = step, now
        text = self._text(progress)
        if self._moving:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._open = True
        else:
            tell(text)

    def end(self) -> None:
        if self._open:
            sys.stderr.write("\n")
            self._open = False

    @staticmethod
    def _text(progress: Progress) -> str:
        if progress.step != "download":
            return f"{progress.what}: {progress.step}"
        done = f"{progress.done / 1e6:.0f} MB"
        if progress.total:
            percent = 100 * progress.done // progress.total
            return f"{progress.what}: {done} of {progress.total / 1e6:.0f} MB ({percent} %)"
        return f"{progress.what}: {done}"


def check(options: argparse.Namespace) -> int:
    return report(doctor(local.home_path()), as_json=options.json)


def report(findings: list[Finding], *, as_json: bool) -> int:
    """Print findings; exit 1 if something is missing."""
    if as_json:
        out_json({"items": [{"name": f.name, "ok": f.ok, "what": f.what, "mend": f.mend} for f in findings]})
    else:
        for finding in findings:
            out(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.name:<12} {finding.what}")
            if finding.mend:
                out(f"{'':23}→ {finding.mend}")
    return OK if all(finding.ok for finding in findings) else FAILED
