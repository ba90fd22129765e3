"""The policies of wider scopes: applied by an owner, kept as events, folded again after a restart."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from omnigent import events as ev
from omnigent.errors import NotFound, PolicyInvalid, Unprocessable
from omnigent.events import Actor, Draft
from omnigent.log import MemoryLog
from omnigent.policies.language import defaults
from omnigent.rulebook import HOUSE, Rulebook, change_of
from omnigent.views import SessionProjector

pytestmark = pytest.mark.anyio

ANN = Actor(kind="person", id="ann", via="cli")
PUSH = "policies:\n  - name: push\n    when: {exec: git push}\n    then: deny\n"
ASKS = PUSH.replace("deny", "ask")
MONEY = "policies:\n  - name: three-dollars\n    when: {spend_usd: 3.0}\n    then: pause\n"


def clock() -> int:
    return 1_000_000


@pytest.fixture
async def log() -> AsyncIterator[MemoryLog]:
    log = MemoryLog(SessionProjector(), clock)
    yield log
    await log.close()


@pytest.fixture
async def book(log: MemoryLog) -> Rulebook:
    book = Rulebook(log)
    await book.load()
    return book


def names(book: Rulebook, workspace: str = "/w", owner: str = "local") -> list[tuple[str, str]]:
    """Scope and name of what binds, but for the defaults."""
    return [(e.scope, e.name) for e in book.entries(workspace, owner) if e.scope != "builtin"]


async def test_an_empty_book_has_the_defaults_and_writes_nothing(book: Rulebook, log: MemoryLog) -> None:
    assert book.entries("/w", "local") == defaults()
    assert (book.revision, book.sets()) == (0, [])
    with pytest.raises(NotFound):
        await log.head(HOUSE)


async def test_scopes_reach_as_far_as_they_say(book: Rulebook) -> None:
    await book.apply("server", "", PUSH, actor=ANN)
    await book.apply("user", "local", MONEY, actor=ANN)
    await book.apply("project", "/w", ASKS, actor=ANN)
    assert names(book) == [("server", "push"), ("user", "three-dollars"), ("project", "push")]
    assert names(book, "/elsewhere") == [("server", "push"), ("user", "three-dollars")]
    assert names(book, "/w/below/it", "bob") == [("server", "push"), ("project", "push")]
    assert names(book, "/wider", "bob") == [("server", "push")]


async def test_a_project_inside_another_has_the_rules_of_both(book: Rulebook) -> None:
    await book.apply("project", "/w/inner", MONEY, actor=ANN)
    await book.apply("project", "/w", PUSH, actor=ANN)
    assert names(book, "/w/inner") == [("project", "three-dollars"), ("project", "push")]
    await book.apply("project", "/w/inner", ASKS, actor=ANN)
    both = [e for e in book.entries("/w/inner", "local") if e.name.startswith("push")]
    assert [e.name for e in both] == ["push", "push@/w"]
    assert ['"then":"deny"' in e.content for e in both] == [False, True]


async def test_what_was_applied_is_whole_in_one_event_with_its_actor(book: Rulebook, log: MemoryLog) -> None:
    first = await book.apply("project", "/w", PUSH, actor=ANN)
    assert (first.added, first.loosens) == (("project.push",), False)
    await book.apply("project", "/w", MONEY, actor=ANN)
    events = await log.read(HOUSE)
    assert ev.verify(events) is None
    last = events[-1]
    assert (last.item_id, last.actor, last.at) == ("project:/w", ANN, 1_000_000)
    body = last.body
    assert isinstance(body, ev.PolicyChanged)
    assert [entry.name for entry in body.policies] == ["push", "three-dollars"]
    assert body.added == ("project.three-dollars",)
    assert book.revision == last.seq


async def test_a_rule_takes_the_place_of_the_one_of_its_name(book: Rulebook) -> None:
    await book.apply("project", "/w", PUSH, actor=ANN)
    change = await book.apply("project", "/w", ASKS, actor=ANN)
    assert (change.added, change.changed, change.removed, change.loosens) == ((), ("project.push",), (), True)
    back = await book.apply("project", "/w", PUSH, actor=ANN)
    assert (back.changed, back.loosens) == (("project.push",), False)
    gone = await book.apply("project", "/w", "", ["project.push"], actor=ANN)
    assert (gone.removed, gone.loosens) == (("project.push",), True)
    assert names(book) == []


async def test_what_changes_nothing_is_not_recorded(book: Rulebook, log: MemoryLog) -> None:
    await book.apply("project", "/w", PUSH, actor=ANN)
    revision = book.revision
    assert not await book.apply("project", "/w", PUSH, actor=ANN)
    assert (book.revision, await log.head(HOUSE)) == (revision, revision)


async def test_a_preview_changes_nothing(book: Rulebook) -> None:
    await book.apply("project", "/w", PUSH, actor=ANN)
    change = book.preview("project", "/w", MONEY, ["push"])
    assert (change.added, change.removed) == (("project.three-dollars",), ("project.push",))
    assert change.loosens
    assert names(book) == [("project", "push")]


async def test_after_a_restart_it_is_folded_again_whatever_else_the_stream_holds(log: MemoryLog) -> None:
    note = Draft(ev.NoticeRaised(code="x", level="info", detail="another word of the house"))
    await log.create(HOUSE, [note])
    book = Rulebook(log)
    await book.load()
    await book.apply("server", "", PUSH, actor=ANN)
    await log.append(HOUSE, [note])
    await book.apply("user", "local", MONEY, actor=ANN)
    again = Rulebook(log)
    await again.load()
    assert (names(again), again.revision, again.sets()) == (names(book), book.revision, book.sets())
    await book.apply("user", "local", "", ["three-dollars"], actor=ANN)
    await again.load()
    assert names(again) == [("server", "push")]


async def test_only_the_servers_set_replaces_a_default_or_switches_it_off(book: Rulebook) -> None:
    name = defaults()[0].name
    own = f"policies:\n  - name: {name}\n    when: {{exec: git push}}\n    then: deny\n"
    await book.apply("project", "/w", own, actor=ANN)
    assert [e.name for e in book.entries("/w", "local")].count(name) == 2
    assert book.standing() == defaults()
    with pytest.raises(NotFound, match="The user has no policy"):
        await book.apply("user", "local", "", [name], actor=ANN)

    off = await book.apply("server", "", "", [name], actor=ANN)
    assert (off.removed, off.loosens) == ((f"builtin.{name}",), True)
    assert name not in [e.name for e in book.standing()]
    again = Rulebook(book.log)
    await again.load()
    assert (again.standing(), again.set("server").off) == (book.standing(), (name,))
    assert all('"off"' not in e.content for e in again.entries("/w", "local"))
    with pytest.raises(NotFound):
        await book.apply("server", "", "", [name], actor=ANN)

    await book.apply("server", "", own, actor=ANN)
    assert [(e.scope, e.name) for e in book.entries("/x", "y") if e.name == name] == [("server", name)]
    await book.apply("server", "", "", [name], actor=ANN)
    assert book.entries("/x", "y") == defaults()


@pytest.mark.parametrize(
    ("scope", "key", "text", "told"),
    [
        ("server", "x", PUSH, "no key"),
        ("user", "", PUSH, "Whose"),
        ("project", "", PUSH, "Which project"),
        ("project", "relative/place", PUSH, "Which project"),
    ],
)
async def test_a_key_that_is_none(book: Rulebook, scope: str, key: str, text: str, told: str) -> None:
    with pytest.raises(Unprocessable, match=told):
        await book.apply(scope, key, text, actor=ANN)  # pyright: ignore[reportArgumentType]


async def test_a_wrong_rule_changes_nothing(book: Rulebook) -> None:
    await book.apply("server", "", PUSH, actor=ANN)
    with pytest.raises(PolicyInvalid) as caught:
        await book.apply("server", "", MONEY.replace("then", "them"), actor=ANN)
    assert (caught.value.facts["line"], names(book)) == (4, [("server", "push")])


async def test_changes_at_the_same_moment_all_hold(book: Rulebook) -> None:
    texts = [PUSH.replace("name: push", f"name: push{n}") for n in range(8)]
    await asyncio.gather(*(book.apply("project", "/w", text, actor=ANN) for text in texts))
    assert sorted(name for _, name in names(book)) == [f"push{n}" for n in range(8)]


async def test_a_change_of_a_sessions_own_rules_leaves_the_wider_ones(book: Rulebook) -> None:
    await book.apply("server", "", PUSH, actor=ANN)
    now = book.entries("/w", "local")
    new, change = change_of("session", now, ASKS + MONEY.removeprefix("policies:\n"), [])
    assert (change.added, change.loosens) == (("session.push", "session.three-dollars"), False)
    assert [(e.scope, e.name) for e in new if e.name == "push"] == [("server", "push"), ("session", "push")]
    with pytest.raises(NotFound, match="The session has no policy 'push'"):
        change_of("session", now, "", ["push"])
    less, change = change_of("session", new, "", ["push"])
    assert (change.removed, change.loosens) == (("session.push",), True)
    assert [(e.scope, e.name) for e in less if e.name == "push"] == [("server", "push")]
