"""One pinned file from a package registry, checked against its digest, and its unpacking.

Neither pip nor npm is needed: a wheel is found in the index (PEP 691 JSON or PEP 503 HTML), a tarball has a
well-known address. What arrives is trusted only after its digest matched the pin.
"""

import base64
import hashlib
import html.parser
import http.client
import json
import os
import stat
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnigent.errors import OmnigentError

Step = Literal["waiting", "download", "unpack", "npm", "check", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an installation is. `done` and `total` are bytes; `total` is None where nobody knows."""

    what: str
    step: Step
    done: int = 0
    total: int | None = None


Report = Callable[[Progress], None]


class InstallFailed(OmnigentError):
    """The registry didn't give what is pinned, or it doesn't run here."""

    code, status, title = "install_failed", 502, "Installation failed"


class _Broken(Exception):
    """A transfer that may go better the next time."""


_CHUNK = 1 << 20
_TRIES = 3
_TIMEOUT = 60.0
"""Seconds without a byte before a connection counts as dead."""

_PYPI = "https://pypi.org/simple"
_NPM = "https://registry.npmjs.org"


def pypi_index(env: Mapping[str, str]) -> str:
    """The index wheels come from: ours, else what uv or pip was told, else PyPI."""
    named = (env.get(name) for name in ("OMNIGENT_PYPI_INDEX", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"))
    return _base(next((url for url in named if url), _PYPI), "OMNIGENT_PYPI_INDEX")


def npm_registry(env: Mapping[str, str]) -> str:
    """The registry npm would use: its environment variable, `~/.npmrc`, else the public one."""
    url = env.get("npm_config_registry") or env.get("NPM_CONFIG_REGISTRY") or _from_npmrc(env)
    return _base(url or _NPM, "npm_config_registry")


def wheel_url(package: str, file: str, env: Mapping[str, str]) -> str:
    """Where the index keeps the wheel `file`."""
    page_url = f"{pypi_index(env)}/{package}/"
    body, kind, page_url = _page(page_url, package)
    links = _links_json(body) if "json" in kind else _links_html(body)
    for name, link in links.items():
        if name == file:
            return _with_credentials(urllib.parse.urljoin(page_url, link), pypi_index(env))
    raise InstallFailed(
        f"The index at {_shown(page_url)} has no file {file}.",
        hint="Set OMNIGENT_PYPI_INDEX to an index that has it, for instance https://pypi.org/simple.",
    )


def tarball_url(package: str, file: str, env: Mapping[str, str]) -> str:
    """Where an npm registry keeps the tarball `file`."""
    return f"{npm_registry(env)}/{package}/-/{file}"


def download(url: str, target: Path, digest: str, report: Report) -> None:
    """Write what is at `url` to `target` if it has that digest; else `target` doesn't exist afterwards."""
    part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        _retrieve(url, part, digest, report)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def matches(file: Path, digest: str) -> bool:
    """Does the file exist with that digest?"""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, _algorithm(digest)).digest() == _expected(digest)


