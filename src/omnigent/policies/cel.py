"""CEL, loaded when the first rule needs it.

The library takes up to a second to come, and a server whose rules are all built in never needs it.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import cel


@cache
def _library() -> Any:
    return importlib.import_module("cel")


@cache
def program(source: str) -> "cel.Program":
    """Compiled. `ValueError` says what is wrong with the text."""
    return cast("cel.Program", _library().compile(source))


def context() -> "cel.Context":
    return cast("cel.Context", _library().Context())
