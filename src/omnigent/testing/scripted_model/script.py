"""The script a model plays: turns chosen by the newest user prompt, each a list of steps.

One step is one model response. Unknown keys are errors, so that a misspelt step fails when it is
loaded and not as a silent echo in the middle of a test.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolUse(Part):
    """One tool call. A name starting with `$` is abstract (see `tools.py`); any other is used as it is."""

    tool: str
    input: dict[str, Any] | str = Field(default_factory=dict[str, Any])
    id: str | None = None


class Usage(Part):
    """Tokens of one response. `input_tokens` leaves the cached ones out (each wire adds what its vendor
    adds); `output_tokens` includes `reasoning_tokens`, and `cache_write_tokens` those kept for an hour, which
    only Anthropic's wire tells apart. None means: estimated from the texts."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0


class Fault(Part):
    """An API error in the vendor's form. It is answered `times` times for the same history, then the
    step's own content follows; without `times` it is answered for ever.

    `mid_stream` breaks the stream after the step's content instead of refusing the request."""

    status: int = 500
    code: str | None = None
    message: str = "scripted error"
    times: int | None = None
    retry_after: float | None = None
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    """Further ones of the refusal, such as `anthropic-ratelimit-unified-reset`."""
    mid_stream: bool = False


class Step(Part):
    """One model response.

    `delay_ms` passes before the first byte, `chunk_delay_ms` after each delta of `chunk` characters.
    `hang` never finishes: content the step has is streamed first, then nothing more comes until the
    client leaves.
    """

    reasoning: str | None = None
    text: str | None = None
    tools: list[ToolUse] = Field(default_factory=list[ToolUse])
    usage: Usage = Usage()
    delay_ms: float = 0
    chunk: int = Field(default=24, ge=1)
    chunk_delay_ms: float = 0
    error: Fault | None = None
    hang: bool = False
    stop: Literal["max_tokens", "refusal"] | None = None

    @property
    def only_fails(self) -> bool:
        return self.error is not None and not (self.reasoning or self.text or self.tools or self.hang)


def attach_faults(steps: list[Step]) -> list[Step]:
    """A failed request leaves no trace in the history, so a step that only fails a few times cannot be
    counted: it becomes the error of the step after it."""
    joined: list[Step] = []
    fault: Fault | None = None
    for step in steps:
        if fault is not None and step.error is None:
            step = step.model_copy(update={"error": fault})
        fault = None
        if step.only_fails and step.error and step.error.times is not None and step is not steps[-1]:
            fault = step.error
        else:
            joined.append(step)
    return joined


class Turn(Part):
    """Played when `match` occurs in the prompt; without `match` for every prompt."""

    match: str | None = None
    steps: list[Step]

    @model_validator(mode="after")
    def _count_only_answers(self) -> Self:
        object.__setattr__(self, "steps", attach_faults(self.steps))
        return self


class Script(Part):
    """The first turn that matches is played; then `default`; without one the prompt is echoed."""

    turns: list[Turn] = Field(default_factory=list[Turn])
    default: list[Step] | None = None
    models: list[str] = ["scripted-model"]

    @model_validator(mode="after")
    def _count_only_answers(self) -> Self:
        if self.default is not None:
            object.__setattr__(self, "default", attach_faults(self.default))
        return self

    def find_turn(self, prompt: str) -> Turn | None:
        return next((turn for turn in self.turns if turn.match is None or turn.match in prompt), None)
