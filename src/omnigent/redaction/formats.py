"""The published formats of secrets that nobody told us of: one table, each with its name.

A format is found by its `anchors`, which are cheap to look for; only there its `pattern` is tried. What
is redacted is the pattern's group `secret`, or all of it. `growing` says, for a text that is still being
written, whether what stands from the anchor to the end may become one. Both take time in proportion to the
text, whatever it is: an agent chooses it.

Formats are as their issuers document them, or as secret scanners publish them. Long hexadecimal or base64
alone is no format: it is a git hash, a UUID, an image.
"""

import re
from dataclasses import dataclass

LONGEST = 8 * 1024
"""Characters of one unknown secret; a stream is never held back for longer than that."""

_BOUND = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=%[0-9A-Fa-f]{2}))"
"""Where a word begins, also after an escape of JSON or of a URL."""
_WORD = r"[A-Za-z0-9]"
_NO_WORD = r"(?![A-Za-z0-9])"
_BREAK = r"(?:\s|\\+[rn])"
_PEM_HEAD = r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
_PEM_FIELD = r"[\r\n\\rn]{0,8}+[A-Za-z-]{1,40}+(?::[^\n\\]{0,200}+)?"
_PEM_FIELDS = rf"(?:{_BREAK}{{0,8}}+[A-Za-z-]{{1,40}}+: [^\n\\]{{0,200}}+){{0,8}}+"
_PEM_BODY = r"(?:[A-Za-z0-9+/=]++|\\++[rn]|[\r\n]++[ \t]*+)*+"
_AWS_GAP = r"[\"'\\]{0,4}\s{0,4}(?:=>|[=:,])\s{0,4}[\"'\\]{0,4}"


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    anchors: tuple[str, ...]
    pattern: re.Pattern[str]
    """Tried where an anchor begins."""
    growing: re.Pattern[str] | None = None
    """Tried there too. None: any word may become one."""

    @property
    def replacement(self) -> str:
        return f"[redacted: {self.name}]"


def _format(name: str, anchors: str, pattern: str) -> Format:
    return Format(name, tuple(anchors.split()), re.compile(pattern))


