"""The generated pages are those the code makes, and the suite's results are those of this code."""

import json
import runpy
from pathlib import Path

import pytest

from omnigent.registry import harness as find_harness
from omnigent.testing.harness_suite import CASES

DOCS = Path(__file__).resolve().parent.parent / "docs"
HARNESSES = Path(__file__).with_name("harnesses")
PAGES: dict[str, str] = runpy.run_path(str(DOCS / "generate.py"))["pages"]()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_as_generated(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name], f"docs/{name} is stale: run python docs/generate.py"


@pytest.mark.parametrize("name", ["claude-code", "codex", "pi", "scripted"])
def test_results_are_of_this_suite_at_both_ends_of_the_range(name: str) -> None:
    expected = json.loads((HARNESSES / "expected_capabilities.json").read_text())[name]
    results = json.loads((HARNESSES / "results.json").read_text())[name]
    assert set(results) == set(find_harness(name).versions)
    outcomes = {
        case: "yes" if all(expected[need] for need in needs) else "no" for case, needs in CASES.items()
    }
    for version in results:
        assert results[version] == outcomes, (
            f"{name} {version}: run the suite anew (docs/generate.py says how)"
        )
