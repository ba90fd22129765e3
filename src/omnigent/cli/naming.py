"""Which session is meant: id, unique start of one, `@last`, title, URL, or this directory's latest."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from omnigent.cli import local
from omnigent.cli.talk import one_line
from omnigent.client import Client, Session
from omnigent.errors import Conflict, NotFound, WorkspaceMissing

_FULL = re.compile(r"ses_[0-9A-HJKMNP-TV-Z]{26}")
_IN_URL = re.compile(r"ses_[0-9A-Za-z]{26}")


def find(client: Client, named: str | None) -> str:
    """The id of the session meant. Raises `NotFound`, or `Conflict` naming those that fit."""
    if not named:
        return latest_here(client, _here())["id"]
    if _FULL.fullmatch(named):
        return named
    if named == "@last":
        return _latest(client)["id"]
    if "://" in named:
        return _of_url(named)
    return choose(list(client.sessions(limit=200)), named)["id"]


def _here() -> Path:
    try:
        return local.here()
    except WorkspaceMissing as error:
        raise WorkspaceMissing(
            "The current directory no longer exists.", hint="Name the session; `omnigent ls` lists them."
        ) from error


def choose(sessions: list[Session], named: str) -> Session:
    """The one whose id starts so, else the one with that title."""
    start = named.upper().removeprefix("SES_")
    fitting = [one for one in sessions if one["id"].removeprefix("ses_").startswith(start)]
    if not fitting:
        fitting = [one for one in sessions if one["title"].casefold() == named.casefold()]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise NotFound(f"There is no session {named!r}.", hint="`omnigent ls` lists them.")
    raise ambiguous(named, fitting)


def ambiguous(named: str, fitting: list[Session]) -> Conflict:
    some = "; ".join(f"{one['id']} ({one_line(one['title'], 40)})" for one in fitting[:5])
    return Conflict(f"{len(fitting)} sessions fit {named!r}: {some}.", hint="Give more of the id.")


def latest_here(client: Client, directory: Path) -> Session:
    """The newest session whose workspace is this directory, else one that holds it."""
    sessions = list(client.page_of_sessions(limit=200)["items"])
    here = directory.resolve()
    for place in (here, *here.parents):
        for one in sessions:
            if one["workspace"] == str(place):
                return one
    raise NotFound(
        f"No session was started in {directory}.",
        hint="Name one (`omnigent ls` lists them), or start one: omnigent run 'PROMPT'",
    )


def _latest(client: Client) -> Session:
    items: list[Session] = client.page_of_sessions(limit=1)["items"]
    if not items:
        raise NotFound("There is no session yet.", hint="Start one: omnigent run 'PROMPT'")
    return items[0]


def _of_url(url: str) -> str:
    found = _IN_URL.search(urlsplit(url).path)
    if not found:
        raise NotFound(f"{url} is not the URL of a session.")
    return found[0]
