"""`omnigent policy`: what the rules are, and what they say, said and would have said."""

import argparse
import io
import json
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

from omnigent.cli import local, naming
from omnigent.cli.parser import Parser, add_json, add_session
from omnigent.cli.rules import placed, read_rules
from omnigent.cli.run import workspace_of
from omnigent.cli.table import DENIED, OK
from omnigent.cli.talk import ask as ask_person
from omnigent.cli.talk import both_terminals, one_line, out, out_json, table, tell, width
from omnigent.cli.wording import action_line, moment
from omnigent.client import JSON, Client
from omnigent.errors import Malformed, NotFound

SCOPES = ("session", "project", "user", "server")
STRICTNESS = ("allow", "ask", "pause", "deny")

_EXAMPLE = """\
omnigent policy ls                                     what is applied, and what this directory proposes
omnigent policy ls @last                               all that binds a session
omnigent policy add rules.yaml --scope project         for every session here
omnigent policy test rules.yaml --events @last         what the rules say to a recorded log"""

_HELP = """\
Rules hold because you apply them: editing a file changes nothing until `policy add`. Wider scopes bind
narrower ones, and of several verdicts the strictest wins. The language is in docs/policies.md, and examples
are in examples/policies/."""


def configure(name: str, parser: Parser) -> None:
    parser.example = _EXAMPLE
    parser.epilog = _HELP
    verbs = parser.verbs()
    _configure_ls(verbs.add_parser("ls", help="the rules: applied, proposed, or in effect in a session"))
    _configure_change(
        verbs.add_parser("add", help="apply a file's rules, each in the place of the one of its name"), "add"
    )
    _configure_change(verbs.add_parser("rm", help="take rules out"), "rm")
    check_ = verbs.add_parser("check", help="is a file right? Nothing is applied")
    check_.example = "omnigent policy check rules.yaml"
    check_.add_argument("file", metavar="FILE")
    add_json(check_)
    check_.set_defaults(call=check)
    _configure_test(verbs.add_parser("test", help="what a file's rules say to a recorded log"))
    explain_ = verbs.add_parser("explain", help="which rule decided a call, and from which facts")
    explain_.example = "omnigent policy explain ap_01KA3\nomnigent policy explain tc_01KA3 --session @last"
    explain_.add_argument(
        "item", metavar="ITEM", help="a tool call (tc_…), model call (call_…) or approval (ap_…)"
    )
    explain_.add_argument("--session", metavar="SESSION", help="whose it is, if it isn't found by itself")
    add_json(explain_)
    explain_.set_defaults(call=explain)
    _configure_replay(verbs.add_parser("replay", help="what today's rules would have said in a session"))


def _configure_ls(parser: Parser) -> None:
    parser.example = "omnigent policy ls\nomnigent policy ls @last --json"
    parser.add_argument(
        "session",
        nargs="?",
        metavar="SESSION",
        help="all that binds this one; without: what is applied, by scope",
    )
    parser.add_argument("-C", "--directory", default=".", metavar="DIR", help="the project (default: here)")
    add_json(parser)
    parser.set_defaults(call=ls)


def _configure_change(parser: Parser, verb: str) -> None:
    if verb == "add":
        parser.example = "omnigent policy add .omnigent/policies.yaml --scope project"
        parser.add_argument("file", metavar="FILE")
    else:
        parser.example = "omnigent policy rm three-dollars --scope project"
        parser.add_argument(
            "names", nargs="+", metavar="NAME", help="the server's scope has the defaults too"
        )
    parser.add_argument(
        "--scope", choices=SCOPES, default="session", help="whom they bind (default: one session)"
    )
    parser.add_argument(
        "--session", metavar="SESSION", help="with scope session: which (default: the latest here)"
    )
    parser.add_argument(
        "-C", "--directory", metavar="DIR", help="with scope project: its directory (default: here)"
    )
    parser.add_argument("--yes", action="store_true", help="don't ask before something gets looser")
    add_json(parser)
    parser.set_defaults(call=add if verb == "add" else rm)


def _configure_test(parser: Parser) -> None:
    parser.example = (
        "omnigent policy test rules.yaml --events @last\n"
        "omnigent policy test rules.yaml --events log.jsonl --fail-on deny"
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--events",
        metavar="LOG",
        required=True,
        help="a session, a file of `omnigent logs --json`, or an export",
    )
    parser.add_argument(
        "--at", metavar="TIME", help="as if it were then: 2026-11-24T22:00 (this machine's time)"
    )
    _add_verdicts(parser)
    parser.set_defaults(call=test)


def _configure_replay(parser: Parser) -> None:
    parser.example = "omnigent policy replay @last\nomnigent policy replay @last --policy stricter.yaml"
    add_session(parser)
    parser.add_argument("--policy", metavar="FILE", help="and with these rules beside today's")
    _add_verdicts(parser)
    parser.set_defaults(call=replay)


