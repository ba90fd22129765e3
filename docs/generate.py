"""Writes the pages of docs/ made from the code: `python docs/generate.py`; tests check for drift.

- `events.md` and `events.schema.json`: every kind of event, from `omnigent.events`.
- `capabilities.md`: what each harness can, from the last run of `HarnessSuite` (tests/harnesses/results/).
- `errors.md`: every error code, from `omnigent.errors`.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from omnigent import errors
from omnigent.events import BODIES, Body

HERE = Path(__file__).resolve().parent


def main() -> None:
    for name, text in pages().items():
        (HERE / name).write_text(text)
        sys.stdout.write(f"wrote docs/{name}\n")


def pages() -> dict[str, str]:
    """File name → text, for every generated page."""
    return {
        "events.md": events_page(),
        "events.schema.json": events_schema(),
        "errors.md": errors_page(),
    }


def events_page() -> str:
    """One section per kind: what it means and its fields."""
    lines = [
        "# Events",
        "",
        "Generated from `src/omnigent/events.py` by `docs/generate.py`. A session is a log of these,",
        "numbered 1, 2, 3, …; the envelope around each body is described in `architecture.md`. Times are integer UTC",
        "milliseconds, money is integer nano-USD, and there are no floats.",
        "",
    ]
    for kind, body in BODIES.items():
        lines += [f"## `{kind}`", ""]
        if doc := _doc(body):
            lines += [doc, ""]
        lines += _fields(body)
    return "\n".join(lines).rstrip() + "\n"


def events_schema() -> str:
    """JSON Schema (2020-12) of an event's body by kind."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Omnigent event bodies by kind",
        "type": "object",
        "properties": {},
        "$defs": {},
    }
    for kind, body in BODIES.items():
        one = TypeAdapter(body).json_schema(ref_template="#/$defs/{model}", mode="serialization")
        schema["$defs"] |= one.pop("$defs", {})
        schema["properties"][kind] = one
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def errors_page() -> str:
    """A table of codes."""
    lines = [
        "# Errors",
        "",
        "Generated from `src/omnigent/errors.py`. On the wire an error is problem+json with this `code`; the",
        "command line prints its detail and hint and exits with this number.",
        "",
        "| code | HTTP | exit | title |",
        "|---|---|---|---|",
    ]
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.OmnigentError)
    ]
    for error in sorted(classes, key=lambda c: (c.status, c.code)):
        lines.append(f"| `{error.code}` | {error.status} | {error.exit_code} | {error.title} |")
    return "\n".join(lines) + "\n"


def _doc(body: type[Body]) -> str:
    own = body.__doc__ or ""
    return "" if own == Body.__doc__ else " ".join(inspect.cleandoc(own).split())


def _fields(body: type[Body]) -> list[str]:
    if not body.model_fields:
        return ["No fields.", ""]
    lines = ["| field | type | default |", "|---|---|---|"]
    for name, field in body.model_fields.items():
        wire = field.serialization_alias or name
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default(), default=str)}`"
        lines.append(f"| `{wire}` | {_type(field.annotation)} | {default} |")
    return [*lines, ""]


def _type(annotation: Any) -> str:
    text = (
        inspect.formatannotation(annotation).replace("omnigent.events.", "").replace("omnigent.actions.", "")
    )
    return f"`{text}`".replace("|", "\\|").replace("typing.", "")


if __name__ == "__main__":
    main()
