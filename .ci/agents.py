"""Install every pinned agent, all releases, into the home given: `python .ci/agents.py .tools`."""

import sys
from pathlib import Path

from omnigent.errors import OmnigentError
from omnigent.harnesses.fetch import Progress
from omnigent.harnesses.install import PINS, install


class Told:
    """Prints each step once."""

    def __init__(self) -> None:
        self._last = ("", "")

    def __call__(self, progress: Progress) -> None:
        now = (progress.step, progress.what)
        if now != self._last:
            size = f" ({progress.total / 1e6:.0f} MB)" if progress.total else ""
            print(f"    {progress.step:<9} {progress.what}{size}", flush=True)
        self._last = now


def main(home: Path) -> int:
    for name, pin in PINS.items():
        for release in pin.releases:
            try:
                install(name, home, release.version, Told())
            except OmnigentError as error:
                print(f"{error.detail} {error.hint}", file=sys.stderr)
                return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
