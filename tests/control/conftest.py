"""A whole server with real agents, under rules."""

from collections.abc import Callable, Generator

import pytest
from support import JSON, House, fresh_home


@pytest.fixture
def house() -> Generator[Callable[[JSON], House]]:
    """Makes a house for a script and starts its server."""
    houses: list[House] = []

    def make(script: JSON) -> House:
        made = House(fresh_home("control"), script)
        houses.append(made)
        made.start()
        return made

    yield make
    for made in houses:
        made.close()
