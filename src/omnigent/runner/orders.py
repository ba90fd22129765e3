"""The server's orders, read: a launch and the commands that follow."""

from pathlib import Path

from pydantic import TypeAdapter

from omnigent import __version__, processes
from omnigent.events import JSON, Content
from omnigent.gateway import Gateway
from omnigent.harnesses import (
    Answer,
    Binary,
    Command,
    Interrupt,
    Launch,
    McpServer,
    Prices,
    SetModel,
    StartTurn,
    Steer,
    Verdict,
)
from omnigent.history import History, Image
from omnigent.providers import Upstream
from omnigent.secrets import credentials

_CONTENT: TypeAdapter[tuple[Content, ...]] = TypeAdapter(tuple[Content, ...])


def read_launch(frame: JSON, upstream: Upstream, gateway: Gateway) -> Launch:
    """Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for one of another version."""
    binary: JSON = {**frame["binary"], "argv": tuple(frame["binary"]["argv"])}
    return Launch(
        session_id=frame["session_id"],
        run=frame["run"],
        workspace=Path(frame["workspace"]),
        private=Path(frame["private"]),
        binary=Binary(**binary),
        model=frame["model"],
        wire=upstream.wire,
        gateway_url=gateway.url(upstream.wire),
        placeholder=frame["placeholder"],
        environment={**frame["environment"], processes.MARKER: f"{frame['session_id']}:{frame['epoch']}"},
        native_ref=frame["native_ref"],
        history=History.model_validate(frame["history"]) if frame["history"] else None,
        mcp_servers=tuple(
            McpServer(raw["name"], tuple(raw["command"]), raw["environment"]) for raw in frame["mcp_servers"]
        ),
        prices={model: Prices(**row) for model, row in frame["prices"].items()},
    )


def misread(error: Exception) -> str:
    """Why a launch can't be read, without its values. Servers and runners of one version never come to this:
    the program was replaced under a running server."""
    what = f" {error}" if isinstance(error, KeyError | TypeError) else ""
    return (
        f"The runner ({__version__}) can't read what the server sent it ({type(error).__name__}{what}): "
        "they are of different versions. Run `omnigent server stop`, then any command."
    )


def secrets_of(upstream: Upstream) -> list[str]:
    """The values of headers and query parameters that carry a credential, without their scheme."""
    return list(credentials({**upstream.headers, **upstream.query}))


def read_command(raw: JSON) -> Command:
    match raw["type"]:
        case "turn":
            return StartTurn(raw["turn_id"], raw["message_id"], *_content(raw))
        case "steer":
            return Steer(raw["message_id"], *_content(raw))
        case "interrupt" | "cut_short":
            return Interrupt()
        case "set_model":
            return SetModel(raw["model"], raw["effort"])
        case "verdict":
            return Verdict(raw["item_id"], raw["allow"], raw["reason"], raw["command"])
        case "answer":
            values = tuple(tuple(value) for value in raw["values"])
            return Answer(raw["question_id"], values, raw["cancelled"])
        case _:
            raise ValueError(f"unknown command {raw['type']!r}")


def _content(raw: JSON) -> tuple[tuple[Content, ...], tuple[Image, ...]]:
    return _CONTENT.validate_python(raw["content"]), tuple(Image(**image) for image in raw["images"])
