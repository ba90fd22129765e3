"""Which command lives in which module, and what each exit code means. Nothing is imported to know that."""

from typing import NamedTuple


class Row(NamedTuple):
    module: str
    summary: str
    group: str


_START, _READ, _STEER, _ANSWER, _CONTROL, _KEEP, _HOUSE = (
    "Start", "Look", "Steer", "Answer", "Control", "Keep", "This machine",
)  # fmt: skip

COMMANDS: dict[str, Row] = {
    "run": Row("run", "start a session", _START),
    "claude": Row("run", "start a session with Claude Code", _START),
    "codex": Row("run", "start a session with Codex", _START),
    "pi": Row("run", "start a session with Pi", _START),
    "demo": Row("demo", "try it without a key: a real agent, a scripted model", _START),
    "ls": Row("sessions", "list sessions", _READ),
    "show": Row("sessions", "show a session", _READ),
    "logs": Row("logs", "print a session's transcript; -f follows it", _READ),
    "wait": Row("wait", "wait until a session is done or needs you", _READ),
    "attach": Row("attach", "watch a session live and talk to it", _STEER),
    "send": Row("steer", "send a message", _STEER),
    "interrupt": Row("steer", "end the running turn", _STEER),
    "stop": Row("steer", "end the turn and the agent's process", _STEER),
    "close": Row("steer", "stop, and refuse messages until resumed", _STEER),
    "resume": Row("steer", "let a paused turn go on, or reopen a closed session", _STEER),
    "switch": Row("change", "go on with another harness, keeping the context", _STEER),
    "model": Row("change", "change the model", _STEER),
    "fork": Row("change", "a new session that begins like this one", _STEER),
    "inbox": Row("answers", "what waits for you, in all sessions", _ANSWER),
    "approve": Row("answers", "allow what an agent asked for", _ANSWER),
    "deny": Row("answers", "refuse it, with a reason for the agent", _ANSWER),
    "answer": Row("answers", "answer an agent's question", _ANSWER),
    "policy": Row("policy", "rules: list, add, test, explain and replay them", _CONTROL),
    "budget": Row("budget", "cap what a session may spend", _CONTROL),
    "grants": Row("budget", "what is allowed without asking again", _CONTROL),
    "revoke": Row("budget", "ask again", _CONTROL),
    "usage": Row("usage", "tokens and money, by model, day, project, harness or user", _CONTROL),
    "audit": Row("audit", "verify or export all that was decided in a session", _CONTROL),
    "export": Row("archive", "write a session to a zip file", _KEEP),
    "import": Row("archive", "read a session from a zip file", _KEEP),
    "rm": Row("sessions", "delete a session", _KEEP),
    "harness": Row("harness", "list, install and check the agents", _HOUSE),
    "server": Row("server", "start, stop and look at the server", _HOUSE),
    "secret": Row("secret", "register what must never be stored or shown", _HOUSE),
    "devices": Row("devices", "who may reach the server", _HOUSE),
    "config": Row("settings", "where the configuration is, and what it says", _HOUSE),
    "doctor": Row("doctor", "what this machine has and lacks", _HOUSE),
    "completions": Row("completions", "completions for your shell", _HOUSE),
    "help": Row("help", "help on a command, or `help exit-codes`", _HOUSE),
}

EXIT_CODES: dict[int, str] = {
    0: "ok",
    1: "the run failed",
    2: "usage: wrong arguments or configuration",
    3: "not found",
    4: "not signed in, or not allowed",
    5: "conflict with the current state",
    6: "denied by a policy (`policy test --fail-on`)",
    7: "paused: the budget is reached",
    8: "needs input: an approval or a question is open, or a turn is paused",
    9: "server unreachable",
    124: "timeout",
    130: "interrupted",
}

OK, FAILED, USAGE, DENIED, BUDGET, NEEDS_INPUT, TIMEOUT, INTERRUPTED = 0, 1, 2, 6, 7, 8, 124, 130
