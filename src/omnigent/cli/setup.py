"""The first run without a provider: what the machine offers is proposed, never used silently."""

import os
from pathlib import Path
from typing import NamedTuple

from omnigent.cli import local
from omnigent.cli.server import stop_local
from omnigent.cli.talk import ask, both_terminals, tell
from omnigent.config import ready_home
from omnigent.errors import HomeUnusable, ProviderMissing


class Offer(NamedTuple):
    """A key in the environment, the provider it makes, and the harnesses that speak its API."""

    variable: str
    name: str
    api: str
    harnesses: tuple[str, ...]


OFFERS = (
    Offer("ANTHROPIC_API_KEY", "anthropic", "anthropic-messages", ("claude-code", "pi")),
    Offer("OPENAI_API_KEY", "openai", "openai-responses", ("codex", "pi")),
)


def found(environ: dict[str, str]) -> list[Offer]:
    return [offer for offer in OFFERS if environ.get(offer.variable)]


def lines_for(offers: list[Offer]) -> str:
    """The lines of config.yaml for these offers: names of variables, never their values."""
    providers = [f"  {offer.name}: {{api: {offer.api}, key: {{env: {offer.variable}}}}}" for offer in offers]
    taken: dict[str, str] = {}
    for offer in offers:
        for harness in offer.harnesses:
            taken.setdefault(harness, offer.name)
    defaults = [f"  {harness}: {{provider: {name}}}" for harness, name in taken.items()]
    first = [] if "claude-code" in taken else ["  harness: codex"]
    return "\n".join(["providers:", *providers, "defaults:", *first, *defaults]) + "\n"


def propose(home: Path) -> None:
    """Ask, and write config.yaml; raises `ProviderMissing` (exit 2, naming the lines to add) otherwise."""
    offers = found(dict(os.environ))
    path = home / "config.yaml"
    if not offers:
        lines = lines_for([OFFERS[0]])
        raise ProviderMissing(
            "No model provider is configured, and no key was found in the environment.",
            hint=f"Try `omnigent demo`, which needs no key. Or add to {path}:\n{lines}"
            f"and export {OFFERS[0].variable} (for Codex: {OFFERS[1].variable}, api {OFFERS[1].api}).",
        )
    names = " and ".join(offer.variable for offer in offers)
    lines = lines_for(offers)
    if not both_terminals() or _has_sections(path):
        raise ProviderMissing(
            f"No model provider is configured. {names} is set here; Omnigent doesn't use it unasked.",
            hint=f"Add to {path}:\n{lines}",
        )
    tell(f"No model provider is configured. {names} is set here. Omnigent would write to {path}:\n\n{lines}")
    if ask("Use it, at the vendor's prices? [y/N] ").lower() not in ("y", "yes"):
        raise ProviderMissing(
            "No model provider is configured.", hint="Try `omnigent demo`, which needs no key."
        )
    _write(home, path, lines)


def _has_sections(path: Path) -> bool:
    """Whether the lines can't be put at the file's end: their sections are there already."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(("providers:", "defaults:")) for line in lines)


def _write(home: Path, path: Path, lines: str) -> None:
    ready_home(home)
    try:
        with path.open("a") as opened:
            opened.write(lines)
        path.chmod(0o600)
    except OSError as error:
        raise HomeUnusable(f"{path} can't be written: {error.strerror}.") from error
    if local.running(home) is not None:
        stop_local(home, 60)  # it was started without the key in its environment
