"""The policies that come with Omnigent, one file each: name → what makes it from a rule's `with:`.

`protect` isn't in the table: the engine puts it beside every set of rules, and no rule takes it away.
"""

from collections.abc import Callable

from omnigent.events import JSON
from omnigent.policies.contract import Policy

BUILTINS: dict[str, Callable[[JSON], Policy]] = {}
"""Each raises `PolicyInvalid` for parameters it doesn't know; the language adds where they stand."""

DEFAULTS = """\
policies: []
"""
"""The rules that are on for everyone, in the language of rules; their scope is `builtin`."""
