"""What control looks like in words: approvals, pauses, grants, money, who was refused. Pure."""

import time

from omnigent.cli.talk import one_line
from omnigent.client import JSON
from omnigent.errors import Malformed

_UNITS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def approval_line(approval: JSON) -> str:
    """What is asked, and why, on one line."""
    reason = f"  ({one_line(approval['reason'])})" if approval.get("reason") else ""
    return one_line(approval["title"], 400) + reason


def approval_more(item: str, approval: JSON) -> list[str]:
    """What else a person should see before they answer: the rules, the parts of a compound call, what could
    be allowed beyond this once, until when, and who may answer."""
    lines: list[str] = []
    actions: list[JSON] = approval.get("actions") or []
    if len(actions) > 1:
        lines += [f"    {number}. {action_line(action)}" for number, action in enumerate(actions, 1)]
    elif actions and actions[0].get("doubt"):
        lines.append(f"    not sure what it does: {one_line(actions[0]['doubt'])}")
    if approval.get("rule_ids"):
        lines.append(f"    rule: {', '.join(approval['rule_ids'])}  (omnigent policy explain {item})")
    if patterns := approval.get("patterns"):
        lines.append(f"    pattern: {one_line(patterns[0])}" + _others(len(patterns) - 1))
    if approval.get("detached"):
        lines.append("    its agent is gone; answering starts it again")
    if approval.get("hold") == "pause":
        lines.append("    the turn waits here until this is answered")
    who = [name for name in approval.get("may_answer") or () if name != "owner"]
    if who:
        lines.append(f"    may be answered by: {', '.join(who)}")
    return lines


def _others(count: int) -> str:
    return f"  (and {count} wider)" if count > 0 else ""


def action_line(action: JSON) -> str:
    """One action of a call, for people."""
    doubt = f"  (not sure: {one_line(action['doubt'])})" if action.get("doubt") else ""
    match action["type"]:
        case "exec":
            said = action["command"]
        case "file.read":
            said = f"read {action['path']}"
        case "file.write":
            said = f"{action.get('change', 'write')} {action['path']}"
        case "net":
            said = f"{action['method']} {action['url']}".strip()
        case "mcp":
            said = f"{action['server']}: {action['tool']}"
        case "model":
            said = f"ask {action['model']}"
        case _:
            said = action.get("description") or action.get("tool") or action["type"]
    return one_line(said, 300) + doubt


def paused_lines(paused: JSON, session_id: str) -> list[str]:
    """Why a turn is paused, then what may be done about it."""
    named = f" {session_id}" if session_id else ""
    why = one_line(paused.get("detail") or "", 400) or _PAUSED.get(paused["reason"], paused["reason"])
    rules = f"  [{', '.join(paused['rule_ids'])}]" if paused.get("rule_ids") else ""
    lines = [f"paused ({paused['reason']}): {why}{rules}"]
    match paused["reason"]:
        case "budget":
            lines.append(f"omnigent budget{named} USD   raises the cap; then: omnigent resume{named}")
        case "quota" if paused.get("until"):
            lines.append(f"it goes on by itself at {moment(paused['until'])}; sooner: omnigent resume{named}")
        case _:
            lines.append(f"omnigent resume{named}   asks anew")
    return lines


_PAUSED = {
    "budget": "the budget is used up",
    "policy": "a rule stopped it here",
    "quota": "the provider's quota is used up",
}


def refused_line(body: JSON) -> str:
    """An `access.refused` for people."""
    by = f" by {body['program']}" if body.get("program") else ""
    process = f" (process {body['pid']})" if body.get("pid") else ""
    return one_line(f"refused{by}{process}: {body['what']}: {body['reason']}", 400)


def standing_of(run: JSON) -> str:
    """Where an agent runs and what pays for it: said before its first turn."""
    sandbox = run.get("sandbox") or "host"
    where = f"sandbox: {sandbox}" + (" (it runs as you)" if sandbox == "host" else "")
    pays = run.get("credential") or ""
    billing = run.get("billing") or "unknown"
    said = f"billing: {billing}" + (f" ({one_line(pays, 80)})" if pays else "")
    counted = " · counted by the agent itself" if run.get("metering") == "harness" else ""
    return f"{where} · {said}{counted}"


