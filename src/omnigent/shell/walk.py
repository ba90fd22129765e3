"""From the syntax tree to simple commands, in the order in which they would run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tree_sitter import Node

from omnigent.actions import Action, Exec, Net
from omnigent.shell import grammar
from omnigent.shell.environment import value_doubt
from omnigent.shell.grammar import Opaque, Source, below, plain
from omnigent.shell.paths import file_actions
from omnigent.shell.running import ordinary, run_command
from omnigent.shell.simple import DEEPEST_TEXT, MOST_COMMANDS, Around, Simple, Touch
from omnigent.shell.values import UNKNOWN, Said, Scope, Word
from omnigent.shell.words import Expander

_MOST_ROUNDS = 32
_LOOPS = ("while_statement", "c_style_for_statement")
_WRITING = {">", ">>", "&>", "&>>", ">|", ">&", "<>"}


@dataclass(frozen=True, slots=True)
class _Redirected:
    stdin: Said | None
    touches: tuple[Touch, ...]
    nets: tuple[Net, ...]
    captured: bool
    """Its output goes elsewhere."""
    doubt: str
    extra: tuple[Word, ...] = ()
    after: tuple[tuple[str, Node], ...] = ()
    """What the grammar keeps inside a here-document: commands behind `|`, `&&` and `||`."""


class Walk:
    """One walk through one text and the texts in it; collects the actions."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.actions: list[Action] = []
        self.written: set[str] = set()
        self.own: list[bool] = []
        """For each Exec: whether the whole's exit code could be its own."""

    # The `Shell` of `simple.py`

    def text(self, text: str, scope: Scope, around: Around) -> Said:
        if around.depth > DEEPEST_TEXT:
            raise Opaque("Shell texts are nested too deeply.")
        source = grammar.read(text)
        return _Run(self, source).node(source.root, scope, replace(around, depth=around.depth + 1))

    def run(self, simple: Simple) -> Said:
        return run_command(self, simple)

    def ordinary(self, simple: Simple, program: str) -> Said:
        return ordinary(self, simple, program)

    def call(self, name: str, simple: Simple) -> Said | None:
        found = simple.scope.functions.get(name)
        if found is None:
            return None
        if simple.around.depth > DEEPEST_TEXT:
            raise Opaque("Functions call one another too deeply.")
        source, body = found
        scope = simple.scope
        outer, scope.args = scope.args, simple.words[1:]
        around = replace(simple.around, depth=simple.around.depth + 1)
        try:
            return _Run(self, source).node(body, scope, around)
        finally:
            scope.args = outer

    def add(self, action: Action) -> None:
        if len(self.actions) >= 4 * MOST_COMMANDS:
            raise Opaque("The command does too many things.")
        self.actions.append(action)

    def add_exec(self, action: Exec, around: Around) -> None:
        if len(self.own) >= MOST_COMMANDS:
            raise Opaque("The command runs too many commands.")
        self.own.append(around.own and not around.background)
        self.add(action)


