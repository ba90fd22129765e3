"""One event's application to a session's view and items."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from omnigent import events as ev
from omnigent.events import JSON, Event
from omnigent.views.state import SessionView

BROKEN_OFF = ("agent_exited", "runner_lost", "stalled", "detached")
"""Ends after which the agent's own transcript may lack what the log has (some write tool results in
batches): the next agent is seeded from the log."""

Items = dict[str, JSON]
Lookup = Callable[[str], JSON | None]


@dataclass(slots=True)
class Folder:
    """One event's application."""

    view: SessionView
    event: Event
    lookup: Lookup
    items: Items = field(default_factory=dict[str, JSON])

    def apply(self) -> None:
        body = self.event.body
        match body:
            case ev.SessionCreated():
                self._created(body)
            case ev.SessionForked():
                self._forked(body)
            case ev.SessionUpdated():
                self._updated(body)
            case ev.SessionClosed():
                self.view.closed = True
            case ev.SessionReopened():
                self.view.closed = False
            case ev.HarnessStarted():
                self._harness_started(body)
            case ev.HarnessUpdated():
                self._native_ref(body.native_ref)
            case ev.HarnessExited():
                self.view.run = None
            case ev.HarnessChanged():
                self._harness_changed(body)
            case ev.ModelChanged():
                self.view.model = body.model
                self.view.provider = body.provider or self.view.provider
            case ev.TurnStarted():
                self._turn_started(body)
            case ev.TurnCompleted() | ev.TurnFailed() | ev.TurnInterrupted() | ev.TurnPaused():
                self._turn_ended(body)
            case ev.TurnResumed():
                self.view.paused = None
            case (
                ev.MessageSubmitted()
                | ev.MessageQueued()
                | ev.MessageEdited()
                | ev.MessageDelivered()
                | ev.MessageCancelled()
                | ev.MessageFailed()
            ):
                self._message_in(body)
            case ev.MessageStarted() | ev.MessageCompleted() | ev.ReasoningCompleted() | ev.ItemUpdated():
                self._streamed(body)
            case ev.ToolRequested() | ev.ToolStarted() | ev.ToolCompleted() | ev.PolicyDecided():
                self._call(body)
            case ev.ApprovalRequested() | ev.ApprovalDetached() | ev.ApprovalResolved():
                self._approval(body)
            case ev.PolicyChanged():
                self._policies_changed(body)
            case ev.BudgetChanged():
                self.view.budget_nanousd = body.cap_nanousd
                self._put("budget", cap_nanousd=body.cap_nanousd)
            case ev.GrantAdded() | ev.GrantRevoked():
                self._grant(body)
            case ev.AccessRefused():
                self._put("notice", code="access_refused", level="error", detail=_refusal(body))
            case ev.UsageReserved():
                self.view.reserved[body.call_id] = ev.encode_body(body)
                self.view.model_calls.pop(body.call_id, None)
            case ev.QuestionAsked() | ev.QuestionAnswered():
                self._question(body)
            case ev.CommandQueued() | ev.CommandEnded():
                self._queued_command(body)
            case ev.UsageReported():
                self._usage(body)
            case ev.PlanUpdated():
                self._put("plan", entries=[entry.model_dump() for entry in body.entries])
            case ev.NoticeRaised():
                self._put("notice", code=body.code, level=body.level, detail=body.detail, until=body.until)
            case ev.ContextCompacted():
                self._put("notice", code="compacted", level="info", detail="The agent compacted its context.")
            case ev.WorkspaceCheckpointed():
                self.view.checkpoint = {"head": body.head, "tree": body.tree, "seq": self.event.seq}
            case ev.FileChanged():
                self._put("file", path=body.path, change=body.change, diff=body.diff)
            case ev.UnknownBody():
                self._put("unknown", kind=body.kind, raw=body.raw)

    # Items.

    def _put(self, type_: str, item_id: str | None = None, **changes: Any) -> JSON:
        """Create or change an item; its id defaults to the event's item id, else the event's own id."""
        key = item_id or self.event.item_id or self.event.id
        now = self.items.get(key) or self.lookup(key)
        if now is None:
            now = _BLANK.get(type_, {}) | {
                "id": key,
                "type": type_,
                "turn_id": self.event.turn_id,
                "parent_item_id": self.event.parent_item_id,
                "actor": self.event.actor.model_dump(),
                "created_at": self.event.at,
            }
        self.items[key] = {**now, **changes, "updated_at": self.event.at}
        return self.items[key]

    # The session.

    def _created(self, body: ev.SessionCreated) -> None:
        view, event = self.view, self.event
        view.session_id, view.root_id = event.session_id, event.root_id
        view.title, view.labels = body.title, dict(body.labels)
        view.harness, view.model, view.provider = body.harness, body.model, body.provider
        view.workspace, view.approvals, view.sandbox = body.workspace, body.approvals, body.sandbox
        view.project = body.workspace
        view.owner, view.org, view.parent_id = body.owner, body.org, body.parent_id
        view.billing, view.credential = body.billing, body.credential
        view.created_at = view.status_since = event.at

    def _forked(self, body: ev.SessionForked) -> None:
        """Nothing of the parent stays open; policies' memory, usage and history do."""
        self._close_open("interrupted")
        view, event = self.view, self.event
        for item_id in view.approvals_open:
            self._put("approval", item_id, status="cancelled")
        for item_id in view.questions_open:
            self._put("question", item_id, status="cancelled")
        waiting = [entry["id"] for entry in view.queue if entry["type"] == "message"]
        for item_id in [*waiting, *view.steers]:
            self._put("message", item_id, status="cancelled")
        view.approvals_open, view.questions_open = {}, {}
        if view.turn is not None:
            self._settle_message(view.turn, "interrupted")
            view.last_turn = {"id": view.turn["id"], "outcome": "interrupted"}
        view.turn, view.run, view.native, view.queue, view.steers = None, None, {}, [], []
        view.grants, view.closed, view.archived = [], False, False
        view.paused, view.reserved, view.denials, view.model_calls = None, {}, {}, {}
        view.session_id, view.root_id, view.parent_id = event.session_id, event.root_id, None
        view.title, view.owner, view.workspace = body.title, body.owner, body.workspace
        view.harness, view.model, view.provider = body.harness, body.model, body.provider
        view.approvals = body.approvals
        view.forked_from = {"session_id": body.parent_id, "seq": body.at_seq}
        view.created_at = event.at
        self._put("fork", parent_id=body.parent_id, at_seq=body.at_seq)

    def _updated(self, body: ev.SessionUpdated) -> None:
        if body.title is not None:
            self.view.title = body.title
        if body.archived is not None:
            self.view.archived = body.archived
        if body.labels is not None:
            self.view.labels = dict(body.labels)

    # The harness.

    def _harness_started(self, body: ev.HarnessStarted) -> None:
        view = self.view
        view.run = body.model_dump(mode="json") | {"run": self.event.run}
        view.billing, view.credential, view.metering = body.billing, body.credential, body.metering
        if body.model:
            view.model = body.model
        old = view.native.get(body.harness)
        ref = body.native_ref or (old["ref"] if old and body.how == "native_resume" else None)
        view.native[body.harness] = {"ref": ref, "stale": False}

    def _native_ref(self, ref: str) -> None:
        if self.view.run is not None:
            name = self.view.run["harness"]
            self.view.native[name] = {**self.view.native.get(name, {"stale": False}), "ref": ref}

    def _harness_changed(self, body: ev.HarnessChanged) -> None:
        view = self.view
        view.harness, view.model, view.provider = body.to, body.model, body.provider
        self._put("switch", **ev.encode_body(body))

    def _content_from(self, run: str | None) -> None:
        """Content came from `run`: every other harness's native session no longer holds all.

        `run` None is the session itself, which found a message in its harness's native transcript.
        """
        current = self.view.run
        here = self.view.harness if run is None else None
        if current is not None and current["run"] == run:
            here = current["harness"]
        for name, native in self.view.native.items():
            if name != here:
                self.view.native[name] = {**native, "stale": True}

    # Turns.

    def _turn_started(self, body: ev.TurnStarted) -> None:
        view, event = self.view, self.event
        view.paused = None
        view.turn = {
            "id": event.turn_id,
            "message_id": body.message_id,
            "trigger": body.trigger,
            "delivered": body.message_id is None,
            "started_at": event.at,
            "seq": event.seq,
        }
        if body.message_id:
            view.queue = [entry for entry in view.queue if entry["id"] != body.message_id]
            self._put("message", body.message_id, status="submitted", turn_id=event.turn_id, place=event.seq)

    def _turn_ended(
        self, body: ev.TurnCompleted | ev.TurnFailed | ev.TurnInterrupted | ev.TurnPaused
    ) -> None:
        outcome = body.KIND.removeprefix("turn.")
        view, turn_id = self.view, self.event.turn_id
        if view.paused is not None and view.paused["turn_id"] == turn_id:
            view.paused = None  # it was given up
        if outcome != "completed":
            self._put("turn", turn_id, outcome=outcome, **ev.encode_body(body))
        if view.turn is not None and turn_id not in (None, view.turn["id"]):
            return  # late word of a turn that was ended already
        self._close_open("interrupted" if outcome == "interrupted" else "lost")
        if view.turn is not None:
            self._settle_message(view.turn, outcome)
        view.last_turn = {"id": turn_id, "outcome": outcome}
        view.denials, view.model_calls = {}, {}
        if isinstance(body, ev.TurnPaused):
            view.paused = {"turn_id": turn_id, **ev.encode_body(body)}
        if isinstance(body, ev.TurnFailed):
            view.last_turn |= {"code": body.code, "detail": body.detail}
            if body.code in BROKEN_OFF and view.harness in view.native:
                view.native[view.harness] = {**view.native[view.harness], "stale": True}
        view.turn = None

    def _settle_message(self, turn: JSON, outcome: str) -> None:
        """The turn's message, if nobody said what became of it."""
        item_id: str | None = turn["message_id"]
        now = item_id and (self.items.get(item_id) or self.lookup(item_id))
        if not now or turn["delivered"] or now.get("status") not in ("submitted", "queued"):
            return
        if outcome in ("completed", "paused"):
            self._put("message", item_id, status="delivered", delivered_as="turn")
        else:
            self._put("message", item_id, status="failed", code="delivery_unknown", detail="")

    def _close_open(self, status: str) -> None:
        """Close what the end of a turn leaves open, so that no item and no status can stick."""
        view = self.view
        for item_id, type_ in view.texts.items():
            known = self.items.get(item_id) or self.lookup(item_id)
            if known is not None and known.get("status") == "open":
                self._put(type_, item_id, status=status)
        for item_id in view.calls:
            self._put("tool_call", item_id, status="cancelled" if status == "interrupted" else "unknown")
        view.texts, view.calls = {}, {}

    # Messages from people.

    def _message_in(
        self,
        body: ev.MessageSubmitted
        | ev.MessageQueued
        | ev.MessageEdited
        | ev.MessageDelivered
        | ev.MessageCancelled
        | ev.MessageFailed,
    ) -> None:
        view, item_id = self.view, self.event.item_id or ""
        match body:
            case ev.MessageSubmitted():
                content = [part.model_dump(mode="json") for part in body.content]
                self._put("message", role="user", content=content, status="submitted", when=body.when)
                entry = {"id": item_id, "type": "message"}
                if body.when == "steer" and view.turn is not None:
                    view.steers.append(item_id)
                elif body.when == "now":
                    view.queue.insert(0, entry)
                else:
                    view.queue.append(entry)
                if not view.title:
                    view.title = _title(ev.text_of(body.content))
            case ev.MessageQueued():
                self._put("message", status="queued")
                if item_id in view.steers:
                    view.steers.remove(item_id)
                    view.queue.append({"id": item_id, "type": "message"})
            case ev.MessageEdited():
                self._put("message", content=[part.model_dump(mode="json") for part in body.content])
            case ev.MessageDelivered():
                self._delivered(item_id, body.as_)
            case ev.MessageCancelled():
                self._leave_queue(item_id)
                self._put("message", status="cancelled")
            case ev.MessageFailed():
                self._leave_queue(item_id)
                self._put("message", status="failed", code=body.code, detail=body.detail)

    def _delivered(self, item_id: str, as_: str) -> None:
        view = self.view
        self._leave_queue(item_id)
        now = self._put("message", status="delivered", delivered_as=as_, turn_id=self.event.turn_id)
        if as_ == "steer":
            now["place"] = self.event.seq
        if view.turn is not None and view.turn["message_id"] == item_id:
            view.turn = {**view.turn, "delivered": True}
        self._content_from(self.event.run)

    def _leave_queue(self, item_id: str) -> None:
        self.view.queue = [entry for entry in self.view.queue if entry["id"] != item_id]
        if item_id in self.view.steers:
            self.view.steers.remove(item_id)

    def _queued_command(self, body: ev.CommandQueued | ev.CommandEnded) -> None:
        item_id = self.event.item_id or ""
        if isinstance(body, ev.CommandQueued):
            entry = {"id": item_id, "type": body.arguments["type"], "arguments": body.arguments}
            place = 0 if body.arguments.get("now") else len(self.view.queue)
            self.view.queue.insert(place, entry)
        else:
            self._leave_queue(item_id)

    # What the agent says.

    def _streamed(
        self, body: ev.MessageStarted | ev.MessageCompleted | ev.ReasoningCompleted | ev.ItemUpdated
    ) -> None:
        view, item_id = self.view, self.event.item_id or ""
        match body:
            case ev.MessageStarted():
                self._put("message", role="assistant", content=[], status="open")
                view.texts[item_id] = "message"
            case ev.MessageCompleted():
                content = [part.model_dump(mode="json") for part in body.content]
                self._put("message", role="assistant", content=content, status=body.status)
                view.texts.pop(item_id, None)
                self._content_from(self.event.run)
            case ev.ReasoningCompleted():
                self._put("reasoning", text=body.text, status=body.status)
                view.texts.pop(item_id, None)
            case ev.ItemUpdated():
                self._checkpointed(body)

    def _checkpointed(self, body: ev.ItemUpdated) -> None:
        if body.stream == "output":
            now = self._put("tool_call")
            output: JSON = now.get("output") or {"text": ""}
            now["output"] = {**output, "text": _splice(output["text"], body.offset, body.text)}
            return
        type_ = "reasoning" if body.stream == "reasoning" else "message"
        item_id = self.event.item_id or self.event.id
        self.view.texts[item_id] = type_
        known = self.lookup(item_id)
        if known is not None and known.get("status") != "open":
            return  # its whole text is known
        now = self._put(type_, item_id, status="open")
        if type_ == "reasoning":
            now["text"] = _splice(now.get("text", ""), body.offset, body.text)
        else:
            now["role"] = "assistant"
            text = "".join(part.get("text", "") for part in cast(list[JSON], now.get("content", [])))
            now["content"] = [{"type": "text", "text": _splice(text, body.offset, body.text)}]

    # Tool calls and the gate.

    def _call(self, body: ev.ToolRequested | ev.ToolStarted | ev.ToolCompleted | ev.PolicyDecided) -> None:
        view, item_id = self.view, self.event.item_id or ""
        match body:
            case ev.ToolRequested():
                self._put(
                    "tool_call",
                    tool=body.tool,
                    title=body.title,
                    actions=[action.model_dump(mode="json") for action in body.actions],
                    parsed=body.parsed,
                    raw=body.raw,
                    background=body.background,
                    status="requested",
                )
                view.calls[item_id] = {
                    "gated": body.gated,
                    "decided": not body.gated,
                    "sha256": ev.sha256(f"{body.tool}\0{body.raw}"),
                    "pos": self.event.tree_pos,
                }
            case ev.ToolStarted():
                if item_id in view.calls:
                    self._put("tool_call", status="running")
                self._decided(item_id)
            case ev.ToolCompleted():
                self._put(
                    "tool_call",
                    status=body.outcome,
                    output=body.output.model_dump(mode="json"),
                    exit_code=body.exit_code,
                    duration_ms=body.duration_ms,
                    reason=body.reason,
                )
                view.calls.pop(item_id, None)
                self._content_from(self.event.run)
            case ev.PolicyDecided():
                self._policy_decided(body)

    def _policy_decided(self, body: ev.PolicyDecided) -> None:
        view, item_id = self.view, self.event.item_id or ""
        view.grants = [
            grant for grant in view.grants if grant["uses"] is None or grant["grant_id"] not in body.grant_ids
        ]
        if body.action is not None:
            if body.verdict == "deny":  # a pause is told by the end of the turn
                detail = f"A model call was refused: {body.reason}"
                self._put("notice", self.event.id, code="model_call_stopped", level="warning", detail=detail)
            return
        self._put("tool_call", verdict=body.verdict, reason=body.reason, rule_ids=list(body.rule_ids))
        if body.verdict == "deny":
            self._decided(item_id, deny=body.reason)
        elif body.verdict == "allow":
            self._decided(item_id)

    def _decided(self, item_id: str, deny: str | None = None, command: str | None = None) -> None:
        call = self.view.calls.get(item_id)
        if call is None:
            return
        if deny is not None and not call["decided"]:
            self.view.denials[call["sha256"]] = self.view.denials.get(call["sha256"], 0) + 1
        decided = {"decided": True, "deny": deny}
        self.view.calls[item_id] = {**call, **decided, **({"command": command} if command else {})}

    def _approval(self, body: ev.ApprovalRequested | ev.ApprovalDetached | ev.ApprovalResolved) -> None:
        view, item_id = self.view, self.event.item_id or ""
        if isinstance(body, ev.ApprovalRequested):
            self._put("approval", status="open", detached=False, **body.model_dump(mode="json"))
            if body.call_id in view.calls:
                self._put("tool_call", body.call_id, approval_id=item_id, status="held")
            elif any(action.type == "model" for action in body.actions):
                view.model_calls[body.call_id] = {"status": "held", "reason": ""}
            view.approvals_open[item_id] = {
                "call_id": body.call_id,
                "action_sha256": body.action_sha256,
                "rule_ids": list(body.rule_ids),
                "title": body.title,
                "expires_at": body.expires_at,
                "asked_at": self.event.at,
                "hold": body.hold,
                "detached": False,
                "command": body.command,
            }
            return
        if isinstance(body, ev.ApprovalDetached):
            self._put("approval", detached=True)
            if item_id in view.approvals_open:
                view.approvals_open[item_id] = {**view.approvals_open[item_id], "detached": True}
            return
        asked = view.approvals_open.pop(item_id, None)
        by = self.event.actor.model_dump()
        self._put(
            "approval",
            status=body.outcome,
            reason=body.reason,
            by=by,
            cancelled_by=body.cancelled_by,
            grant=body.grant.model_dump(mode="json"),
            edited=body.edited,
        )
        if asked is None:
            return
        if asked["call_id"] in view.model_calls:
            status = "allowed" if body.outcome == "allowed" else "denied"
            view.model_calls[asked["call_id"]] = {"status": status, "reason": body.reason or body.outcome}
        if body.outcome == "allowed":
            self._decided(asked["call_id"], command=body.edited or asked["command"])
        else:
            self._decided(asked["call_id"], deny=body.reason or body.outcome)

    def _question(self, body: ev.QuestionAsked | ev.QuestionAnswered) -> None:
        item_id = self.event.item_id or ""
        if isinstance(body, ev.QuestionAsked):
            self._put("question", status="open", **body.model_dump(mode="json"))
            self.view.questions_open[item_id] = {"call_id": body.call_id}
            return
        self.view.questions_open.pop(item_id, None)
        by = self.event.actor.model_dump()
        self._put("question", status=body.outcome, values=[list(v) for v in body.values], by=by)

    # Control.

    def _policies_changed(self, body: ev.PolicyChanged) -> None:
        entries = ev.encode_body(body)["policies"]
        self.view.policies, self.view.policies_sha256 = len(entries), ev.sha256(ev.canonical(entries))
        if self.event.seq > 2:  # what a session begins with is no news
            self._put(
                "policies",
                added=list(body.added),
                removed=list(body.removed),
                changed=list(body.changed),
                loosens=body.loosens,
            )

    def _grant(self, body: ev.GrantAdded | ev.GrantRevoked) -> None:
        grant_id = self.event.item_id or ""
        self.view.grants = [grant for grant in self.view.grants if grant["grant_id"] != grant_id]
        if isinstance(body, ev.GrantAdded):
            self.view.grants.append({"grant_id": grant_id, **ev.encode_body(body)})

    # Meters.

    def _usage(self, body: ev.UsageReported) -> None:
        view = self.view
        view.reserved.pop(body.call_id, None)
        if body.source == "harness" and view.metering == "gateway":
            return  # a cross-check: the gateway has counted it
        for name in _TOKENS:
            view.usage[name] = view.usage.get(name, 0) + getattr(body, name)
        if body.cost_nanousd is None:
            view.cost_partial |= body.basis != "harness"
        else:
            view.cost_nanousd = (view.cost_nanousd or 0) + body.cost_nanousd


_BLANK: dict[str, JSON] = {
    "message": {"role": "user", "content": [], "status": "submitted"},
    "reasoning": {"text": "", "status": "open"},
    "tool_call": {
        "tool": "",
        "title": "",
        "actions": [],
        "parsed": "opaque",
        "raw": "",
        "background": False,
        "status": "unknown",
    },
}
"""What every item of a type has, even if the log tells of it from the middle on."""


def _refusal(body: ev.AccessRefused) -> str:
    who = f" ({body.program}, pid {body.pid})" if body.pid else ""
    return f"Refused from inside an agent{who}: {body.what}. {body.reason}".strip()


_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def _splice(text: str, offset: int, piece: str) -> str:
    """`piece` placed at `offset`; what is known already isn't doubled."""
    return text[:offset] + piece if offset <= len(text) else text + piece


def _title(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 80 else line[:79] + "…"
