"""`omnigent usage`: what was used, from the ledger that every model call is in once."""

import argparse
import time
from datetime import UTC, datetime
from typing import Any

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json
from omnigent.cli.table import OK
from omnigent.cli.talk import out, out_json, shorten_home, table, tell, width
from omnigent.cli.wording import dollars, duration_ms
from omnigent.client import JSON
from omnigent.errors import Malformed

GROUPS = ("model", "day", "project", "harness", "user", "session", "provider")

_HELP = """\
COST is what was billed, or will be. A call whose price nobody knows counts under UNKNOWN and never as $0.
A subscription bills nothing per call: LIST is what its tokens would cost at list price."""


def configure(name: str, parser: Parser) -> None:
    parser.example = (
        "omnigent usage                          by model, all time\n"
        "omnigent usage --by day --since 7d\n"
        "omnigent usage --by project --since 2026-11-01 --json"
    )
    parser.epilog = _HELP
    parser.add_argument("--by", choices=GROUPS, default="model")
    parser.add_argument("--since", metavar="TIME", help="7d, 12h, or a day (UTC): 2026-11-01")
    parser.add_argument("--until", metavar="TIME", help="up to then, likewise")
    parser.add_argument("--session", metavar="SESSION", help="only this one")
    add_json(parser)
    parser.set_defaults(call=usage)


def usage(options: argparse.Namespace) -> int:
    query: dict[str, Any] = {
        "by": options.by,
        "since": _moment(options.since, "--since"),
        "until": _moment(options.until, "--until"),
    }
    client = local.connect()
    if options.session:
        query["session"] = naming.find(client, options.session)
    found = client.usage(**query)
    if options.json:
        out_json(found)
        return OK
    rows: list[JSON] = found["items"]
    if not rows:
        tell("No model call is in the ledger yet.")
        return OK
    lines = [row_of(row, options.by) for row in rows]
    if len(rows) > 1:
        lines.append(("total", *row_of(total(rows), options.by)[1:]))
    heads = (options.by.upper(), "CALLS", "INPUT", "CACHED", "OUTPUT", "COST", "UNKNOWN", "LIST")
    for line in table(heads, lines, width()):
        out(line)
    return OK


def _moment(text: str | None, what: str) -> int | None:
    """UTC ms of a day, or of so long ago. Raises `Malformed`."""
    if text is None:
        return None
    if "-" not in text:
        return time.time_ns() // 1_000_000 - duration_ms(text, what)
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError as error:
        raise Malformed(f"{what} takes 7d, 12h or a day like 2026-11-01, not {text!r}.") from error


def row_of(row: JSON, by: str) -> tuple[str, ...]:
    key = str(row["key"] or "unknown")
    cached = row["cache_read_tokens"] + row["cache_write_tokens"]
    return (
        shorten_home(key) if by == "project" else key,
        f"{row['calls']:,}",
        f"{row['input_tokens']:,}",
        f"{cached:,}",
        f"{row['output_tokens']:,}",
        cost(row),
        f"{row['unknown_calls']:,}" if row["unknown_calls"] else "",
        dollars(row["notional_usd"]) if row["notional_usd"] else "",
    )


def cost(row: JSON) -> str:
    """Billed money; "unknown" where no price is known, "≥" where some aren't."""
    if row["cost_usd"] is None:
        return "unknown" if row["unknown_calls"] else "-"
    return ("≥ " if row["unknown_calls"] else "") + dollars(row["cost_usd"])


_SUMS = ("calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "unknown_calls")


def total(rows: list[JSON]) -> JSON:
    summed: JSON = {name: sum(row[name] for row in rows) for name in _SUMS}
    for name in ("cost_usd", "notional_usd"):
        known = [row[name] for row in rows if row[name] is not None]
        summed[name] = sum(known) if known else None
    return summed | {"key": "total"}
