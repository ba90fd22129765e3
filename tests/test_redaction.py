"""Secrets are taken out of what is stored: known ones in every form, unknown ones by their format."""

import base64
import json
import random
import string
import time
import uuid
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigent import redaction
from omnigent.redaction import KNOWN, REDACTED, Redactor
from omnigent.redaction.formats import FORMATS, LONGEST

RANDOM = random.Random(20)
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
ROUGH = "/+=&\"\\?é %'~:!"


def made_up(size: int, alphabet: str = ALNUM) -> str:
    return "".join(RANDOM.choice(alphabet) for _ in range(size))


KNOWN_SECRETS = [
    made_up(8),
    *(made_up(20 + 9 * n) for n in range(6)),
    made_up(24, ALNUM + ROUGH),
    made_up(40, HEX),
]
KNOWN_SECRETS.append(f'pw {made_up(12)}/+"q\\')

FORMS: dict[str, Callable[[str], str]] = {
    "raw": lambda s: s,
    "json": lambda s: json.dumps({"k": s}),
    "json, not ascii": lambda s: json.dumps({"k": s}, ensure_ascii=False),
    "json twice": lambda s: json.dumps({"k": json.dumps({"k": s})}),
    "url": lambda s: "https://h/?k=" + quote(s, safe=""),
    "url, lower case": lambda s: "".join(
        f"%{byte:02x}" if chr(byte) not in ALNUM + "_.-~" else chr(byte) for byte in s.encode()
    ),
    "url, a path": lambda s: "/p/" + quote(s),
    "form": lambda s: urlencode({"k": s}),
    "plus": quote_plus,
    **{
        f"base64 {name}, phase {phase}": lambda s, phase=phase, encode=encode: encode(
            b"user:xyz"[: 6 + phase] + s.encode() + b" and more"
        ).decode()
        for name, encode in (("standard", base64.b64encode), ("url", base64.urlsafe_b64encode))
        for phase in range(3)
    },
    "base64 by lines": lambda s: base64.encodebytes(f"{'x' * 40}{s}{'y' * 30}".encode()).decode(),
    "hex": lambda s: s.encode().hex(),
    "hex, upper case": lambda s: s.encode().hex().upper(),
}


def carries(text: str, secret: str) -> bool:
    """Whether somebody who reads the text has the secret, by means of this test's own."""
    joined = text.replace("\n", "")
    views = {joined, joined.replace("\\n", "")}
    for _ in range(2):
        views |= {view.replace("\\\\", "\\").replace('\\"', '"') for view in views}
    for phase in range(3):
        whole = base64.b64encode(bytes(phase) + secret.encode()).decode().rstrip("=")
        middle = whole[4 if phase else 0 : -1]
        if middle in joined or middle.translate(str.maketrans("+/", "-_")) in joined:
            return True
    return secret in "\0".join(views) or secret.encode().hex() in joined.lower() or _unquoted(joined, secret)


def _unquoted(text: str, secret: str) -> bool:
    coded = [quote(secret, safe="").lower(), quote_plus(secret, safe="").lower()]
    return any(form in text.lower() for form in coded)


@pytest.mark.parametrize("form", FORMS)
def test_each_known_secret_in_each_form(form: str) -> None:
    redactor = Redactor(KNOWN_SECRETS)
    for secret in KNOWN_SECRETS:
        planted = f"before {FORMS[form](secret)} after"
        assert carries(planted, secret) or "by lines" in form or "not ascii" in form or secret not in ALNUM
        shown = redactor.text(planted)
        assert REDACTED in shown and not carries(shown, secret), (form, shown)
        assert shown.startswith("before ") and shown.endswith(" after")
        assert redactor.find(planted) == [KNOWN]


def streamed(redactor: Redactor, text: str, cuts: list[int]) -> str:
    """What is shown when the text comes in pieces of these sizes, over and over; then its whole end."""
    shown, held, at, turn = "", "", 0, 0
    while at < len(text):
        size = cuts[turn % len(cuts)]
        piece, held = redactor.split(held + text[at : at + size])
        assert len(held) <= LONGEST
        shown, at, turn = shown + piece, at + size, turn + 1
    return shown + redactor.text(held)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_cut_in_two_anywhere(form: str) -> None:
    redactor = Redactor(KNOWN_SECRETS)
    for secret in KNOWN_SECRETS:
        planted = f"before {FORMS[form](secret)} after"
        whole = redactor.text(planted)
        for cut in range(1, len(planted)):
            first, held = redactor.split(planted[:cut])
            second, end = redactor.split(held + planted[cut:])
            assert not carries(first, secret)
            assert first + second + redactor.text(end) == whole


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*KNOWN_SECRETS[:4], KNOWN_SECRETS[1][:9], KNOWN_SECRETS[1][3:], "\n", "\\n", "\\", "pw ", "x"]
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_streamed_is_what_is_stored(parts: list[str], cuts: list[int]) -> None:
    text, redactor = "".join(parts), Redactor(KNOWN_SECRETS)
    assert streamed(redactor, text, cuts) == redactor.text(text)


