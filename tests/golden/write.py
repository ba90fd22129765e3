"""Writes a golden log: one event of every kind this version writes, one of an unknown kind, one erased.

Run it with the file's name, once per envelope version and before that is first released.
A released file is never written again.
"""

import sys
from dataclasses import replace
from pathlib import Path

from omnigent import events as ev
from omnigent.actions import Action, Exec, FileRead, FileWrite, Mcp, Message, Net, Spawn, Unknown

TEXT = ev.TextPart(text='héllo "quoted" \\ back\nline \u2028 \x7f 🎈 \x01')
IMAGE = ev.ImagePart(media_type="image/png", blob="a" * 64, size=123)
ACTIONS: tuple[Action, ...] = (
    Exec(command="rm -rf 'ü'", cwd="/w", stdin="y\n", background=True),
    FileRead(path="a", real_path="/w/a", in_workspace=True),
    FileWrite(path="../b", real_path="/b", in_workspace=False),
    Net(url="https://example.org/?q=1"),
    Mcp(server="s", tool="t"),
    Spawn(description="d"),
    Message(description="m"),
    Unknown(tool="x"),
)

BODIES: list[ev.Body] = [
    ev.SessionCreated(
        title="Golden ✨",
        harness="claude",
        model="m",
        provider="p",
        workspace="/w",
        approvals="ask",
        owner="me",
        labels={"b": "2", "a": "1", "é": "3"},
    ),
    ev.HarnessStarted(
        harness="claude",
        version="2.1.330",
        native_ref="n",
        covers_seq=0,
        model="m",
        provider="p",
        billing="metered",
        capabilities={"steer": True, "fork": False},
        tools=("Bash",),
        mcp_servers=("s",),
        how="new",
        carried=ev.Carried(how="seeded", messages=1, dropped=("x",)),
    ),
    ev.MessageSubmitted(content=(TEXT, IMAGE, ev.FilePart(path="src/a.py")), when="auto"),
    ev.MessageQueued(),
    ev.MessageEdited(content=(TEXT,)),
    ev.TurnStarted(trigger="prompt", message_id="msg_1"),
    ev.MessageDelivered(as_="turn"),
    ev.MessageCancelled(),
    ev.MessageFailed(code="delivery_unknown", detail="d"),
    ev.MessageStarted(),
    ev.ItemUpdated(stream="text", offset=5, text="more"),
    ev.MessageCompleted(content=(TEXT,), status="interrupted"),
    ev.ReasoningCompleted(text="hm"),
    ev.ToolRequested(
        tool="Bash", title="rm", actions=ACTIONS, parsed="partial", raw='{"command":"rm"}', native_id="call_1"
    ),
    ev.PolicyDecided(verdict="ask", rule_ids=("r1",), reason="because"),
    ev.ApprovalRequested(
        call_id="tc_1",
        actions=ACTIONS[:1],
        action_sha256="b" * 64,
        title="rm",
        reason="r",
        rule_ids=("r1",),
        expires_at=1795000000000,
    ),
    ev.ApprovalResolved(
        outcome="cancelled", cancelled_by="interrupted", grant=ev.Grant(scope="session"), reason="no"
    ),
    ev.ToolStarted(),
    ev.ToolCompleted(
        outcome="ok",
        output=ev.Output(
            text="head", tail="tail", size=99999, truncated=True, blob="c" * 64, images=(IMAGE,)
        ),
        exit_code=0,
        duration_ms=12,
        reason="",
    ),
    ev.QuestionAsked(
        questions=(ev.Question(question="q?", header="h", options=(ev.Option(label="a"),), multiple=True),),
        call_id=None,
    ),
    ev.QuestionAnswered(outcome="answered", values=(("a", "b"),)),
    ev.UsageReported(
        call_id="call_1",
        source="gateway",
        scope="call",
        model="m",
        billing="metered",
        input_tokens=9007199254740991,
        output_tokens=2,
        cost_nanousd=None,
        basis="unknown",
    ),
    ev.FileChanged(path="a", change="added", diff="+x\n"),
    ev.PlanUpdated(entries=(ev.PlanEntry(text="t", status="pending"),)),
    ev.NoticeRaised(code="stalled", level="warning", detail="d"),
    ev.WorkspaceCheckpointed(head="h", tree="t"),
    ev.ContextCompacted(summary="s"),
    ev.TurnInterrupted(how="kill"),
    ev.TurnFailed(code="stalled", detail="d", stderr_tail="e"),
    ev.TurnCompleted(),
    ev.ModelChanged(model="m2", provider="p", effort="high"),
    ev.HarnessChanged(
        from_="claude", to="codex", model=None, provider=None, carried=ev.Carried(how="preamble")
    ),
    ev.HarnessExited(reason="crashed", exit_code=-9, stderr_tail="e"),
    ev.HarnessUpdated(native_ref="n2"),
    ev.CommandQueued(arguments={"type": "set_model", "model": "m3", "effort": None}),
    ev.CommandEnded(outcome="failed", detail="d"),
    ev.SessionUpdated(title="t2", archived=False, labels={}),
    ev.SessionForked(
        parent_id="ses_p",
        at_seq=3,
        parent_hash="d" * 64,
        owner="me",
        title="t",
        harness="pi",
        model=None,
        provider=None,
        workspace="/w",
        approvals="yes",
    ),
    ev.SessionClosed(),
    ev.SessionReopened(),
    ev.UnknownBody(
        kind="egress.decided",
        raw={
            "host": "example.org",
            "score": 0.1,
            "big": 1e30,
            "\u20ac": 1,
            "\U0001f600": 2,
            "\ufb33": 3,
            "nested": [None, True, {"z": [], "a": {}}],
        },
    ),
]

