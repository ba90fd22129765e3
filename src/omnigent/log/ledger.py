"""The ledger's rules: which events make an entry, whose it is, what it counts. Shared by every log.

An entry is one model call of one session. `usage.reserved` opens it with an estimate, `usage.reported`
settles it (or makes it, settled); what comes after that changes nothing. An entry stays in the day it was
opened in, so that what was checked against one day's cap can't move into another day.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from omnigent import events as ev
from omnigent.errors import OverBudget
from omnigent.events import JSON, Draft, Event
from omnigent.ids import as_text
from omnigent.log.contract import UsageBy
from omnigent.metering import Cap, CapScope, Spend

VERSION = 1
"""Entries of another version are made anew from the log."""

KINDS = (
    "session.created",
    "session.forked",
    "harness.started",
    "harness.changed",
    "model.changed",
    "usage.reserved",
    "usage.reported",
)
"""All that `follow` and `enter` look at."""

SCOPES: tuple[CapScope, ...] = ("session", "family", "user_day", "project_month")

TOKENS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)

COLUMN_OF: dict[UsageBy, str] = {
    "model": "model",
    "day": "day_utc",
    "project": "project",
    "harness": "harness",
    "user": "owner",
    "session": "session_id",
    "provider": "provider",
}
"""The field of an entry that a report is grouped by."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose a session's next call is, and who counts it."""

    family: str
    owner: str = ""
    project: str = ""
    harness: str = ""
    provider: str = ""
    model: str = ""
    credential: str = ""
    billing: ev.Billing = "unknown"
    metering: ev.Metering = "harness"
    """Of the current run; logs that don't say were counted by the harness."""


NOBODY = Account("")


class Entry(NamedTuple):
    session_id: str
    call_id: str
    root_id: str
    family: str
    owner: str
    project: str
    provider: str
    credential: str
    model: str
    harness: str
    at: int
    day_utc: str
    """`2026-11-24`: that of `at`."""
    billing: str
    source: str
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    nano_usd: int | None
    """With `billing` subscription notional; None: unknown."""
    basis: str
    outcome: str
    state: Literal["reserved", "settled"]

    @property
    def tokens(self) -> int:
        """All that went in and out: reasoning is part of the output, the hour's cache of what was cached."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens + self.output_tokens

    @property
    def is_unknown(self) -> bool:
        """Whether dollars are missing: not if a subscription pays, nor if the turn's report tells them."""
        told = self.nano_usd is not None or self.basis == "harness"
        return not told and self.billing != "subscription" and self.tokens > 0


class Amount(NamedTuple):
    """What entries add up to."""

    settled: int = 0
    """Nano-USD, as `reserved` and `notional`."""
    reserved: int = 0
    settled_tokens: int = 0
    reserved_tokens: int = 0
    unknown: int = 0
    notional: int = 0

    def spend(self) -> Spend:
        return Spend(
            nanousd=self.settled + self.reserved,
            tokens=self.settled_tokens + self.reserved_tokens,
            unknown=self.unknown,
            notional=self.notional,
        )


def day_of(at: int) -> str:
    return as_text(at)[:10]


def inherited(parent: Account) -> Account:
    """What a fork begins with: its own run and its own provider are yet to come."""
    return Account(parent.family, parent.owner, parent.project)


def follow(account: Account, event: Event) -> Account:
    """The account after this event."""
    match event.body:
        case ev.SessionCreated() as body:
            return replace(
                account,
                owner=body.owner,
                project=body.workspace,
                harness=body.harness,
                provider=body.provider or "",
                model=body.model or "",
            )
        case ev.SessionForked() as body:
            # A fork's worktree is a place of its own in the project of its parent.
            return replace(
                inherited(account),
                owner=body.owner,
                project=account.project or body.workspace,
                harness=body.harness,
                provider=body.provider or "",
                model=body.model or "",
            )
        case ev.HarnessStarted() as body:
            return replace(
                account,
                harness=body.harness,
                provider=body.provider or account.provider,
                model=body.model or account.model,
                credential=body.credential,
                billing=body.billing,
                metering=body.metering,
            )
        case ev.HarnessChanged() as body:
            return replace(
                account,
                harness=body.to,
                provider=body.provider or account.provider,
                model=body.model or account.model,
            )
        case ev.ModelChanged() as body:
            return replace(account, model=body.model, provider=body.provider or account.provider)
        case _:
            return account


def enter(account: Account, event: Event, known: Entry | None) -> Entry | None:
    """The entry this event makes of the `known` one of its call; None where it changes nothing."""
    match event.body:
        case ev.UsageReserved() as body if known is None:
            return _reserved(account, event, body)
        case ev.UsageReported() as body if known is None or known.state == "reserved":
            counts = body.source == "gateway" or account.metering == "harness"
            return _settled(account, event, body, known) if counts else None
        case _:
            return None


def call_of(event: Event) -> str | None:
    """The call an event of the ledger is about."""
    body = event.body
    return body.call_id if isinstance(body, ev.UsageReserved | ev.UsageReported) else None


def _opened(account: Account, event: Event, call_id: str) -> Entry:
    """The entry of a call that nothing is known of yet but whose it is."""
    return Entry(
        session_id=event.session_id,
        call_id=call_id,
        root_id=event.root_id,
        family=account.family,
        owner=account.owner,
        project=account.project,
        provider=account.provider,
        credential=account.credential,
        model=account.model,
        harness=account.harness,
        at=event.at,
        day_utc=day_of(event.at),
        billing=account.billing,
        source="gateway",
        input_tokens=0,
        cache_read_tokens=0,
        cache_write_tokens=0,
        cache_write_1h_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        nano_usd=None,
        basis="unknown",
        outcome="",
        state="reserved",
    )