PEM_BODY = "\n".join([*(made_up(64, ALNUM + "+/") for _ in range(12)), made_up(20) + "=="])
UNKNOWN: dict[str, list[str]] = {
    "aws access key": ["AKIA" + made_up(16, string.ascii_uppercase + "234567")],
    "github token": ["ghp_" + made_up(36), "gho_" + made_up(36), f"github_pat_{made_up(22)}_{made_up(59)}"],
    "gitlab token": ["glpat-" + made_up(20)],
    "slack token": [f"xoxb-{made_up(12, string.digits)}-{made_up(12, string.digits)}-{made_up(24)}"],
    "stripe key": ["sk_live_" + made_up(24), "rk_live_" + made_up(99)],
    "openai key": ["sk-proj-" + made_up(100, ALNUM + "-_"), f"sk-{made_up(20)}T3BlbkFJ{made_up(19)}7"],
    "anthropic key": ["sk-ant-api03-" + made_up(95, ALNUM + "-_")],
    "google api key": ["AIza" + made_up(35, ALNUM + "-_")],
    "google oauth token": ["GOCSPX-" + made_up(28)],
    "npm token": ["npm_" + made_up(36)],
    "pypi token": ["pypi-AgEIcHlwaS5vcmcC" + made_up(150, ALNUM + "-_")],
    "json web token": [f"eyJ{made_up(33)}.eyJ{made_up(80)}.{made_up(43, ALNUM + '-_')}"],
    "sendgrid key": [f"SG.{made_up(22)}.{made_up(43)}"],
    "twilio key": ["SK" + made_up(32, HEX)],
    "hugging face token": ["hf_" + made_up(34, string.ascii_letters)],
    "digitalocean token": ["dop_v1_" + made_up(64, HEX)],
    "databricks token": ["dapi" + made_up(32, HEX)],
    "docker token": ["dckr_pat_" + made_up(27)],
    "vault token": ["hvs." + made_up(90)],
    "shopify token": ["shpat_" + made_up(32, HEX)],
    "grafana token": [f"glsa_{made_up(32)}_{made_up(8, HEX)}"],
    "linear key": ["lin_api_" + made_up(40)],
    "groq key": ["gsk_" + made_up(52)],
    "new relic key": ["NRAK-" + made_up(27, string.ascii_uppercase + string.digits)],
    "age key": ["AGE-SECRET-KEY-1" + made_up(58, string.ascii_uppercase + string.digits)],
}
AWS, AZURE, PASSWORD = made_up(40, ALNUM + "/+"), made_up(86, ALNUM + "+/") + "==", made_up(14)
HOOK = f"T{made_up(9, '0A7')}/B{made_up(9, '0A7')}/{made_up(24)}"


def pem(kind: str, fields: str = "") -> str:
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{fields}{PEM_BODY}\n-----END {kind}PRIVATE KEY-----"


INSIDE: list[tuple[str, str, str]] = [
    ("aws secret key", f"aws_secret_access_key = {AWS}", AWS),
    ("aws secret key", json.dumps({"SecretAccessKey": AWS}), AWS),
    ("aws secret key", f"AWS_SECRET_ACCESS_KEY={AWS}", AWS),
    ("slack webhook", f"https://hooks.slack.com/services/{HOOK}", HOOK),
    ("azure storage key", f"AccountName=x;AccountKey={AZURE};EndpointSuffix=y", AZURE),
    ("password in a url", f"postgres://me:{PASSWORD}@db.example:5432/x", PASSWORD),
    *(("private key", pem(kind), PEM_BODY) for kind in ("", "RSA ", "OPENSSH ")),
    ("private key", pem("RSA ", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\n"), PEM_BODY),
    ("private key", json.dumps(pem("")), PEM_BODY),
]
CASES = [*((name, token, token) for name, tokens in UNKNOWN.items() for token in tokens), *INSIDE]
AROUND = ["{}", "export X={}\n", 'a "{}" b', json.dumps("line\n{}\tx"), "https://h/?k%3D{}", "({}), [{}]"]


def test_every_format_has_a_case() -> None:
    assert {row.name for row in FORMATS} == {name for name, _, _ in CASES}
    assert len(FORMATS) >= 15


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    ("name", "text", "secret"), CASES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(CASES)]
)
def test_unknown_secrets_of_published_formats(name: str, text: str, secret: str, around: str) -> None:
    redactor = Redactor(KNOWN_SECRETS)
    planted = around.replace("{}", text)
    shown = redactor.text(planted)
    assert f"[redacted: {name}]" in shown
    for line in secret.replace("\\n", "\n").splitlines():
        assert line not in shown
    assert redactor.find(planted) == redaction.find(planted) == [name]
    assert redactor.text(shown) == shown


@pytest.mark.parametrize(
    ("name", "text", "secret"), CASES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(CASES)]
)
def test_unknown_secrets_in_a_stream(name: str, text: str, secret: str) -> None:
    redactor = Redactor(())
    planted = f"see here: {text} and so on, to the end of it."
    whole = redactor.text(planted)
    assert f"[redacted: {name}]" in whole
    for cuts in ([1], [7], [3, 11], [64], [len(planted)]):
        assert streamed(redactor, planted, cuts) == whole
    for cut in range(1, len(planted)):
        first, held = redactor.split(planted[:cut])
        second, end = redactor.split(held + planted[cut:])
        assert first + second + redactor.text(end) == whole, cut


