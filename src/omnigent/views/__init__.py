"""The one fold: events → a session's summary and its transcript items.

Pure, so that a replay gives what was live. It runs inside the append transaction (see `log.Projector`); faces
follow items, programs that want the facts follow events.
"""

from omnigent.events import JSON, Event
from omnigent.views.folder import Folder, Items, Lookup
from omnigent.views.state import SessionView, Status, status_of

__all__ = ["SessionProjector", "SessionView", "Status"]


class SessionProjector:
    """The `log.Projector` of Omnigent."""

    version = 2

    def empty(self) -> SessionView:
        return SessionView()

    def load(self, data: JSON) -> SessionView:
        return SessionView(**data)

    def fold(self, view: SessionView, event: Event, item: Lookup) -> Items:
        folder = Folder(view, event, item)
        folder.apply()
        view.as_of_seq, view.tree_pos = event.seq, event.tree_pos
        view.updated_at = event.at
        status = status_of(view)
        if status != view.status or view.created_at == event.at:
            view.status, view.status_since = status, event.at
        if view.turn is None:
            view.safe_seq = event.seq
        return folder.items
