"""The loopback server: takes requests, records them, plays the script."""

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from aiohttp import web
from pydantic import ValidationError

from . import anthropic, chat, openai, responses
from .conversation import Conversation, Item, Json, as_dict
from .player import Cue, compose, find_cue
from .reply import Frame, Refusal, Reply, estimate_tokens, refusal_of
from .script import Fault, Script, Step

type Api = Literal["messages", "count_tokens", "responses", "chat", "models", "other"]
type Outcome = Literal["open", "answered", "refused", "failed", "client_left"]

SECRET_HEADERS = {"authorization", "x-api-key", "api-key", "proxy-authorization", "cookie"}
LARGEST_REQUEST = 256 * 1024 * 1024
# What one write may hold when the script asks for no pauses.
LARGEST_WRITE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Wire:
    read: Callable[[Json], Conversation]
    check: Callable[[Json], None]
    write: Callable[[Reply, Json], Json]
    stream: Callable[[Reply, Json], Iterator[Frame]]
    write_error: Callable[[Refusal], Json]
    stream_error: Callable[[Refusal], bytes]


MESSAGES = Wire(
    anthropic.read,
    anthropic.check,
    anthropic.write,
    anthropic.stream,
    anthropic.write_error,
    anthropic.stream_error,
)
RESPONSES = Wire(
    responses.read,
    responses.check,
    responses.write,
    responses.stream,
    openai.write_error,
    responses.stream_error,
)
CHAT = Wire(chat.read, chat.check, chat.write, chat.stream, openai.write_error, chat.stream_error)
WIRES: dict[Api, Wire] = {
    "messages": MESSAGES,
    "count_tokens": MESSAGES,
    "responses": RESPONSES,
    "chat": CHAT,
}


@dataclass(slots=True)
class RecordedRequest:
    """One request as it came. `headers` hold no credential: `key` is the first 12 hex digits of the
    sha256 of the one presented, `key_ok` whether it was the required one. `step` is -1 where no step
    was played. `outcome` and `status` change until the answer is finished: `refused` is a request the
    vendor would refuse, `failed` an error the script wanted."""

    n: int
    api: Api
    path: str
    headers: dict[str, str]
    body: Json
    key: str | None
    key_ok: bool
    prompt: str = ""
    step: int = -1
    images: int = 0
    at_monotonic: float = field(default_factory=time.monotonic)
    outcome: Outcome = "open"
    status: int = 0
    error: str = ""


def history_of(request: RecordedRequest) -> list[Item]:
    """What the request told the model, in one form for the three wires. Reasoning is left out."""
    wire = WIRES.get(request.api)
    return wire.read(request.body).items if wire else []


def tools_of(request: RecordedRequest) -> list[str]:
    """The names of all tools offered, namespaced ones as `mcp__server__tool`."""
    wire = WIRES.get(request.api)
    return [offer.name for offer in wire.read(request.body).offers] if wire else []


def load_script(script: Script | Json) -> Script:
    return script if isinstance(script, Script) else Script.model_validate(script)