def standing_of_session(session: JSON) -> str:
    """The same of a session, whether or not its agent runs."""
    run: JSON = session.get("run") or {}
    told = {name: session.get(name) or run.get(name) for name in ("sandbox", "billing", "credential")}
    # Who counts is known once an agent has started.
    counts = run.get("metering") or (session.get("metering") if run else None)
    return standing_of(told | {"metering": counts})


def usd(nano: int) -> str:
    """Nano-dollars as money."""
    return dollars(nano / 1_000_000_000)


def dollars(amount: float) -> str:
    """Money in cents, with more places where there is less than a cent."""
    if amount == 0 or abs(amount) >= 0.01:
        return f"${amount:,.2f}"
    return f"${amount:.6f}".rstrip("0") if abs(amount) >= 0.000001 else "less than $0.000001"


def cost_of(usage: JSON, billing: str = "") -> str:
    """What was used, in money: never $0 for what nobody knows the price of."""
    cost = usage.get("cost_usd")
    if cost is None:
        return "cost unknown" if any(usage.get(name) for name in ("input_tokens", "output_tokens")) else ""
    said = (
        f"at least {dollars(cost)} (some prices are unknown)" if usage.get("cost_partial") else dollars(cost)
    )
    return f"{said} at list price, nothing billed (subscription)" if billing == "subscription" else said


def budget_line(budget: JSON | None) -> str:
    """A cap and what of it is gone; "" without one."""
    if not budget or budget.get("cap_usd") is None:
        return ""
    spent, held, unknown = (budget.get(name) or 0 for name in ("spent_usd", "reserved_usd", "unknown_calls"))
    parts = [f"{dollars(spent)} of {dollars(budget['cap_usd'])}"]
    parts += [f"{dollars(held)} set aside for calls under way"] if held else []
    parts += [f"{unknown} call(s) of unknown price"] if unknown else []
    return ", ".join(parts)


def grant_line(grant: JSON) -> str:
    """An allow that reaches further than one call."""
    what = grant.get("pattern") or grant.get("title") or "the call that was allowed"
    once = ", once" if grant.get("uses") == 1 or grant.get("scope") == "once" else ""
    rules = f"  [{', '.join(grant['rule_ids'])}]" if grant.get("rule_ids") else ""
    return f"{one_line(what)}{once}{until(grant)}{rules}"


def moment(at: int) -> str:
    """A time (UTC ms) as this machine's clock shows it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at / 1000))


def until(body: JSON) -> str:
    return f" until {moment(body['until'])}" if body.get("until") else ""


def _names(names: list[str]) -> str:
    return ", ".join(map(one_line, names)) if len(names) <= 5 else f"{len(names)} rules"


def policies_changed(body: JSON, actor: dict[str, str]) -> str:
    parts = [
        f"{sign} {_names(body[name])}"
        for sign, name in (("+", "added"), ("−", "removed"), ("~", "changed"))
        if body.get(name)
    ]
    if not parts:
        return ""
    loosens = ", looser than before" if body.get("loosens") else ""
    return f"policies: {'; '.join(parts)}  (by {actor.get('id', 'somebody')}{loosens})"


def duration_ms(text: str, what: str) -> int:
    """`30m`, `2h`, `1d` in milliseconds. Raises `Malformed`, which names `what`."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdecimal() or not int(number):
        raise Malformed(f"{what} takes a time like 30m, 2h or 1d, not {text!r}.")
    return int(number) * _UNITS[unit]


def amount(text: str, what: str) -> float:
    """US dollars as typed, `3` or `$2.50`. Raises `Malformed`, which names `what`."""
    try:
        value = float(text.removeprefix("$"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1_000_000_000:
        raise Malformed(f"{what} takes US dollars like 3 or 2.50, not {text!r}.")
    return value
