"""What a decision costs: fifty rules, over a session of ten thousand events and over one of a hundred.

The floor is the least that could be asked of Python: fifty closures over the same action. In process, the
thread's own time: a busy machine's other work doesn't count. The link to the runner is in `gate.py`.
"""

import time
from collections.abc import Callable, Sequence

from measure import Figure, Spread, compare

from omnigent import events as ev
from omnigent.actions import Action, Exec, FileRead, FileWrite, Net
from omnigent.events import SYSTEM, Body, Event, canonical, encode_body
from omnigent.policies.contract import Call, Setting
from omnigent.policies.engine import decide
from omnigent.policies.folding import TreeProjector
from omnigent.policies.language import parse
from omnigent.policies.state import TreeState

RULES = 50
P50_US = 100
LONG, SHORT = 10_000, 100


def measure_decisions(quick: bool) -> list[Figure]:
    samples = 1000 if quick else 10_000
    long, short = _session(LONG), _session(SHORT)
    calls, closures = _calls(), _closures()
    floor: list[float] = []
    ours: list[float] = []
    shorter: list[float] = []
    for place in range(samples):
        call = calls[place % len(calls)]
        setting = Setting("ses_bench", 1_700_000_000_000 + place, session={"workspace": "/w"})
        floor.append(_timed(lambda call=call: [closure(call.actions[0]) for closure in closures]))
        # In turns: whoever comes second finds the caches warm.
        pair = [(ours, long), (shorter, short)]
        for found, state in pair if place % 2 else reversed(pair):
            found.append(_timed(lambda call=call, state=state, setting=setting: decide(call, state, setting)))
    spread = Spread.of(ours)
    limit = Figure(
        f"a decision, {RULES} rules, {LONG} events",
        Spread.of(floor).text("µs"),
        spread.text("µs"),
        f"{spread.median / Spread.of(floor).median:.1f}×",
        f"< {P50_US} µs",
        spread.median < P50_US,
        blocks=True,
    )
    return [limit, compare(f"the same after {SHORT} events and after {LONG}", "µs", shorter, ours, most=1.2)]


def _timed(work: Callable[[], object]) -> float:
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1000


def _rules() -> str:
    """Of every kind: commands, what came before, files, hosts, `if`, rates."""
    lines = ["policies:"]
    programs = ("git", "npm", "cargo", "docker", "kubectl")
    for n in range(RULES // 5):
        program = programs[n % len(programs)]
        lines += [
            f"  - {{name: c{n}, when: {{exec: '{program} push{n} --force'}}, then: deny}}",
            f"  - {{name: a{n}, when: {{exec: '{program} push'}}, after: {{exec: 'npm i{n}'}}, then: ask}}",
            f"  - {{name: f{n}, when: {{read: '**/.env{n}*', write: '/etc/{n}/**'}}, then: deny}}",
            f"  - {{name: n{n}, when: {{net: '*.example{n}.org'}}, if: 'action.port == 80', then: ask}}",
            f"  - {{name: r{n}, when: {{exec: '{program} run'}}, rate: {n + 10}/1m, then: pause}}",
        ]
    return "\n".join(lines)


RULES_TEXT = _rules()
"""Fifty of them, as YAML."""


def _session(length: int) -> TreeState:
    projector = TreeProjector()
    state = projector.empty()
    entries = parse(RULES_TEXT, "bench", "session")
    opening = ev.SessionCreated(
        title="", harness="toy", model=None, provider=None, workspace="/w", approvals="ask", owner="o"
    )
    bodies: list[tuple[Body, str | None]] = [(opening, None), (ev.PolicyChanged(policies=entries), None)]
    while len(bodies) < length:
        n = len(bodies)
        action = _command("npm", "run", f"script{n % 1000}")
        requested = ev.ToolRequested(
            tool="shell", title="", actions=(action,), parsed="full", raw="{}", native_id="1"
        )
        bodies += [(requested, f"tc_{n}"), (ev.ToolCompleted(outcome="ok", exit_code=0), f"tc_{n}")]
    for place, (body, item_id) in enumerate(bodies[:length]):
        projector.fold(state, _event(place, body, item_id))
    return state


def _event(place: int, body: Body, item_id: str | None) -> Event:
    return Event(
        v=1, id=f"evt_{place}", session_id="ses_bench", seq=place + 1, root_id="ses_bench",
        tree_pos=place + 1, at=1_700_000_000_000 + place, observed_at=0, turn_id=None, item_id=item_id,
        parent_item_id=None, actor=SYSTEM, cause=None, run=None, producer="bench", producer_seq=place,
        epoch=None, kind=body.KIND, body_text=canonical(encode_body(body)), body_sha256="", hash="",
    )  # fmt: skip


def _command(program: str, *words: str) -> Exec:
    text = " ".join((program, *words))
    return Exec(command=text, argv=(program, *words), program=program, words=words, cwd="/w", sole=True)


def _calls() -> Sequence[Call]:
    actions: tuple[Action, ...] = (
        _command("git", "push", "origin", "main"),
        _command("npm", "run", "test"),
        _command("ls", "-la"),
        FileRead(path="src/a.py", real_path="/w/src/a.py", in_workspace=True),
        FileWrite(path="src/a.py", real_path="/w/src/a.py", in_workspace=True),
        Net(url="https://api.example.org/x", host="api.example.org", path="/x", port=443),
    )
    return [Call(f"tc_{place}", (action,)) for place, action in enumerate(actions)]


def _closures() -> Sequence[Callable[[Action], bool]]:
    def one(program: str, word: str) -> Callable[[Action], bool]:
        def matches(action: Action) -> bool:
            return action.type == "exec" and action.program == program and word in action.words

        return matches

    return [one("git" if n % 2 else "npm", f"push{n}") for n in range(RULES)]
