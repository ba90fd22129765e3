"""The HTTP API from Python: blocking calls, on the standard library alone; how every face reaches a server.

Every call may be repeated: what creates or commands carries an idempotency key made here, so a response that
got lost is asked for again with the same key and nothing happens twice. Answers are plain JSON values under
the API's own names; a problem+json answer is raised as the error of `omnigent.errors` with that code.
"""

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, NotRequired, Self, TypedDict, cast
from urllib.parse import quote, urlencode, urlsplit

from omnigent import __version__
from omnigent.errors import (
    Conflict,
    Draining,
    Forbidden,
    Malformed,
    NotFound,
    OmnigentError,
    ServerUnreachable,
    TooLarge,
    Unauthorized,
    Unprocessable,
)

JSON = dict[str, Any]

PATIENCE = 10.0
"""Seconds a call goes on trying to reach a server that doesn't answer."""
FOLLOW_PATIENCE = 60.0
"""The same for a stream that broke: long enough for a server's restart."""
SILENCE = 40.0
"""A stream without a byte for this long is dead: the server writes a comment every 15 s."""
LARGEST_WAIT = 5.0
ANSWER_TIMEOUT = 120.0
HEALTH_TIMEOUT = 5.0
"""A server that runs answers its health check at once; what takes longer is something else."""


class Session(TypedDict):
    """A session as `GET /v1/sessions/{id}` tells it; what is not named here is in the API reference."""

    id: str
    title: str
    harness: str
    model: str | None
    provider: str | None
    workspace: str
    status: Literal["starting", "idle", "running", "waiting", "paused", "lost", "closed"]
    status_reason: NotRequired[str | None]
    last_seq: int
    usage: NotRequired[JSON]
    pending: NotRequired[dict[str, int]]
    queue_length: NotRequired[int]
    last_turn: NotRequired[JSON | None]
    sandbox: NotRequired[str]
    billing: NotRequired[str]
    budget: NotRequired[JSON | None]
    paused: NotRequired[JSON | None]
    policies: NotRequired[int]
    grants: NotRequired[list[JSON]]
    updated_at: int
    created_at: int
    web_url: NotRequired[str]


class Event(TypedDict):
    """An event of the log: its envelope, `kind` and `body`. Times are UTC milliseconds."""

    seq: int
    at: int
    kind: str
    session_id: str
    item_id: str | None
    turn_id: str | None
    actor: dict[str, str]
    cause: str | None
    body: JSON


class Waiting(TypedDict):
    """One row of the inbox: an open approval or question, and whose it is."""

    session_id: str
    session_title: str
    item: JSON


class Frame(NamedTuple):
    """One message of a stream. Beside the server's own (`hello`, `event`, `delta`, `end`) there are `comment`
    (the server lives) and `lost` (the link broke and is being mended; a `hello` follows)."""

    event: str
    text: str
    id: str | None = None

    @property
    def data(self) -> JSON:
        return json.loads(self.text)


def new_key() -> str:
    """A fresh idempotency key."""
    return os.urandom(16).hex()


def pause_before(attempt: int) -> float:
    """Seconds to wait before try number `attempt` (0 is the first repeat): full jitter, so that many clients
    of a server that comes back don't knock all at once."""
    jitter = int.from_bytes(os.urandom(2)) / 65535
    return jitter * min(LARGEST_WAIT, 0.1 * 2 ** min(attempt, 10)) + 0.01


