"""What a runner is told to start an agent, and what the agent is told of the conversation so far."""

import asyncio
from dataclasses import asdict

from omnigent import carry
from omnigent.config import child_environment
from omnigent.events import JSON
from omnigent.history import History
from omnigent.house import House
from omnigent.providers import choose, payer, upstream
from omnigent.registry import harness as find_harness
from omnigent.views import SessionView


async def launch_frame(
    house: House, view: SessionView, name: str, provider: str | None, model: str | None
) -> JSON:
    """All a runner needs, the real key included: it travels on the link alone.

    Raises what makes the start impossible: `MissingBinary`, `ProviderMissing`, `WireMismatch`.
    """
    harness = find_harness(name)
    binary = harness.locate(house.home)
    choice = choose(house.config, harness, provider, model)
    native = _resumable(view, name)
    history, dropped = History(), list[str]()
    if native is None:
        history, dropped = carry.fit(await _history(house, view), choice.provider.context_tokens)
    epoch = await house.log.take_epoch(view.session_id)
    source = await asyncio.to_thread(upstream, choice.provider, house.home)
    runner = house.config.runner
    return {
        "type": "launch",
        "session_id": view.session_id,
        "run": house.new_id("run"),
        "epoch": epoch,
        "home": str(house.home),
        "harness": name,
        "provider": choice.name,
        "billing": choice.provider.billing,
        "credential": payer(choice.provider),
        "secrets": await house.known_secrets(),
        "model": choice.model,
        "workspace": view.workspace,
        "private": str(house.private(view.session_id, name)),
        "binary": asdict(binary),
        "upstream": asdict(source),
        "placeholder": f"omnigent-{house.new_id('run')[4:]}",
        "environment": child_environment(house.environ, house.config.environment),
        "native_ref": native,
        "history": history.model_dump(mode="json") if history.entries else None,
        "dropped": dropped,
        "covers_seq": view.as_of_seq,
        "checkpoint": view.checkpoint and {k: view.checkpoint[k] for k in ("head", "tree")},
        "mcp_servers": [
            {"name": server} | row.model_dump(mode="json") for server, row in house.config.mcp_servers.items()
        ],
        "prices": {model: row.model_dump() for model, row in choice.provider.prices.items()},
        "grace_seconds": runner.grace_seconds,
        "stall_seconds": runner.stall_seconds,
    }


def _resumable(view: SessionView, name: str) -> str | None:
    """The harness's native session, if it holds all that was said."""
    native = view.native.get(name)
    return native["ref"] or None if native is not None and not native["stale"] else None


async def _history(house: House, view: SessionView) -> History:
    """In the order of the conversation: a message that waited in the queue stands where it was taken."""
    found: list[tuple[int, JSON]] = []
    before: int | None = None
    while page := await house.log.items(view.session_id, before=before, limit=1000):
        found += [(row.data.get("place", row.pos), row.data) for row in page]
        before = page[-1].pos
    found.reverse()
    items = [data for _, data in sorted(found, key=lambda entry: entry[0])]
    current = view.turn["message_id"] if view.turn else None
    return carry.history_of((item for item in items if item["id"] != current), house.blobs.get)
