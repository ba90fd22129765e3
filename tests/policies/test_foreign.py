"""An operator's own code in the log's hands: whatever it does, the log goes on and the rule is in doubt."""

import threading
from collections.abc import Callable, Generator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from policies.test_engine import judge, rules

from omnigent.errors import PolicyInvalid
from omnigent.events import PolicyEntry
from omnigent.policies import foreign, loading


class Mine:
    id = ""
    types = frozenset({"exec"})

    def __init__(self, observe: Callable[[], None]) -> None:
        self._observe = observe

    def empty(self) -> Any:
        return {}

    def observe(self, memory: Any, event: Any, tree: Any) -> Any:
        self._observe()
        return memory

    def decide(self, action: Any, facts: Any) -> Any:
        return None


@pytest.fixture
def hang() -> Generator[Callable[[], None]]:
    over = threading.Event()

    def wait() -> None:
        over.wait(60)

    yield wait
    over.set()


def raises() -> None:
    raise RuntimeError("badly written")


def exits() -> None:
    raise SystemExit(3)


def install(monkeypatch: pytest.MonkeyPatch, make: Callable[[Any], Any]) -> None:
    class Point(EntryPoint):
        def load(self) -> Any:
            return make

    def points(**_: str) -> list[EntryPoint]:
        return [Point(name="mine", value="x:Y", group=loading.GROUP)]

    monkeypatch.setattr(loading, "entry_points", points)


def rule(fault: str) -> tuple[PolicyEntry, ...]:
    """Of its own content for each test: what is loaded is kept."""
    return rules(f"{{name: r, function: mine, with: {{fault: {fault}}}}}")


def test_a_function_that_behaves_has_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda _: Mine(lambda: None))
    assert judge(rule("none"), "ls").decision == "allow"


@pytest.mark.parametrize("fault", ["raises", "exits", "hangs"])
def test_what_breaks_as_it_observes_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch, hang: Callable[[], None], fault: str
) -> None:
    monkeypatch.setattr(foreign, "OBSERVE_SECONDS", 0.05)
    work = {"raises": raises, "exits": exits, "hangs": hang}[fault]
    install(monkeypatch, lambda _: Mine(work))
    verdict = judge(rule(fault), "ls")
    assert (verdict.decision, verdict.rule_ids) == ("ask", ("builtin.doubt",))
    assert "session.r" in verdict.reason


def test_one_that_exits_as_it_loads_is_no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_: Any) -> Any:
        raise SystemExit(3)

    install(monkeypatch, make)
    with pytest.raises(PolicyInvalid, match="RuleExited"):
        rule("loading")
