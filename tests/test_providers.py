"""Which provider and model a session gets: named, else the default, else the only one; never a guess."""

from pathlib import Path

import pytest

from omnigent.config import Config, HarnessDefaults, Key, Provider
from omnigent.errors import ProviderMissing, WireMismatch
from omnigent.harnesses import Harness, Wire
from omnigent.providers import WIRES, choose, upstream
from omnigent.registry import harness

CLAUDE = harness("claude-code")
CODEX = harness("codex")


def provider(api: Wire, **more: object) -> Provider:
    return Provider.model_validate({"api": api, "key": {"secret": "k"}, **more})


def config(default: HarnessDefaults | None = None, **providers: Wire) -> Config:
    defaults = {"codex": default} if default else {}
    return Config(providers={name: provider(api) for name, api in providers.items()}, harnesses=defaults)


@pytest.mark.parametrize(
    ("made", "name", "model", "chosen"),
    [
        (config(a="openai-responses"), None, None, ("a", None)),
        (config(a="openai-responses", b="anthropic-messages"), None, "m", ("a", "m")),
        (config(a="openai-responses", b="openai-responses"), "b", None, ("b", None)),
        (
            config(HarnessDefaults(provider="b", model="m"), a="openai-responses", b="openai-responses"),
            None,
            None,
            ("b", "m"),
        ),
        (
            config(HarnessDefaults(provider="b", model="m"), a="openai-responses", b="openai-responses"),
            "a",
            None,
            ("a", None),  # the default model is of the default provider
        ),
        (config(HarnessDefaults(model="m"), a="openai-responses"), "a", None, ("a", "m")),
        (config(HarnessDefaults(provider="a", model="m"), a="openai-responses"), None, "x", ("a", "x")),
    ],
)
def test_named_then_default_then_the_only_one(
    made: Config, name: str | None, model: str | None, chosen: tuple[str, str | None]
) -> None:
    choice = choose(made, CODEX, name, model)
    assert (choice.name, choice.model) == chosen


@pytest.mark.parametrize(
    ("made", "name", "words"),
    [
        (config(), None, ["No provider is configured", "omnigent demo"]),
        (config(a="openai-chat"), None, ["No configured provider fits", "openai-responses"]),
        (config(a="openai-responses", b="openai-responses"), None, ["Several", "a, b", "--provider"]),
        (config(a="openai-responses"), "z", ["'z'", "Configured: a"]),
        (config(HarnessDefaults(provider="gone"), a="openai-responses"), None, ["'gone'"]),
    ],
)
def test_nothing_is_guessed(made: Config, name: str | None, words: list[str]) -> None:
    with pytest.raises(ProviderMissing) as refused:
        choose(made, CODEX, name, None)
    told = f"{refused.value.detail} {refused.value.hint}"
    assert [word for word in words if word not in told] == []


@pytest.mark.parametrize(("adapter", "name"), [(CODEX, "messages"), (CODEX, "chat"), (CLAUDE, "responses")])
def test_a_wire_the_harness_does_not_speak_is_refused_with_those_that_fit(
    adapter: Harness, name: str
) -> None:
    made = config(messages="anthropic-messages", responses="openai-responses", chat="openai-chat")
    with pytest.raises(WireMismatch) as refused:
        choose(made, adapter, name, None)
    assert refused.value.facts["allowed"] == ["messages" if adapter is CLAUDE else "responses"]


@pytest.mark.parametrize("api", list(WIRES))
def test_the_key_is_in_its_wires_header_and_in_no_repr(tmp_path: Path, api: Wire) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "k").write_text("real-key-0123\n")
    found = upstream(provider(api, headers={"X-Team": "a"}, query={"v": "1"}), tmp_path)
    row = WIRES[api]
    assert found.headers == {"x-team": "a", row.key_header: f"{row.key_prefix}real-key-0123"}
    assert (found.base_url, found.query) == (row.base_url, {"v": "1"})
    assert "real-key" not in repr(found)
    assert upstream(provider(api, base_url="http://h/v1/"), tmp_path).base_url == "http://h/v1"


def test_a_key_that_is_not_there_is_an_error_without_a_value(tmp_path: Path) -> None:
    with pytest.raises(ProviderMissing) as refused:
        upstream(Provider(api="openai-chat", key=Key(secret="k")), tmp_path)
    assert str(tmp_path / "secrets" / "k") in refused.value.detail
