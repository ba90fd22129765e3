"""Requests to other hosts that commands make."""

import re

from omnigent.actions import Net, net
from omnigent.shell.programs import Split
from omnigent.shell.simple import Effects
from omnigent.shell.values import Word

_UNKNOWN_URL = "Which address this asks isn't known before it runs."
_POSTS = {"data", "data-raw", "data-binary", "data-ascii", "data-urlencode", "json", "form", "form-string"}
_CURL_DOUBT = {
    "config",
    "resolve",
    "connect-to",
    "unix-socket",
    "abstract-unix-socket",
    "doh-url",
    "interface",
    "url-query",
}


def curl_effects(split: Split, operands: list[Word], effects: Effects) -> None:
    urls = [*operands, *(flag.value for flag in split.flags if flag.name == "url" and flag.value is not None)]
    method = split.value("request")
    verb = method.text.upper() if method is not None else "GET"
    if method is None and split.names & _POSTS and "get" not in split.names:
        verb = "POST"
    if method is None and "upload-file" in split.names:
        verb = "PUT"
    if method is None and "head" in split.names:
        verb = "HEAD"
    for url in urls:
        _ask(url, verb, effects)
    for flag in split.flags:
        value = flag.value
        if flag.name in _CURL_DOUBT:
            effects.doubts.append(f"curl's --{flag.name} decides what is asked.")
        if value is None:
            continue
        if flag.name in _POSTS:
            _uploaded(flag.name, value, effects)
        elif flag.name in ("proxy", "preproxy", "socks5", "socks5-hostname", "socks4"):
            _ask(value, "", effects)
    if "remote-name" in split.names or "remote-name-all" in split.names:
        where = split.value("output-dir")
        names = [url.text.rstrip("/").rpartition("/")[2] for url in operands if url.known] or ["."]
        effects.write(*(Word(f"{where.text}/{name}" if where is not None else name) for name in names))


def _uploaded(name: str, value: Word, effects: Effects) -> None:
    """`-d @FILE`, `-F name=@FILE`, `--data-urlencode name@FILE`: what of a file is sent."""
    if not value.known:
        if not value.atom:
            effects.doubts.append("What is sent isn't known before it runs.")
        return
    text = value.text
    if name in ("form",):
        found = re.match(r"[^=]*=[@<]([^;]*)", text)
    elif name == "data-urlencode":
        found = re.match(r"[^=@]*@(.*)", text, re.S)
    elif name in ("data-raw", "form-string"):
        found = None
    else:
        found = re.match(r"@(.*)", text, re.S)
    if found and found[1] != "-":
        effects.read(Word(found[1]))


def _ask(url: Word, method: str, effects: Effects) -> None:
    """A request to the address; what is behind the host may be unknown."""
    text = url.text if url.known else url.prefix
    if not url.known and not re.match(r"(https?://)?[\w.-]+(:\d+)?/", text):
        effects.doubts.append(_UNKNOWN_URL)
        return
    if url.known and re.search(r"[{}\[\]]", re.sub(r"://\[[0-9a-fA-F:.]+\]", "://", text).split("?")[0]):
        effects.doubts.append("The address stands for several.")
    if text.lower().startswith("file:"):
        effects.read(Word(re.sub(r"file:(//)?", "", text, flags=re.I)))
        return
    effects.nets.append(net(text, method))


def wget_effects(split: Split, operands: list[Word], effects: Effects) -> None:
    method = split.value("method")
    posts = split.names & {"post-data", "post-file", "body-data", "body-file"}
    verb = method.text.upper() if method is not None else "POST" if posts else "GET"
    for url in operands:
        _ask(url, verb, effects)
    if "input-file" in split.names or "execute" in split.names or "config" in split.names:
        effects.doubts.append("Which address this asks isn't told.")
    output = split.value("output-document")
    if output is None and "spider" not in split.names:
        where = split.value("directory-prefix")
        for url in operands:
            name = url.text.rstrip("/").rpartition("/")[2] if url.known else "."
            effects.write(Word(f"{where.text}/{name}" if where is not None else name))


def host_net(target: str, port: str = "") -> Net:
    """`user@host`, `ssh://user@host:port`: only the host is known."""
    found = re.fullmatch(r"(?:\w+://)?(?:[^@/]*@)?\[?([\w.:-]+?)\]?(?::(\d+))?/?", target)
    host = found[1].lower() if found else ""
    number = port or (found[2] if found and found[2] else "")
    return Net(
        method="", url=target, host=host, port=int(number) if number.isdigit() else None,
        doubt="" if host else "The host can't be told.",
    )  # fmt: skip


def ssh_effects(operands: list[Word], effects: Effects) -> None:
    if not operands:
        return
    if not operands[0].known:
        effects.doubts.append("Which host this speaks to isn't known before it runs.")
        return
    effects.nets.append(host_net(operands[0].text))


def remote_copy_effects(split: Split, operands: list[Word], effects: Effects) -> None:
    """`scp` and `rsync`: the last operand is written, the others read, wherever they lie."""
    recursive = bool(split.names & {"recursive", "archive"})
    for place, word in enumerate(operands):
        last = place == len(operands) - 1 and len(operands) > 1
        found = re.match(
            r"(?:rsync://)?(?:[^@/:]*@)?([\w.-]+|\[[\w:.]+\]):", word.text if word.known else word.prefix
        )
        if found or (word.known and word.text.startswith(("rsync://", "scp://", "sftp://"))):
            effects.nets.append(host_net(found[1] if found else word.text))
        elif last:
            effects.write(word, recursive=recursive)
        else:
            effects.read(word, recursive=recursive)
    if len(operands) > 1 and split.names & {
        "delete",
        "delete-after",
        "delete-before",
        "delete-excluded",
        "del",
    }:
        effects.delete(operands[-1], recursive=True)
        effects.everyday = False


def netcat_effects(program: str, split: Split, operands: list[Word], effects: Effects) -> None:
    for word in operands:
        if not word.known:
            effects.doubts.append("Which host this speaks to isn't known before it runs.")
        elif program == "socat":
            found = re.match(r"(?i)(?:TCP|UDP|OPENSSL|SOCKS|PROXY)[\w-]*:\[?([\w.-]+)", word.text)
            if found:
                effects.nets.append(host_net(found[1]))
        elif not word.text.isdigit() and not word.text.startswith("+") and not effects.nets:
            effects.nets.append(host_net(word.text.removeprefix("@")))