ACTORS = (
    ev.SYSTEM,
    ev.Actor(kind="person", id="laptop", via="cli"),
    ev.Actor(kind="agent", id="claude", via="runner"),
    ev.Actor(kind="policy", id="no-rm", via="api"),
)


def event(seq: int, body: ev.Body, prev_hash: str) -> ev.Event:
    """The fields vary with `seq`, so that each is set somewhere and unset elsewhere."""
    text = ev.canonical(ev.encode_body(body))
    odd = bool(seq % 2)
    unhashed = ev.Event(
        v=ev.VERSION,
        id=f"evt_01GOLDEN{seq:018}",
        session_id="ses_01GOLDEN000000000000000001",
        seq=seq,
        root_id="ses_01GOLDEN000000000000000001",
        tree_pos=seq,
        at=1_795_000_000_000 + seq,
        observed_at=1_794_999_999_990 + seq,
        turn_id="turn_1" if seq % 3 else None,
        item_id=f"msg_{seq}" if odd else None,
        parent_item_id="tc_1" if seq % 5 == 0 else None,
        actor=ACTORS[seq % 4],
        cause="cmd_1" if seq % 4 == 0 else None,
        run="run_1" if odd else None,
        producer="run_1" if odd else "session",
        producer_seq=(seq + 1) // 2,
        epoch=1 if odd else None,
        kind=body.kind if isinstance(body, ev.UnknownBody) else body.KIND,
        body_text=text,
        body_sha256=ev.sha256(text),
        hash="",
    )
    return replace(unhashed, hash=ev.chain(prev_hash, unhashed.envelope()))


def erased(event: ev.Event) -> ev.Event:
    """Its text is gone; its digest and the chain stay."""
    mark = '{"redacted":{"at":1795000001000,"by":"me","reason":"a key"}}'
    return replace(event, body_text=mark, typed=[], wire=[])


def log() -> list[ev.Event]:
    missing = set(ev.BODIES) - {body.KIND for body in BODIES}
    assert not missing, f"add an event of each of {missing}"
    events: list[ev.Event] = []
    for seq, body in enumerate(BODIES, start=1):
        events.append(event(seq, body, events[-1].hash if events else ev.GENESIS))
    return [erased(event) if event.kind == "message.failed" else event for event in events]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(f"{event.json_text()}\n" for event in log()), encoding="utf-8")