FORMATS: tuple[Format, ...] = (
    _format("aws access key", "AKIA ASIA", rf"{_BOUND}A[KS]IA[A-Z0-9]{{16}}{_NO_WORD}"),
    Format(
        "aws secret key",
        ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "SecretAccessKey", "secretAccessKey"),
        re.compile(rf"\w+{_AWS_GAP}(?P<secret>[A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])"),
        re.compile(rf"\w+(?:{_AWS_GAP}[A-Za-z0-9/+]{{0,40}}|[\"'\\]{{0,4}}\s{{0,4}})\Z"),
    ),
    _format(
        "github token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
    ),
    _format(
        "gitlab token",
        "glpat- glptt- gldt- glrt- glcbt- glft- glsoat- glimt- glagent-",
        r"gl(?:pat|ptt|dt|rt|cbt|ft|soat|imt|agent)-[A-Za-z0-9_.-]{20,300}",
    ),
    _format("slack token", "xox xapp-", r"(?:xox[abeoprs](?:\.xox[bp])?|xapp-\d)-[A-Za-z0-9-]{10,250}"),
    _format(
        "slack webhook",
        "hooks.slack.com/services/",
        r"hooks\.slack\.com/services/(?P<secret>T[A-Z0-9]{6,14}/B[A-Z0-9]{6,14}/[A-Za-z0-9]{20,30})",
    ),
    _format(
        "stripe key",
        "sk_live_ sk_test_ rk_live_ rk_test_ whsec_",
        rf"(?:[sr]k_(?:live|test)_[A-Za-z0-9]{{16,250}}|whsec_[A-Za-z0-9+/=]{{32,250}}){_NO_WORD}",
    ),
    _format("anthropic key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{20,250}"),
    _format(
        "openai key",
        "sk-",
        rf"{_BOUND}sk-(?:(?:proj|svcacct|admin|or-v1)-[A-Za-z0-9_-]{{20,250}}"
        rf"|(?=[A-Za-z]*[0-9])[A-Za-z0-9]{{32,250}}(?![A-Za-z0-9-]))",
    ),
    _format("google api key", "AIza", rf"{_BOUND}AIza[A-Za-z0-9_-]{{35}}(?![A-Za-z0-9_-])"),
    _format(
        "google oauth token", "GOCSPX- ya29.", r"(?:GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{30,2000})"
    ),
    _format("npm token", "npm_", rf"{_BOUND}npm_[A-Za-z0-9]{{36}}{_NO_WORD}"),
    _format("pypi token", "pypi-AgE", r"pypi-AgE[A-Za-z0-9_-]{50,1000}"),
    _format("sendgrid key", "SG.", rf"{_BOUND}SG\.[A-Za-z0-9_-]{{22}}\.[A-Za-z0-9_-]{{43}}(?![A-Za-z0-9_-])"),
    _format("twilio key", "SK", rf"{_BOUND}SK[0-9a-f]{{32}}{_NO_WORD}"),
    _format("hugging face token", "hf_", rf"{_BOUND}hf_[A-Za-z0-9]{{34,40}}{_NO_WORD}"),
    _format("digitalocean token", "doo_v1_ dop_v1_ dor_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    Format(
        "azure storage key",
        ("AccountKey=",),
        re.compile(r"AccountKey=(?P<secret>[A-Za-z0-9+/]{86}==)"),
        re.compile(r"AccountKey=[A-Za-z0-9+/=]{0,88}\Z"),
    ),
    _format("databricks token", "dapi", rf"{_BOUND}dapi[0-9a-f]{{32}}(?:-\d)?{_NO_WORD}"),
    _format("docker token", "dckr_pat_", r"dckr_pat_[A-Za-z0-9_-]{27,100}"),
    _format("vault token", "hvs. hvb. hvr.", rf"{_BOUND}hv[sbr]\.[A-Za-z0-9_-]{{24,300}}"),
    _format("shopify token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _format("grafana token", "glsa_", r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}"),
    _format("linear key", "lin_api_", r"lin_api_[A-Za-z0-9]{40}"),
    _format("groq key", "gsk_", rf"{_BOUND}gsk_[A-Za-z0-9]{{52}}{_NO_WORD}"),
    _format("new relic key", "NRAK-", r"NRAK-[A-Z0-9]{27}"),
    _format("age key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
    _format(
        "json web token",
        "eyJ",
        rf"{_BOUND}eyJ[A-Za-z0-9_-]{{10,4000}}+\.eyJ[A-Za-z0-9_-]{{10,4000}}+\.[A-Za-z0-9_-]{{16,1000}}",
    ),
    Format(
        "password in a url",
        ("://",),
        re.compile(r"://[^\s/:@\"'<>]{0,100}:(?P<secret>(?![$<{*\[])[^\s/@\"'<>]{3,250})@"),
        re.compile(r"://[^\s/:@\"'<>]{0,100}(?::[^\s/@\"'<>]{0,250})?\Z"),
    ),
    Format(
        "private key",
        ("-----BEGIN ",),
        re.compile(
            rf"{_PEM_HEAD}(?P<secret>{_PEM_FIELDS}(?={_BREAK}{{0,8}}+[A-Za-z0-9+/=]{{16}}){_PEM_BODY})"
        ),
        re.compile(
            rf"-----BEGIN (?:[A-Z0-9 ]{{0,40}}-{{0,4}}"
            rf"|[A-Z0-9 ]{{0,30}}PRIVATE KEY(?: BLOCK)?-----{_PEM_FIELDS}"
            rf"(?:{_PEM_BODY}\\{{0,4}}|{_PEM_FIELD}))\Z"
        ),
    ),
)
