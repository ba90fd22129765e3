"""A session's events as lines for a terminal. Pure: events and deltas in, text out.

It keeps no second fold: only how much of a streaming item is on the screen already, and the titles that later
events refer to by id.
"""

from collections.abc import Callable, Sequence

from omnigent.cli.talk import clean, lasted, one_line, styled
from omnigent.cli.wording import (
    approval_line,
    approval_more,
    paused_lines,
    policies_changed,
    refused_line,
    standing_of,
    until,
    usd,
)
from omnigent.client import JSON, Event

OUTPUT_LINES = 12
"""Lines of a tool's output that are shown; `omnigent logs --full` has them all."""

Style = Callable[..., str]


def plain(text: str, *_: str) -> str:
    """A `Style` without colours."""
    return text


class Transcript:
    """`style` colours (`talk.styled`) or doesn't (`plain`); `full` shows whole outputs and the reasoning."""

    def __init__(self, style: Style = plain, *, full: bool = False) -> None:
        self._style = style
        self._full = full
        self._shown: dict[str, int] = {}
        """Per open item, code points on the screen."""
        self._titles: dict[str, str] = {}
        self._session = ""
        """Whose events these are: for the commands that are named."""
        self._on_line: str | None = None
        """The item whose text the last line belongs to, if that line is unfinished."""

    def event(self, event: Event) -> str:
        """What an event adds; empty for those that aren't for people."""
        self._session = event["session_id"]
        item, body, kind = event["item_id"] or "", event["body"], event["kind"]
        if kind in ("message.completed", "reasoning.completed"):
            return self._finished(item, body, kind)
        said = self._lines(kind, item, body, event)
        return self._fresh_line() + said if said else ""

    def delta(self, delta: JSON) -> str:
        """The new part of a streaming item: what is known is left out, and after a gap the rest waits for the
        item's end."""
        item, stream = delta["item_id"], delta["stream"]
        if stream == "output" or (stream == "reasoning" and not self._full):
            return ""
        shown = self._shown.get(item, 0)
        new = delta["text"][max(0, shown - delta["offset"]) :] if delta["offset"] <= shown else ""
        if not new:
            return ""
        self._shown[item] = shown + len(new)
        return self._stream(item, new, dim=stream == "reasoning")

    def end(self) -> str:
        """A line end if one is missing."""
        return self._fresh_line()

    def _stream(self, item: str, text: str, *, dim: bool = False) -> str:
        head = "" if self._on_line == item else self._fresh_line()
        self._on_line = None if text.endswith("\n") else item
        return head + (self._style(clean(text), "dim") if dim else clean(text))

    def _fresh_line(self) -> str:
        unfinished, self._on_line = self._on_line, None
        return "\n" if unfinished else ""

    def _finished(self, item: str, body: JSON, kind: str) -> str:
        text = body["text"] if kind == "reasoning.completed" else text_of(body["content"])
        if kind == "reasoning.completed" and not self._full:
            return ""
        rest = text[self._shown.pop(item, 0) :]
        said = self._stream(item, rest, dim=kind == "reasoning.completed") if rest else ""
        mark = "" if body["status"] == "complete" else self._style(f"[{body['status']}]\n", "yellow")
        return said + self._fresh_line() + mark

    def _lines(self, kind: str, item: str, body: JSON, event: Event) -> str:
        match kind.partition(".")[0]:
            case "message":
                return self._message(kind, item, body, event)
            case "tool":
                return self._tool(kind, item, body)
            case "approval" | "question":
                return self._asked(kind, item, body, event)
            case "turn":
                return self._turn(kind, body)
            case "harness" | "model" | "session" | "context" | "budget" | "grant":
                return self._changed(kind, item, body)
            case "policy":
                return self._policy(kind, body, event)
            case "access":
                return self._style(f"! {refused_line(body)}", "red") + "\n"
            case "notice":
                colour = {"error": "red", "warning": "yellow"}.get(body["level"], "dim")
                return self._style(f"! {one_line(body['detail'], 400)}", colour) + "\n"
            case "plan":
                marks, rows = {"completed": "x", "in_progress": ">"}, body["entries"]
                entries = [f"  [{marks.get(row['status'], ' ')}] {one_line(row['text'])}" for row in rows]
                return "\n".join([self._style("plan", "dim"), *entries]) + "\n"
            case "file":
                return self._style(f"± {body['path']} {body['change']}", "dim") + "\n"
            case _:
                return ""

    def _message(self, kind: str, item: str, body: JSON, event: Event) -> str:
        match kind:
            case "message.submitted":
                text = clean(text_of(body["content"]))
                who = event["actor"].get("id", "") if event["actor"].get("kind") == "agent" else ""
                self._titles[item] = one_line(text, 60)
                lines = text.split("\n")
                return "\n".join(self._style(f"{who}> {line}", "bold") for line in lines) + "\n"
            case "message.queued":
                return self._style("  (queued)", "dim") + "\n"
            case "message.cancelled":
                return self._style(f"  (taken back: {self._titles.get(item, item)})", "dim") + "\n"
            case "message.failed":
                what = f"✗ not delivered ({body['code']}): {one_line(body.get('detail') or '')}"
                return self._style(what.removesuffix(": "), "red") + "\n"
            case _:
                return ""

    def _tool(self, kind: str, item: str, body: JSON) -> str:
        match kind:
            case "tool.requested":
                self._titles[item] = title = f"{body['tool']}  {one_line(body['title'])}".rstrip()
                return self._style(f"● {title}", "cyan") + "\n"
            case "tool.completed":
                return self._output(body["output"]) + self._outcome(body)
            case _:
                return ""

    def _outcome(self, body: JSON) -> str:
        outcome, code = body["outcome"], body.get("exit_code")
        parts = [outcome if outcome != "error" or code is None else f"exit {code}"]
        parts += [one_line(body["reason"])] if body.get("reason") else []
        parts += [lasted(body.get("duration_ms"))] if body.get("duration_ms") is not None else []
        colour = {"ok": "green", "denied": "yellow", "cancelled": "yellow"}.get(outcome, "red")
        return self._style(f"  └ {' · '.join(parts)}", colour) + "\n"

    def _output(self, output: JSON) -> str:
        lines = clean(output.get("text", "")).rstrip("\n").split("\n")
        if output.get("truncated"):
            lines += [
                f"… {output['size']:,} bytes in all …",
                *clean(output.get("tail", "")).rstrip("\n").split("\n"),
            ]
        if not self._full and len(lines) > OUTPUT_LINES:
            head, tail = lines[: OUTPUT_LINES - 4], lines[-3:]
            lines = [*head, f"… {len(lines) - len(head) - len(tail)} more lines …", *tail]
        return "".join(self._style(f"  │ {line}", "dim") + "\n" for line in lines) if lines != [""] else ""

    def _asked(self, kind: str, item: str, body: JSON, event: Event) -> str:
        match kind:
            case "approval.requested":
                lines = [f"? {item} asks: {approval_line(body)}", *approval_more(item, body)]
                return "".join(self._style(line, "yellow") + "\n" for line in lines)
            case "approval.detached":
                gone = f"  {item}: its agent is gone; answering starts it again"
                return self._style(gone, "dim") + "\n"
            case "approval.resolved":
                return self._style(f"  {_resolved(body, event['actor'])}", "dim") + "\n"
            case "question.asked":
                return "".join(
                    self._style(line, "yellow") + "\n" for line in question_lines(item, body["questions"])
                )
            case _:
                values = "; ".join(", ".join(map(one_line, value)) for value in body.get("values", []))
                return self._style(f"  {body['outcome']}: {values}".removesuffix(": "), "dim") + "\n"

    def _turn(self, kind: str, body: JSON) -> str:
        match kind:
            case "turn.failed":
                tail = clean(body.get("stderr_tail", "")).rstrip()
                return self._style(
                    f"✗ turn failed ({body['code']}): {one_line(body['detail'], 400)}", "red"
                ) + (f"\n{tail}\n" if tail else "\n")
            case "turn.interrupted":
                how = " (the agent was ended)" if body.get("how") == "kill" else ""
                return self._style(f"■ interrupted{how}", "yellow") + "\n"
            case "turn.paused":
                head, *more = paused_lines(body, self._session)
                return self._style(f"‖ {head}", "yellow") + "\n" + "".join(f"  {line}\n" for line in more)
            case "turn.resumed":
                return self._style("▶ going on", "dim") + "\n"
            case _:
                return ""

    def _policy(self, kind: str, body: JSON, event: Event) -> str:
        if kind == "policy.changed":
            # What a session begins with is no news.
            said = policies_changed(body, event["actor"]) if event["seq"] > 2 else ""
            return self._style(f"— {said}", "dim") + "\n" if said else ""
        if body["verdict"] not in ("deny", "pause"):
            return ""
        verb = "denied" if body["verdict"] == "deny" else "stopped"
        by = f" by {', '.join(body['rule_ids'])}" if body.get("rule_ids") else ""
        # The end of a tool call tells the reason once more; a model call has no such end.
        why = f": {one_line(body['reason'], 400)}" if body.get("action") else ""
        return self._style(f"  ✗ {verb}{by}{why}", "yellow") + "\n"

    def _changed(self, kind: str, item: str, body: JSON) -> str:
        said = _change(kind, item, body)
        return self._style(f"— {said}", "dim") + "\n" if said else ""


