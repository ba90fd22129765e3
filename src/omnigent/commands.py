"""What a person or program may ask of a session: one tagged union, the body of `POST …/commands`.

Every command carries an `idempotency_key`, unique per session for ever: the same key and body give the first
answer again; the same key with another body is an error (422).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from omnigent.events import Grant, When


class TextInput(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["text"] = "text"
    text: str


class ImageInput(BaseModel):
    """`data` is base64; at most 20 MB decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["image"] = "image"
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: str


Input = Annotated[TextInput | ImageInput, Field(discriminator="type")]


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    idempotency_key: str = Field(min_length=1, max_length=200)


class Prompt(_Command):
    """`text` is short for one text part. `auto` starts if idle, else queues; `steer` goes into the running
    turn where the harness can; `now` interrupts first."""

    type: Literal["prompt"] = "prompt"
    text: str | None = None
    content: tuple[Input, ...] = ()
    when: When = "auto"


class Edit(_Command):
    """Change a message that is still queued."""

    type: Literal["edit"] = "edit"
    message_id: str
    content: tuple[Input, ...]


class Cancel(_Command):
    """Take a queued message back."""

    type: Literal["cancel"] = "cancel"
    message_id: str


class Interrupt(_Command):
    type: Literal["interrupt"] = "interrupt"


class Resolve(_Command):
    """Answer an approval. The first permitted answer wins; a later one gets 409 and who was first."""

    type: Literal["resolve"] = "resolve"
    approval_id: str
    decision: Literal["allow", "deny"]
    grant: Grant = Grant()
    edited: str | None = None
    """With allow: the command to run instead."""
    reason: str = ""
    """With deny: the agent reads it."""


class Answer(_Command):
    """Answer a question: one list of labels or free text per question asked."""

    type: Literal["answer"] = "answer"
    question_id: str
    values: tuple[tuple[str, ...], ...]


class SetModel(_Command):
    type: Literal["set_model"] = "set_model"
    model: str
    provider: str | None = None
    effort: str | None = None
    now: bool = False
    accept_billing: bool = False
    """It may change who is billed; without this such a change is refused (409)."""


class Switch(_Command):
    """Move the session to another harness and keep its context. Takes its place in the queue unless `now`."""

    type: Literal["switch"] = "switch"
    harness: str
    model: str | None = None
    provider: str | None = None
    now: bool = False
    accept_billing: bool = False


class SetBudget(_Command):
    """Cap what the session's family (children and forks too) may spend; null lifts the cap."""

    type: Literal["set_budget"] = "set_budget"
    cap_usd: float | None = Field(ge=0)


class SetPolicies(_Command):
    """Change the session's own policies: `policies` is YAML text, each rule replaces the one of its name.

    What loosens is the owner's to do; rules of wider scopes can't be removed here.
    """

    type: Literal["set_policies"] = "set_policies"
    policies: str = ""
    remove: tuple[str, ...] = ()


class RevokeGrant(_Command):
    """From now on its asks are asked again."""

    type: Literal["revoke_grant"] = "revoke_grant"
    grant_id: str


class Resume(_Command):
    """Reopen a closed session, or let a paused turn go on."""

    type: Literal["resume"] = "resume"


class Stop(_Command):
    """End the turn and the agent's process; the next prompt starts it again."""

    type: Literal["stop"] = "stop"


class Close(_Command):
    """Stop, and refuse prompts until `resume`."""

    type: Literal["close"] = "close"


Command = Annotated[
    Prompt
    | Edit
    | Cancel
    | Interrupt
    | Resolve
    | Answer
    | SetModel
    | Switch
    | SetBudget
    | SetPolicies
    | RevokeGrant
    | Resume
    | Stop
    | Close,
    Field(discriminator="type"),
]

COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
