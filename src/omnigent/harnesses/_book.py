"""What a translator must remember about the open turn, the same for every harness.

The book maps the vendor's ids to ours, keeps the text of open items, and closes whatever is open when a turn
or the process ends, so that nothing stays half-told.
"""

from dataclasses import dataclass, field

from omnigent.events import (
    ItemStatus,
    MessageCompleted,
    MessageStarted,
    ReasoningCompleted,
    TextPart,
    ToolCompleted,
    ToolStarted,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
)
from omnigent.events import (
    Output as ToolOutput,
)
from omnigent.harnesses import Emit, Output, Say
from omnigent.ids import NewId

_ITEM_STATUS: dict[type, ItemStatus] = {
    TurnCompleted: "complete",
    TurnInterrupted: "interrupted",
    TurnFailed: "lost",
}


@dataclass(slots=True)
class _OpenText:
    item_id: str
    stream: str
    text: str = ""


@dataclass(slots=True)
class Book:
    """One per translator. Every method returns the outputs to hand on."""

    new_id: NewId
    turn_id: str | None = None
    _texts: dict[str, _OpenText] = field(default_factory=dict[str, _OpenText])
    _calls: dict[str, str] = field(default_factory=dict[str, str])

    # Streamed text: `key` is whatever the vendor calls the item while it streams.

    def say(self, key: str, text: str, stream: str = "text") -> list[Output]:
        """A delta of a message or of reasoning (`stream`), opening the item at its first."""
        out: list[Output] = []
        item = self._texts.get(key)
        if item is None:
            prefix = "msg" if stream == "text" else "rsn"
            item = self._texts[key] = _OpenText(self.new_id(prefix), stream)
            if stream == "text":
                out.append(Emit(MessageStarted(), item.item_id))
        item.text += text
        if text:
            out.append(Say(item.item_id, "text" if stream == "text" else "reasoning", text))
        return out

    def finish(self, key: str, text: str | None = None, status: ItemStatus = "complete") -> list[Output]:
        """The item is whole; `text` is the vendor's final wording, where it gives one."""
        out: list[Output] = [] if key in self._texts else self.say(key, "", "text")
        item = self._texts.pop(key)
        out.append(_completed(item, item.text if text is None else text, status))
        return out

    def finish_reasoning(self, key: str, text: str | None = None) -> list[Output]:
        if key not in self._texts:
            self.say(key, "", "reasoning")
        item = self._texts.pop(key)
        whole = item.text if text is None else text
        return [_completed(item, whole, "complete")] if whole else []

    # Tool calls: `native_id` is the vendor's, unique only while the call is open.

    def call(self, native_id: str) -> str:
        """Our item id of an open call, made at the first mention."""
        if native_id not in self._calls:
            self._calls[native_id] = self.new_id("tc")
        return self._calls[native_id]

    def is_open(self, native_id: str) -> bool:
        return native_id in self._calls

    def native(self, item_id: str) -> str | None:
        """The vendor's id of an open call."""
        return next((native for native, ours in self._calls.items() if ours == item_id), None)

    def released(self, item_id: str) -> list[Output]:
        """An allow was passed to the agent."""
        return [Emit(ToolStarted(), item_id)]

    def completed(self, native_id: str, body: ToolCompleted) -> list[Output]:
        """The call ended; the vendor may now reuse its id. Nothing if it wasn't open."""
        item_id = self._calls.pop(native_id, None)
        return [Emit(body, item_id)] if item_id else []

    # Turns.

    def begin(self, turn_id: str) -> None:
        self.turn_id = turn_id

    def end(self, body: TurnCompleted | TurnInterrupted | TurnFailed) -> list[Output]:
        """Close what is open, then the turn. Nothing if no turn is open (a second end is no end)."""
        if self.turn_id is None:
            return []
        status = _ITEM_STATUS[type(body)]
        out = self.close_open(status)
        out.append(Emit(body, turn_id=self.turn_id))
        self.turn_id = None
        return out

    def close_open(self, status: ItemStatus) -> list[Output]:
        """Complete every open item with what is known of it: calls become cancelled or unknown."""
        out: list[Output] = [_completed(item, item.text, status) for item in self._texts.values()]
        outcome = "cancelled" if status == "interrupted" else "unknown"
        out += [
            Emit(ToolCompleted(outcome=outcome, output=ToolOutput()), item_id)
            for item_id in self._calls.values()
        ]
        self._texts.clear()
        self._calls.clear()
        return out


def _completed(item: _OpenText, text: str, status: ItemStatus) -> Emit:
    if item.stream == "text":
        return Emit(MessageCompleted(content=(TextPart(text=text),), status=status), item.item_id)
    return Emit(ReasoningCompleted(text=text, status=status), item.item_id)