def _reserved(account: Account, event: Event, body: ev.UsageReserved) -> Entry:
    return _opened(account, event, body.call_id)._replace(
        provider=body.provider or account.provider,
        model=body.model,
        input_tokens=body.input_tokens,
        output_tokens=body.max_output_tokens or 0,
        nano_usd=body.estimate_nanousd,
        basis="unknown" if body.estimate_nanousd is None else "estimate",
    )


def _settled(account: Account, event: Event, body: ev.UsageReported, known: Entry | None) -> Entry:
    entry = known or _opened(account, event, body.call_id)
    return entry._replace(
        provider=body.provider or entry.provider,
        credential=body.credential or entry.credential,
        model=body.model or entry.model,
        harness=body.harness or entry.harness,
        billing=entry.billing if body.billing == "unknown" else body.billing,
        source=body.source,
        nano_usd=body.cost_nanousd,
        basis=body.basis,
        outcome=body.outcome,
        state="settled",
        **{name: getattr(body, name) for name in TOKENS},
    )


# Adding up.


def amount_of(entry: Entry) -> Amount:
    notional = entry.billing == "subscription"
    cost = entry.nano_usd or 0
    dollars, reserved = (0 if notional else cost), entry.state == "reserved"
    return Amount(
        settled=0 if reserved else dollars,
        reserved=dollars if reserved else 0,
        settled_tokens=0 if reserved else entry.tokens,
        reserved_tokens=entry.tokens if reserved else 0,
        unknown=int(entry.is_unknown),
        notional=cost if notional else 0,
    )


def total(amounts: Iterable[Amount]) -> Amount:
    return Amount(*map(sum, zip(Amount(), *amounts, strict=True)))


def less(one: Amount, other: Amount) -> Amount:
    return Amount(*(a - b for a, b in zip(one, other, strict=True)))


def place(scope: CapScope, session_id: str, account: Account, day: str) -> str:
    """The key under which a scope of this session is added up."""
    match scope:
        case "session":
            return session_id
        case "family":
            return account.family
        case "user_day":
            return f"{day} {account.owner}"
        case "project_month":
            return f"{day[:7]} {account.project}"


def places_of(entry: Entry) -> list[tuple[CapScope, str]]:
    account = Account(entry.family, entry.owner, entry.project)
    return [(scope, place(scope, entry.session_id, account, entry.day_utc)) for scope in SCOPES]


def reservations(drafts: Sequence[Draft]) -> list[ev.UsageReserved]:
    return [draft.body for draft in drafts if isinstance(draft.body, ev.UsageReserved)]


def refuse_over(
    caps: Sequence[Cap],
    asked: Sequence[ev.UsageReserved],
    billing: ev.Billing,
    amount: Callable[[CapScope], Amount],
) -> None:
    """`OverBudget` if a scope's `amount` and what is `asked` for pass a cap."""
    dollars = 0 if billing == "subscription" else sum(body.estimate_nanousd or 0 for body in asked)
    tokens = sum(body.input_tokens + (body.max_output_tokens or 0) for body in asked)
    for cap in caps if asked else ():
        there = amount(cap.scope)
        if cap.nanousd is not None:
            _refuse(cap, "nanousd", cap.nanousd, there.settled, there.reserved, dollars)
        if cap.tokens is not None:
            _refuse(cap, "tokens", cap.tokens, there.settled_tokens, there.reserved_tokens, tokens)


def _refuse(cap: Cap, unit: str, limit: int, settled: int, reserved: int, estimate: int) -> None:
    if settled + reserved + estimate <= limit:
        return
    facts = {"settled": settled, "reserved": reserved, "estimate": estimate, "limit": limit, "unit": unit}
    raise OverBudget(
        f"the call would pass the cap of {cap.rule_id} on the {cap.scope.replace('_', ' ')}: "
        f"{settled} {unit} used, {reserved} reserved, {estimate} asked for, {limit} allowed",
        hint="raise the budget or the rule's limit, or wait for what is reserved to settle",
        cap={"rule_id": cap.rule_id, "scope": cap.scope, **facts},
    )


# Reporting.


def grouped(entries: Iterable[Entry], by: UsageBy) -> list[JSON]:
    """`Log.usage` of settled entries."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(getattr(entry, COLUMN_OF[by]), []).append(entry)
    return [_usage_of(key, groups[key]) for key in sorted(groups)]


def _usage_of(key: str, entries: Sequence[Entry]) -> JSON:
    billed = [entry for entry in entries if entry.billing != "subscription"]
    amount = total(map(amount_of, entries))
    tokens = [sum(getattr(entry, name) for entry in entries) for name in TOKENS]
    priced = sum(entry.nano_usd is not None for entry in billed)
    return usage_row(key, len(entries), tokens, amount.settled, priced, amount.unknown, amount.notional)


def usage_row(
    key: str, calls: int, tokens: Sequence[int], cost: int, priced: int, unknown: int, notional: int
) -> JSON:
    """`priced`: how many calls `cost` is of. Without any, it is unknown unless nothing of it is missing."""
    row: dict[str, Any] = {"key": key, "calls": calls, **dict(zip(TOKENS, tokens, strict=True))}
    row["cost_nanousd"] = cost if priced or not unknown else None
    return row | {"unknown_calls": unknown, "notional_nanousd": notional}
