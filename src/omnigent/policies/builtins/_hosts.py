"""Host names: patterns, this machine, package registries and code hosts."""

from collections.abc import Iterable
from ipaddress import ip_address

REGISTRIES = frozenset(
    {
        "registry.npmjs.org",
        "registry.yarnpkg.com",
        "jsr.io",
        "npm.jsr.io",
        "pypi.org",
        "files.pythonhosted.org",
        "crates.io",
        "index.crates.io",
        "static.crates.io",
        "proxy.golang.org",
        "sum.golang.org",
        "rubygems.org",
        "index.rubygems.org",
        "repo.maven.apache.org",
        "repo1.maven.org",
        "plugins.gradle.org",
        "services.gradle.org",
        "repo.packagist.org",
        "packagist.org",
        "api.nuget.org",
        "hex.pm",
        "repo.hex.pm",
        "pub.dev",
        "deb.debian.org",
        "conda.anaconda.org",
    }
)
CODE_HOSTS = frozenset({"github.com", "gitlab.com", "bitbucket.org", "codeberg.org"})

METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "fd00:ec2::254",
    "metadata.google.internal",
    "100.100.100.200",
)
"""Where clouds hand a machine its credentials."""


def is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listed(host: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern names the host: itself, or `*.example.org` for all below it."""
    return any(_matches(host.lower(), pattern.lower().rstrip(".")) for pattern in patterns)


def _matches(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and host != pattern[2:]
    return host == pattern
