"""Where a model and its credential come from: the table of model APIs, and how a session finds its own."""

from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from omnigent.config import Config, Provider
from omnigent.errors import ProviderMissing, WireMismatch
from omnigent.harnesses import Harness, Wire
from omnigent.secrets import read_key


@dataclass(frozen=True, slots=True)
class WireRow:
    """A model API: its vendor's endpoint and the header its key travels in."""

    base_url: str
    key_header: str
    key_prefix: str = ""


WIRES: dict[Wire, WireRow] = {
    "anthropic-messages": WireRow("https://api.anthropic.com", "x-api-key"),
    "openai-responses": WireRow("https://api.openai.com/v1", "authorization", "Bearer "),
    "openai-chat": WireRow("https://api.openai.com/v1", "authorization", "Bearer "),
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the gateway needs. `headers` (or `query`) holds the real key: both are left out of every repr."""

    wire: Wire
    base_url: str
    headers: dict[str, str] = field(repr=False)
    query: dict[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True, slots=True)
class Choice:
    """The provider and model a session will use."""

    name: str
    provider: Provider
    model: str | None


def choose(config: Config, harness: Harness, provider: str | None, model: str | None) -> Choice:
    """Named > the harness's default > the only provider whose API the harness speaks.

    Raises `ProviderMissing` (none configured, unknown name, several fit) or `WireMismatch`.
    """
    defaults = config.harnesses.get(harness.name)
    name = provider or (defaults.provider if defaults else None)
    fitting = [key for key, row in config.providers.items() if row.api in harness.wires]
    if name is None:
        if len(fitting) != 1:
            raise _undecided(config, harness, fitting)
        name = fitting[0]
    chosen = config.providers.get(name)
    if chosen is None:
        known = ", ".join(config.providers) or "none"
        raise ProviderMissing(f"There is no provider named {name!r}.", hint=f"Configured: {known}.")
    if chosen.api not in harness.wires:
        raise WireMismatch(
            f"{harness.name} speaks {' and '.join(harness.wires)}, not {chosen.api} (provider {name}).",
            hint=f"Providers that fit: {', '.join(fitting) or 'none configured'}.",
            allowed=fitting,
        )
    if model is None and defaults and defaults.provider in (None, name):
        model = defaults.model
    return Choice(name, chosen, model)


def upstream(provider: Provider, home: Path) -> Upstream:
    """The provider with its key read. Raises `ProviderMissing` if the key can't be had."""
    row = WIRES[provider.api]
    headers = {name.lower(): value for name, value in provider.headers.items()}
    headers[row.key_header] = row.key_prefix + read_key(provider.key, home)
    base_url = (provider.base_url or row.base_url).rstrip("/")
    return Upstream(provider.api, base_url, headers, dict(provider.query))


def payer(provider: Provider) -> str:
    """What pays for a provider's calls and where the key is sent, by name: `env ANTHROPIC_API_KEY at
    api.anthropic.com`. A change of either is one that a person has to agree to."""
    base = URL(provider.base_url or WIRES[provider.api].base_url)
    return f"{provider.key.source} at {base.authority}"


def _undecided(config: Config, harness: Harness, fitting: list[str]) -> ProviderMissing:
    if fitting:
        return ProviderMissing(
            f"Several providers fit {harness.name}: {', '.join(fitting)}.",
            hint=f"Name one with --provider, or set defaults.{harness.name}.provider in config.yaml.",
            allowed=fitting,
        )
    what = "No provider is configured" if not config.providers else "No configured provider fits"
    return ProviderMissing(
        f"{what} for {harness.name}, which speaks {' and '.join(harness.wires)}.",
        hint="Add one under `providers:` in config.yaml, or try `omnigent demo`, which needs no key.",
    )