class _Run:
    """One source's nodes."""

    def __init__(self, walk: Walk, source: Source) -> None:
        self.walk = walk
        self.source = source

    def node(self, node: Node, scope: Scope, around: Around) -> Said:
        match node.type:
            case "program" | "compound_statement" | "do_group":
                return self.sequence(node.children, scope, around)
            case "list":
                return self.chain(node, scope, around)
            case "pipeline":
                return self.pipeline(node, scope, around)
            case "negated_command":
                return self.sequence(node.named_children, scope, replace(around, own=False))
            case "subshell":
                return self.sequence(node.children, scope.copy(), around)
            case "command":
                return self.command(node, scope, around, ())
            case "redirected_statement":
                return self.redirected(node, scope, around)
            case "variable_assignment" | "variable_assignments":
                self.assignments(node, scope, around)
                return Said("")
            case "declaration_command":
                self.declaration(node, scope, around)
                return UNKNOWN
            case "unset_command":
                return self.unset(node, scope)
            case "test_command":
                return self.test(node, scope, around)
            case "if_statement" | "case_statement":
                return self.branches(node, scope, replace(around, own=False))
            case "while_statement" | "c_style_for_statement":
                return self.loop(node, scope, replace(around, own=False))
            case "for_statement":
                return self.for_each(node, scope, replace(around, own=False))
            case "function_definition":
                self.define(node, scope)
                return Said("")
            case "comment" | "heredoc_body" | "heredoc_end":
                return Said("")
            case _:
                raise Opaque("A construct of the shell isn't understood.")

    def sequence(self, children: Sequence[Node], scope: Scope, around: Around) -> Said:
        said: list[Said] = []
        for place, child in enumerate(children):
            if not child.is_named:
                continue
            following = children[place + 1] if place + 1 < len(children) else None
            if following is not None and following.type == "&":
                said.append(self.node(child, scope.copy(), replace(around, background=True)))
            else:
                said.append(self.node(child, scope, around))
        return _together(said)

    def chain(self, node: Node, scope: Scope, around: Around) -> Said:
        first, operator, second = node.children[0], node.children[1], node.children[-1]
        if operator.type not in ("&&", "||") or len(node.children) != 3:
            raise Opaque("A list of commands isn't understood.")
        around = around if operator.type == "&&" else replace(around, own=False)
        one = self.node(first, scope, around)
        before = dict(scope.variables)
        two = self.node(second, scope, around)
        if operator.type == "||":
            _forget_changed(scope, before)
            return _either([one, two])
        return _together([one, two])

    def pipeline(self, node: Node, scope: Scope, around: Around) -> Said:
        said = around.stdin
        for part in node.children:
            if part.is_named and part.type != "comment":
                said = self.node(part, scope.copy(), replace(around, stdin=said, own=False))
        return said or UNKNOWN

    def branches(self, node: Node, scope: Scope, around: Around) -> Said:
        before = dict(scope.variables)
        said: list[Said] = []
        for child in node.children:
            if not child.is_named:
                continue
            if child.type in ("elif_clause", "else_clause", "case_item"):
                said.append(self.branches(child, scope, around))
            elif child.type in _STATEMENTS:
                said.append(self.node(child, scope, around))
            else:
                self.substitutions(child, scope)
        _forget_changed(scope, before)
        return _either(said)

    def loop(self, node: Node, scope: Scope, around: Around) -> Said:
        self.forget_assigned(node, scope)
        for child in node.named_children:
            if child.type in _STATEMENTS or child.type == "do_group":
                self.node(child, scope, around)
            else:
                self.substitutions(child, scope)
        self.forget_assigned(node, scope)
        return UNKNOWN

    def for_each(self, node: Node, scope: Scope, around: Around) -> Said:
        name = self.source.slice(node.child_by_field_name("variable") or node)
        body = node.child_by_field_name("body")
        values: list[Word] = []
        for value in node.children_by_field_name("value"):
            values += self.expander(scope).words(value)
        if body is None:
            raise Opaque("A loop isn't understood.")
        if not any(child.type == "in" for child in node.children):
            values = list(scope.args) if scope.args is not None else [Word('"$@"', known=False)]
        values = [replace(value, many=False) for value in values]
        if len(values) > _MOST_ROUNDS:
            self.forget_assigned(body, scope)
            known = all(value.known for value in values)
            values = [Word(f"${name}", known=False) if not known else values[0], values[-1]]
            values[0] = Word(f"${name}", known=False)
        for value in values:
            scope.variables[name] = (value,)
            self.node(body, scope, around)
        if len(values) != 1:
            self.forget_assigned(body, scope)
            scope.variables[name] = (Word(f"${name}", known=False),)
        return UNKNOWN

    def define(self, node: Node, scope: Scope) -> None:
        name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        if name is None or body is None or node.child_by_field_name("redirect") is not None:
            raise Opaque("A function isn't understood.")
        scope.functions[self.source.slice(name)] = (self.source, body)

    def test(self, node: Node, scope: Scope, around: Around) -> Said:
        self.substitutions(node, scope)
        raw = self.source.slice(node)
        if raw.startswith("(("):
            return Said("")
        self.walk.add_exec(
            Exec(command=raw, argv=("test",), program="test", cwd=_where(scope), everyday=True,
                 background=around.background), around)  # fmt: skip
        return Said("")

    def substitutions(self, node: Node, scope: Scope) -> None:
        """Runs the substitutions of a part that is no command."""
        kinds = ("command_substitution", "process_substitution")
        for inner in [node] if node.type in kinds else below(node, *kinds):
            self.substitute(inner, scope)

    # Commands

    def expander(self, scope: Scope) -> Expander:
        return Expander(self.source, scope, lambda node: self.substitute(node, scope))

    def substitute(self, node: Node, scope: Scope) -> Said:
        raw = self.source.slice(node).strip()
        if raw.startswith("`") and "\\" in raw:
            raise Opaque("A backquoted command has backslashes in it.")
        children = node.named_children
        if raw.startswith("$(<") or (children and children[0].type == "file_redirect"):
            for child in children:
                self.effects(self.redirects([child], scope), scope)
            return UNKNOWN
        stdin = UNKNOWN if raw.startswith(">(") else None
        return self.sequence(node.children, scope.copy(), Around(stdin=stdin, own=False))

    def command(
        self, node: Node, scope: Scope, around: Around, extra: tuple[Word, ...], *, written: str = ""
    ) -> Said:
        """`written` is its text with the redirections around it."""
        expander = self.expander(scope)
        words: list[Word] = []
        sets: list[tuple[str, Word]] = []
        redirects: list[Node] = []
        end = -1
        for place, child in enumerate(node.children):
            if child.type == "variable_assignment":
                sets.append(self.assignment(child, scope))
            elif child.type in ("file_redirect", "herestring_redirect", "heredoc_redirect"):
                redirects.append(child)
            elif child.type == "comment":
                continue
            elif child.type == "$" and _touching(node.children, place):
                end = child.end_byte + 1 if child.start_byte != end else _refuse()
                continue
            elif child.type in ("(", ")", "subshell"):
                raise Opaque("A command isn't understood.")
            else:
                start = child.start_byte
                while self.source.text[start].isspace():
                    start += 1
                if start == end:
                    _refuse()
                words += expander.words(child)
                end = child.end_byte
        found = self.redirects(redirects, scope)
        around = around if found.stdin is None else replace(around, stdin=found.stdin)
        simple = Simple(
            raw=written or self.source.slice(node), words=(*words, *extra), scope=scope, around=around,
            sets=tuple(sets), doubt=found.doubt,
        )  # fmt: skip
        said = self.simple(simple)
        self.effects(found, scope)
        return self.follow(Said("") if found.captured else said, found, scope, around)

    def simple(self, simple: Simple) -> Said:
        if simple.words:
            return run_command(self.walk, simple)
        for name, value in simple.sets:
            simple.scope.variables[name] = (value,)
        return Said("")

    def redirected(self, node: Node, scope: Scope, around: Around) -> Said:
        body = node.child_by_field_name("body")
        found = self.redirects(node.children_by_field_name("redirect"), scope)
        inner = around if found.stdin is None else replace(around, stdin=found.stdin)
        said = Said("")
        if body is not None and body.type == "command":
            documents = any(child.type == "heredoc_redirect" for child in node.children)
            written = "" if documents else self.source.slice(node)
            said = self.command(body, scope, inner, found.extra, written=written)
        elif body is not None:
            if found.extra:
                raise Opaque("A here-document isn't understood.")
            said = self.node(body, scope, inner)
        if found.doubt:
            self.walk.add_exec(
                Exec(command=self.source.slice(node), cwd=_where(scope), doubt=found.doubt), around
            )
        self.effects(found, scope)
        return self.follow(Said("") if found.captured else said, found, scope, around)

    def follow(self, said: Said, found: _Redirected, scope: Scope, around: Around) -> Said:
        for operator, node in found.after:
            if operator == "|":
                parts = node.named_children if node.type == "pipeline" else [node]
                for part in parts:
                    said = self.node(part, scope.copy(), replace(around, stdin=said, own=False))
            else:
                said = _together([said, self.node(node, scope, replace(around, own=False))])
        return said

    def effects(self, found: _Redirected, scope: Scope) -> None:
        for touch in found.touches:
            actions, doubt = file_actions(touch, scope, self.walk.workspace)
            for action in actions:
                self.walk.add(action)
                if touch.kind == "write":
                    self.walk.written.add(action.real_path)
            if doubt:
                self.walk.add_exec(
                    Exec(command=touch.word.text, cwd=_where(scope), doubt=doubt), Around(own=False)
                )
        for net in found.nets:
            self.walk.add(net)

    def redirects(self, nodes: Sequence[Node], scope: Scope) -> _Redirected:
        stdin: Said | None = None
        touches: list[Touch] = []
        nets: list[Net] = []
        captured, doubt = False, ""
        extra: list[Word] = []
        after: list[tuple[str, Node]] = []
        for node in nodes:
            if node.type == "herestring_redirect":
                word = self.expander(scope).value(node.named_children[-1])
                stdin = Said(word.text + "\n") if word.known else UNKNOWN
            elif node.type == "heredoc_redirect":
                stdin = self.document(node, scope)
                inner = node.children_by_field_name("redirect")
                for child in node.children_by_field_name("argument"):
                    extra += self.expander(scope).words(child)
                more = self.redirects(inner, scope)
                touches += more.touches
                nets += more.nets
                captured, doubt = captured or more.captured, doubt or more.doubt
                after += _behind(node)
            else:
                inner = node.child_by_field_name("destination")
                if inner is not None and inner.type == "process_substitution" and _reads(node):
                    stdin = self.substitute(inner, scope)
                    continue
                kind, word = self.redirect(node, scope)
                captured = captured or (kind in _WRITING and not self.source.slice(node).startswith("2"))
                if word is None:
                    continue
                if word.known and word.text.startswith(("/dev/tcp/", "/dev/udp/")):
                    nets.append(_socket(word.text))
                    stdin = UNKNOWN if kind in ("<", "<>") else stdin
                elif word.known and word.text.startswith("/dev/"):
                    touches.append(Touch("read" if kind == "<" else "write", word))
                else:
                    touches.append(Touch("read" if kind == "<" else "write", word))
                    stdin = UNKNOWN if kind in ("<", "<>") else stdin
        return _Redirected(stdin, tuple(touches), tuple(nets), captured, doubt, tuple(extra), tuple(after))

    def redirect(self, node: Node, scope: Scope) -> tuple[str, Word | None]:
        """The operator and the file it names, None where it names a descriptor."""
        kind = next((child.type for child in node.children if not child.is_named), ">")
        targets = node.children_by_field_name("destination")
        if not targets:
            return kind, None
        if len(targets) > 1:
            raise Opaque("A redirection isn't understood.")
        words = self.expander(scope).words(targets[0])
        if len(words) != 1:
            return kind, Word(self.source.slice(targets[0]), known=False)
        word = words[0]
        if kind in (">&", "<&", ">&-", "<&-") and word.known and word.text.rstrip("-").isdigit():
            return kind, None
        if kind in (">&", "<&") and word.known and word.text == "-":
            return kind, None
        if kind == "<&":
            return kind, Word(word.text, known=False)
        if word.atom and word.pattern == "/dev/fd/*":
            return kind, None
        return kind, replace(word, many=False)

    def document(self, node: Node, scope: Scope) -> Said:
        start = next((child for child in node.children if child.type == "heredoc_start"), None)
        body = next((child for child in node.children if child.type == "heredoc_body"), None)
        if start is None:
            raise Opaque("A here-document isn't understood.")
        if body is None:
            return Said("")
        if any(char in self.source.slice(start) for char in "'\"\\"):
            text = plain(self.source.text[body.start_byte : body.end_byte])
        else:
            word = self.expander(scope).document(body, body.start_byte, body.end_byte)
            if not word.known:
                return UNKNOWN
            text = word.text
        if any(child.type == "<<-" for child in node.children):
            text = "\n".join(line.lstrip("\t") for line in text.split("\n"))
        return Said(text)

    # Variables

    def assignment(self, node: Node, scope: Scope) -> tuple[str, Word]:
        target, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if target is None:
            raise Opaque("An assignment isn't understood.")
        name = self.source.slice(target)
        if target.type == "subscript":
            self.substitutions(target, scope)
            base = name.partition("[")[0]
            if value is not None:
                self.expander(scope).value(value)
            scope.variables[base] = (Word(f"${base}", known=False),)
            return base, Word(f"${base}", known=False)
        if value is None:
            return name, Word("")
        if value.type == "array":
            words: list[Word] = []
            for child in value.named_children:
                words += self.expander(scope).words(child)
            appends = any(child.type == "+=" for child in node.children)
            scope.variables[name] = (*(scope.variables.get(name, ()) if appends else ()), *words)
            return name, Word(self.source.slice(value), known=False)
        word = self.expander(scope).value(value)
        if any(child.type == "+=" for child in node.children):
            before = scope.value(name)
            if before is None or not word.known or not all(each.known for each in before):
                word = Word(self.source.slice(value), known=False)
            else:
                word = Word("".join(each.text for each in before) + word.text)
        return name, word

    def assignments(self, node: Node, scope: Scope, around: Around) -> None:
        nodes = [node] if node.type == "variable_assignment" else node.named_children
        for each in nodes:
            value = each.child_by_field_name("value")
            name, word = self.assignment(each, scope)
            if value is None or value.type != "array":
                self.set(name, word, scope, each, around)

    def set(self, name: str, word: Word, scope: Scope, node: Node, around: Around) -> None:
        if name == "IFS":
            scope.split = False
        scope.variables[name] = (word,)
        doubt = value_doubt(name, word, scope, self.walk.workspace)
        if doubt:
            self.walk.add_exec(Exec(command=self.source.slice(node), cwd=_where(scope), doubt=doubt), around)

    def declaration(self, node: Node, scope: Scope, around: Around) -> None:
        raw = self.source.slice(node)
        for child in node.named_children:
            if child.type == "variable_assignment":
                value = child.child_by_field_name("value")
                name, word = self.assignment(child, scope)
                if value is None or value.type != "array":
                    self.set(name, word, scope, child, around)
            elif child.type != "variable_name":
                words = self.expander(scope).words(child)
                bad = [word for word in words if not word.known or "=" in word.text]
                if bad or any(_has_letter(word.text, "n") for word in words):
                    doubt = "What this declares isn't known before it runs."
                    self.walk.add_exec(Exec(command=raw, cwd=_where(scope), doubt=doubt), around)
        program = raw.split()[0]
        self.walk.add_exec(
            Exec(command=raw, argv=(program,), program=program, cwd=_where(scope), everyday=True), around
        )

    def unset(self, node: Node, scope: Scope) -> Said:
        for child in node.named_children:
            name = self.source.slice(child)
            scope.variables.pop(name, None)
            scope.functions.pop(name, None)
            scope.split = scope.split or name == "IFS"
        return Said("")

    def forget_assigned(self, node: Node, scope: Scope) -> None:
        """What a loop's body sets may have any value in it."""
        for found in below(node, "variable_assignment"):
            target = found.child_by_field_name("name")
            value = found.child_by_field_name("value")
            if target is None:
                continue
            name = self.source.slice(target).partition("[")[0]
            atom = value is not None and value.type in ("arithmetic_expansion", "number")
            before = scope.variables.get(name)
            tame = (
                atom
                and before is not None
                and len(before) == 1
                and (before[0].text.isdigit() or before[0].atom)
            )
            word = (
                Word(f"${name}", known=False, atom=True, pattern="*")
                if tame
                else Word(f"${name}", known=False)
            )
            scope.variables[name] = (word,)


