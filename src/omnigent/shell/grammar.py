"""Shell text to a syntax tree, and the bounds within which a tree is believed.

Text is handled as one character per byte (`Source.text`), so that the tree's byte offsets index it.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

MOST_BYTES = 64 * 1024
DEEPEST = 80

_LANGUAGE = Language(tree_sitter_bash.language())
_PARSER = Parser(_LANGUAGE)
_LOCK = threading.Lock()

_CONTINUED = re.compile(r"(?<=[^\s;&|(){}\\])\\\n(?=[^\s#;&|()<>])")
_BEFORE_COMMENT = set(" \t\n;&|()`")
_SPACE = re.compile(r"(?:[ \t\n]|\\\n)*")
_HEREDOC = re.compile(r"<<-?\s*[\w'\"\\]")


class Opaque(Exception):
    """The text can't be taken apart; the message says why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Source:
    text: str
    root: Node

    def slice(self, node: Node) -> str:
        return plain(self.text[node.start_byte : node.end_byte])


def plain(bytewise: str) -> str:
    """From one character per byte to characters."""
    return bytewise.encode("latin-1").decode("utf-8", "replace")


def bytewise(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def read(text: str) -> Source:
    """Raises `Opaque` for what the grammar can't read, or reads otherwise than a shell would."""
    if len(text) > MOST_BYTES:
        raise Opaque("The command is too long to be taken apart.")
    if re.search(r"[\r\0\v\f]", text):
        raise Opaque("The command has control characters in it.")
    whole = _joined(bytewise(text if text.endswith("\n") else text + "\n"))
    raw = whole.encode("latin-1")
    if len(raw) > MOST_BYTES:
        raise Opaque("The command is too long to be taken apart.")
    with _LOCK:
        tree = _PARSER.parse(raw)
    source = Source(whole, tree.root_node)
    if tree.root_node.has_error:
        raise Opaque("The command can't be read by the shell grammar.")
    _check(source)
    return source


def below(node: Node, *kinds: str) -> Iterator[Node]:
    """Nodes of these kinds under `node`, outermost only."""
    for child in node.children:
        if child.type in kinds:
            yield child
        else:
            yield from below(child, *kinds)


def _joined(text: str) -> str:
    """A line continued inside a word is one word to the shell, but two to the grammar."""
    if "\\\n" not in text or not _CONTINUED.search(text):
        return text
    if _HEREDOC.search(text):
        raise Opaque("A word is continued over two lines beside a here-document.")
    kept: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        two = text[at : at + 2]
        if quote != "'" and two == "\\\n":
            at += 2
            continue
        if quote != "'" and text[at] == "\\":
            kept.append(two)
            at += 2
            continue
        if text[at] in "'\"" and quote in ("", text[at]):
            quote = "" if quote else text[at]
        kept.append(text[at])
        at += 1
    return "".join(kept)


def _check(source: Source) -> None:
    """No missing token, no unread text between tokens, no depth that could exhaust the stack."""
    at = 0
    stack: list[tuple[Node, int]] = [(source.root, 0)]
    while stack:
        node, depth = stack.pop()
        if node.is_missing or node.type == "ERROR":
            raise Opaque("The command can't be read by the shell grammar.")
        if depth > DEEPEST:
            raise Opaque("The command is nested too deeply.")
        if node.type in ("heredoc_body", "string", "raw_string", "ansi_c_string", "regex"):
            _gap(source, at, node.start_byte)
            at = max(at, node.end_byte)
            stack.extend((child, depth + 1) for child in node.children if child.child_count)
            continue
        if node.child_count:
            stack.extend((child, depth + 1) for child in reversed(node.children))
            continue
        if node.end_byte <= at:
            continue
        if node.type == "comment" and node.start_byte:
            before = source.text[node.start_byte - 1]
            if before not in _BEFORE_COMMENT:
                raise Opaque("It isn't clear where a comment begins.")
        _gap(source, at, node.start_byte)
        at = max(at, node.end_byte)
    _gap(source, at, len(source.text))


def _gap(source: Source, start: int, end: int) -> None:
    if start < end and not _SPACE.fullmatch(source.text, start, end):
        raise Opaque("The shell grammar passed over a part of the command.")