def _change(kind: str, item: str, body: JSON) -> str:
    match kind:
        case "harness.started":
            model = f", {body['model']}" if body.get("model") else ""
            return f"{body['harness']} {body['version']}{model} · {standing_of(body)}"
        case "budget.changed":
            cap = body.get("cap_nanousd")
            return "budget: no cap" if cap is None else f"budget: {usd(cap)}"
        case "grant.added":
            what = body.get("pattern") or body.get("title") or "this call"
            return f"allowed from now on: {one_line(what)}{until(body)}  (omnigent revoke {item})"
        case "grant.revoked":
            return f"no longer allowed by itself: {item}"
        case "harness.exited":
            quiet = body["reason"] in ("closed", "idle", "switched")
            return "" if quiet else f"the agent's process ended: {body['reason']}"
        case "harness.changed":
            carried, dropped = body["carried"], body["carried"].get("dropped", [])
            took = f"{carried.get('messages', 0)} messages, {carried.get('tool_calls', 0)} tool calls carried"
            left = f"; left behind: {'; '.join(map(one_line, dropped))}" if dropped else ""
            return f"{body['from']} → {body['to']} ({took}, {carried['how']}{left})"
        case "model.changed":
            return f"model: {body['model']}"
        case "session.forked":
            return f"forked from {body['parent_id']} at {body['at_seq']}"
        case "session.closed" | "session.reopened":
            return kind.partition(".")[2]
        case "context.compacted":
            return "the agent compacted its context"
        case _:
            return ""


