"""A change of harness or model: where it leads, and what the log says of it. `session.py` carries it out."""

from omnigent import commands
from omnigent import events as ev
from omnigent.errors import Unprocessable
from omnigent.events import JSON, Draft
from omnigent.house import House
from omnigent.providers import Choice, choose
from omnigent.registry import harness as find_harness
from omnigent.registry import harness_name
from omnigent.views import SessionView


def decided(house: House, view: SessionView, command: commands.Switch | commands.SetModel) -> JSON:
    """The command with its harness, provider and model settled, as it stands in the queue.

    Raises `UnknownHarness`, `MissingBinary`, `ProviderMissing`, `WireMismatch`, `Unprocessable`.
    """
    arguments = command.model_dump(mode="json", exclude={"idempotency_key"})
    if isinstance(command, commands.Switch):
        name = harness_name(command.harness)
        arguments["harness"] = name
        choice = _target(house, view, name, command.provider, command.model)
        find_harness(name).locate(house.home)
    else:
        provider = command.provider or view.provider
        choice = choose(house.config, find_harness(view.harness), provider, command.model)
    return arguments | {"provider": choice.name, "model": choice.model}


def _target(house: House, view: SessionView, name: str, provider: str | None, model: str | None) -> Choice:
    """Named > the same where the target reaches it > the target's default > an error with the choices."""
    harness = find_harness(name)
    same = house.config.providers.get(view.provider or "")
    if provider is None and same is not None and same.api in harness.wires:
        return choose(house.config, harness, view.provider, model or view.model)
    choice = choose(house.config, harness, provider, model)
    if choice.model is None:
        raise Unprocessable(
            f"No model is named for {name} with provider {choice.name}.",
            hint=f"Name one with --model, or set defaults.{name}.model in config.yaml.",
        )
    return choice


def model_changed(entry: JSON) -> list[Draft]:
    a = entry["arguments"]
    body = ev.ModelChanged(model=a["model"], provider=a["provider"], effort=a.get("effort"))
    return [Draft(body), Draft(ev.CommandEnded(outcome="done"), entry["id"])]


def harness_changed(entry: JSON, view: SessionView, started: ev.HarnessStarted) -> list[Draft]:
    a = entry["arguments"]
    body = ev.HarnessChanged(
        from_=view.harness,
        to=a["harness"],
        model=started.model or a["model"],
        provider=a["provider"],
        carried=started.carried or ev.Carried(how="none"),
    )
    return [Draft(body), Draft(ev.CommandEnded(outcome="done"), entry["id"])]


def failed(entry: JSON, view: SessionView, detail: str) -> list[Draft]:
    notice = ev.NoticeRaised(
        code="switch_failed",
        level="error",
        detail=f"{entry['arguments']['harness']} didn't start, "
        f"so the session stays with {view.harness}: {detail}",
    )
    return [Draft(notice), Draft(ev.CommandEnded(outcome="failed", detail=detail), entry["id"])]
