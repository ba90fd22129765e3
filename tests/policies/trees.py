"""Logs of session trees made by hand: events in the order and with the numbers a log would give."""

import json
from collections.abc import Sequence

from omnigent import events as ev
from omnigent.actions import Action, Exec
from omnigent.events import SYSTEM, Body, Event, PolicyEntry, canonical, encode_body
from omnigent.policies.folding import TreeProjector
from omnigent.policies.reading import commands as understand
from omnigent.policies.state import TreeState

START = 1_700_000_000_000


class Tree:
    """One tree, folded live as it grows. `fork` gives another, whose state begins as a copy of this one's."""

    def __init__(self, root: str = "ses_root", state: TreeState | None = None) -> None:
        self.root = root
        self.events: list[Event] = []
        self.projector = TreeProjector()
        self.beginning = None if state is None else json.dumps(state.dump())
        self.state = (
            self.projector.empty() if state is None else self.projector.load(json.loads(self.beginning or ""))
        )
        self.at = START
        self._seqs: dict[str, int] = {}
        self._calls = 0

    def add(self, body: Body, item_id: str | None = None, *, session: str = "", later: int = 1000) -> Event:
        session = session or self.root
        self.at += later
        self._seqs[session] = self._seqs.get(session, 0) + 1
        text = canonical(encode_body(body))
        event = Event(
            v=1, id=f"evt_{len(self.events)}", session_id=session, seq=self._seqs[session], root_id=self.root,
            tree_pos=len(self.events) + 1, at=self.at, observed_at=self.at, turn_id=None, item_id=item_id,
            parent_item_id=None, actor=SYSTEM, cause=None, run=None, producer="t", producer_seq=0, epoch=None,
            kind=body.KIND, body_text=text, body_sha256="", hash="",
        )  # fmt: skip
        self.events.append(event)
        self.projector.fold(self.state, event)
        return event

    def created(self, session: str = "", parent: str | None = None) -> Event:
        body = ev.SessionCreated(
            title="", harness="toy", model=None, provider=None, workspace="/w", approvals="ask", owner="o",
            parent_id=parent,
        )  # fmt: skip
        return self.add(body, session=session)

    def policies(self, entries: Sequence[PolicyEntry], session: str = "") -> Event:
        return self.add(ev.PolicyChanged(policies=tuple(entries)), session=session)

    def turn(self, session: str = "") -> Event:
        return self.add(ev.TurnStarted(trigger="prompt"), session=session)

    def end(self, session: str = "") -> Event:
        return self.add(ev.TurnCompleted(), session=session)

    def request(
        self,
        *actions: Action | str,
        session: str = "",
        background: bool = False,
        item_id: str = "",
        later: int = 1000,
    ) -> str:
        """A text is understood as a command. Gives the call's id."""
        self._calls += 1
        item_id = item_id or f"tc_{self.root}_{self._calls}"
        body = ev.ToolRequested(
            tool="shell", title="", actions=made(*actions), parsed="full", raw="{}", native_id="1",
            background=background,
        )  # fmt: skip
        self.add(body, item_id, session=session, later=later)
        return item_id

    def decided(self, item_id: str, verdict: str, session: str = "") -> None:
        body = ev.PolicyDecided.model_validate({"verdict": verdict, "rule_ids": (), "reason": ""})
        self.add(body, item_id, session=session)

    def asked(self, item_id: str, approval_id: str, session: str = "") -> None:
        self.decided(item_id, "ask", session)
        body = ev.ApprovalRequested(
            call_id=item_id, actions=(), action_sha256="", title="", reason="", expires_at=0
        )
        self.add(body, approval_id, session=session)

    def answered(self, approval_id: str, outcome: str, edited: str | None = None, session: str = "") -> None:
        body = ev.ApprovalResolved.model_validate({"outcome": outcome, "edited": edited})
        self.add(body, approval_id, session=session)

    def completed(
        self, item_id: str, outcome: str = "ok", exit_code: int | None = None, session: str = ""
    ) -> None:
        body = ev.ToolCompleted.model_validate({"outcome": outcome, "exit_code": exit_code})
        self.add(body, item_id, session=session)

    def ran(self, *actions: Action | str, session: str = "", exit_code: int = 0, later: int = 1000) -> str:
        item_id = self.request(*actions, session=session, later=later)
        self.completed(item_id, "error" if exit_code else "ok", exit_code, session)
        return item_id

    def fork(self, root: str, parent: str = "") -> "Tree":
        """A tree of its own that begins with what this one remembers now."""
        forked = Tree(root, self.state)
        forked.at = self.at
        body = ev.SessionForked(
            parent_id=parent or self.root, at_seq=1, parent_hash="", owner="o", title="", harness="toy",
            model=None, provider=None, workspace="/f", approvals="ask",
        )  # fmt: skip
        forked.add(body)
        return forked

    def replayed(self, upto: int | None = None, reload_at: Sequence[int] = ()) -> TreeState:
        """Folded anew, dumped and loaded after these positions."""
        state = (
            self.projector.empty()
            if self.beginning is None
            else self.projector.load(json.loads(self.beginning))
        )
        for event in self.events[:upto]:
            self.projector.fold(state, event)
            if event.tree_pos in reload_at:
                state = self.projector.load(json.loads(json.dumps(state.dump())))
        return state


def made(*actions: Action | str) -> tuple[Action, ...]:
    found: list[Action] = []
    for each in actions:
        found += understand(each) if isinstance(each, str) else [each]
    return tuple(found)


def compound(*texts: str) -> tuple[Exec, ...]:
    """Commands of one text: none of them is the whole call."""
    return tuple(each.model_copy(update={"sole": False}) for text in texts for each in understand(text))
