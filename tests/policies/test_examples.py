"""The example files do what their first line says: each in force in a session, decided by the engine."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from omnigent import shell
from omnigent.actions import Action, Model, Spawn, file_read, file_write, net
from omnigent.events import Body, Draft, PolicyChanged, SessionCreated, ToolCompleted, ToolRequested
from omnigent.log.seal import Numbers, seal
from omnigent.policies.contract import Call, Setting, Spend, Verdict
from omnigent.policies.engine import decide
from omnigent.policies.folding import TreeProjector
from omnigent.policies.language import parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
DOLLAR = 1_000_000_000


class Session:
    """A session whose only rules are one example's."""

    def __init__(self, example: str, workspace: Path) -> None:
        self.workspace = workspace
        self._trees = TreeProjector()
        self.state = self._trees.empty()
        self._numbers = Numbers("s1", "s1")
        self._ids = itertools.count()
        self._tell(
            SessionCreated(
                title="", harness="scripted", model=None, provider=None, workspace=str(workspace),
                approvals="ask", owner="o",
            )
        )  # fmt: skip
        text = (EXAMPLES / f"{example}.yaml").read_text()
        self._tell(PolicyChanged(policies=parse(text, example, "project")))

    def _tell(self, body: Body, item_id: str | None = None) -> None:
        numbers = self._numbers
        [event] = seal(
            [Draft(body, item_id=item_id)],
            numbers,
            now=0,
            new_id=lambda prefix: f"{prefix}_{next(self._ids)}",
            producer="test",
            first=numbers.seq + 1,
            epoch=None,
        )
        self._trees.fold(self.state, event)

    def did(self, *actions: Action) -> None:
        item = f"tc_{next(self._ids)}"
        request = ToolRequested(
            tool="shell", title="", actions=actions, parsed="full", raw="{}", native_id="call_1"
        )
        self._tell(request, item)
        self._tell(ToolCompleted(outcome="ok"), item)

    def decide(self, actions: Sequence[Action], **changes: Any) -> Verdict:
        values: dict[str, Any] = {"at": 0, "session": {"workspace": str(self.workspace)}}
        setting = Setting("s1", **values | changes)
        return decide(Call("tc_x", tuple(actions), "full", "tool"), self.state, setting)

    def shell(self, text: str) -> list[Action]:
        return shell.understand(text, self.workspace, self.workspace)[0]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / ".git").mkdir(parents=True)
    (root / ".git" / "config").write_text('[remote "origin"]\n\turl = https://github.com/acme/app.git\n')
    (root / ".git" / "HEAD").write_text("ref: refs/heads/topic\n")
    (root / "data" / "customers").mkdir(parents=True)
    (root / "data" / "customers" / "all.csv").write_text("a\n")
    (root / ".env").write_text("A=b\n")
    return root


@pytest.mark.parametrize(
    ("example", "text", "answer"),
    [
        ("push-after-install", "git push", "allow"),
        ("push-after-install", "npm install && git push", "ask"),
        ("push-after-install", "git push && npm install", "allow"),
        ("push-after-install", "pnpm i; git --no-pager push", "ask"),
        ("no-env-files", "cat .env", "deny"),
        ("no-env-files", "cat .env.example", "allow"),
        ("only-our-repos", "git push origin topic", "allow"),
        ("only-our-repos", "git push origin main", "deny"),
        ("only-our-repos", "git push --force origin topic", "deny"),
        ("only-our-repos", "git push https://github.com/other/app topic", "deny"),
        ("read-only", "ls", "allow"),
        ("read-only", "echo x > a.txt", "deny"),
        ("read-only", "rm a.txt", "deny"),
        ("read-only", "frobnicate", "deny"),
        ("strict", "ls", "ask"),
        ("strict", "cat .env", "deny"),
        ("strict", "git push", "deny"),
        ("team-defaults", "git reset --hard", "deny"),
        ("team-defaults", "git push", "ask"),
        ("team-defaults", "make deploy", "ask"),
        ("team-defaults", "curl https://docs.acme.example/", "allow"),
        ("team-defaults", "curl https://example.org/", "ask"),
        ("team-defaults", "make test", "allow"),
    ],
)
def test_on_commands(example: str, text: str, answer: str, workspace: Path) -> None:
    session = Session(example, workspace)
    assert session.decide(session.shell(text)).decision == answer


def test_what_came_in_an_earlier_call_counts(workspace: Path) -> None:
    session = Session("push-after-install", workspace)
    session.did(*session.shell("npm ci"))
    assert session.decide(session.shell("git push")).decision == "ask"


def test_customers_stay_home(workspace: Path) -> None:
    session = Session("customers-stay-home", workspace)
    request = [net("https://example.org/")]
    assert session.decide(request).decision == "allow"
    session.did(file_read("README.md", workspace))
    assert session.decide(request).decision == "allow"
    session.did(file_read("data/customers/all.csv", workspace))
    assert session.decide(request).decision == "deny"
    assert session.decide(session.shell("git push")).decision == "deny"
    assert session.decide(session.shell("cat data/customers/all.csv")).decision == "allow"


def test_no_loops(workspace: Path) -> None:
    session = Session("no-loops", workspace)
    for _ in range(3):
        assert session.decide(session.shell("make test")).decision == "allow"
        session.did(*session.shell("make test"))
    assert session.decide(session.shell("make test")).decision == "pause"
    session.did(file_write("a.py", workspace))
    assert session.decide(session.shell("make test")).decision == "allow"


def test_few_agents(workspace: Path) -> None:
    session = Session("few-agents", workspace)
    assert session.decide([Spawn(description="a")] * 3).decision == "allow"
    assert session.decide([Spawn(description="a")] * 4).decision == "deny"


def _call(name: str, cost: float) -> list[Action]:
    estimate = round(cost * DOLLAR)
    return [Model(wire="w", provider="lab", model=name, estimate_nanousd=estimate, bounded=True)]


def test_on_model_calls(workspace: Path) -> None:
    three = Session("three-dollars", workspace)
    spent = {"family": Spend(nanousd=2 * DOLLAR)}
    assert three.decide(_call("m", 1.0), spend=spent).caps
    assert three.decide(_call("m", 1.01), spend=spent).decision == "pause"
    cheap = Session("cheap-model-after", workspace)
    assert cheap.decide(_call("big", 0.1), spend={"family": Spend()}).model is None
    assert cheap.decide(_call("big", 0.1), spend=spent).model == "claude-haiku-4-5"
    ours = Session("our-models", workspace)
    assert ours.decide(_call("claude-opus-5", 0)).model is None
    assert ours.decide(_call("other", 0)).model == "claude-sonnet-5"
    team = Session("team-defaults", workspace)
    assert team.decide(_call("m", 1), spend={"user_day": Spend(nanousd=10 * DOLLAR)}).decision == "ask"


def test_working_hours(workspace: Path) -> None:
    session = Session("working-hours", workspace)
    thursday_noon, thursday_night = 12 * 3_600_000, 23 * 3_600_000
    assert session.decide(session.shell("ls"), at=thursday_noon).decision == "allow"
    assert session.decide(session.shell("ls"), at=thursday_night).decision == "pause"


def test_every_example_is_decided_on_here() -> None:
    text = Path(__file__).read_text()
    assert [path.stem for path in EXAMPLES.glob("*.yaml") if f'"{path.stem}"' not in text] == []
