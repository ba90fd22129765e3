"""What the policies say to a call, asked for one session: the engine's answer, or doubt where it has none."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

from omnigent import events as ev
from omnigent.events import JSON, Draft
from omnigent.harnesses import HARNESSES
from omnigent.house import House
from omnigent.metering import CapScope, Spend
from omnigent.policies import engine
from omnigent.policies.contract import Asked, Call, Setting, Verdict
from omnigent.policies.foreign import within
from omnigent.policies.state import TreeState
from omnigent.views import SessionView

logger = logging.getLogger(__name__)

DECIDE_SECONDS = 5.0
"""An operator's own function that has no answer by then is doubt. It runs in a thread: the server goes on."""
DOUBT = "builtin.doubt"
_THREADS = ThreadPoolExecutor(8, "deciding")
"""Apart from the server's other work, which goes on when rules hang in all of them."""


class Judge:
    def __init__(self, house: House, view: SessionView) -> None:
        self._house = house
        self._view = view
        self._loaded: str | None = None
        """The rules that are known to be compiled, by their digest."""
        self._places: tuple[str, str, tuple[str, ...]] = ("", "", ())
        """The workspace, the same with links resolved, and all that is the agent's own."""

    async def verdict(self, call: Call, spend: Mapping[CapScope, Spend] | None = None) -> Verdict:
        """The engine's verdict. What it raises, or that it takes too long, is doubt, and doubt asks; where
        nobody can answer it denies. The whole of it goes into the audit log."""
        try:
            verdict = await self._ask_engine(call, spend)
        except TimeoutError:
            verdict = self._doubt(call, "The policies didn't decide in time.")
        except Exception as error:  # whatever breaks here, nothing runs ungated
            logger.exception("the policy engine failed")
            verdict = self._doubt(call, f"The policies couldn't decide ({type(error).__name__}).")
        await self._note(call, verdict)
        return verdict

    async def _ask_engine(self, call: Call, spend: Mapping[CapScope, Spend] | None) -> Verdict:
        view = self._view
        tree = self._house.trees.of(view.root_id)
        async with tree.at(view.session_id, max(call.pos or 0, view.tree_pos)) as state:
            if self._loaded != view.policies_sha256:
                # Compiling rules and loading their language takes its time, and is no rule's slowness.
                await _in_thread(state.rules, view.session_id)
                self._loaded = view.policies_sha256
            if spend is None and self._looks_at_money(state):
                spend = await self._house.log.spend(view.session_id, self._house.clock())
            setting = self._setting(spend or {})
            if not engine.runs_foreign_code(state, view.session_id):
                return engine.decide(call, state, setting)
            return await _in_thread(within, DECIDE_SECONDS, engine.decide, call, state, setting)

    def _looks_at_money(self, state: TreeState) -> bool:
        """Money is stopped at the gateway; where that doesn't see the calls, or a rule asks, at the tools."""
        unseen = self._view.run is not None and self._view.metering != "gateway"
        return unseen or engine.reads_spend(state, self._view.session_id)

    def _setting(self, spend: Mapping[CapScope, Spend]) -> Setting:
        view, house = self._view, self._house
        at = house.clock()
        if self._places[0] != view.workspace:
            private, workspace = house.home / "run" / view.session_id, Path(view.workspace)
            self._places = (view.workspace, str(workspace.resolve()), _own(workspace, private))
        _, workspace, own = self._places
        return Setting(
            session_id=view.session_id,
            at=at,
            approvals=cast(ev.Approvals, view.approvals),
            grants=[grant for grant in view.grants if grant["until"] is None or grant["until"] > at],
            spend=spend,
            budget_nanousd=view.budget_nanousd,
            session=_session(view, workspace),
            protected=house.protected,
            own=own,
            api=house.api,
            pids=(os.getpid(),),
        )

    def _doubt(self, call: Call, reason: str) -> Verdict:
        if self._view.approvals == "deny":
            return Verdict("deny", (DOUBT,), f"{reason} Nobody can be asked in this session.")
        asked = tuple(Asked(place, (DOUBT,)) for place in range(len(call.actions)))
        return Verdict("ask", (DOUBT,), reason, asked)

    async def _note(self, call: Call, verdict: Verdict) -> None:
        body = ev.AuditDecided(
            call_id=call.item_id,
            actions=call.actions,
            verdict=verdict.decision,
            rule_ids=verdict.rule_ids,
            facts=verdict.facts,
            grant_ids=verdict.grant_ids,
        )
        turn = self._view.turn
        await self._house.audit.note(
            self._view.session_id, [Draft(body, call.item_id, turn_id=turn["id"] if turn else None)]
        )


async def _in_thread[**P, T](work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(work, *given, **named))


def protected(home: Path, person: Path) -> tuple[str, ...]:
    """What no agent may touch: Omnigent's home, and vendors' log-ins and settings."""
    vendors = [person / name for row in HARNESSES.values() for name in row.person_files]
    return tuple(str(path.resolve()) for path in (home, *vendors))


def _own(*places: Path) -> tuple[str, ...]:
    """As they are named, and with links resolved."""
    return tuple(dict.fromkeys(str(path) for place in places for path in (place, place.resolve())))


def _session(view: SessionView, workspace: str) -> JSON:
    """What rules may read of the session."""
    names = ("harness", "model", "provider", "workspace", "owner", "sandbox", "labels", "billing")
    facts: JSON = {"id": view.session_id, **{name: getattr(view, name) for name in names}}
    return facts | {"workspace": workspace}