class FrameParser:
    """Bytes of an event stream in, whole frames out, wherever the network cut them."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, data: bytes) -> list[Frame]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        frames: list[Frame] = []
        for line in lines:
            if frame := self._line(line.removesuffix(b"\r").decode("utf-8", "replace")):
                frames.append(frame)
        return frames

    def _line(self, line: str) -> Frame | None:
        if not line:
            return self._finish()
        if line.startswith(":"):
            return Frame("comment", line[1:].strip())
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id":
                self._id = value
            case _:
                pass
        return None

    def _finish(self) -> Frame | None:
        frame = Frame(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event, self._data, self._id = "", [], None
        return frame


class Client:
    """A server at a URL, with the token of this device. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        via: Literal["cli", "tui", "api"] = "api",
        patience: float = PATIENCE,
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """`patience`: how long a call is repeated; `timeout`: how long one try may take (both seconds).
        `via` is the face, as the log shows it."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Malformed(
                f"{url!r} is not the URL of a server.", hint="Write it like http://127.0.0.1:6767."
            )
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.token = token
        self.via = via
        self.patience = patience
        self.timeout = timeout
        self._parts = parts
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    # Sessions

    def health(self) -> JSON:
        return self._json("GET", "/healthz")

    def sessions(self, **filters: str | int | bool | None) -> Iterator[Session]:
        """All sessions that fit, newest first, page by page. Filters as in `GET /v1/sessions`."""
        cursor: str | None = None
        while True:
            page = self.page_of_sessions(**filters, cursor=cursor)
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def page_of_sessions(self, **filters: str | int | bool | None) -> JSON:
        return self._json("GET", "/v1/sessions", query=filters)

    def session(self, session_id: str) -> Session:
        return cast(Session, self._json("GET", _path(session_id)))

    def create(self, body: JSON, key: str | None = None) -> Session:
        """A new session; the fields of `body` are those of `POST /v1/sessions`."""
        return cast(Session, self._json("POST", "/v1/sessions", body=body, key=key or new_key()))

    def fork(self, session_id: str, body: JSON, key: str | None = None) -> Session:
        return cast(Session, self._json("POST", _path(session_id, "fork"), body=body, key=key or new_key()))

    def update(self, session_id: str, changes: JSON) -> Session:
        return cast(Session, self._json("PATCH", _path(session_id), body=changes))

    def delete(self, session_id: str) -> None:
        self._request("DELETE", _path(session_id))

    def command(self, session_id: str, type_: str, key: str | None = None, **fields: Any) -> JSON:
        """Ask something of a session (`omnigent.commands`): `{command_id, seq, state}`."""
        body = {"type": type_, "idempotency_key": key or new_key(), **fields}
        return self._json("POST", _path(session_id, "commands"), body=body)

    # What happened

    def events(self, session_id: str, **query: str | int | None) -> JSON:
        """One page: `{events, next_after, prev_before, head_seq, has_more}`."""
        return self._json("GET", _path(session_id, "events"), query=query)

    def all_events(self, session_id: str, after: int = 0) -> Iterator[Event]:
        """Every event after a seq, up to the head as it is when it gets there."""
        while True:
            page = self.events(session_id, after=after, limit=1000)
            yield from page["events"]
            if not page["has_more"]:
                return
            after = page["next_after"]

    def items(self, session_id: str, **query: str | int | None) -> JSON:
        """One page of the folded transcript, newest first."""
        return self._json("GET", _path(session_id, "items"), query=query)

    def follow(self, session_id: str, after: int = 0, patience: float = FOLLOW_PATIENCE) -> "Follow":
        """The events after a seq, then live, through lost connections: no gap and no repeat."""
        return Follow(self, session_id, after, patience)

    def await_event(self, session_id: str, after: int, timeout: float) -> None:
        """Return when an event after a seq is there, or after a time (seconds), or when the link breaks."""
        connection = self.connect(timeout)
        try:
            headers = {"Accept": "text/event-stream"}
            path = f"{self._parts.path.rstrip('/')}{_path(session_id, 'events')}?after={after}"
            connection.request("GET", path, None, self.headers(headers))
            response = connection.getresponse()
            parser, deadline = FrameParser(), time.monotonic() + timeout
            while response.status == 200 and time.monotonic() < deadline and (data := response.read1(65536)):
                if any(frame.event in ("event", "end") for frame in parser.feed(data)):
                    return
        except (OSError, http.client.HTTPException):
            return  # the caller looks for itself, with the patience of any call
        finally:
            connection.close()

    def inbox(self) -> list[Waiting]:
        """Every open approval and question that this token may see."""
        return self._json("GET", "/v1/inbox")["items"]

    # Control

    def policies(self, session_id: str | None = None, workspace: str | None = None) -> JSON:
        """With a session: the rules in effect there. Without: what is applied, by scope, and what the
        workspace's own file proposes."""
        return self._json("GET", "/v1/policies", query={"session": session_id, "workspace": workspace})

    def put_policies(self, change: JSON) -> JSON:
        """Apply rules to a scope wider than a session: `{scope, key?, policies?, remove?}`. What changed."""
        return self._json("PUT", "/v1/policies", body=change)

    def diff_policies(self, change: JSON) -> JSON:
        """What a change would come to, also of a session's own rules (`scope` session, `key` its id)."""
        return self._json("POST", "/v1/policies/diff", body=change)

    def check_policies(self, text: str) -> JSON:
        """The rules of a YAML text. Raises `PolicyInvalid`, with the place."""
        return self._json("POST", "/v1/policies/check", body={"policies": text})

    def test_policies(self, body: JSON) -> JSON:
        """Rules over a recorded log: `{policies, events | session_id, at?}`."""
        return self._json("POST", "/v1/policies/test", body=body)

    def replay(self, session_id: str, policies: str | None = None) -> JSON:
        """What today's rules, and those of `policies`, would have said to all that a session did."""
        body = {} if policies is None else {"policies": policies}
        return self._json("POST", _path(session_id, "replay"), body=body)

    def explain(self, session_id: str, item: str) -> JSON:
        """Which rule decided a call (`tc_…`, `call_…`, or its approval `ap_…`), and from which facts."""
        return self._json("GET", _path(session_id, "explain"), query={"item": item})

    def usage(self, **query: str | int | None) -> JSON:
        """The ledger's sums; the query is that of `GET /v1/usage`."""
        return self._json("GET", "/v1/usage", query=query)

    def audit(self, session_id: str) -> bytes:
        """Both logs of a session as JSON lines."""
        return self._request("GET", _path(session_id, "audit"))

    def verify_audit(self, session_id: str) -> JSON:
        return self._json("GET", _path(session_id, "audit", "verify"))

    # The rest

    def harnesses(self) -> list[JSON]:
        return self._json("GET", "/v1/harnesses")["items"]

    def devices(self) -> list[JSON]:
        return self._json("GET", "/v1/devices")["items"]

    def revoke(self, device_id: str) -> None:
        self._request("DELETE", f"/v1/devices/{quote(device_id, safe='')}")

    def drain(self, *, keep_runners: bool = False) -> None:
        """Stop the server: it ends open turns first."""
        self._request("POST", "/v1/server/drain", body={"keep_runners": keep_runners}, key=new_key())

    def export(self, session_id: str) -> bytes:
        """The session as a zip: manifest, events, blobs."""
        return self._request("GET", _path(session_id, "export"))

    def import_(self, archive: bytes, key: str | None = None) -> Session:
        headers = {"Content-Type": "application/zip", "Idempotency-Key": key or new_key()}
        return cast(Session, _object(self._send("POST", "/v1/sessions/import", archive, headers), self.url))

    def blob(self, sha256: str) -> bytes:
        return self._request("GET", f"/v1/blobs/{quote(sha256, safe='')}")

    # One exchange

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | bool | None] | None = None,
        body: JSON | None = None,
        key: str | None = None,
    ) -> JSON:
        return _object(self._request(method, path, query=query, body=body, key=key), self.url)

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | bool | None] | None = None,
        body: JSON | None = None,
        key: str | None = None,
    ) -> bytes:
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        if key:
            headers["Idempotency-Key"] = key
        return self._send(method, path + _query(query or {}), data, headers)

    def _send(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> bytes:
        """Until it is answered or the patience ends. `path` has its query."""
        deadline, attempt = time.monotonic() + self.patience, 0
        while True:
            try:
                status, answer = self._once(method, path, data, headers)
            except (OSError, http.client.HTTPException) as error:
                trouble: OmnigentError = unreachable(self.url, error)
            else:
                if status < 400:
                    return answer
                trouble = problem(status, answer, self.url)
                if method == "DELETE" and attempt and isinstance(trouble, NotFound):
                    return b""  # the first try did it; only its answer was lost
                if status not in (429, 502, 503, 504) or isinstance(trouble, Draining):
                    raise trouble
            wait = max(pause_before(attempt), float(trouble.facts.get("retry_after") or 0))
            if time.monotonic() + wait > deadline:
                raise trouble
            attempt += 1
            time.sleep(wait)

    def _once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        with self._lock:
            connection = self._connection or self.connect(self.timeout)
            self._connection = None
            try:
                connection.request(method, self._parts.path.rstrip("/") + path, data, self.headers(headers))
                response = connection.getresponse()
                answer = response.read()
            except BaseException:
                connection.close()
                raise
            if not response.will_close:
                self._connection = connection
            return response.status, answer

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname
        return kind(self._parts.hostname, self._parts.port, timeout=timeout)

    def headers(self, more: Mapping[str, str]) -> dict[str, str]:
        return {
            "User-Agent": f"omnigent/{__version__}",
            "Authorization": f"Bearer {self.token}",
            "X-Omnigent-Via": self.via,
            **more,
        }


class Follow:
    """A session's stream as an iterator of frames. Ends after `end` with reason `deleted`; a revoked token
    and a server that stays away are errors. `last` is the newest seq seen.

    An exception out of `next` (an interrupt from the keyboard) drops the connection only: the next `next`
    goes on after `last`.
    """

    def __init__(self, client: Client, session_id: str, after: int, patience: float) -> None:
        self.last = after
        self.session_id = session_id
        self._client = client
        self._path = _path(session_id, "events")
        self._patience = patience
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._parser = FrameParser()
        self._frames: list[Frame] = []
        self._attempt = 0
        self._broken_at: float | None = None
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        while not self._over:
            if not self._frames:
                try:
                    self._read()
                except (OSError, http.client.HTTPException) as error:
                    self._break_off(error)
                except BaseException:
                    self.close()
                    raise
                continue
            frame = self._frames.pop(0)
            if self._take(frame):
                return frame
        raise StopIteration

    def close(self) -> None:
        if self._response:
            self._response.close()
        if self._connection:
            self._connection.close()
        self._connection, self._response, self._parser = None, None, FrameParser()
        self._frames.clear()

    def _read(self) -> None:
        if self._response is None:
            if self._attempt:
                time.sleep(pause_before(self._attempt - 1))
            self._open()
        assert self._response
        data = self._response.read1(65536)
        if not data:
            raise ConnectionError("the stream ended")
        self._attempt, self._broken_at = 0, None
        self._frames += self._parser.feed(data)

    def _open(self) -> None:
        client = self._client
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self.last)}
        self._connection = client.connect(SILENCE)
        prefix = urlsplit(client.url).path
        self._connection.request(
            "GET", f"{prefix}{self._path}?after={self.last}", None, client.headers(headers)
        )
        response = self._connection.getresponse()
        if response.status >= 400:
            trouble = problem(response.status, response.read(), client.url)
            if response.status in (429, 502, 503, 504):
                raise ConnectionError(trouble.detail)
            raise trouble
        self._response = response

    def _break_off(self, error: Exception) -> None:
        self.close()
        self._attempt += 1
        now = time.monotonic()
        if self._broken_at is None:
            self._broken_at = now
            self._frames.append(Frame("lost", json.dumps({"reason": str(error) or type(error).__name__})))
        elif now - self._broken_at > self._patience:
            raise unreachable(self._client.url, error) from error

    def _take(self, frame: Frame) -> bool:
        """Whether the caller should see the frame; keeps `last`, and obeys `end`."""
        if frame.event == "event":
            seq = int(frame.id) if frame.id else int(frame.data["seq"])
            if seq <= self.last:
                return False
            self.last = seq
        elif frame.event == "end":
            self._end(frame.data.get("reason", ""))
        return True

    def _end(self, reason: str) -> None:
        self.close()
        if reason == "revoked":
            raise Unauthorized("This device's access was revoked.", hint="Ask the owner for a new link.")
        if reason == "deleted":
            self._over = True
        self._attempt = 1  # `shutdown`, `lagging`: come back, though not at once