def _add_verdicts(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="the plainly allowed calls too")
    parser.add_argument(
        "--fail-on",
        choices=STRICTNESS[1:],
        metavar="VERDICT",
        help="exit 6 when a call gets this, or a stricter one",
    )
    add_json(parser)


# Looking.


def ls(options: argparse.Namespace) -> int:
    if options.session is None:
        return _ls_applied(options)
    client = local.connect()
    found = client.policies(session_id=naming.find(client, options.session))
    if options.json:
        out_json(found)
        return OK
    for line in _rules(found["items"]):
        out(line)
    _tell_proposed(found.get("proposed"))
    return OK


def _ls_applied(options: argparse.Namespace) -> int:
    workspace = workspace_of(options.directory)
    found = local.connect().policies(workspace=workspace)
    if options.json:
        out_json(found)
        return OK
    for one in found["items"]:
        by = f"  (by {one['actor']['id']}, {moment(one['at'])})" if one.get("at") else ""
        out(f"{one['scope']}{' ' + one['key'] if one['key'] else ''}{by}")
        for line in _rules(one["policies"], scope=False):
            out(f"  {line}")
        if one.get("off"):
            out(f"  off: {', '.join(one['off'])}")
    _tell_proposed(found.get("proposed"))
    return OK


def _rules(rows: list[JSON], *, scope: bool = True) -> list[str]:
    heads = ("NAME", "SCOPE", "RULE") if scope else ("NAME", "RULE")
    lines = [
        (row["name"], row["scope"], row["description"]) if scope else (row["name"], row["description"])
        for row in rows
    ]
    return table(heads, lines, max(40, width() - 2))


def _tell_proposed(proposed: JSON | None) -> None:
    """A project's own file is only ever proposed."""
    if not proposed or not proposed["differs"]:
        return
    tell(f"{proposed['path']} differs from what is applied:")
    if proposed.get("error"):
        tell(f"  it can't be used: {proposed['error']}")
    for line in _diff_lines(proposed):
        tell(f"  {line}")
    for command in proposed["commands"]:
        tell(f"  {command}")


# Changing.


def add(options: argparse.Namespace) -> int:
    text = read_rules(options.file)
    with placed(options.file):
        return _change(options, {"policies": text})


def rm(options: argparse.Namespace) -> int:
    names = [name.removeprefix(f"{options.scope}.") for name in options.names]  # ids are taken too
    return _change(options, {"remove": names})


def _change(options: argparse.Namespace, change: JSON) -> int:
    client = local.connect()
    change |= {"scope": options.scope} | _key(client, options)
    found = client.diff_policies(change)
    if not options.json:
        for line in _diff_lines(found) or ["nothing changes"]:
            tell(line)
    if found["loosens"] and not _agreed(options):
        tell("Nothing was changed.")
        return OK
    if options.scope == "session":
        fields = {"policies": change.get("policies", ""), "remove": change.get("remove", [])}
        done = client.command(change["key"], "set_policies", **fields) | found
    else:
        done = client.put_policies(change)
    if options.json:
        out_json(done)
    elif _diff_lines(found):
        tell(f"applied to {_scope_of(change)}")
    return OK


def _key(client: Client, options: argparse.Namespace) -> JSON:
    """Which session or project is meant. Raises `Malformed` for a flag that goes with another scope."""
    if options.session is not None and options.scope != "session":
        raise Malformed(f"--session doesn't go with --scope {options.scope}.", hint="Leave one of them out.")
    if options.directory is not None and options.scope != "project":
        raise Malformed("-C names a project.", hint="Say --scope project.")
    match options.scope:
        case "session":
            return {"key": naming.find(client, options.session)}
        case "project":
            return {"key": workspace_of(options.directory or ".")}
        case _:
            return {}


def _scope_of(change: JSON) -> str:
    return " ".join(part for part in (change["scope"], change.get("key")) if part)


def _diff_lines(found: JSON) -> list[str]:
    lines = [
        f"{sign} {name}"
        for sign, names in (("+", "added"), ("-", "removed"), ("~", "changed"))
        for name in found.get(names) or ()
    ]
    if found.get("loosens"):
        lines.append("looser: something that was denied, paused or asked may pass then")
    return lines


def _agreed(options: argparse.Namespace) -> bool:
    if options.yes:
        return True
    if not both_terminals():
        raise Malformed("What makes the rules looser asks first, and this is no terminal.", hint="Say --yes.")
    return ask_person("Make them looser? [y/N] ").lower() in ("y", "yes")


# Trying.


def check(options: argparse.Namespace) -> int:
    text = read_rules(options.file)
    with placed(options.file):
        found = local.connect().check_policies(text)
    if options.json:
        out_json(found)
        return OK
    for line in _rules(found["items"], scope=False):
        out(line)
    return OK


