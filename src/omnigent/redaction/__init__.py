"""Takes secrets out of texts: known ones in every usual form, unknown ones by their published formats.

Standard library only, and at the bottom of the house: policies look for secrets with it too.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any, cast

from omnigent.redaction.formats import FORMATS, LONGEST, Format
from omnigent.redaction.forms import SHORTEST, forms

REDACTED = "[redacted]"
KNOWN = "known secret"
"""What `find` calls one that we were told of."""

_BREAK = re.compile(r"(?:\r\n?|\n|\\+[rn])[ \t]{0,40}")
"""An end of line, as it is or escaped: a long base64 text is cut into lines."""
_LONGEST_BREAK = 64
_PIECE = 4
"""Characters: the bytes of a machine word of `memoryview.cast("I")`."""
_ANCHORS = [(anchor, row) for row in FORMATS for anchor in row.anchors]
_ANCHOR_HEADS = frozenset(anchor[:size] for anchor, _ in _ANCHORS for size in range(1, len(anchor)))
_TOKEN_MARKS = "_.+/=~-%"
_LONGEST_HEAD = max(map(len, _ANCHOR_HEADS))


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    name: str = KNOWN
    replacement: str = REDACTED


class Redactor:
    """Knows some secrets. Costs the same however many: about 50 ms per million characters."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {form for secret in secrets if len(secret) >= SHORTEST for form in forms(secret)}
        joined = {variant for form in known for variant in _as_joined(form)}
        self._book = _Book(form for form in joined if len(form) >= SHORTEST - 1)

    def text(self, text: str) -> str:
        return _replaced(text, self._spans(text), 0, len(text))

    def value(self, value: Any) -> Any:
        """A JSON value, its strings (keys too) redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            fields = cast(dict[str, Any], value)
            return {self.text(name): self.value(inner) for name, inner in fields.items()}
        if isinstance(value, list):
            return [self.value(inner) for inner in cast(list[Any], value)]
        return value

    def find(self, text: str) -> list[str]:
        """The names of what is in it, each once, in order: `known secret`, `github token`, …"""
        return list(dict.fromkeys(span.name for span in self._spans(text)))

    def split(self, text: str) -> tuple[str, str]:
        """A stream's text so far: what may be shown, and the end that may be the beginning of a secret.

        The end is given as it came: put it before what comes next. It is shorter than the longest form of a
        known secret, or than `LONGEST`.
        """
        spans = self._spans(text)
        end = min(self._known_from(text), _unknown_from(text))
        for span in reversed(spans):
            if span.start < end < span.end:
                end = span.start
        return _replaced(text, spans, 0, end), text[end:]

    def _spans(self, text: str) -> list[_Span]:
        """What is to be replaced, in order, without overlaps."""
        found = [_Span(start, end) for start, end in self._known(text)]
        found += _unknown(text)
        found.sort(key=lambda span: (span.start, -span.end))
        merged: list[_Span] = []
        for span in found:
            if merged and span.start < merged[-1].end:
                last = merged[-1]
                merged[-1] = _Span(last.start, max(last.end, span.end), last.name, last.replacement)
            else:
                merged.append(span)
        return merged

    def _known(self, text: str) -> list[tuple[int, int]]:
        if not self._book:
            return []
        found = self._book.occurrences(joined := _joined(text))
        if found and len(joined) < len(text):
            places = _Joined.of(text)
            return [places.place(*span) for span in found]
        return found

    def _known_from(self, text: str) -> int:
        """Where the end of the text begins that a known secret may begin with."""
        if not self._book:
            return len(text)
        first = max(0, len(text) - 2 * self._book.longest - _LONGEST_BREAK)
        # A break may be cut as well: a backslash whose letter is yet to come.
        tail = text[first:].rstrip("\\\r\n \t")
        joined = _joined(tail)
        begins = self._book.begins(joined)
        if begins == len(joined):
            return len(text) - (len(text) > 0 and text[-1] == "\\")
        return first + _Joined.of(tail).place(begins, len(joined))[0]


class _Book:
    """The forms of known secrets, indexed by short pieces of them.

    A text is looked at as a row of pieces, one after the other: whatever is long enough has one of its first
    few pieces at such a place. Characters beyond Latin-1 count as one there; what is found is then compared.
    """

    def __init__(self, known: Iterable[str]) -> None:
        rows = sorted(known, key=len, reverse=True)
        self.longest = len(rows[0]) if rows else 0
        self._pieces: dict[int, list[tuple[str, int]]] = {}
        self._heads: dict[str, list[str]] = {}
        self._short_heads = frozenset(form[:length] for form in rows for length in range(1, _PIECE))
        for form in rows:
            for offset in range(_PIECE):
                (piece,) = _pieces(form[offset : offset + _PIECE])
                self._pieces.setdefault(piece, []).append((form, offset))
            self._heads.setdefault(form[:_PIECE], []).append(form)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def occurrences(self, text: str) -> list[tuple[int, int]]:
        row = _pieces(text)
        found: list[tuple[int, int]] = []
        for number in compress(range(len(row)), map(self._pieces.__contains__, row)):
            for form, offset in self._pieces[row[number]]:
                start = number * _PIECE - offset
                if start >= 0 and text.startswith(form, start):
                    found.append((start, start + len(form)))
        return found

    def begins(self, text: str) -> int:
        """The first place from which all the rest is the beginning of a form, but not all of it."""
        size = len(text)
        for at in range(max(0, size - self.longest + 1), size):
            if size - at < _PIECE:
                if text[at:] in self._short_heads:
                    return at
            elif heads := self._heads.get(text[at : at + _PIECE]):
                rest = text[at:]
                if any(len(form) > len(rest) and form.startswith(rest) for form in heads):
                    return at
        return size


def _pieces(text: str) -> memoryview:
    """The text cut into pieces of `_PIECE` characters, each as one number."""
    data = text.encode("latin-1", "replace")
    return memoryview(data + bytes(-len(data) % _PIECE)).cast("I")


@dataclass(frozen=True, slots=True)
class _Joined:
    """A text without its ends of lines, and where each piece of it stood."""

    text: str
    pieces: list[tuple[int, int]]
    """(place in this text, place in the original), ascending."""

    @classmethod
    def of(cls, text: str) -> "_Joined":
        parts: list[str] = []
        pieces: list[tuple[int, int]] = [(0, 0)]
        size, last = 0, 0
        for found in _BREAK.finditer(text):
            start, end = found.span()
            parts.append(text[last:start])
            size, last = size + start - last, end
            pieces.append((size, last))
        return cls("".join([*parts, text[last:]]), pieces)

    def place(self, start: int, end: int) -> tuple[int, int]:
        """A span of this text in the original."""
        return self._original(start), self._original(end - 1) + 1

    def _original(self, at: int) -> int:
        low, high = 0, len(self.pieces)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.pieces[middle][0] <= at else (low, middle)
        here, there = self.pieces[low]
        return there + at - here


def find(text: str) -> list[str]:
    """The names of the published formats that secrets in the text have."""
    return list(dict.fromkeys(span.name for span in sorted(_unknown(text), key=lambda span: span.start)))


def _unknown(text: str) -> list[_Span]:
    found: list[_Span] = []
    for anchor, row in _ANCHORS:
        if anchor in text:
            found += _of_format(text, anchor, row)
    return found


def _of_format(text: str, anchor: str, row: Format) -> Iterator[_Span]:
    at = text.find(anchor)
    while at >= 0:
        after = at + 1
        if match := row.pattern.match(text, at):
            start, end = match.span("secret" if "secret" in row.pattern.groupindex else 0)
            yield _Span(start, end, row.name, row.replacement)
            after = end
        at = text.find(anchor, after)


def _unknown_from(text: str) -> int:
    """Where the end of the text begins that may become a secret of a published format."""
    first = max(0, len(text) - LONGEST)
    run = _trailing_run(text, first)
    found = [len(text), _anchor_head(text)]
    for anchor, row in _ANCHORS:
        at = text.find(anchor, run if row.growing is None else first)
        while row.growing is not None and at >= 0 and not row.growing.match(text, at):
            at = text.find(anchor, at + 1)
        if at >= 0:
            found.append(at)
    return min(found)


def _trailing_run(text: str, first: int) -> int:
    """Where the last word begins, of the characters that tokens are made of."""
    at = len(text)
    while at > first and (text[at - 1].isalnum() or text[at - 1] in _TOKEN_MARKS):
        at -= 1
    return at


def _anchor_head(text: str) -> int:
    """Where the beginning of an anchor stands at the end of the text."""
    for size in range(min(_LONGEST_HEAD, len(text)), 0, -1):
        at = len(text) - size
        if text[at:] in _ANCHOR_HEADS and not (at and text[at - 1].isalnum() and text[at].isalnum()):
            return at
    return len(text)


def _joined(text: str) -> str:
    return _BREAK.sub("", text)


def _as_joined(form: str) -> set[str]:
    """What may be left of a form in a text whose breaks are gone: a backslash before its first letter, a
    letter after its last backslash, or a break before its first blanks, take that with them."""
    joined = _joined(form)
    shorter = joined[1:] if joined[:1] in ("n", "r") else joined.lstrip(" \t")
    return {variant for whole in (joined, shorter) for variant in (whole, whole.rstrip("\\"))}


def _replaced(text: str, spans: list[_Span], start: int, end: int) -> str:
    parts: list[str] = []
    for span in spans:
        if span.start >= end:
            break
        parts += (text[start : span.start], span.replacement)
        start = span.end
    return "".join([*parts, text[start:end]])