def unpack(archive: Path, into: Path) -> None:
    """Unpack a wheel or an npm tarball, keeping which files are executable; nothing lands outside `into`."""
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, into)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(into, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise InstallFailed(f"{archive.name} can't be unpacked: {error}.") from error


def _retrieve(url: str, part: Path, digest: str, report: Report) -> None:
    for left in reversed(range(_TRIES)):
        try:
            got = _stream(url, part, _algorithm(digest), report)
        except _Broken as error:
            if not left:
                raise InstallFailed(f"{error}.", hint="Check the network and run it again.") from error
            continue
        if got != _expected(digest):
            raise InstallFailed(
                f"{_shown(url)} is not the file Omnigent pins: its digest is {got.hex()[:16]}…,"
                f" {_expected(digest).hex()[:16]}… was expected.",
                hint="Something between here and the registry changed it. Nothing was installed.",
            )
        return


def _stream(url: str, part: Path, algorithm: str, report: Report) -> bytes:
    """Fetch once. Returns the digest of what came."""
    digest, done = hashlib.new(algorithm), 0
    name = url.rpartition("/")[2]
    try:
        with _open(url, "*/*") as response, part.open("wb") as out:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report(Progress(name, "download", done, total))
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _Broken(f"The download of {name} broke off after {done:,} bytes") from error
    if total is not None and done < total:  # read(n) doesn't tell a closed connection from the end
        raise _Broken(f"The download of {name} broke off after {done:,} of {total:,} bytes")
    return digest.digest()


def _page(url: str, package: str) -> tuple[bytes, str, str]:
    """The index page of a package: body, content type, and the address it finally came from."""
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        with _open(url, accept) as response:
            return response.read(), response.headers.get_content_type(), response.url
    except (_Broken, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise InstallFailed(
            f"Could not read the index page of {package} at {_shown(url)}.",
            hint="Check the network, or set OMNIGENT_PYPI_INDEX to an index that can be reached.",
        ) from error


def _open(url: str, accept: str) -> Any:
    """GET. Credentials in the address become a header that a redirect doesn't take along."""
    bare, credentials = _split_credentials(url)
    request = urllib.request.Request(bare, headers={"Accept": accept, "User-Agent": "omnigent"})
    if credentials:
        request.add_unredirected_header("Authorization", f"Basic {credentials}")
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise _Broken(f"{_shown(url)} answered {error.code}") from error
        raise InstallFailed(
            f"{_shown(url)} answered {error.code} {error.reason}.",
            hint="Set OMNIGENT_PYPI_INDEX (Claude Code, Codex) or npm_config_registry (Codex, Pi, Node.js)"
            " to a registry that has it.",
        ) from error
    except urllib.error.URLError as error:
        raise _Broken(f"Could not reach {_shown(url)}: {error.reason}") from error


def _links_json(body: bytes) -> dict[str, str]:
    files: list[dict[str, Any]] = json.loads(body)["files"]
    return {file["filename"]: file["url"] for file in files}


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            link = href.partition("#")[0]
            self.links[urllib.parse.unquote(link.rpartition("/")[2])] = link


def _links_html(body: bytes) -> dict[str, str]:
    anchors = _Anchors()
    anchors.feed(body.decode("utf-8", "replace"))
    return anchors.links


def _unzip(archive: Path, into: Path) -> None:
    """`extractall` forgets permissions; the executable bit is what matters here."""
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            path = Path(wheel.extract(member, into))
            if not member.is_dir() and (member.external_attr >> 16) & stat.S_IXUSR:
                path.chmod(0o755)


def _from_npmrc(env: Mapping[str, str]) -> str:
    npmrc = Path(env.get("HOME", "/nonexistent")) / ".npmrc"
    if not npmrc.is_file():
        return ""
    lines = (line.partition("=") for line in npmrc.read_text("utf-8", "replace").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "registry"), "")


def _base(url: str, variable: str) -> str:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InstallFailed(
            f"{_shown(url)} is not an http(s) address.", hint=f"Set {variable} to one that is."
        )
    return url.rstrip("/")


def _split_credentials(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    plain = urllib.parse.unquote(user).encode()
    return parts._replace(netloc=host).geturl(), base64.b64encode(plain).decode()


def _with_credentials(url: str, index: str) -> str:
    """The index's credentials, for files of the same host only."""
    user, at, host = urllib.parse.urlsplit(index).netloc.rpartition("@")
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=f"{user}@{host}").geturl() if at and parts.netloc == host else url


def _shown(url: str) -> str:
    """An address fit for a message: without credentials, query and fragment."""
    parts = urllib.parse.urlsplit(_split_credentials(url)[0])
    return parts._replace(query="", fragment="").geturl()


def _algorithm(digest: str) -> str:
    return digest.partition("-")[0]


def _expected(digest: str) -> bytes:
    algorithm, _, text = digest.partition("-")
    return bytes.fromhex(text) if algorithm == "sha256" else base64.b64decode(text)
