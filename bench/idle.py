"""What a server costs that nobody asks anything, alone and with 1,000 sessions."""

import secrets
import time

from http_calls import Connection
from measure import Figure
from servers import OurServer, cpu_seconds, resident_mb, scratch

MOST_CPU = 1.0
"""Per cent of one core."""
MOST_MB = 120.0
SESSIONS = 1000


def measure_idle(quick: bool) -> list[Figure]:
    window = 3.0 if quick else 20.0
    figures: list[Figure] = []
    with scratch() as place:
        for sessions in (0, SESSIONS):
            server = OurServer(place / f"with-{sessions}")
            server.fill(sessions)
            server.start()
            try:
                server.warm()
                connection = server.connect()
                _look_at_all(connection, sessions)
                connection.close()
                figures += _idle(server, sessions, window)
            finally:
                server.stop()
    return figures


def _look_at_all(connection: Connection, sessions: int) -> None:
    """Open every session, as one who scrolls through them does."""
    connection.call("GET", f"/healthz?{secrets.token_hex(4)}")
    if sessions:
        for row in connection.call("GET", "/v1/sessions?limit=1000")["items"]:
            connection.call("GET", f"/v1/sessions/{row['id']}")


def _idle(server: OurServer, sessions: int, window: float) -> list[Figure]:
    before, began = cpu_seconds(server.pid), time.monotonic()
    time.sleep(window)  # the window is what is measured
    share = 100 * (cpu_seconds(server.pid) - before) / (time.monotonic() - began)
    memory = resident_mb(server.pid)
    who = f"server, {sessions:,} sessions"
    figures = [
        Figure(f"{who}: CPU", "", f"{share:.2f} %", "", f"< {MOST_CPU:g} %", share < MOST_CPU, blocks=True),
        Figure(
            f"{who}: memory", "", f"{memory:.0f} MB", "", f"< {MOST_MB:g} MB", memory < MOST_MB, blocks=True
        ),
    ]
    if (pid := server.spawner()) is not None:
        text = f"{resident_mb(pid):.0f} MB, {cpu_seconds(pid):.2f} s of CPU to start"
        figures.append(Figure("what its runners are forked from (a process of its own)", "", text, "", ""))
    return figures
