"""Words survive the round trip, hash the same everywhere, and old logs read for ever."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from omnigent import events as ev
from omnigent.errors import Malformed

GOLDEN = Path(__file__).parent / "golden"

EXACT = st.integers(-(2**53) + 1, 2**53 - 1)

PLAIN = st.none() | st.booleans() | EXACT | st.text()


def json_of(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )


VALUES = json_of(PLAIN | st.floats(allow_nan=False, allow_infinity=False))


def of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Plain JSON for a field, from its schema: what pydantic then makes a body of."""
    schema = TypeAdapter[Any](annotation).json_schema()
    return of_schema(schema, schema.get("$defs", {}))


def of_schema(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return of_schema(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([of_schema(choice, defs) for choice in choices])
    match schema.get("type"):
        case "object" if "properties" in schema:
            return objects(schema, defs)
        case "object":
            values = schema.get("additionalProperties", True)
            inner = json_of(PLAIN) if values is True else of_schema(values, defs)
            return st.dictionaries(st.text(), inner, max_size=3)
        case "array":
            return (
                st.lists(of_schema(schema["items"], defs), max_size=3) if "items" in schema else st.just([])
            )
        case "string":
            return st.text()
        case "integer":
            return EXACT
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case other:
            raise AssertionError(f"a field of type {other}: no floats, no untyped values")


def objects(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Required fields and the tags of unions always, the others sometimes."""
    fields = {name: of_schema(field, defs) for name, field in schema["properties"].items()}
    tags = [name for name, field in schema["properties"].items() if "const" in field]
    required = {name: fields[name] for name in [*schema.get("required", []), *tags]}
    return st.fixed_dictionaries(
        required, optional={name: field for name, field in fields.items() if name not in required}
    )


def bodies() -> st.SearchStrategy[ev.Body]:
    """Any body of any kind this version writes."""

    def of_class(cls: type[ev.Body]) -> st.SearchStrategy[ev.Body]:
        return of_type(cls).map(cls.model_validate)

    return st.one_of([of_class(cls) for cls in ev.BODIES.values()])


def event_of(body: ev.Body, prev_hash: str = ev.GENESIS, **changes: Any) -> ev.Event:
    text = ev.canonical(ev.encode_body(body))
    values: dict[str, Any] = {
        "v": 1,
        "id": "evt_1",
        "session_id": "ses_a",
        "seq": 1,
        "root_id": "ses_a",
        "tree_pos": 1,
        "at": 1_795_000_000_000,
        "observed_at": 1_795_000_000_000,
        "turn_id": None,
        "item_id": None,
        "parent_item_id": None,
        "actor": ev.SYSTEM,
        "cause": None,
        "run": None,
        "producer": "session",
        "producer_seq": 1,
        "epoch": None,
        "kind": body.kind if isinstance(body, ev.UnknownBody) else body.KIND,
        "body_text": text,
        "body_sha256": ev.sha256(text),
        "hash": "",
    } | changes
    event = ev.Event(**values)
    return replace(event, hash=ev.chain(prev_hash, event.envelope()))


def chain_of(count: int) -> list[ev.Event]:
    events: list[ev.Event] = []
    for seq in range(1, count + 1):
        body = ev.MessageCompleted(content=(ev.TextPart(text=f"{seq}"),))
        events.append(event_of(body, events[-1].hash if events else ev.GENESIS, seq=seq, producer_seq=seq))
    return events


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(bodies())
def test_a_body_survives_the_round_trip(body: ev.Body) -> None:
    text = ev.canonical(ev.encode_body(body))
    decoded = ev.decode_body(body.KIND, json.loads(text))
    assert decoded == body
    assert type(decoded) is type(body)
    assert ev.canonical(ev.encode_body(decoded)) == text


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(bodies(), st.text(min_size=1), st.none() | st.text())
def test_an_event_survives_export(body: ev.Body, actor_id: str, item_id: str | None) -> None:
    actor = ev.Actor(kind="person", id=actor_id, via="web")
    event = event_of(body, actor=actor, item_id=item_id)
    parsed = ev.parse_event(event.json_text())
    assert parsed == event
    assert parsed.body == body
    assert parsed.json_text() == event.json_text()
    assert ev.verify([parsed]) is None


@given(st.dictionaries(st.text(), VALUES))
def test_an_unknown_body_survives_export(raw: ev.JSON) -> None:
    event = event_of(ev.UnknownBody(kind="later.kind", raw=raw))
    parsed = ev.parse_event(event.json_text())
    assert (parsed.json_text(), ev.verify([parsed])) == (event.json_text(), None)


@given(VALUES)
def test_the_fast_canonical_form_is_the_rfcs(value: Any) -> None:
    assert ev.canonical(value) == rfc8785.dumps(value).decode()


@pytest.mark.parametrize(
    "value",
    [2**53, -(2**53), float("nan"), float("inf"), "half \ud800 a pair", {"\udfff": 1}, {"x": [2**60]}],
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        ev.canonical(value)


def test_canonical_examples() -> None:
    assert ev.canonical({"b": [1, True, None], "a": '\u2028\x7f\x1f\n"\\/é'}) == (
        '{"a":"\u2028\x7f\\u001f\\n\\"\\\\/é","b":[1,true,null]}'
    )
    # By UTF-16 unit, not by code point: U+1F600 before U+FB33 (RFC 8785, section 3.2.3).
    assert ev.canonical({"\ufb33": 3, "\U0001f600": 2, "\u20ac": 1}) == '{"€":1,"\U0001f600":2,"\ufb33":3}'
    assert ev.canonical([1e30, 0.1, 10.0, 1e-7]) == "[1e+30,0.1,10,1e-7]"


def test_every_kind_is_in_the_table_once() -> None:
    every = [*cast(Any, ev.AnyBody).__args__, *ev.AUDIT]
    classes = [cls for cls in every if cls is not ev.UnknownBody]
    assert len(ev.BODIES) == len(classes)
    assert all(kind == cls.KIND for kind, cls in ev.BODIES.items())


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("later.kind", {"anything": [1.5]}),
        ("message.completed", {"content": [], "status": "complete", "later_field": 1}),
        ("message.completed", {"content": [{"type": "hologram"}]}),
        ("turn.started", {"redacted": {"by": "me", "at": 1, "reason": ""}}),
    ],
)
def test_what_this_version_does_not_know_is_kept_raw(kind: str, raw: ev.JSON) -> None:
    body = ev.decode_body(kind, raw)
    assert body == ev.UnknownBody(kind=kind, raw=raw)
    assert ev.encode_body(body) == raw


def test_the_chain_shows_every_change() -> None:
    events = chain_of(6)
    assert ev.verify(events) is None
    assert ev.verify(events[3:], events[2].hash) is None
    assert ev.verify(events[3:]) == 4
    assert ev.verify(events[:2] + events[3:]) == 4
    assert ev.verify([events[1], events[0]]) == 2
    for changes in ({"at": 1}, {"item_id": "msg_x"}, {"actor": ev.Actor(kind="person", id="x", via="cli")}):
        assert ev.verify([*events[:3], replace(events[3], wire=[], **changes), *events[4:]]) == 4


def test_a_changed_body_is_seen_and_an_erased_one_accepted() -> None:
    events = chain_of(4)

    def with_body(text: str) -> list[ev.Event]:
        return [*events[:2], replace(events[2], body_text=text, typed=[], wire=[]), *events[3:]]

    assert ev.verify(with_body('{"content":[],"status":"complete"}')) == 3
    assert ev.verify(with_body('{"redacted":{"at":1,"by":"me","reason":""}}')) is None
    assert ev.verify(with_body('{"redacted":{"at":1},"text":"smuggled"}')) == 3
    assert ev.verify(with_body('{"redacted":true}')) == 3


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"v":1}', '{"body":{},"actor":{"kind":"x"}}', '{"body":{},"later":1}']
)
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        ev.parse_event(text)


def golden(name: str) -> list[str]:
    return (GOLDEN / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.mark.parametrize("name", ["log-v1.jsonl"])
def test_a_released_log_reads_for_ever(name: str) -> None:
    """Never write such a file anew: if this fails, it is the program that has changed its meaning."""
    lines = golden(name)
    events = [ev.parse_event(line) for line in lines]
    assert [event.json_text() for event in events] == lines
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert ev.verify(events) is None


def test_the_first_golden_log_means_what_it_did() -> None:
    events = {event.kind: event for event in map(ev.parse_event, golden("log-v1.jsonl"))}
    unknown = {kind for kind, event in events.items() if isinstance(event.body, ev.UnknownBody)}
    assert unknown == {"egress.decided", "message.failed"}
    assert ev.is_erased(events["message.failed"].body_text)
    raw = cast(ev.UnknownBody, events["egress.decided"].body).raw
    assert (raw["score"], raw["big"], raw["\U0001f600"]) == (0.1, 1e30, 2)
    submitted = cast(ev.MessageSubmitted, events["message.submitted"].body)
    assert ev.text_of(submitted.content) == 'héllo "quoted" \\ back\nline \u2028 \x7f 🎈 \x01'
    requested = cast(ev.ToolRequested, events["tool.requested"].body)
    assert [action.type for action in requested.actions][:3] == ["exec", "file.read", "file.write"]
    assert cast(ev.HarnessChanged, events["harness.changed"].body).from_ == "claude"
    assert cast(ev.MessageDelivered, events["message.delivered"].body).as_ == "turn"
    assert cast(ev.UsageReported, events["usage.reported"].body).cost_nanousd is None
    assert len(events) == 41
    assert events["egress.decided"].hash == "c5981d6c339776f8a862aef1db928e0f14e55339ba729d797a0d81152872b321"