def harmless() -> list[str]:
    numbers = random.Random(3)
    picture = base64.b64encode(numbers.randbytes(400_000)).decode()
    hashes = [numbers.randbytes(20).hex() for _ in range(500)] + [
        numbers.randbytes(32).hex() for _ in range(500)
    ]
    return [
        picture,
        "\n".join(picture[at : at + 76] for at in range(0, len(picture), 76)),
        base64.urlsafe_b64encode(numbers.randbytes(100_000)).decode(),
        " ".join(hashes),
        " ".join(str(uuid.UUID(bytes=numbers.randbytes(16))) for _ in range(1000)),
        "sha512-" + base64.b64encode(numbers.randbytes(64)).decode(),
        "https://user@host/path git@github.com:acme/x.git https://host:8080/a@b ssh://git@host:22/x",
        "https://${USER}:${PASSWORD}@host and https://user:<password>@host and http://a:***@b",
        "sk-circle-fade-dot { } .sk-folding-cube-element-with-long-name1 npm_config_registry hf_model_name_x",
        "grep 'BEGIN PRIVATE KEY' -r . # finds -----BEGIN PRIVATE KEY----- in a file, and nothing else",
        "-----BEGIN CERTIFICATE-----\n" + picture[:640] + "\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\n" + picture[:64] + "\n-----END PUBLIC KEY-----",
        "eyJhbGciOiJub25lIn0 is the head of a token; AKIA is a prefix; ghp_ too; SG. is Singapore",
        "task-management disk-usage-report-2024-01-01-final-version risk-assessment-of-things-0123456789",
        "ses_01KA3ABCDEFGHJKMNPQRSTVWXYZ ap_01KA3ABCDEFGHJKMNPQRSTVWX run_01KA3ABCDEFGHJKMNPQRSTVWXYZ",
    ]


@pytest.mark.parametrize("number", range(15))
def test_what_is_no_secret_is_left_alone(number: int) -> None:
    text = harmless()[number]
    redactor = Redactor(KNOWN_SECRETS)
    assert redactor.text(text) == text
    assert redactor.find(text) == redaction.find(text) == []
    assert streamed(redactor, text[:30_000], [13, 900, 4000]) == text[:30_000]


def test_lines_of_a_known_secret_of_several_lines() -> None:
    lines = [made_up(64), made_up(64), made_up(30)]
    redactor = Redactor(["\n".join(["-----BEGIN X-----", *lines, "-----END X-----"])])
    for line in lines:
        assert redactor.text(f"> {line}") == f"> {REDACTED}"
    assert redactor.text("-----BEGIN X-----") == "-----BEGIN X-----"


def test_overlapping_secrets_leave_nothing_of_either() -> None:
    first, second = "abcdefgh-12345", "12345-ijklmnop"
    text = "x abcdefgh-12345-ijklmnop y"
    redactor = Redactor([first, second, first[:9]])
    assert redactor.text(text) == f"x {REDACTED} y"
    for cuts in ([1], [5], [16]):
        assert streamed(redactor, text, cuts) == f"x {REDACTED} y"


def test_values_are_redacted_through_and_through() -> None:
    secret, token = KNOWN_SECRETS[1], UNKNOWN["github token"][0]
    value = {"a": [f"x {secret} y", 3, None, True], secret: {"raw": json.dumps({"t": token})}}
    assert Redactor([secret]).value(value) == {
        "a": [f"x {REDACTED} y", 3, None, True],
        REDACTED: {"raw": '{"t": "[redacted: github token]"}'},
    }


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PRIVATE KEY-----\n" + "A\n" * 60_000 + "!",
        "-----BEGIN PRIVATE KEY-----" + "\\n" * 60_000 + "!",
        "-----BEGIN RSA PRIVATE KEY-----" + "\na: b" * 30_000,
        "-----BEGIN " * 10_000,
        "://a:" * 20_000,
        "eyJ" + "a" * 100_000,
        "sk-" * 30_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    redactor = Redactor(KNOWN_SECRETS)
    redactor.text(text)
    streamed(redactor, text[:20_000], [500])
    assert time.process_time() - begun < 2


def test_large_texts_are_quick() -> None:
    """A million characters with forty secrets known: the best of five, since others use the machine too."""
    redactor = Redactor(made_up(8 + n) for n in range(40))
    words = [made_up(RANDOM.randrange(2, 12)) for _ in range(500)]
    text = " ".join(RANDOM.choice(words) for _ in range(150_000))[:1_000_000]
    text = text.replace(" s", "\n", 5000)
    took: list[float] = []
    for _ in range(5):
        begun = time.process_time()
        assert redactor.text(text) == text
        took.append(time.process_time() - begun)
    assert min(took) < 0.25, took  # 77 ms were measured; two programs on one core take longer
