"""One-liners for an interpreter that only compute and print: all other inline code is doubt.

What may stand in one is listed, never what may not.
"""

import ast
import re

_FUNCTIONS = {
    "print", "len", "sorted", "list", "dict", "set", "tuple", "str", "int", "float", "bool", "repr",
    "type", "sum", "dir", "min", "max", "range", "enumerate", "zip", "isinstance", "hasattr",
    "round", "abs", "any", "all", "hex", "bin", "ord", "chr", "open", "reversed", "bytes",
}  # fmt: skip
_METHODS = {
    "load", "loads", "dumps", "keys", "values", "items", "get", "split", "splitlines", "strip",
    "join", "upper", "lower", "read", "startswith", "endswith", "count", "version",
    "python_version", "platform", "system_info", "getcwd", "exists", "isfile", "isdir", "encode",
    "decode", "hexdigest", "sqrt", "getsizeof", "show_versions", "is_available", "now", "today",
    "isoformat", "strftime", "basename", "dirname", "abspath",
}  # fmt: skip
_LOADERS = {"json", "tomllib", "csv"}
"""`load` and `loads` are theirs alone: others run code from what they load."""
_KEYWORDS = {"sep", "end", "indent", "sort_keys", "reverse", "ensure_ascii", "encoding", "flush"}
_NODES = (
    ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.Expr, ast.Assign, ast.Name, ast.Load, ast.Store,
    ast.Constant,
    ast.Attribute, ast.Call, ast.keyword, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Dict, ast.Set,
    ast.BinOp,
    ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.JoinedStr, ast.FormattedValue, ast.ListComp,
    ast.SetComp,
    ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.expr_context,
    ast.For, ast.If, ast.Assert, ast.Pass,
)  # fmt: skip
_DUNDERS = {"__version__", "__file__", "__name__", "__doc__", "__path__", "__all__"}
_REFUSED = {
    "eval", "exec", "compile", "getattr", "setattr", "globals", "locals", "vars", "input",
    "breakpoint", "map", "filter", "delattr", "memoryview", "help", "exit", "quit", "super",
    "object", "callable", "iter", "next",
}  # fmt: skip
_MOST = 4000
_NODE = re.compile(
    r"\s*(?:console\.log\(\s*)?(?:require\(\s*(['\"])(\.{0,2}/?[\w@./-]+\.json)\1\s*\)|process)"
    r"(?:\.\w+|\[['\"][\w@/-]+['\"]\])*"
    r"\s*\)?\s*;?\s*"
)


def python_reads(code: str) -> list[str] | None:
    """The files that Python code reads when all it does is compute and print; None where it may do more."""
    if len(code) > _MOST:
        return None
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    reads: list[str] = []
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return None
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module or ''}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                imported[alias.asname or alias.name.partition(".")[0]] = name
    if {"antigravity", "idlelib"} & {name.partition(".")[0] for name in imported.values()}:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not _name(node, imported):
            return None
        if isinstance(node, ast.Attribute) and (
            (node.attr.startswith("_") and node.attr not in _DUNDERS) or isinstance(node.ctx, ast.Store)
        ):
            return None
        if isinstance(node, ast.Call):
            read = _call(node, imported)
            if read is None:
                return None
            reads += read
    return reads


def _name(node: ast.Name, imported: dict[str, str]) -> bool:
    """A name is a function of the list, imported,
    or the code's own; none of the list is given another value."""
    if isinstance(node.ctx, ast.Store):
        return node.id not in _FUNCTIONS and not node.id.startswith("_") and node.id not in imported
    return node.id not in _REFUSED and (not node.id.startswith("_") or node.id in _DUNDERS)


def _call(node: ast.Call, imported: dict[str, str]) -> list[str] | None:
    """What a call reads; None where the function isn't on the list."""
    if any(keyword.arg not in _KEYWORDS for keyword in node.keywords):
        return None
    function = node.func
    if isinstance(function, ast.Name) and function.id in _FUNCTIONS and function.id not in imported:
        return _opened(node) if function.id == "open" else []
    if isinstance(function, ast.Name) and imported.get(function.id, "") in (
        "importlib.metadata.version",
        "datetime.date",
    ):
        return []
    if isinstance(function, ast.Attribute) and function.attr in _METHODS:
        root = function.value
        if function.attr in ("load", "loads"):
            known = isinstance(root, ast.Name) and imported.get(root.id) in _LOADERS
            return [] if known else None
        if function.attr == "get":
            # Of a mapping, never of a module that asks another host.
            environment = isinstance(root, ast.Attribute) and root.attr == "environ"
            return [] if environment or isinstance(root, ast.Call | ast.Subscript) else None
        return []
    return None


def _opened(node: ast.Call) -> list[str] | None:
    arguments = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]
    if not arguments or not isinstance(arguments[0], str):
        return None
    return [arguments[0]] if len(arguments) == 1 or arguments[1] in ("r", "rb", "rt") else None


def node_reads(code: str) -> list[str] | None:
    """`require('./package.json').version` and `process.version`, printed."""
    found = _NODE.fullmatch(code)
    if found is None or re.search(r"process\.(?!versions?\b|platform\b|arch\b)", code):
        return None
    return [found[2]] if found[2] else []
