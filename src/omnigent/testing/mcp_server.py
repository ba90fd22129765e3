"""A tiny MCP tool server over stdio, standard library only: `python -I -S mcp_server.py`.

It has one tool, `note`, which appends its text as a line to the file that the variable NOTES names. So a test
sees on disk whether a call ran, and that the server got its environment.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

type JSON = dict[str, Any]

VERSION = "1.0.0"
NOTE: JSON = {
    "name": "note",
    "description": "Write a line into the notes.",
    "inputSchema": {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
    },
}


def main() -> None:
    for line in sys.stdin:
        message: JSON = json.loads(line)
        if "id" in message and "method" in message:
            answer = {"jsonrpc": "2.0", "id": message["id"], **respond(message["method"], message)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def respond(method: str, message: JSON) -> JSON:
    """The `result` or `error` of a request (https://modelcontextprotocol.io/specification)."""
    given: JSON = message.get("params") or {}
    match method:
        case "initialize":
            info = {"name": "omnigent-notes", "version": VERSION}
            version = given.get("protocolVersion", "2025-06-18")
            return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}}
        case "tools/list":
            return {"result": {"tools": [NOTE]}}
        case "tools/call" if given.get("name") == "note":
            return {"result": note(given["arguments"]["text"])}
        case "ping":
            return {"result": {}}
        case _:
            return {"error": {"code": -32601, "message": f"{method} is not known here"}}


def note(text: str) -> JSON:
    with Path(os.environ["NOTES"]).open("a") as notes:
        notes.write(text + "\n")
    return {"content": [{"type": "text", "text": f"noted: {text}"}], "isError": False}


if __name__ == "__main__":
    main()
