"""Finds the step a request stands at, from the request alone, and fills it in."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from .conversation import LOOKUP, Conversation
from .reply import Call, Reply, Tokens, estimate_tokens
from .script import Script, Step, Usage
from .tools import NotLoaded, NotOffered, Toolbox

TEMPLATE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
NOTHING_LEFT = "done"
AFTER_THE_LAST_STEP = Step(text=NOTHING_LEFT)

VALUES: dict[str, Callable[[Conversation], str]] = {
    "last_result": lambda conversation: conversation.last_result,
    "n_users": lambda conversation: str(len(conversation.prompts)),
    "n_messages": lambda conversation: str(conversation.n_messages),
    "model": lambda conversation: conversation.model,
    "prompt": lambda conversation: conversation.prompt,
    "cwd": lambda conversation: conversation.cwd,
}


@dataclass(frozen=True, slots=True)
class Cue:
    """What comes next: the step, its index in its turn, and how many calls the turn has made already."""

    conversation: Conversation
    step: Step
    index: int
    calls_before: int


def find_cue(script: Script, conversation: Conversation) -> Cue:
    """A prompt that came mid-turn starts a turn of its own only if a turn of the script matches it."""
    start = -1
    steps: list[Step] | None = None
    for start in reversed(conversation.prompts):
        item = conversation.items[start]
        if turn := script.find_turn(item.text):
            steps = turn.steps
            break
        if not item.steer:
            break
    if steps is None:
        steps = script.default
    if steps is None:
        steps = [Step(text="You said: {{prompt}}")]
    index = conversation.count_responses(start)
    step = steps[index] if index < len(steps) else AFTER_THE_LAST_STEP
    return Cue(conversation, step, index, conversation.count_calls(start))


def fill_text(text: str, conversation: Conversation) -> str:
    """The text with its templates replaced. Unknown names stay as they are."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        return VALUES[name](conversation) if name in VALUES else found[0]

    return TEMPLATE.sub(value, text)


def fill(value: Any, conversation: Conversation) -> Any:
    if isinstance(value, str):
        return fill_text(value, conversation)
    if isinstance(value, dict):
        return {key: fill(part, conversation) for key, part in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [fill(part, conversation) for part in cast(list[Any], value)]
    return value


def name_call(conversation: Conversation, number: int) -> str:
    """`call_1`, `call_2`, … from the start in every turn, as some models do, so that nobody relies on more.

    Claude Code drops a call whose id the conversation had before (2.1.330: its result becomes "(no
    content)"), and its sub-agents share one space of ids with it; there the conversation and the turn are
    part of the id."""
    if not conversation.unique_calls:
        return f"call_{number}"
    prompts = conversation.prompts
    first = conversation.items[prompts[0]].text if prompts else ""
    digest = hashlib.sha256(first.encode()).hexdigest()[:6]
    return f"toolu_{digest}_{len(prompts)}_{number}"


def compose(cue: Cue) -> Reply:
    step, conversation = cue.step, cue.conversation
    text = fill_text(step.text or "", conversation)
    reasoning = fill_text(step.reasoning or "", conversation)
    toolbox = Toolbox(conversation)
    calls: list[Call] = []
    try:
        for number, use in enumerate(step.tools, start=cue.calls_before + 1):
            use = use.model_copy(update={"input": fill(use.input, conversation)})
            calls.append(toolbox.call(use, name_call(conversation, number)))
    except NotOffered as problem:
        text, calls = str(problem), []
    except NotLoaded as missing:
        number = 1 + sum(item.is_lookup and item.kind == "call" for item in conversation.items)
        lookup = LOOKUP + name_call(conversation, number)
        text, reasoning = "", ""
        calls = [
            Call(lookup, missing.search.bare, missing.query, missing.search.namespace, missing.search.kind)
        ]
    if not (text or calls or reasoning):
        text = NOTHING_LEFT
    tokens = count(step.usage, conversation, reasoning + text + "".join(call.arguments for call in calls))
    return Reply(conversation.model, reasoning, text, calls, tokens, step.stop, step.chunk)


def count(usage: Usage, conversation: Conversation, answer: str) -> Tokens:
    given, made = usage.input_tokens, usage.output_tokens
    return Tokens(
        input=estimate_tokens([item.text for item in conversation.items]) if given is None else given,
        output=estimate_tokens(answer) + usage.reasoning_tokens if made is None else made,
        cache_read=usage.cache_read_tokens,
        cache_write=usage.cache_write_tokens,
        reasoning=usage.reasoning_tokens,
        cache_write_1h=usage.cache_write_1h_tokens,
    )
