"""A runner whose server is of another version: the program was replaced under a running server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rooms import open_room, plays

from omnigent.events import JSON, HarnessExited, TurnFailed
from omnigent.house import House
from omnigent.launching import launch_frame
from omnigent.views import SessionView

pytestmark = pytest.mark.anyio


def _without_prices(frame: JSON) -> JSON:
    return {name: value for name, value in frame.items() if name != "prices"}


def _with_a_new_field(frame: JSON) -> JSON:
    return frame | {"upstream": frame["upstream"] | {"region": "eu"}}


def _with_another_history(frame: JSON) -> JSON:
    return frame | {"history": {"entries": "none"}}


@pytest.mark.parametrize("change", [_without_prices, _with_a_new_field, _with_another_history])
async def test_a_launch_that_cannot_be_read_fails_the_start_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[JSON], JSON]
) -> None:
    async def of_another_version(
        house: House, view: SessionView, name: str, provider: str | None, model: str | None
    ) -> JSON:
        return change(await launch_frame(house, view, name, provider, model))

    async with open_room(tmp_path, plays({"text": "Hello."})) as room:
        with monkeypatch.context() as patch:
            patch.setattr("omnigent.driving.launch_frame", of_another_version)
            await room.do("prompt", text="first")
            failed = (await room.until("turn.failed")).body
        assert isinstance(failed, TurnFailed)
        assert failed.code == "start_failed"
        assert "of different versions. Run `omnigent server stop`" in failed.detail
        exited = (await room.until("harness.exited")).body
        assert isinstance(exited, HarnessExited) and exited.reason == "failed_to_start"
        await room.hub.nobody()
        await room.do("prompt", text="second")  # nothing is stuck
        await room.until("turn.completed")
        kinds = await room.kinds()
        assert (kinds.count("harness.exited"), kinds.count("turn.failed")) == (1, 1)
