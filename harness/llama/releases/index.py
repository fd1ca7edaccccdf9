"""Archives out of the Python package index that pip is configured for, never built and never installed.

``pip download`` runs the build backend of an sdist to learn its metadata. A source archive that is only
unpacked must not run code, so the archive is resolved through the simple API (PEP 503 and 691) instead.
"""

import ast
import hashlib
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import httpx2
from unearth import Package, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.errors import URLError
from unearth.fetchers import Fetcher, PyPIClient

from harness.errors import HarnessError

DEFAULT_INDEX = "https://pypi.org/simple/"
TIMEOUT_S = 60.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class IndexSettings:
    """Where pip looks for packages on this machine."""

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    certificates: Path | None = None


def pip_settings() -> IndexSettings:
    """Settings of the pip that belongs to this Python: its files and its ``PIP_`` variables."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    values: dict[str, str] = {}
    if listed.returncode == 0:
        values = parse_pip_config(listed.stdout)
    else:  # a Python without pip still honours its variables
        for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "TRUSTED_HOST", "CERT", "NO_INDEX"):
            if value := os.environ.get(f"PIP_{name}"):
                values[name.lower().replace("_", "-")] = value
    return settings_from(values)


def parse_pip_config(listing: str) -> dict[str, str]:
    """Values of ``pip config list`` by option name; an option for ``download`` wins over a global one.

    pip prints ``section.option='value'``, with the section ``:env:`` for environment variables.
    """
    ranks = {"global": 0, "download": 1, ":env:": 2}
    ranked: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, equals, quoted = line.partition("=")
        section, _, option = key.rpartition(".")
        rank = ranks.get(section)
        if equals and rank is not None and rank >= ranked.get(option, (0, ""))[0]:
            ranked[option] = (rank, str(ast.literal_eval(quoted)))
    return {option: value for option, (_, value) in ranked.items()}


def settings_from(values: dict[str, str]) -> IndexSettings:
    """Turn pip's options, by name, into settings."""
    off = values.get("no-index", "").lower() in ("1", "true", "yes", "on")
    indexes = [values.get("index-url", DEFAULT_INDEX), *values.get("extra-index-url", "").split()]
    certificates = values.get("cert")
    return IndexSettings(
        index_urls=() if off else tuple(indexes),
        find_links=tuple(values.get("find-links", "").split()),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        certificates=Path(certificates) if certificates else None,
    )


def fetch_distribution(
    project: str,
    version: str,
    kind: Literal["sdist", "wheel"],
    sha256: str,
    folder: Path,
    settings: IndexSettings | None = None,
) -> Path:
    """Download one archive of a project's release into ``folder`` and check it.

    Args:
        sha256: what the archive must hash to; also chooses among several wheels of one version.

    Raises:
        HarnessError: the index does not have it, cannot be reached, or hands out something else.
    """
    settings = settings or pip_settings()
    with _client(settings) as client:
        try:
            package = _choose(_candidates(client, settings, project, version), kind, sha256)
            if package is None:
                raise HarnessError(
                    f"{project} {version} has no {kind} in the package indexes {_places(settings)}; "
                    "check pip's index-url, or use another source"
                )
            target = folder / package.link.filename
            actual = _download(client, package.link.normalized, target)
        except (httpx2.HTTPError, URLError) as error:
            raise HarnessError(
                f"{project} {version}: no answer from the package indexes {_places(settings)}: "
                f"{_first_line(error)}"
            ) from error
    if actual != sha256:
        target.unlink()
        raise HarnessError(
            f"{project} {version}: {package.link.filename} from {package.link.redacted} "
            f"has sha256 {actual}, expected {sha256}; it was not unpacked"
        )
    return target


def _candidates(client: PyPIClient, settings: IndexSettings, project: str, version: str) -> list[Package]:
    finder = PackageFinder(cast(Fetcher, client), ignore_compatibility=True)
    finder.sources.clear()
    for url in settings.index_urls:
        finder.add_index_url(url)
    for link in settings.find_links:
        finder.add_find_links(link)
    return list(finder.find_matches(f"{project}=={version}", allow_yanked=True, allow_prereleases=True))


def _choose(candidates: list[Package], kind: str, sha256: str) -> Package | None:
    of_kind = [package for package in candidates if package.link.is_wheel == (kind == "wheel")]
    exact = [package for package in of_kind if (package.link.hash_option or {}).get("sha256") == [sha256]]
    return next(iter(exact or of_kind), None)


def _download(client: PyPIClient, url: str, target: Path) -> str:
    """Stream ``url`` to ``target``; the sha256 of what came."""
    digest = hashlib.sha256()
    with client.stream("GET", url, follow_redirects=True) as answer, target.open("wb") as file:
        answer.raise_for_status()
        for chunk in answer.iter_bytes(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


@contextmanager
def _client(settings: IndexSettings) -> Iterator[PyPIClient]:
    verify: ssl.SSLContext | bool = True
    if settings.certificates:
        verify = ssl.create_default_context(cafile=str(settings.certificates))
    with PyPIClient(trusted_hosts=settings.trusted_hosts, verify=verify, timeout=TIMEOUT_S) as client:
        client.auth = MultiDomainBasicAuth(prompting=False, index_urls=settings.index_urls)
        yield client


def _places(settings: IndexSettings) -> str:
    places = [*settings.index_urls, *settings.find_links]
    return ", ".join(redacted(place) for place in places) or "(none are configured)"


def _first_line(error: Exception) -> str:
    """The first line of an error; its URL may carry the password of an index."""
    return redacted((str(error).splitlines() or [type(error).__name__])[0])


def redacted(url: str) -> str:
    """A URL without the user and password it may carry."""
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}" if mark else url
