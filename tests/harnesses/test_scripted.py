"""The scripted agent under the suite: the same cases as the real agents, in the quick lane."""

from pathlib import Path

from omnigent.testing.harness_suite import HarnessSuite


class TestScripted(HarnessSuite):
    harness = "scripted"
    expected_file = Path(__file__).with_name("expected_capabilities.json")
    hold_seconds = 2.0
