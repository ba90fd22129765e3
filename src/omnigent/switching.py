"""A change of harness or model: where it leads, and what the log says of it. `driving.py` carries it out."""

from omnigent import commands
from omnigent import events as ev
from omnigent.actions import Model
from omnigent.errors import Conflict, Unprocessable
from omnigent.events import JSON, Draft
from omnigent.house import House
from omnigent.providers import Choice, choose, payer
from omnigent.registry import harness as find_harness
from omnigent.registry import harness_name
from omnigent.views import SessionView


def decided(house: House, view: SessionView, command: commands.Switch | commands.SetModel) -> JSON:
    """The command with its harness, provider and model settled, as it stands in the queue.

    Raises `UnknownHarness`, `MissingBinary`, `ProviderMissing`, `WireMismatch`, `Unprocessable`, and
    `Conflict` where somebody else would be billed and the command doesn't accept that.
    """
    arguments = command.model_dump(mode="json", exclude={"idempotency_key", "accept_billing"})
    if isinstance(command, commands.Switch):
        name = harness_name(command.harness)
        arguments["harness"] = name
        choice = _target(house, view, name, command.provider, command.model)
        find_harness(name).locate(house.home)
    else:
        provider = command.provider or view.provider
        choice = choose(house.config, find_harness(view.harness), provider, command.model)
    before = _told(view.billing, view.credential)
    after = _told(choice.provider.billing, payer(choice.provider))
    if view.credential and before != after and not command.accept_billing:
        raise Conflict(
            f"This changes who is billed: from {before} to {after}.",
            hint="If that is what you want: --accept-billing (`accept_billing: true`).",
            current=before,
            wanted=after,
        )
    return arguments | {"provider": choice.name, "model": choice.model}


def _told(billing: str, credential: str) -> str:
    """Who pays, in words: the class of billing and the credential's name."""
    return f"{billing} ({credential})" if credential else billing


def who_pays(house: House, view: SessionView, launch: JSON, known: tuple[str, str]) -> Draft:
    """The question before an agent is started that would bill somebody else than the last one did."""
    turn = view.turn or {}
    wanted = _told(launch["billing"], launch["credential"])
    action = Model(wire=launch["upstream"]["wire"], provider=launch["provider"], model=launch["model"] or "")
    body = ev.ApprovalRequested(
        call_id=turn["id"],
        actions=(action,),
        action_sha256="",
        title=f"Bill {wanted}",
        reason=f"Until now this session was billed to {_told(*known)}; from now on it would be {wanted}.",
        rule_ids=("builtin.billing",),
        options=("allow", "deny"),
        expires_at=house.clock() + house.settings.start.approvals.expire_seconds * 1000,
    )
    return Draft(body, house.new_id("ap"), turn_id=turn["id"])


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