_STATEMENTS = {
    "list", "pipeline", "negated_command", "subshell", "command", "redirected_statement",
    "variable_assignment",
    "variable_assignments", "declaration_command", "unset_command", "test_command", "if_statement",
    "case_statement", "while_statement", "c_style_for_statement", "for_statement", "function_definition",
    "compound_statement", "do_group",
}  # fmt: skip


def _refuse() -> int:
    raise Opaque("Where a word of the command ends isn't clear.")


def _touching(children: Sequence[Node], place: int) -> bool:
    """`$"…"`: the grammar gives the dollar as a word of its own."""
    return (
        place + 1 < len(children)
        and children[place + 1].type == "string"
        and children[place + 1].start_byte == children[place].end_byte
    )


def _where(scope: Scope) -> str:
    return str(scope.cwd) if scope.cwd is not None and not scope.remote else ""


def _reads(redirect: Node) -> bool:
    return any(child.type == "<" for child in redirect.children)


def _has_letter(flag: str, letter: str) -> bool:
    return flag.startswith(("-", "+")) and letter in flag


def _behind(node: Node) -> list[tuple[str, Node]]:
    found: list[tuple[str, Node]] = []
    operator = ""
    for place, child in enumerate(node.children):
        if node.field_name_for_child(place) == "operator":
            operator = child.type
        elif node.field_name_for_child(place) == "right":
            found.append((operator, child))
        elif child.type == "pipeline":
            found.append(("|", child))
        elif child.is_named and child.type in _STATEMENTS:
            raise Opaque("A here-document isn't understood.")
    return found


def _socket(path: str) -> Net:
    parts = path.split("/")
    host, port = (parts[3] if len(parts) > 3 else ""), (parts[4] if len(parts) > 4 else "")
    return Net(
        method="", url=f"{parts[2]}://{host}:{port}", host=host.lower(),
        port=int(port) if port.isdigit() else None,
        doubt="" if host else "The host can't be told.",
    )  # fmt: skip


def _forget_changed(scope: Scope, before: dict[str, tuple[Word, ...]]) -> None:
    """After a command that may not have run, a variable it set has its old value or the new one."""
    for name, value in scope.variables.items():
        if before.get(name) != value:
            scope.variables[name] = (Word(f"${name}", known=False, many=True),)


def _together(said: list[Said]) -> Said:
    """One after the other."""
    loud = [each for each in said if each.text != ""]
    if len(loud) == 1:
        return loud[0]
    if all(each.text is not None for each in loud):
        return Said("".join(each.text or "" for each in loud))
    return UNKNOWN


def _either(said: list[Said]) -> Said:
    loud = [each for each in said if each.text != ""]
    if loud and all(each.atom or (each.text is not None and each.text.strip().isalnum()) for each in loud):
        return Said(atom=True)
    return UNKNOWN
