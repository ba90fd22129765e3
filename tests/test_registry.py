"""Names of harnesses: canonical, aliased, misspelt."""

import pytest

from omnigent.errors import UnknownHarness
from omnigent.harnesses import HARNESSES
from omnigent.registry import harness, harness_name, harness_names


@pytest.mark.parametrize(
    ("name", "canonical"), [("claude-code", "claude-code"), ("claude", "claude-code"), ("pi", "pi")]
)
def test_aliases_lead_to_the_canonical_name(name: str, canonical: str) -> None:
    assert harness_name(name) == canonical
    assert harness(name).name == canonical


@pytest.mark.parametrize(
    ("name", "hint"), [("claud", "claude"), ("codx", "codex"), ("", "Known"), ("zzz", "Known")]
)
def test_an_unknown_name_is_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UnknownHarness) as unknown:
        harness_name(name)
    assert hint in unknown.value.hint
    assert unknown.value.facts["allowed"] == harness_names()


@pytest.mark.parametrize("name", list(HARNESSES))
def test_every_row_loads_and_keeps_its_promises(name: str) -> None:
    adapter = harness(name)
    assert adapter.name == name
    assert adapter.wires and adapter.tools
    assert adapter is harness(name)
    gated = [tool for tool, row in adapter.tools.items() if row.kind == "gated"]
    assert gated, "a harness whose tools pass no gate"


def test_no_alias_hides_another_harness() -> None:
    words = [word for name, row in HARNESSES.items() for word in (name, *row.aliases)]
    assert len(words) == len(set(words))
