"""What the real agents do when the gateway doesn't let a call out: they say why, and don't try again."""

import asyncio
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from harnesses import test_claude_code, test_codex, test_pi
from model_calls import Book

from omnigent.gateway import Gateway
from omnigent.harnesses import Wire
from omnigent.metering import Grant
from omnigent.providers import Upstream
from omnigent.registry import harness
from omnigent.testing.harness_rig import Rig, open_rig
from omnigent.testing.harness_suite import HarnessSuite

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(180)]

REASON = "three-dollars: 3.01 of 3.00 USD are spent"
SCRIPT: dict[str, Any] = {"turns": [{"steps": [{"text": "Hello."}]}]}


@dataclass(frozen=True, slots=True)
class Agent:
    suite: type[HarnessSuite]
    wire: Wire


AGENTS = [
    Agent(test_claude_code.TestNewest, "anthropic-messages"),
    Agent(test_codex.TestNewest, "openai-responses"),
    Agent(test_pi.TestPi, "anthropic-messages"),
    Agent(test_pi.TestPi, "openai-responses"),
    Agent(test_pi.TestPi, "openai-chat"),
]


async def one_turn(rig: Rig, agent: Agent, book: Book) -> tuple[float, str]:
    """Seconds that a turn took, and everything that was told in it, as text."""
    listener = socket.create_server(("127.0.0.1", 0))
    base_url = rig.model.url if agent.wire == "anthropic-messages" else f"{rig.model.url}/v1"
    gateway = Gateway(Upstream(agent.wire, base_url, {}), rig.launch.placeholder, listener, book)
    await gateway.start()
    rig.launch = replace(rig.launch, gateway_url=gateway.url(agent.wire))
    try:
        await rig.open()
        began = asyncio.get_running_loop().time()
        turn = await rig.start("Say hello.")
        await rig.end(turn, 120)
        return asyncio.get_running_loop().time() - began, str(turn.outputs)
    finally:
        await rig.close()
        await gateway.close()


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: f"{agent.suite.harness}-{agent.wire}")
@pytest.mark.parametrize("outcome", ["paused", "denied"])
async def test_a_call_that_is_not_granted_is_not_tried_again(
    agent: Agent, outcome: Literal["paused", "denied"], tmp_path: Path
) -> None:
    suite, book = agent.suite(), Book()
    book.grant = Grant(outcome, REASON)
    adapter = harness(suite.harness)
    async with open_rig(adapter, suite.binary(), agent.wire, suite.model, SCRIPT, tmp_path) as rig:
        took, told = await one_turn(rig, agent, book)
        assert rig.requests() == []
    assert len(book.calls) == 1
    assert book.settled == []
    assert took < 10  # tries that are spread out take longer
    # Codex has words of its own for this one.
    generic = suite.harness == "codex" and outcome == "paused"
    assert ("Quota exceeded." if generic else REASON) in told