def test(options: argparse.Namespace) -> int:
    text = read_rules(options.file)
    body: JSON = {"policies": text}
    if options.at:
        body["at"] = _moment(options.at)
    recorded = _recorded(options.events)
    client = local.connect()
    body |= {"session_id": naming.find(client, options.events)} if recorded is None else {"events": recorded}
    with placed(options.file):
        found = client.test_policies(body)
    return _show_verdicts(options, found)


def _moment(text: str) -> int:
    """UTC ms. Raises `Malformed`."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise Malformed(f"--at takes a time like 2026-11-24T22:00, not {text!r}.") from error


def _recorded(named: str) -> list[JSON] | None:
    """The events of a file: JSON lines, or an export. None: it is no file, so a session is meant."""
    path = Path(named)
    if not path.is_file():
        if path.suffix in (".jsonl", ".json", ".zip"):
            raise NotFound(f"There is no file {named}.", hint=f"Make one: omnigent logs --json > {path.name}")
        return None
    try:
        data = path.read_bytes()
        if zipfile.is_zipfile(io.BytesIO(data)):
            data = zipfile.ZipFile(io.BytesIO(data)).read("events.jsonl")
        text = data.decode()
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise Malformed(f"{named} can't be read as a log.", hint="Give JSON lines, or an export.") from error
    return [_event(named, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _event(named: str, number: int, line: str) -> JSON:
    try:
        event: Any = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "kind" not in event:
        raise Malformed(
            f"{named}:{number}: this line is no event.", hint="`omnigent logs --json` prints such lines."
        )
    return event  # pyright: ignore[reportUnknownVariableType]


def replay(options: argparse.Namespace) -> int:
    text = None if options.policy is None else read_rules(options.policy)
    client = local.connect()
    session_id = naming.find(client, options.session)
    with placed(*([options.policy] if options.policy else [])):
        found = client.replay(session_id, text)
    return _show_verdicts(options, found)


def _show_verdicts(options: argparse.Namespace, found: JSON) -> int:
    rows: list[JSON] = found["items"]
    worst = max((STRICTNESS.index(row["verdict"]) for row in rows), default=0)
    code = DENIED if options.fail_on and worst >= STRICTNESS.index(options.fail_on) else OK
    if options.json:
        out_json(found)
        return code
    shown = [row for row in rows if options.all or row["verdict"] != "allow"]
    if shown:
        for line in table(
            ("SEQ", "VERDICT", "WAS", "RULES", "CALL", "REASON"), map(_verdict, shown), width()
        ):
            out(line)
    counts: JSON = found["counts"]
    tell(", ".join(f"{counts.get(name, 0)} {word}" for name, word in _COUNTED))
    return code


_COUNTED = (("allow", "allowed"), ("ask", "asked"), ("pause", "paused"), ("deny", "denied"))


def _verdict(row: JSON) -> tuple[str, ...]:
    rules = ", ".join(row["rule_ids"])
    title = one_line(row["title"], 60)
    return (str(row["seq"]), row["verdict"], row.get("recorded") or "", rules, title, row["reason"])


# Explaining.


def explain(options: argparse.Namespace) -> int:
    client = local.connect()
    session_id, item = _whose(client, options.item, options.session)
    found = client.explain(session_id, item)
    if options.json:
        out_json(found)
        return OK
    for line in explained(found):
        out(line)
    return OK


def _whose(client: Client, item: str, named: str | None) -> tuple[str, str]:
    """The session and the item's whole id: of an approval that waits it is known, else it must be told."""
    if named is None:
        for row in client.inbox():
            waiting = row["item"]
            if item in (waiting["id"], waiting.get("call_id")) or waiting["id"].startswith(item):
                return row["session_id"], waiting["id"]
    return naming.find(client, named), item


def explained(found: JSON) -> list[str]:
    """An explanation for people: the verdict, its rule, the facts, and what came before that matters."""
    lines = [
        f"{found['item_id']}  {one_line(found['title'])}",
        f"verdict   {found['verdict']}" + (f": {one_line(found['reason'], 400)}" if found["reason"] else ""),
    ]
    recorded = found.get("recorded_verdict")
    if recorded and recorded["verdict"] != found["verdict"]:
        lines.append(f"recorded  {recorded['verdict']}: {one_line(recorded['reason'], 400)}")
    lines += [f"rule      {row['name']} ({row['scope']}): {row['description']}" for row in found["rules"]]
    lines += [f"fact      {one_line(fact, 400)}" for fact in found["facts"]]
    lines += [
        f"after     event {row['seq']}{_of(row, found)}: {one_line(row['title'])}" for row in found["after"]
    ]
    actions: list[JSON] = found["actions"]
    lines += [f"action    {action_line(action)}" for action in actions]
    if approval := found.get("approval"):
        by = f" by {approval['by']['id']}" if approval.get("by") else ""
        lines.append(f"approval  {approval['id']}  {approval['status']}{by}")
    return lines


def _of(row: JSON, found: JSON) -> str:
    return "" if row["session_id"] == found["session_id"] else f" of {row['session_id']}"
