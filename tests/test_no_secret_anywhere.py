"""Ten known and ten unknown secrets, planted in the environment, the prompt and the output of tools: none is
in the database, the blobs, the logs, any argv, an export or a stream.

What the agent keeps in its own private directory (its transcript) is the vendor's, and out of scope.
"""

import base64
import io
import json
import random
import string
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from support import House, fresh_home, wait_for

from omnigent import secrets
from omnigent.redaction import Redactor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ALNUM = string.ascii_letters + string.digits


def made_up(size: int, alphabet: str = ALNUM) -> str:
    return "".join(random.SystemRandom().choice(alphabet) for _ in range(size))


def unknown() -> list[str]:
    """Ten of published formats, made up now."""
    return [
        "AKIA" + made_up(16, string.ascii_uppercase),
        "ghp_" + made_up(36),
        "glpat-" + made_up(20),
        f"xoxb-{made_up(12, string.digits)}-{made_up(24)}",
        "sk_live_" + made_up(24),
        "sk-ant-api03-" + made_up(90),
        "AIza" + made_up(35),
        "npm_" + made_up(36),
        f"SG.{made_up(22)}.{made_up(43)}",
        "hf_" + made_up(34),
    ]


def forms(secret: str) -> list[str]:
    data = secret.encode()
    coded = [base64.b64encode(b"abc"[:phase] + data + b"xyz").decode() for phase in range(3)]
    return [secret, json.dumps(secret), quote(f"?{secret}&", safe=""), *coded]


def fingerprints(secret: str) -> list[str]:
    """What of each form is there in whatever surroundings."""
    data = secret.encode()
    middles = [base64.b64encode(bytes(phase) + data).decode()[4:-4] for phase in range(3)]
    return [secret, quote(secret, safe=""), json.dumps(secret)[1:-1], *middles]


class Planted:
    def __init__(self, home: Path) -> None:
        self.environment = {f"PLANTED_{n}_TOKEN": made_up(20 + n) for n in range(3)}
        self.registered = {f"planted-{n}": made_up(24 + n) for n in range(4)}
        self.keychain = {f"planted {n}": made_up(30 + n, ALNUM + "+/&") for n in range(3)}
        self.known = [*self.environment.values(), *self.registered.values(), *self.keychain.values()]
        self.unknown = unknown()
        for name, value in self.registered.items():
            secrets.store(home, name, value)

    def text(self) -> str:
        rows = [form for secret in self.known for form in forms(secret)] + self.unknown
        return "\n".join(f"row {number}: {row} ." for number, row in enumerate(rows)) + "\nEND-OF-IT\n"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[House, Planted]]:
    found = House(fresh_home("secrets"), {"turns": []})
    planted = Planted(found.home)
    for name, value in planted.environment.items():
        monkeypatch.setenv(name, value)
    config = json.loads((found.home / "config.yaml").read_text())
    config["secrets"] = [{"keychain": name} for name in planted.keychain]
    (found.home / "config.yaml").write_text(json.dumps(config))
    # The key store is a part of the machine: a program stands in for it, which looks the service up.
    shelf = found.home / "programs" / "shelf.json"
    shelf.parent.mkdir(exist_ok=True)
    shelf.write_text(json.dumps(planted.keychain))
    found.place_program(
        "secret-tool",
        f"exec python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' {shelf} \"$3\"",
    )
    try:
        found.start()
        yield found, planted
    finally:
        found.close()


def arguments() -> str:
    """The argv of every process."""
    found: list[str] = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                found.append((path / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)


def test_none_of_twenty_secrets_is_anywhere(house: tuple[House, Planted]) -> None:
    found, planted = house
    text = planted.text()
    (found.workspace / "notes.txt").write_text(text)
    (found.workspace / "big.txt").write_text(text + "filler line\n" * 5000)
    shell = [{"tool": "$shell", "input": {"command": f"cat {name}"}} for name in ("notes.txt", "big.txt")]
    steps = [{"tools": [shell[0]]}, {"tools": [shell[1]]}, {"text": text, "chunk": 7}]
    found.model.set_script({"turns": [{"match": "GO", "steps": steps}]})
    session_id = found.create("scripted", title=f"about {planted.unknown[1]}")
    streams: dict[str, str] = {}
    followers = [follow(found, session_id, kind, streams) for kind in ("events", "items")]
    wait_for(lambda: len(streams) == 2, 20, "the followers")
    argv: list[str] = []
    found.prompt(session_id, f"GO and remember:\n{text}")

    def over() -> bool:
        argv.append(arguments())
        for row in found.client().inbox():
            found.client().command(session_id, "resolve", approval_id=row["item"]["id"], decision="allow")
        return "turn.completed" in found.kinds(session_id)

    wait_for(over, 90, "the turn")
    exported = found.client().export(session_id)
    found.close_server()  # ends the streams, and writes the database's last pages
    for follower in followers:
        follower.join(20)
    places = {"argv": "\n".join(argv), **{f"stream of {kind}": said for kind, said in streams.items()}}
    with zipfile.ZipFile(io.BytesIO(exported)) as archive:
        places |= {
            f"export {name}": archive.read(name).decode(errors="replace") for name in archive.namelist()
        }
    for path in found.home.rglob("*"):
        # Beside what holds secrets by its nature: the keys themselves, the agent's own files.
        inside = path.relative_to(found.home).parts[0]
        if path.is_file() and inside not in ("secrets", "programs", "workspace", "harnesses", "run"):
            places[str(path)] = path.read_bytes().decode(errors="replace")
    assert any("omnigent.db" in name for name in places) and any("blobs" in name for name in places)
    assert "END-OF-IT" in places["stream of events"] and "[redacted" in places["stream of events"]
    for name, said in places.items():
        left = [mark for one in planted.known for mark in fingerprints(one) if mark in said]
        left += [one for one in planted.unknown if one in said]
        assert left == [], (
            name,
            len(left),
            [said[max(0, said.find(x) - 60) : said.find(x)] for x in left[:3]],
        )
    assert Redactor(planted.known).find(places["stream of events"]) == []


def follow(house: House, session_id: str, kind: str, into: dict[str, str]) -> threading.Thread:
    """Reads a stream as it comes, deltas too, into `into[kind]`, until the server ends it."""
    client = house.client()

    def read() -> None:
        connection = client.connect(120)
        headers = client.headers({"Accept": "text/event-stream"})
        connection.request("GET", f"/v1/sessions/{session_id}/{kind}", headers=headers)
        answer = connection.getresponse()
        into[kind] = ""
        while data := answer.read1():
            into[kind] += data.decode(errors="replace")
        connection.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
