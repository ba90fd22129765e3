"""Fixtures every test may use. One async backend: asyncio."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