class ScriptedModel:
    """A model server on loopback that plays a script. `port=0` takes a free one.

    With `require_key` every request, the admin ones too, needs it as `x-api-key` or bearer token."""

    def __init__(
        self,
        script: Script | Json,
        port: int = 0,
        require_key: str | None = None,
        on_request: Callable[[RecordedRequest], None] | None = None,
    ) -> None:
        self.script = load_script(script)
        self.requests: list[RecordedRequest] = []
        self.url = ""
        self._port = port
        self._require_key = require_key
        self._on_request = on_request
        self._faults_given: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/_requests", self._show_requests)
        app.router.add_put("/_script", self._put_script)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        # handler_cancellation ends a hanging or slow answer when its client leaves.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self._runner = runner
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def set_script(self, script: Script | Json) -> None:
        self.script = load_script(script)
        self._faults_given.clear()

    async def wait_for(
        self, predicate: Callable[[RecordedRequest], bool], timeout: float = 10
    ) -> RecordedRequest:
        """The first request, of those seen and those to come, that satisfies the predicate; it is asked
        again when a request ends. Raises TimeoutError naming what was seen."""

        def find() -> RecordedRequest | None:
            return next((request for request in self.requests if predicate(request)), None)

        try:
            async with asyncio.timeout(timeout), self._changed:
                found = await self._changed.wait_for(find)
        except TimeoutError:
            seen = [
                (request.api, request.prompt[:60], request.step, request.outcome) for request in self.requests
            ]
            raise TimeoutError(f"no such request within {timeout} s; seen: {seen}") from None
        assert found is not None
        return found

    @classmethod
    @contextmanager
    def in_thread(
        cls, script: Script | Json, port: int = 0, require_key: str | None = None
    ) -> Generator["ThreadedModel"]:
        """The server in a thread with a loop of its own, for synchronous code."""
        model = ThreadedModel(cls(script, port, require_key))
        model.start()
        try:
            yield model
        finally:
            model.stop()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "requests": len(self.requests)})

    async def _show_requests(self, request: web.Request) -> web.Response:
        if not self._has_key(request):
            raise web.HTTPUnauthorized
        return web.json_response([asdict(seen) for seen in self.requests])

    async def _put_script(self, request: web.Request) -> web.Response:
        if not self._has_key(request):
            raise web.HTTPUnauthorized
        try:
            self.set_script(Script.model_validate_json(await request.text()))
        except ValidationError as problem:
            return web.json_response({"error": str(problem)}, status=400)
        return web.json_response({"ok": True})

    def _has_key(self, request: web.Request) -> bool:
        return self._require_key is None or presented_key(request) == self._require_key

    async def _record(self, request: web.Request) -> tuple[RecordedRequest, Cue | None]:
        body, key = await read_body(request), presented_key(request)
        record = RecordedRequest(
            n=len(self.requests) + 1,
            api=find_api(request.path),
            path=request.path_qs,
            headers={k.lower(): v for k, v in request.headers.items() if k.lower() not in SECRET_HEADERS},
            body=body,
            key=hashlib.sha256(key.encode()).hexdigest()[:12] if key else None,
            key_ok=self._has_key(request),
        )
        cue = None
        if wire := WIRES.get(record.api):
            conversation = wire.read(record.body)
            record.prompt, record.images = conversation.prompt, conversation.images
            if record.api != "count_tokens":
                cue = find_cue(self.script, conversation)
                record.step = cue.index
        self.requests.append(record)
        await self._notify()
        return record, cue

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        record, cue = await self._record(request)
        wire = WIRES.get(record.api)
        try:
            response = await self._answer(request, record, cue)
            record.status = response.status
            if record.outcome == "open":
                record.outcome = "answered"
        except Refusal as refusal:
            scripted = isinstance(refusal, ScriptedRefusal)
            record.outcome = "failed" if scripted else "refused"
            record.status, record.error = refusal.status, refusal.message
            write_error = wire.write_error if wire else openai.write_error
            response = web.json_response(write_error(refusal), status=refusal.status)
            if isinstance(refusal, ScriptedRefusal) and refusal.retry_after is not None:
                response.headers["retry-after"] = f"{refusal.retry_after:g}"
            if isinstance(refusal, ScriptedRefusal):
                response.headers.update(refusal.headers)
        except (asyncio.CancelledError, ConnectionError):
            record.outcome = "client_left"
            raise
        finally:
            await asyncio.shield(self._finish(record))
        return response

    async def _finish(self, record: RecordedRequest) -> None:
        if self._on_request:
            self._on_request(record)
        await self._notify()

    async def _answer(
        self, request: web.Request, record: RecordedRequest, cue: Cue | None
    ) -> web.StreamResponse:
        if not record.key_ok:
            raise Refusal(
                401, "invalid x-api-key" if record.api == "messages" else "Incorrect API key provided"
            )
        if record.api == "models":
            return web.json_response(list_models(self.script.models))
        wire = WIRES.get(record.api)
        if wire is None:
            # Claude Code's TUI asks whether the host is there.
            if request.method == "HEAD":
                return web.Response()
            raise Refusal(404, f"no such endpoint: {request.method} {request.path}")
        if record.api == "count_tokens":
            anthropic.check(record.body, counting=True)
            return web.json_response({"input_tokens": estimate_tokens(record.body)})
        wire.check(record.body)
        assert cue is not None
        return await self._play(request, wire, record, compose(cue), cue.step)

    async def _play(
        self, request: web.Request, wire: Wire, record: RecordedRequest, reply: Reply, step: Step
    ) -> web.StreamResponse:
        if step.delay_ms:
            await asyncio.sleep(step.delay_ms / 1000)
        fault = self._take_fault(record, step)
        has_content = bool(step.reasoning or step.text or step.tools)
        streaming = bool(record.body.get("stream"))
        if fault and not (fault.mid_stream and streaming):
            raise ScriptedRefusal(fault)
        if step.hang and not (streaming and has_content):
            await wait_for_ever()
        if not streaming:
            return web.json_response(wire.write(reply, record.body))
        frames = list(wire.stream(reply, record.body))
        if fault or step.hang:
            frames = frames[: 1 + max(i for i, frame in enumerate(frames) if frame.delta or i == 0)]
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "no-cache"},
        )
        await response.prepare(request)
        await write_frames(response, frames, step.chunk_delay_ms / 1000)
        if fault:
            record.outcome, record.error = "failed", fault.message
            await response.write(wire.stream_error(refusal_of(fault)))
        elif step.hang:
            await wait_for_ever()
        await response.write_eof()
        return response

    def _take_fault(self, record: RecordedRequest, step: Step) -> Fault | None:
        """The step's error if it is still due. A retry sends the same history, which is how it is known."""
        fault = step.error
        if fault is None or fault.times is None:
            return fault
        told = [(item.role, item.kind, item.text) for item in history_of(record) if item.role != "system"]
        key = hashlib.sha256(json.dumps([told, record.step]).encode()).hexdigest()
        self._faults_given[key] += 1
        return fault if self._faults_given[key] <= fault.times else None


