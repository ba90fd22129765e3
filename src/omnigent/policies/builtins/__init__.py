"""The policies that come with Omnigent, one file each: name → what makes it from a rule's `with:`.

`protect` isn't in the table: the engine puts it beside every set of rules, and no rule takes it away.
"""

from collections.abc import Callable
from typing import Any

from omnigent.events import JSON
from omnigent.policies.builtins._base import Builtin
from omnigent.policies.builtins.approve import Approve
from omnigent.policies.builtins.blast_radius import BlastRadius
from omnigent.policies.builtins.github import Github
from omnigent.policies.builtins.hours import Hours
from omnigent.policies.builtins.loop import Loop
from omnigent.policies.builtins.models import Models
from omnigent.policies.builtins.rate import Rate
from omnigent.policies.builtins.reach import Reach
from omnigent.policies.builtins.secrets import Secrets
from omnigent.policies.builtins.sequence import Sequence
from omnigent.policies.builtins.spawn_bounds import SpawnBounds
from omnigent.policies.builtins.spend import SpendLimit
from omnigent.policies.contract import Policy

_ALL: tuple[type[Builtin[Any]], ...] = (
    Approve,
    BlastRadius,
    Github,
    Hours,
    Loop,
    Models,
    Rate,
    Reach,
    Secrets,
    SpawnBounds,
    SpendLimit,
)

BUILTINS: dict[str, Callable[[JSON], Policy]] = {each.NAME: each.build for each in _ALL}
BUILTINS[Sequence.NAME] = Sequence.build
"""Each raises `PolicyInvalid` for parameters it doesn't know; the language adds where they stand."""

DEFAULTS = """\
policies:
  # Ask for commands that aren't everyday, writes outside the workspace and /tmp, hosts, MCP, hosted tools.
  - {name: approve, use: approve, with: {paths: ["/tmp/**"]}}
  # Ask for files that hold credentials, and for writes that run later or change the agent's own rules.
  - {name: reach, use: reach}
  # Ask before deleting trees, rewriting history, publishing, changing the machine or a database.
  - {name: blast_radius, use: blast_radius}
  # Ask when a secret stands in a command, a request or a tool's arguments.
  - {name: secrets, use: secrets}
  # Ask when the same call is made over and over.
  - {name: loop, use: loop}
  # Ask when sub-agents go deep or become many.
  - {name: spawn_bounds, use: spawn_bounds}
"""
"""The rules that are on for everyone, in the language of rules; their scope is `builtin`."""
