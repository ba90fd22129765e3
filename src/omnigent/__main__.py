"""`omnigent` and `python -m omnigent`."""

import sys


def main() -> None:
    """The program: `--version` is answered before anything is imported."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        from omnigent import __version__

        print(f"omnigent {__version__}")
        return
    from omnigent.cli import run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