class ScriptedRefusal(Refusal):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.status, fault.message, fault.code)
        self.retry_after = fault.retry_after
        self.headers = fault.headers


class ThreadedModel:
    """A ScriptedModel in a thread of its own; see `ScriptedModel.in_thread`."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-model", daemon=True)

    @property
    def url(self) -> str:
        return self._model.url

    @property
    def requests(self) -> list[RecordedRequest]:
        return list(self._model.requests)

    def start(self) -> None:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._model.start(), self._loop).result()
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._model.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set_script(self, script: Script | Json) -> None:
        checked = load_script(script)

        async def replace() -> None:
            self._model.set_script(checked)

        asyncio.run_coroutine_threadsafe(replace(), self._loop).result()

    def wait_for(self, predicate: Callable[[RecordedRequest], bool], timeout: float = 10) -> RecordedRequest:
        """The predicate runs in the server's thread."""
        return asyncio.run_coroutine_threadsafe(self._model.wait_for(predicate, timeout), self._loop).result()


async def wait_for_ever() -> NoReturn:
    """Until the handler is cancelled: its client left or the server stops."""
    await asyncio.Future[None]()
    raise AssertionError("nobody completes this future")


async def write_frames(response: web.StreamResponse, frames: list[Frame], pause: float) -> None:
    if pause:
        for frame in frames:
            await response.write(frame.data)
            if frame.delta:
                await asyncio.sleep(pause)
        return
    waiting = bytearray()
    for frame in frames:
        waiting += frame.data
        if len(waiting) >= LARGEST_WRITE:
            await response.write(bytes(waiting))
            waiting.clear()
    await response.write(bytes(waiting))


def presented_key(request: web.Request) -> str:
    bearer = request.headers.get("authorization", "")
    return request.headers.get("x-api-key") or bearer.removeprefix("Bearer ").strip()


async def read_body(request: web.Request) -> Json:
    try:
        return as_dict(json.loads(await request.read() or b"{}"))
    except ValueError:
        return {}


def find_api(path: str) -> Api:
    """Clients differ in whether their base URL ends with /v1."""
    known: dict[str, Api] = {
        "/messages": "messages",
        "/messages/count_tokens": "count_tokens",
        "/responses": "responses",
        "/chat/completions": "chat",
        "/models": "models",
    }
    return known.get(path.removeprefix("/v1"), "other")


def list_models(names: list[str]) -> Json:
    """One list both vendors' clients can read."""
    models: list[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "scripted",
            "type": "model",
            "display_name": name,
            "created_at": "2026-01-01T00:00:00Z",
        }
        for name in names
    ]
    ends = {"first_id": names[0], "last_id": names[-1]} if names else {}
    return {"object": "list", "data": models, "has_more": False, **ends}
