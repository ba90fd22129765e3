"""A loopback model server that plays a script: Anthropic Messages, OpenAI Responses, Chat Completions.

It stands in for the vendors' APIs, so that the real agents can be run without a key or a network:

    async with ScriptedModel({"turns": [{"match": "hello", "steps": [{"text": "hi"}]}]}) as model:
        ...  # point ANTHROPIC_BASE_URL or an OpenAI base URL (+ "/v1") at model.url

It refuses what the vendors refuse (unpaired tool calls, empty content, …), in their words, because a
history this server accepts has to be one they accept. `python -m omnigent.testing.scripted_model
--help` is the same as a program.
"""

from .conversation import Item
from .script import Fault, Script, Step, ToolUse, Turn, Usage
from .server import RecordedRequest, ScriptedModel, ThreadedModel, history_of, tools_of

__all__ = [
    "Fault",
    "Item",
    "RecordedRequest",
    "Script",
    "ScriptedModel",
    "Step",
    "ThreadedModel",
    "ToolUse",
    "Turn",
    "Usage",
    "history_of",
    "tools_of",
]
