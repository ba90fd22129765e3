"""The ledger, whatever happens in whatever order: its parts add up, caps hold, a replay gives the same."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnigent.errors import OverBudget
from omnigent.events import Draft, HarnessStarted, UsageReported, UsageReserved
from omnigent.log import Log, MemoryLog, SqliteLog, UsageBy
from omnigent.metering import Cap, CapScope, Spend
from omnigent.testing.control_suite import reported, reserved, started
from omnigent.testing.log_rig import Hands, SuiteProjector, created, forked, read_all

DAY = 86_400_000
SOURCES: tuple[UsageBy, ...] = get_args(UsageBy)
SCOPES: tuple[CapScope, ...] = get_args(CapScope)
COUNTED = ("calls", "input_tokens", "output_tokens", "unknown_calls", "notional_nanousd")

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Step(NamedTuple):
    """One thing that happens, in one of the sessions there are by then."""

    what: str
    session: int
    call: int
    cost: int | None
    tokens: int
    billing: str
    model: str


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["reserve", "report", "report", "told", "start", "child", "fork", "alone", "wait"]),
        st.integers(0, 5),
        st.integers(0, 12),
        st.none() | st.integers(0, 10**10),
        st.integers(0, 2**40),
        st.sampled_from(["metered", "subscription", "unknown"]),
        st.sampled_from(["model-1", "model-2"]),
    ),
    max_size=40,
)


class World:
    """Sessions of a few families, and what is done to them."""

    def __init__(self, log: Log, clock: Hands) -> None:
        self.log, self.clock, self.sessions = log, clock, ["ses_0"]
        self.roots = {"ses_0": "ses_0"}

    async def run(self, script: Sequence[Step]) -> None:
        await self.log.create("ses_0", [created()])
        for step in script:
            await self.take(step)

    async def take(self, step: Step) -> None:
        session_id = self.sessions[step.session % len(self.sessions)]
        call, fresh = f"call_{step.call}", f"ses_{len(self.sessions)}"
        match step.what:
            case "wait":
                self.clock.at += DAY // 3
            case "child" | "fork" | "alone":
                await self.make(step.what, session_id, fresh, step.call)
            case _:
                await self.log.append(session_id, [self.draft(step, call)])

    def draft(self, step: Step, call: str) -> Draft:
        if step.what == "start":
            return started(billing=step.billing, metering="gateway" if step.call % 2 else "harness")
        if step.what == "reserve":
            return reserved(call, step.cost, step.tokens)
        source = "harness" if step.what == "told" else "gateway"
        tokens = {"input_tokens": step.tokens, "model": step.model, "billing": step.billing}
        return reported(call, step.cost, source=source, **tokens)

    async def make(self, what: str, session_id: str, fresh: str, owner: int) -> None:
        whose = {"owner": f"owner {owner % 2}", "workspace": f"/{owner % 3}"}
        theirs = created().body.model_copy(update=whose)
        root = self.roots[session_id] if what == "child" else None
        if what == "fork":
            events = await read_all(self.log, session_id)
            await self.log.fork(session_id, len(events), fresh, [forked(session_id, events[-1])])
        else:
            await self.log.create(fresh, [Draft(theirs)], root_id=root)
        self.sessions.append(fresh)
        self.roots[fresh] = root or fresh

    async def everything(self) -> dict[str, Any]:
        """All that the ledger says."""
        found: dict[str, Any] = {by: await self.log.usage(by) for by in SOURCES}
        for session_id in self.sessions:
            spend = await self.log.spend(session_id, self.clock.at)
            found[session_id] = spend, await self.log.reserved(session_id)
        return found


def with_sqlite(work: Callable[[Log, Hands], Awaitable[None]]) -> None:
    """Run it on a fresh SQLite log."""

    async def run(home: Path) -> None:
        clock = Hands()
        log = SqliteLog(home / "omnigent.db", SuiteProjector(), clock)
        try:
            await work(log, clock)
        finally:
            await log.close()

    with TemporaryDirectory() as home:
        asyncio.run(run(Path(home)))


@few
@given(steps)
def test_parts_add_up_to_the_whole_whatever_they_are(script: list[Step]) -> None:
    async def work(log: Log, clock: Hands) -> None:
        world = World(log, clock)
        await world.run(script)
        sums: list[dict[str, int]] = []
        for by in SOURCES:
            rows = await log.usage(by)
            billed = sum(row["cost_nanousd"] or 0 for row in rows)
            sums.append({name: sum(row[name] for row in rows) for name in COUNTED} | {"billed": billed})
        # In time: any cut leaves nothing out and counts nothing twice.
        cut = clock.at - DAY
        rows = [*await log.usage("model", until=cut), *await log.usage("model", since=cut)]
        billed = sum(row["cost_nanousd"] or 0 for row in rows)
        sums.append({name: sum(row[name] for row in rows) for name in COUNTED} | {"billed": billed})
        assert all(part == sums[0] for part in sums)
        await check_families(world)

    with_sqlite(work)


async def check_families(world: World) -> None:
    """A family has spent what its sessions have."""
    spend = {session_id: await world.log.spend(session_id, 0) for session_id in world.sessions}
    families: dict[str, list[Spend]] = {}
    for session_id in world.sessions:
        families.setdefault(await world.log.family(session_id), []).append(spend[session_id]["session"])
    for family, members in families.items():
        whole = spend[family]["family"]
        assert whole.nanousd == sum(one.nanousd for one in members)
        assert whole.tokens == sum(one.tokens for one in members)
        assert whole.unknown == sum(one.unknown for one in members)
        assert whole.notional == sum(one.notional for one in members)


@few
@given(steps)
def test_a_replay_and_another_log_say_the_same(script: list[Step]) -> None:
    """Live, rebuilt, and in the reference: one ledger."""

    async def work(log: Log, clock: Hands) -> None:
        world = World(log, clock)
        await world.run(script)
        live = await world.everything()
        reference = World(MemoryLog(SuiteProjector(), other := Hands()), other)
        await reference.run(script)
        assert await reference.everything() == live
        for session_id in world.sessions[::2]:
            await log.rebuild(session_id)
        assert await world.everything() == live
        await check_entries(world)

    with_sqlite(work)


async def check_entries(world: World) -> None:
    """By hand: the first report of a call that counts is what it cost, and ends its reservation."""
    for session_id in world.sessions:
        open_calls, costs, metering = set[str](), dict[str, int | None](), "harness"
        for event in await read_all(world.log, session_id):
            body = event.body
            if event.session_id != session_id:
                continue
            if isinstance(body, HarnessStarted):
                metering = body.metering
            elif isinstance(body, UsageReserved) and body.call_id not in costs:
                open_calls.add(body.call_id)
            elif isinstance(body, UsageReported) and body.source not in ("gateway", metering):
                continue
            elif isinstance(body, UsageReported):
                costs.setdefault(body.call_id, body.cost_nanousd)
        rows = await world.log.usage("session", session_id=session_id)
        told = sum((row["cost_nanousd"] or 0) + row["notional_nanousd"] for row in rows)
        assert sum(row["calls"] for row in rows) == len(costs)
        assert told == sum(cost or 0 for cost in costs.values())
        assert set(await world.log.reserved(session_id)) == open_calls - set(costs)


# Caps.


class Request(NamedTuple):
    session: int
    estimate: int
    used: float
    """Of the estimate: a bounded call never uses more."""


requests = st.lists(
    st.builds(Request, st.integers(0, 3), st.integers(0, 400), st.floats(0, 1)), min_size=1, max_size=40
)


@few
@given(requests, st.integers(0, 1500))
def test_racing_sessions_never_pass_a_cap(asked: list[Request], limit: int) -> None:
    """Settled and reserved stay within it at every moment, and what fits is let through."""

    async def work(log: Log, clock: Hands) -> None:
        sessions = await family_of_four(log)
        refused: list[tuple[Request, dict[str, Any]]] = []

        async def watch() -> None:
            spend = (await log.spend(sessions[0], clock.at))["family"]
            assert spend.nanousd <= limit

        async def call(number: int, request: Request) -> None:
            session_id, cap = sessions[request.session], Cap("family", "limit", nanousd=limit)
            draft = reserved(f"call_{number}", request.estimate)
            try:
                await log.append(session_id, [draft], caps=[cap])
            except OverBudget as error:
                refused.append((request, error.facts["cap"]))
                return
            await watch()
            used = int(request.used * request.estimate)
            await log.append(session_id, [reported(f"call_{number}", used)])
            await watch()

        await asyncio.gather(*(call(number, request) for number, request in enumerate(asked)))
        for request, cap in refused:
            assert cap["settled"] + cap["reserved"] + request.estimate > limit
        await watch()
        assert not [open_call for one in sessions for open_call in await log.reserved(one)]

    with_sqlite(work)


@few
@given(requests, st.integers(0, 1500), st.integers(0, 3000))
def test_every_cap_holds_at_once(asked: list[Request], dollars: int, tokens: int) -> None:
    numbers = count()

    async def work(log: Log, clock: Hands) -> None:
        sessions = await family_of_four(log)

        async def call(request: Request) -> None:
            session_id = sessions[request.session]
            caps = [
                *(Cap(scope, "dollars", nanousd=dollars) for scope in SCOPES),
                *(Cap(scope, "tokens", tokens=tokens) for scope in SCOPES),
            ]
            draft = reserved(f"call_{next(numbers)}", request.estimate, tokens=request.estimate, most=7)
            try:
                await log.append(session_id, [draft], caps=caps)
            except OverBudget as error:
                cap = error.facts["cap"]
                assert cap["settled"] + cap["reserved"] + cap["estimate"] > cap["limit"]
                return
            for spend in (await log.spend(session_id, clock.at)).values():
                assert spend.nanousd <= dollars
                assert spend.tokens <= tokens

        await asyncio.gather(*map(call, asked))

    with_sqlite(work)


async def family_of_four(log: Log) -> list[str]:
    """A root, its child, a fork of that, and a child of the fork."""
    await log.create("ses_0", [created(), started(metering="gateway", billing="metered")])
    await log.create("ses_1", [created()], root_id="ses_0")
    (first,) = await read_all(log, "ses_1")
    await log.fork("ses_1", 1, "ses_2", [forked("ses_1", first)])
    await log.create("ses_3", [created()], root_id="ses_2")
    return [f"ses_{number}" for number in range(4)]
