"""Fixtures every test may use, and which tests are slow. One async backend: asyncio."""

import signal
from pathlib import Path

import pytest

for _number, _handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) == signal.SIG_IGN:  # by nohup or a background job: programs would inherit it
        signal.signal(_number, _handler)

CHECKOUT = Path(__file__).resolve().parent.parent
REAL_AGENTS = {"binary", "newest", "lab", "agents_home"}
"""Fixtures that stand for an installed agent: whoever uses one runs in the long lane."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and REAL_AGENTS & set(item.fixturenames):
            item.add_marker("slow")
    # What waits longest begins first, beside everything else.
    items.sort(key=lambda item: not item.get_closest_marker("first"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def agents_home(tmp_path: Path) -> Path:
    """A home with the checkout's real agents in it."""
    agents = CHECKOUT / ".tools" / "harnesses"
    assert agents.is_dir(), "The agents aren't installed: run ./dev setup"
    home = tmp_path / "agents-home"
    home.mkdir()
    (home / "harnesses").symlink_to(agents)
    return home