def text_of(content: Sequence[JSON]) -> str:
    """A message's parts as text; what isn't text is named."""
    parts: list[str] = []
    for part in content:
        match part["type"]:
            case "text":
                parts.append(part["text"])
            case "image":
                parts.append(f"[{part.get('media_type', 'image')}, {part.get('size', 0):,} bytes]")
            case _:
                parts.append(f"[{part.get('path', part['type'])}]")
    return "\n".join(parts)


def question_lines(item: str, questions: Sequence[JSON]) -> list[str]:
    lines: list[str] = []
    for question in questions:
        several = "  (several may be chosen)" if question.get("multiple") else ""
        lines.append(f"? {item} asks: {one_line(question['question'], 400)}{several}")
        for number, option in enumerate(question.get("options", ()), 1):
            more = f"  {one_line(option['description'])}" if option.get("description") else ""
            lines.append(f"    {number}. {one_line(option['label'])}{more}")
    return lines


def choices(question: JSON, typed: str) -> list[str]:
    """What a person typed as an answer: numbers of options (commas between several), else their own words."""
    labels = [option["label"] for option in question.get("options", ())]
    numbers = [part.strip() for part in typed.split(",")]
    if labels and all(part.isdigit() and 0 < int(part) <= len(labels) for part in numbers):
        chosen = [labels[int(part) - 1] for part in numbers]
        return chosen if question.get("multiple") else chosen[:1]
    return [typed]


def _resolved(body: JSON, actor: dict[str, str]) -> str:
    outcome = body["outcome"]
    if outcome in ("expired", "cancelled"):
        by = f" ({body['cancelled_by']})" if body.get("cancelled_by") else ""
        return outcome + by
    grant: JSON = body.get("grant") or {}
    scope = {
        "session": ", and the same from now on",
        "pattern": f", and from now on {one_line(grant.get('pattern') or '')}",
    }.get(grant.get("scope", ""), "")
    edited = f", edited to: {one_line(body['edited'])}" if body.get("edited") else ""
    reason = f": {one_line(body['reason'])}" if body.get("reason") else ""
    face = f" ({actor['via']})" if actor.get("via") else ""
    return f"{outcome} by {actor.get('id', 'somebody')}{face}{scope}{until(grant)}{edited}{reason}"


def coloured(on: bool) -> Style:
    return styled if on else plain
