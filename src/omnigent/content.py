"""A message's content on its way in (checked, images into the blob store) and on to an agent."""

import base64
from collections.abc import Sequence
from typing import cast

from omnigent import commands
from omnigent import events as ev
from omnigent.blobs import Blobs
from omnigent.errors import Malformed, TooLarge
from omnigent.events import JSON
from omnigent.redaction import Redactor

LONGEST_PROMPT = 1_000_000
"""Bytes of a prompt's text in UTF-8."""
LARGEST_IMAGE = 20 * 1024 * 1024


def redacted(command: commands.Command, redactor: Redactor) -> commands.Command:
    """The command without secrets in what people wrote. An image's bytes stay as they are."""
    given = command.model_dump(mode="json", exclude={"idempotency_key"})
    images = [part for part in given.get("content", []) if part["type"] == "image"]
    if images:
        given["content"] = [part for part in given["content"] if part["type"] != "image"]
    clean = redactor.value(given)
    if clean == given:
        return command
    if images:  # the text first, as it was or not: a place among images is nothing a secret may buy
        clean["content"] = [*clean["content"], *images]
    return commands.COMMAND.validate_python(clean | {"idempotency_key": command.idempotency_key})


def take(inputs: Sequence[commands.Input], blobs: Blobs) -> tuple[ev.Content, ...]:
    """What an event names, with every image stored. Raises `Malformed`, `TooLarge`."""
    content = tuple(_part(given, blobs) for given in inputs)
    text = ev.text_of(content)
    if len(text.encode()) > LONGEST_PROMPT:
        raise TooLarge("The prompt is longer than 1 MB.", hint="Put it in a file and name the file.")
    if not text.strip() and not any(isinstance(part, ev.ImagePart) for part in content):
        raise Malformed("The prompt is empty.", hint="Give it some text.")
    return content


def _part(given: commands.Input, blobs: Blobs) -> ev.Content:
    if isinstance(given, commands.TextInput):
        return ev.TextPart(text=given.text)
    try:
        data = base64.b64decode(given.data, validate=True)
    except ValueError as error:
        raise Malformed("An image's data isn't base64.") from error
    if len(data) > LARGEST_IMAGE:
        raise TooLarge("An image is larger than 20 MB.", hint="Send a smaller one.")
    return ev.ImagePart(media_type=given.media_type, blob=blobs.put(data), size=len(data))


def fields(item: JSON | None, blobs: Blobs) -> JSON:
    """A stored message for a command to its agent: `content`, and `images` with their bytes in base64."""
    content = cast(list[JSON], item["content"]) if item else []
    images = [
        {"media_type": part["media_type"], "data": base64.b64encode(blobs.get(part["blob"])).decode()}
        for part in content
        if part["type"] == "image"
    ]
    return {"content": content, "images": images}


def text(item: JSON | None) -> str:
    """A stored message's text."""
    parts = cast(list[JSON], item["content"]) if item else []
    return "\n".join(part["text"] for part in parts if part["type"] == "text")
