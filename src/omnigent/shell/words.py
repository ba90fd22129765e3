"""What the words of a command become before it runs: quotes, variables, braces, tildes, patterns.

A word's own characters are read here; the tree says only where substitutions end.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from tree_sitter import Node

from omnigent.shell.grammar import Opaque, Source, below, plain
from omnigent.shell.values import Said, Scope, Word, changed, home_of

MOST_WORDS = 256

_SPECIAL = "*?["
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")
"""A word of such characters stands for itself."""
_NAME = re.compile(r"[A-Za-z_]\w*|\d+|[@*#?$!_-]")
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f",
                   "r": "\r", "v": "\v", "\\": "\\", "'": "'", '"': '"', "?": "?"}  # fmt: skip
_ANSI = re.compile(
    r"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|c(.)|(.))", re.S
)
_RANGE = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.(-?\d+))?")


@dataclass(frozen=True, slots=True)
class _Mark:
    """An unquoted character, a quoted text, or the words an expansion became."""

    text: str = ""
    quoted: bool = False
    words: tuple[Word, ...] | None = None
    unknown: bool = False
    raw: str = ""


class Expander:
    """Expands the words of one source in one scope."""

    def __init__(self, source: Source, scope: Scope, substitute: Callable[[Node], Said]) -> None:
        self.source = source
        self.scope = scope
        self.substitute = substitute

    def words(self, node: Node) -> list[Word]:
        """The words that one word of the text becomes."""
        raw = self.source.slice(node)
        if _PLAIN.fullmatch(raw):
            return [Word(raw)]
        marks = list(self._scan(node, node.start_byte, node.end_byte))
        made: list[Word] = []
        for braced in _braces(marks):
            made += self._build(braced, raw)
            if len(made) > MOST_WORDS:
                raise Opaque("The command becomes too many words.")
        return made

    def value(self, node: Node) -> Word:
        """The one word an assignment or a here-string makes of it: no splitting, no patterns."""
        return self._one(list(self._scan(node, node.start_byte, node.end_byte)), self.source.slice(node))

    def document(self, node: Node, start: int, end: int) -> Word:
        """The text of a here-document whose delimiter isn't quoted."""
        return self._one(
            list(self._inside(node, start, end, document=True)), plain(self.source.text[start:end])
        )

    # Reading

    def _scan(self, node: Node, start: int, end: int) -> Iterator[_Mark]:
        text = self.source.text
        ends = _ends(self.source, node)
        at = start
        while at < end:
            char = text[at]
            if char == "\\":
                close = _run(text, at + 1, end)
                if text[at + 1 : close] != "\n":
                    yield _Mark(plain(text[at + 1 : close]), quoted=True)
                at = close
            elif char == "'":
                close = text.find("'", at + 1, end)
                if close < 0:
                    raise Opaque("A quote isn't closed.")
                yield _Mark(plain(text[at + 1 : close]), quoted=True)
                at = close + 1
            elif char == '"' or text.startswith('$"', at):
                at += 1 if char == '"' else 2
                close = _closing(text, at, end, ends)
                yield _Mark("", quoted=True)
                yield from self._inside(node, at, close, document=False)
                at = close + 1
            elif text.startswith("$'", at):
                close = _ansi_end(text, at + 2, end)
                yield _Mark(_ansi(plain(text[at + 2 : close])), quoted=True)
                at = close + 1
            elif at in ends:
                kind, close, found = ends[at]
                yield self._expansion(kind, found, quoted=False)
                at = close
            elif char == "`" or (char == "$" and text[at + 1 : at + 2] in "({"):
                raise Opaque("An expansion can't be read.")
            else:
                close = _run(text, at, end)
                yield _Mark(plain(text[at:close]))
                at = close

    def _inside(self, node: Node, start: int, end: int, *, document: bool) -> Iterator[_Mark]:
        """Between double quotes."""
        text = self.source.text
        ends = _ends(self.source, node)
        at = start
        escapable = "$`\\\n" if document else '$`"\\\n'
        while at < end:
            if text[at] == "\\" and text[at + 1 : at + 2] and text[at + 1] in escapable:
                if text[at + 1] != "\n":
                    yield _Mark(text[at + 1], quoted=True)
                at += 2
            elif at in ends:
                kind, close, found = ends[at]
                yield self._expansion(kind, found, quoted=True)
                at = close
            elif text[at] == "`" or (text[at] == "$" and text[at + 1 : at + 2] in ("(", "{")):
                raise Opaque("An expansion in a quoted text can't be read.")
            else:
                close = _run(text, at, end)
                yield _Mark(plain(text[at:close]), quoted=True)
                at = close

    def _expansion(self, kind: str, node: Node, *, quoted: bool) -> _Mark:
        raw = self.source.slice(node).strip()
        if kind == "command_substitution":
            words = (_said(self.substitute(node), raw),)
        elif kind == "process_substitution":
            self.substitute(node)
            words = (Word(raw, known=False, atom=True, pattern="/dev/fd/*"),)
        else:
            for inner in below(node, "command_substitution", "process_substitution"):
                self.substitute(inner)
            if kind == "arithmetic_expansion":
                words = (Word(raw, known=False, atom=True, pattern="*"),)
            else:
                found = self._parameter(raw)
                words = found if found is not None else (Word(raw, known=False, many=not quoted),)
        return _Mark(quoted=quoted, words=words, raw=raw)

    def _parameter(self, raw: str) -> tuple[Word, ...] | None:
        body = raw[2:-1] if raw.startswith("${") else raw[1:]
        if body.startswith("#") and len(body) > 1:
            return (Word(raw, known=False, atom=True, pattern="*"),)
        found = _NAME.match(body)
        if found is None:
            return None
        value, rest = self.scope.value(found[0]), body[found.end() :]
        index = re.match(r"\[([@*]|\d+)\]", rest)
        if index is not None:
            rest = rest[index.end() :]
            if value is not None and index[1].isdigit():
                value = value[int(index[1]) : int(index[1]) + 1] or (Word(""),)
        elif value is not None and found[0] not in "@*":
            value = value[:1] or (Word(""),)
        if value is None or not rest:
            return value
        return tuple(changed(word, rest) for word in value)

    # Building

    def _one(self, marks: list[_Mark], raw: str) -> Word:
        tilde = marks and not marks[0].quoted and marks[0].text == "~"
        flat = [replace(mark, quoted=True) for mark in marks]
        if tilde:
            flat[0] = replace(flat[0], quoted=False)
        return _joined(self._build(flat, raw), raw)

    def _build(self, marks: list[_Mark], raw: str) -> list[Word]:
        marks = self._tilde(marks)
        done: list[Word] = []
        builder = _Builder(raw)
        for mark in marks:
            if mark.words is None:
                builder.add(mark.text, quoted=mark.quoted)
                continue
            if mark.quoted and _is_list(mark.raw):
                for number, word in enumerate(mark.words):
                    if number:
                        done += builder.finish()
                        builder = _Builder(raw)
                    builder.put(word, quoted=True)
                if not mark.words:
                    builder.optional = True
                continue
            for number, word in enumerate(mark.words):
                if number:
                    done += builder.finish()
                    builder = _Builder(raw)
                if mark.quoted or not word.known:
                    builder.put(word, quoted=mark.quoted)
                    continue
                if not self.scope.split and not mark.quoted:
                    builder.put(Word(mark.raw, known=False, many=True), quoted=False)
                    continue
                fields = word.text.split()
                if word.text[:1].isspace() and not builder.empty:
                    done += builder.finish()
                    builder = _Builder(raw)
                if not fields:
                    builder.optional = True
                for place, text in enumerate(fields):
                    if place:
                        done += builder.finish()
                        builder = _Builder(raw)
                    builder.add(text, quoted=False)
                if fields and word.text[-1:].isspace():
                    done += builder.finish()
                    builder = _Builder(raw)
                    builder.optional = True
        return done + builder.finish()

    def _tilde(self, marks: list[_Mark]) -> list[_Mark]:
        if not marks or marks[0].quoted or marks[0].text != "~":
            return marks
        name = ""
        for number, mark in enumerate(marks[1:], start=1):
            if mark.quoted or mark.words is not None or mark.text == "/":
                rest = marks[number:]
                break
            name += mark.text
        else:
            rest = []
        if rest and rest[0].text != "/":
            return marks
        here = str(self.scope.cwd) if self.scope.cwd is not None else ""
        home = self.scope.home() if not name else here if name == "+" else home_of(name)
        if not home:
            return [_Mark(words=(Word("~" + name, known=False),), raw="~" + name, quoted=True), *rest]
        return [_Mark(home, quoted=True), *rest]


