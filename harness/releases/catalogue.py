"""The releases of llama.cpp that can be deployed: where their source is, and what is known about them."""

from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from harness.errors import HarnessError

CATALOGUE = Path(__file__).with_name("catalogue.yml")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,40}$")]
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
    """Where this release can be had; a local archive is always possible beside them."""

    pypi: PypiSource | None = None
    git: GitSource | None = None

    @property
    def kinds(self) -> list[SourceKind]:
        """Sources this release has, the package index first."""
        return [
            *([SourceKind.PYPI] if self.pypi else []),
            *([SourceKind.GIT] if self.git else []),
            SourceKind.ARCHIVE,
        ]


class KnownIssue(_Strict):
    """Something an operator is warned of when this release is deployed."""

    id: str
    text: str


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
    cmake_flags: tuple[CmakeFlag, ...]
    flags: Flags
    server_args: tuple[str, ...]
    """What llama-server of this release is always given as coordinator."""
    issues: tuple[KnownIssue, ...]

    @property
    def short_commit(self) -> str:
        """What ``llama-server --version`` prints in brackets."""
        return self.commit[:9] if self.commit else "unknown"


class Catalogue(_Strict):
    """All releases, by build number."""

    upstream: str
    issues: dict[str, KnownIssue]
    releases: tuple[Release, ...]

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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HarnessError(f"release catalogue {path}: {where}: {first['msg']}") from error
    builds = [release.build for release in catalogue.releases]
    if twice := {build for build in builds if builds.count(build) > 1}:
        raise HarnessError(f"release catalogue {path}: build {min(twice)} stands twice")
    return catalogue


@cache
def catalogue() -> Catalogue:
    """The catalogue that comes with the harness."""
    return read_catalogue(CATALOGUE)
