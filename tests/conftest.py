"""Fixtures every test may use. One async backend: asyncio."""

from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


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