def unreachable(url: str, error: Exception) -> ServerUnreachable:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    hint = "See `omnigent server status`; `omnigent server start` starts it."
    return ServerUnreachable(f"The server at {url} doesn't answer: {reason}.", hint=hint)


_BY_STATUS: dict[int, type[OmnigentError]] = {
    400: Malformed, 401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 410: NotFound,
    413: TooLarge, 422: Unprocessable,
}  # fmt: skip


def problem(status: int, answer: bytes, url: str) -> OmnigentError:
    """The error that an answer of 400 or more stands for."""
    try:
        body: Any = json.loads(answer)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return _foreign(status, url)
    facts = dict(cast(JSON, body))
    code = facts.pop("code", "")
    kind = _classes(OmnigentError).get(code) or _BY_STATUS.get(status) or OmnigentError
    detail, hint = str(facts.pop("detail", "") or facts.get("title", "")), str(facts.pop("hint", "") or "")
    for name in ("type", "title", "status"):
        facts.pop(name, None)
    return kind(detail or f"The server answered {status}.", hint=hint, **facts)


def _classes(root: type[OmnigentError]) -> dict[str, type[OmnigentError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found = _classes(kind) | found
    return found


def _foreign(status: int, url: str) -> OmnigentError:
    if status >= 500:
        return ServerUnreachable(f"The server at {url} broke ({status}).", hint="See `omnigent server logs`.")
    return ServerUnreachable(
        f"Something other than Omnigent answers at {url} ({status}).",
        hint="Set `server.port` in config.yaml to a free port, or mend OMNIGENT_SERVER.",
    )


def _object(answer: bytes, url: str) -> JSON:
    try:
        body: Any = json.loads(answer)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _foreign(200, url)
    return cast(JSON, body)


def _path(session_id: str, *more: str) -> str:
    return "/".join(("/v1/sessions", quote(session_id, safe=""), *more))


def _query(query: Mapping[str, str | int | bool | None]) -> str:
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
    return f"?{urlencode(given)}" if given else ""
