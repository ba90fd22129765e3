"""The forms in which one secret may stand in a text: as it is, escaped for JSON or a URL, base64, hex."""

import base64
import json
import math
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

SHORTEST = 8
"""Characters. What is shorter is no secret worth the name, and would be found everywhere."""
SHORTEST_LINE = 16
"""Characters of a line that counts as a secret by itself, in a secret of several lines."""
_UNRESERVED = ("", "/", "!'()*~", "*", "-_.!~*'()", "/:@?&=+$,;")
"""What the encoders of the world leave as it is, beside letters, digits and `_.-~`."""


def forms(secret: str) -> set[str]:
    """All forms of a secret, and of each long line of it; none shorter than `SHORTEST`."""
    found: set[str] = set()
    for part in _parts(secret):
        found.update(_escaped(part), _url_encoded(part), _base64(part.encode("utf-8", "replace")))
        digits = part.encode("utf-8", "replace").hex()
        found.update((part, digits, digits.upper()))
    return {form for form in found if len(form) >= SHORTEST}


def _parts(secret: str) -> list[str]:
    lines = [line for line in secret.splitlines() if len(line) >= SHORTEST_LINE and "-----" not in line]
    return [secret, *lines] if len(lines) > 1 else [secret]


def _escaped(text: str) -> Iterator[str]:
    """As a JSON string, and as a JSON string within one."""
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        for form in (once, once.replace("/", "\\/")):
            yield form
            yield json.dumps(form, ensure_ascii=ascii_only)[1:-1]


def _url_encoded(text: str) -> Iterator[str]:
    for safe in _UNRESERVED:
        for form in (quote(text, safe, errors="replace"), quote_plus(text, safe, errors="replace")):
            yield form
            yield _lower(form)
    whole = "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))
    yield whole
    yield whole.lower()


def _lower(form: str) -> str:
    """The same with `%3f` for `%3F`."""
    first, *rest = form.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _base64(data: bytes) -> Iterator[str]:
    """The characters that don't depend on the bytes around, for each place modulo 3 that it may begin at."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data + bytes(2)).decode()
        middle = whole[math.ceil(before * 8 / 6) : (before + len(data)) * 8 // 6]
        yield middle
        yield middle.translate(_URL_ALPHABET)
        once = quote(middle, "")
        yield once
        yield _lower(once)


_URL_ALPHABET = str.maketrans("+/", "-_")