class _Builder:
    """One word, put together from pieces."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.text = ""
        self.pattern = ""
        self.wild = False
        self.known = True
        self.vague = False
        self.atom = True
        self.many = False
        self.below: str | None = None
        self.visible = False
        self.prefix = ""
        self.optional = False
        """Nothing of it is quoted or written: it vanishes when it stays empty."""
        self.empty = True

    def add(self, text: str, *, quoted: bool) -> None:
        self.empty = self.empty and not text and not quoted
        self.text += text
        if quoted:
            self.pattern += re.sub(r"([*?\[])", r"[\1]", text)
        else:
            self.pattern += text
            self.wild = self.wild or any(char in text for char in _SPECIAL)
        if self.known:
            self.prefix += text

    def put(self, word: Word, *, quoted: bool) -> None:
        if word.known:
            self.add(word.text, quoted=quoted)
            return
        before, known = self.text, self.known
        first = not before
        self.empty = False
        self.known = False
        self.many = self.many or (word.many and not quoted)
        self.text += word.text
        if first:
            self.prefix = word.prefix
        if word.pattern is not None:
            self.pattern += word.pattern
            self.atom = self.atom and word.atom
        elif word.below is not None and (first or (known and before.endswith("/"))):
            self.below, self.atom = (posixpath.join(before, word.below) if before else word.below), False
            self.visible = word.visible
        else:
            self.vague, self.atom = True, False

    def finish(self) -> list[Word]:
        if self.empty and self.optional:
            return []
        if self.known and not self.wild:
            return [Word(self.text)]
        shown = self.text if self.known else self.raw
        if self.vague:
            return [Word(shown, known=False, many=self.many, prefix=self.prefix)]
        if self.below is not None:
            return [Word(shown, known=False, below=self.below, many=self.many, visible=self.visible)]
        atom = self.atom and not self.known and "/" not in self.pattern and not self.wild
        return [Word(shown, known=False, pattern=self.pattern, atom=atom, many=self.many or self.wild,
                     prefix=self.prefix)]  # fmt: skip


def _joined(words: list[Word], raw: str) -> Word:
    if len(words) == 1:
        return words[0]
    if all(word.known for word in words):
        return Word(" ".join(word.text for word in words))
    return Word(raw, known=False)


def _said(said: Said, raw: str) -> Word:
    if said.text is not None:
        return Word(said.text.rstrip("\n"))
    if said.atom:
        return Word(raw, known=False, atom=True, pattern="*")
    if said.below is not None and said.pattern is not None:
        return Word(raw, known=False, pattern=f"{said.below}/**/{said.pattern}", many=True)
    if said.below is not None:
        return Word(raw, known=False, below=said.below, many=True, visible=said.visible)
    return Word(raw, known=False, many=True)


def _is_list(raw: str) -> bool:
    return raw in ("$@", "${@}") or raw.endswith("[@]}")


def _ends(source: Source, node: Node) -> dict[int, tuple[str, int, Node]]:
    """Where expansions begin → kind, end, node. The grammar counts blanks before one as its own."""
    kinds = (
        "command_substitution",
        "process_substitution",
        "expansion",
        "simple_expansion",
        "arithmetic_expansion",
    )
    found: dict[int, tuple[str, int, Node]] = {}
    nodes = [node] if node.type in kinds else list(below(node, *kinds))
    for each in nodes:
        start = each.start_byte
        while source.text[start].isspace():
            start += 1
        if not source.text.startswith("$[", start):
            found[start] = (each.type, each.end_byte, each)
    return found


def _run(text: str, at: int, end: int) -> int:
    """The end of the character at `at`: bytes above ASCII stay together."""
    if text[at : at + 1] < "\x80":
        return at + 1
    while at < end and text[at] >= "\x80":
        at += 1
    return at


def _closing(text: str, at: int, end: int, ends: dict[int, tuple[str, int, Node]]) -> int:
    while at < end:
        if text[at] == "\\":
            at += 2
        elif at in ends:
            at = ends[at][1]
        elif text[at] == '"':
            return at
        else:
            at += 1
    raise Opaque("A quote isn't closed.")


def _ansi_end(text: str, at: int, end: int) -> int:
    while at < end:
        if text[at] == "\\":
            at += 2
        elif text[at] == "'":
            return at
        else:
            at += 1
    raise Opaque("A quote isn't closed.")


def _ansi(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] or found[2]:
            return chr(int(found[1], 16) if found[1] else int(found[2], 8) & 255)
        if found[3] or found[4]:
            code = int(found[3] or found[4], 16)
            return chr(code) if code < 0x110000 else ""
        if found[5]:
            return chr(ord(found[5].upper()) & 31)
        return _SIMPLE_ESCAPES.get(found[6], "\\" + found[6])

    return _ANSI.sub(one, text)


def _braces(marks: list[_Mark]) -> list[list[_Mark]]:
    """`{a,b}` and `{1..3}` as bash does it, first brace first."""
    for start, mark in enumerate(marks):
        if mark.quoted or mark.text != "{":
            continue
        if start and marks[start - 1].text == "$" and not marks[start - 1].quoted:
            continue
        close, commas = _brace_end(marks, start)
        if close is None:
            continue
        choices: list[list[_Mark]] = []
        if commas:
            edges = [start, *commas, close]
            for left, right in pairwise(edges):
                choices += _braces(marks[left + 1 : right])
        else:
            inner = marks[start + 1 : close]
            if any(each.quoted or each.words is not None for each in inner):
                continue
            texts = _range("".join(each.text for each in inner))
            if texts is None:
                continue
            choices = [[_Mark(text, quoted=True)] for text in texts]
        tails = _braces(marks[close + 1 :])
        if len(choices) * len(tails) > MOST_WORDS:
            raise Opaque("The command becomes too many words.")
        return [[*marks[:start], *choice, *tail] for choice in choices for tail in tails]
    return [marks]


def _brace_end(marks: list[_Mark], start: int) -> tuple[int | None, list[int]]:
    depth, commas = 0, list[int]()
    for place in range(start, len(marks)):
        mark = marks[place]
        if mark.quoted or mark.words is not None:
            continue
        if mark.text == "{":
            depth += 1
        elif mark.text == "}":
            depth -= 1
            if depth == 0:
                return place, commas
        elif mark.text == "," and depth == 1:
            commas.append(place)
    return None, []


def _range(text: str) -> list[str] | None:
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    first, last, step = found[1], found[2], abs(int(found[3] or 1)) or 1
    if first.lstrip("-").isdigit() != last.lstrip("-").isdigit():
        return None
    numbers = first.lstrip("-").isdigit()
    low, high = (int(first), int(last)) if numbers else (ord(first), ord(last))
    if abs(high - low) // step >= MOST_WORDS:
        raise Opaque("The command becomes too many words.")
    width = max(len(first), len(last)) if numbers and (first.startswith("0") or last.startswith("0")) else 0
    steps = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    return [str(value).zfill(width) if numbers else chr(value) for value in steps]
