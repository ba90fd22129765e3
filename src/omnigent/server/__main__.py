"""`python -m omnigent.server --home H`: one server of one home, until it is told to stop.

On a failure it writes `error: …` and `hint: …` lines on stderr and exits with the error's code.
"""

import argparse
import asyncio
import errno
import gc
import http.client
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from omnigent import __version__, processes
from omnigent.config import Config, home_path, load_config, ready_home
from omnigent.errors import ConfigInvalid, Conflict, Forbidden, OmnigentError
from omnigent.ids import new_id, now
from omnigent.server import build_app
from omnigent.server.devices import Devices, write_private
from omnigent.server.peers import started_by_agent
from omnigent.sessions import Sessions

logger = logging.getLogger("omnigent.server")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FLUSH_SECONDS = 3
"""How long a closing connection may take to read its last bytes."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        home = ready_home(options.home.expanduser().absolute())
        _refuse_agents(home)
        config = load_config(home)
        listener = _listen(home, config, options.host, options.port)
        with listener:
            asyncio.run(_run(home, config, listener), loop_factory=uvloop.new_event_loop)
    except OmnigentError as error:
        sys.stderr.write(f"error: {error.detail}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code
    return 0


def _refuse_agents(home: Path) -> None:
    """Raises `Forbidden`: a server below an agent would end with it, and be what the agent makes of it."""
    if session_id := started_by_agent(home):
        raise Forbidden(
            f"An agent (of session {session_id}) can't start the server.",
            hint="Start it from a terminal of your own: any omnigent command does.",
        )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("omnigent.server", description="The Omnigent server of one home.")
    parser.add_argument("--home", type=Path, default=home_path(), help="default: ~/.omnigent")
    parser.add_argument("--host", help="default: server.host of config.yaml, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: server.port, else 6767; 0: a free one")
    return parser.parse_args(arguments)


async def _run(home: Path, config: Config, listener: socket.socket) -> None:
    url = _url(listener)
    api = url.partition("//")[2]
    sessions = await Sessions.open(home, config, dict(os.environ), now, new_id, api)
    (home / "server.json").unlink(missing_ok=True)  # of one that was killed
    devices = Devices(home, now, new_id)
    server: _Server | None = None

    def stop(keep_runners: bool) -> None:
        assert server is not None
        server.stop(keep_runners)

    app = build_app(sessions, devices, stop, url=url)
    settings = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # an address that a header names is no proof of who asks
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    server = _Server(settings, sessions, app.state.room.streams.end, home, url)
    try:
        await server.serve([listener])
    finally:
        devices.save()
        with suppress(OSError):
            (home / "server.json").unlink()
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """Uvicorn, stopped by draining: first the turns end, then the streams, then the connections."""

    def __init__(
        self, config: uvicorn.Config, sessions: Sessions, end_streams: Any, home: Path, url: str
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._sessions = sessions
        self._end_streams = end_streams
        self._home = home
        self._url = url
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What was made for the start stays: the collector need not look at it at every full collection.
        # No collection first: imports have had several, and one more would delay the first answer by a tenth.
        gc.freeze()
        pid = os.getpid()
        record = {
            "pid": pid,
            "pid_started": processes.start_time(pid),
            "port": int(self._url.rsplit(":", 1)[1]),
            "url": self._url,
            "version": __version__,
        }
        write_private(self._home / "server.json", json.dumps(record).encode())
        logger.info("listening on %s for %s", self._url, self._home)

    def stop(self, keep_runners: bool = False) -> None:
        if self._draining is None:
            logger.info("stopping%s", ", runners stay" if keep_runners else "")
            self._draining = asyncio.get_running_loop().create_task(self._drain(keep_runners))

    async def _drain(self, keep_runners: bool) -> None:
        try:
            await self._sessions.drain(keep_runners)
        except Exception as error:
            self.failure = error
            logger.exception("the drain failed")
        finally:
            self._end_streams("shutdown")
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._told)
        yield

    def _told(self) -> None:
        """A signal: drain; a second one doesn't wait for the turns."""
        if self._draining is not None:
            self._draining.cancel()
        self.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()


def _listen(home: Path, config: Config, host: str | None, port: int | None) -> socket.socket:
    """The listening socket. Raises `ConfigInvalid`, `Conflict` saying who has the port."""
    host, port = host or config.server.host, config.server.port if port is None else port
    if host not in LOOPBACK:
        raise ConfigInvalid(
            f"server.host is {host}, and serving other machines is not supported yet.",
            hint="Set it to 127.0.0.1, and reach it from elsewhere through `ssh -L`.",
        )
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _taken(home, host, port, error) from error
    return listener


def _taken(home: Path, host: str, port: int, error: OSError) -> OmnigentError:
    detail = f"Port {port} on {host} can't be used: {error.strerror}."
    if error.errno == errno.EADDRINUSE:
        detail = f"Port {port} on {host} is taken by {_holder(home, host, port)}."
    return Conflict(
        detail,
        hint=f"Set `server.port` in {home / 'config.yaml'}, e.g. `server: {{port: {port + 1}}}` (or --port).",
        port=port,
    )


def _holder(home: Path, host: str, port: int) -> str:
    """Who answers at the port, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record: Any = json.loads((home / "server.json").read_bytes())
        if record["port"] == port and processes.alive(record["pid"], record["pid_started"]):
            return f"the server of this home (process {record['pid']}), which runs already"
    connection = http.client.HTTPConnection(host, port, timeout=1)
    with suppress(OSError, ValueError, http.client.HTTPException, TypeError, KeyError):
        connection.request("GET", "/healthz")
        health: Any = json.loads(connection.getresponse().read(10_000))
        return f"the Omnigent server of another home (version {health['version']})"
    return "another program"


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
