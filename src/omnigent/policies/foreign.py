"""An operator's own code may raise, exit and hang: it is in doubt then, and the server goes on."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, cast

from omnigent.actions import Action
from omnigent.events import JSON, Event
from omnigent.policies.contract import Facts, Opinion, Policy

LOAD_SECONDS = 20.0
"""For its import."""
OBSERVE_SECONDS = 1.0
"""Longer than this no event waits for a policy to take note of it."""


class RuleExited(Exception):
    """A rule tried to end the server."""


def within[**P, T](seconds: float, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What `work` comes to. Raises what it raises, `RuleExited` for an exit, and `TimeoutError`.

    Blocks. Work that hangs is left behind in a thread that keeps nobody from ending the process."""
    ended: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((True, work(*given, **named)))
        except BaseException as error:  # noqa: BLE001  whatever it is belongs to who waits
            ended.put((False, error))

    Thread(target=run, name="foreign", daemon=True).start()
    try:
        done, value = ended.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if done:
        return value
    if isinstance(value, Exception):
        raise value
    raise RuleExited(type(value).__name__) from value


def load(point: EntryPoint, given: JSON) -> Policy:
    """The policy that an entry point makes of a rule's `with:`. Raises whatever it raises, as `within`."""

    def make() -> Policy:
        return cast(Policy, point.load()(given))

    return Foreign(within(LOAD_SECONDS, make))


class Foreign:
    """A `function` policy. Only its `observe` is watched over here: who asks it to decide sees to that."""

    def __init__(self, policy: Policy) -> None:
        self.id = policy.id
        self.types = policy.types
        self.empty = policy.empty
        self._policy = policy

    def observe(self, memory: Any, event: Event, tree: JSON) -> Any:
        return within(OBSERVE_SECONDS, self._policy.observe, memory, event, tree)

    def decide(self, action: Action, facts: Facts) -> Opinion | None:
        return self._policy.decide(action, facts)
