"""`omnigent doctor`: the machine, the configuration and the server."""

import argparse
import os
from pathlib import Path

from omnigent.cli import local
from omnigent.cli.harness import report
from omnigent.cli.parser import Parser, add_json
from omnigent.config import Config, load_config
from omnigent.errors import ConfigInvalid
from omnigent.harnesses.doctor import Finding
from omnigent.harnesses.doctor import doctor as look


def configure(name: str, parser: Parser) -> None:
    parser.example = "omnigent doctor\nomnigent doctor --json"
    add_json(parser)
    parser.set_defaults(call=doctor)


def doctor(options: argparse.Namespace) -> int:
    home = local.home_path()
    config, finding = _config(home)
    findings = [*look(home, config.server.port), finding, *_keys(config, home), _server(home)]
    return report(findings, as_json=options.json)


def _config(home: Path) -> tuple[Config, Finding]:
    path = home / "config.yaml"
    try:
        config = load_config(home)
    except ConfigInvalid as error:
        return Config(), Finding("config", False, error.detail, f"Mend {path}.")
    if not config.providers:
        mend = "`omnigent run` proposes what this machine offers; `omnigent demo` needs none."
        return config, Finding("providers", False, "None is configured.", mend)
    return config, Finding("providers", True, ", ".join(config.providers))


def _keys(config: Config, home: Path) -> list[Finding]:
    """Keys that are surely missing; commands aren't run for this."""
    findings: list[Finding] = []
    for name, row in config.providers.items():
        if row.key.env and not os.environ.get(row.key.env):
            findings.append(
                Finding("key", False, f"{name}: {row.key.env} isn't set.", f"export {row.key.env}=…")
            )
        if row.key.secret and not (home / "secrets" / row.key.secret).is_file():
            path = home / "secrets" / row.key.secret
            findings.append(Finding("key", False, f"{name}: no {path}.", f"install -m 600 /dev/stdin {path}"))
    return findings


def _server(home: Path) -> Finding:
    client = local.running(home)
    if client is None:
        return Finding("server", True, "not running; the first command that needs it starts it")
    return Finding("server", True, f"running at {client.url}")
