"""`$OMNIGENT_HOME/config.yaml` → one frozen `Config`. Environment variables are not configuration.

The one exception is `$OMNIGENT_HOME` itself, which says where everything is.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from omnigent.errors import ConfigInvalid, HomeUnusable
from omnigent.harnesses import Wire


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(_Section):
    """Where a secret's value comes from; exactly one is set. The value itself is never in a config file."""

    env: str | None = None
    """A variable of the server's environment."""
    secret: str | None = None
    """A file of that name under `$OMNIGENT_HOME/secrets/`, mode 0600."""
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    """A program whose standard output is the key."""
    keychain: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f-][^\x00-\x1f]*$")] | None = None
    """The service under which the machine's key store has it. No hyphen first: it is an argument there."""

    @model_validator(mode="after")
    def _one(self) -> "Key":
        sources = (self.env, self.secret, self.command, self.keychain)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("name exactly one of env, secret, command, keychain")
        return self

    @property
    def source(self) -> str:
        """Where it comes from, in words: `env ANTHROPIC_API_KEY`. Shown wherever it is told who pays."""
        kinds = {"env": self.env, "secret": self.secret, "keychain": self.keychain}
        kinds["command"] = (self.command or ("",))[0]
        return next(f"{kind} {name}" for kind, name in kinds.items() if name)


class PriceSection(_Section):
    """What a model costs, in USD per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float = Field(default=0, ge=0)
    cache_write: float = Field(default=0, ge=0)


class Provider(_Section):
    """A model API at a URL, with a key."""

    api: Wire
    base_url: str | None = None
    """The vendor's own endpoint when left out."""
    key: Key
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    billing: Literal["metered", "subscription"] = "metered"
    context_tokens: int = Field(default=200_000, gt=1000)
    """The context window of its models, in tokens: a longer history is trimmed before it is handed over."""
    prices: dict[str, PriceSection] = {}
    """By model, for harnesses that know no price list of their own (Pi)."""


McpName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*$")]
"""No double underscore: agents call a tool `mcp__server__tool`."""


class McpServerSection(_Section):
    """A stdio tool server that every session's agent is given, where its harness can take it."""

    command: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}


class Listen(_Section):
    host: str = "127.0.0.1"
    port: int = Field(default=6767, ge=0, le=65535)


class RunnerSettings(_Section):
    grace_seconds: float = Field(default=120, gt=0)
    """How long a runner outlives its server before it ends its agent."""
    idle_seconds: float = Field(default=600, gt=0)
    """A runner with nothing open is closed after this and revived by the next prompt."""
    stall_seconds: float = Field(default=60, gt=0)
    """Silence with no tool, approval or model call open for this long is a stall."""


class ApprovalSettings(_Section):
    expire_seconds: int = Field(default=86_400, gt=0)
    detach_seconds: int = Field(default=3600, gt=0)
    """An agent that waits for a person this long is let go; the answer starts it again."""


class HarnessDefaults(_Section):
    provider: str | None = None
    model: str | None = None


class Config(_Section):
    server: Listen = Listen()
    providers: dict[str, Provider] = {}
    harness: str = "claude-code"
    """The default harness (`defaults.harness` in the file)."""
    harnesses: dict[str, HarnessDefaults] = {}
    """Per-harness defaults (`defaults.<harness>` in the file)."""
    runner: RunnerSettings = RunnerSettings()
    approvals: ApprovalSettings = ApprovalSettings()
    mcp_servers: dict[McpName, McpServerSection] = {}
    secrets: tuple[Key, ...] = ()
    """Further secrets that must never be stored or shown, beside keys and what looks like one."""
    environment: tuple[str, ...] = ()
    """Further variables an agent may see, beside the built-in allow-list."""


def home_path() -> Path:
    """`$OMNIGENT_HOME`, else `~/.omnigent`."""
    named = os.environ.get("OMNIGENT_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".omnigent"


def ready_home(home: Path) -> Path:
    """The home directory, made if missing (mode 0700). Raises `HomeUnusable`."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HomeUnusable(
            f"{home} can't be written: {error.strerror}.",
            hint="Give yourself the right to write there, or set OMNIGENT_HOME to another directory.",
        ) from error
    return home


def load_config(home: Path) -> Config:
    """A home's configuration; defaults where there is no file. Raises `ConfigInvalid` naming the place."""
    path = home / "config.yaml"
    try:
        raw: object = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path} can't be read: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the error's own text would show the line
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigInvalid(f"{path}{where} is no YAML: {problem}.") from None
    return parse_config(raw if raw is not None else {}, str(path))


class ConfigFile:
    """A home's configuration, read again when the file has changed: an edit holds from the next start on."""

    def __init__(self, home: Path, config: Config) -> None:
        self.start = config
        """As it was at the server's start: what its own timers and listener go by."""
        self._path = home / "config.yaml"
        self._home = home
        self._config = config
        self._stamp = self._now()

    def current(self) -> Config:
        """The configuration as the file says now. Raises `ConfigInvalid`; the next call tries again."""
        stamp = self._now()
        if stamp != self._stamp:
            self._config = load_config(self._home)
            self._stamp = stamp
        return self._config

    def _now(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_size


def parse_config(raw: object, where: str = "config") -> Config:
    """The file's shape → `Config`. Raises `ConfigInvalid`."""
    sections = _mapping(raw, where)
    for name in ("harness", "harnesses"):
        if name in sections:
            raise ConfigInvalid(f"{where}: {name}: unknown.", hint="Defaults go under `defaults:`.")
    per_harness = _mapping(sections.pop("defaults", None) or {}, f"{where}: defaults")
    if "harness" in per_harness:
        sections["harness"] = per_harness.pop("harness")
    sections["harnesses"] = per_harness
    try:
        return Config.model_validate(sections)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(_place(first["loc"]))
        raise ConfigInvalid(f"{where}: {place}: {first['msg']}.") from error


def _place(loc: tuple[int | str, ...]) -> list[str]:
    """Where it stands in the file, which has `defaults` for `harness` and `harnesses`."""
    parts = [str(part) for part in loc]
    if parts[:1] == ["harness"]:
        return ["defaults", *parts]
    return ["defaults", *parts[1:]] if parts[:1] == ["harnesses"] else parts


def _mapping(raw: object, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigInvalid(f"{where} must be a mapping.")
    return dict(cast(dict[str, Any], raw))


ALLOWED_ENVIRONMENT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "TMPDIR",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "XDG_RUNTIME_DIR",
)  # fmt: skip
"""What a child process may see of the environment: what programs need to run, nothing that names a key."""


def child_environment(environ: dict[str, str], also: tuple[str, ...] = ()) -> dict[str, str]:
    """The allow-listed part of an environment (`LC_*` included)."""
    names = {*ALLOWED_ENVIRONMENT, *also}
    return {name: value for name, value in environ.items() if name in names or name.startswith("LC_")}
