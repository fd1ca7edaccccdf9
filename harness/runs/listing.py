"""The runs of a reports folder: what there is, what fits a filter, and what may be removed."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.contracts.run_records import Outcome, RunManifest
from harness.errors import HarnessError
from harness.runs.lock import inventory_holder
from harness.runs.read import read_manifest
from harness.settings import REPOSITORY

EXAMPLE = "example"
"""The committed run; never removed."""
GOES_ON_S = 60.0
"""A run without a recorded end that was written to so lately goes on."""


@dataclass(frozen=True)
class Listed:
    """A run as a list shows it."""

    folder: Path
    manifest: RunManifest
    size_bytes: int

    @property
    def took_s(self) -> float | None:
        """Seconds from start to end; None where no end is recorded."""
        ended = self.manifest.ended_ns
        return None if ended is None else (ended - self.manifest.started_ns) / 1e9


@dataclass(frozen=True)
class Filter:
    """What a run must be like; what is None or empty does not matter."""

    profile: str | None = None
    outcome: str | None = None
    """``passed``, ``failed``, ``interrupted``, or ``cut`` for one without a recorded end."""
    model: str | None = None
    since_ns: int | None = None

    def admits(self, run: RunManifest) -> bool:
        """Whether a run is one of them."""
        outcome = run.outcome.value if run.outcome else "cut"
        return (
            self.profile in (None, run.profile)
            and self.outcome in (None, outcome)
            and (self.model is None or self.model in run.models)
            and (self.since_ns is None or run.started_ns >= self.since_ns)
        )


OUTCOMES = (*(outcome.value for outcome in Outcome if outcome is not Outcome.SKIPPED), "cut")


def list_runs(reports: Path, wanted: Filter) -> list[Listed]:
    """Runs that fit, newest first; a folder whose run.json cannot be read is no run."""
    found = []
    for path in reports.glob("*/run.json"):
        try:
            manifest = read_manifest(path.parent)
        except HarnessError:
            continue
        if wanted.admits(manifest):
            found.append(Listed(path.parent, manifest, _size(path.parent)))
    return sorted(found, key=lambda run: run.manifest.started_ns, reverse=True)


def _size(folder: Path) -> int:
    """Bytes in a folder; what a run renames or removes meanwhile is not counted."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def to_prune(runs: Sequence[Listed], *, keep: int | None, before_ns: int | None) -> list[Listed]:
    """Those beyond the newest ``keep``, and those begun before ``before_ns``; the example never.

    Args:
        runs: newest first.
    """
    own = [run for run in runs if run.folder.name != EXAMPLE]
    beyond = own[keep:] if keep is not None else []
    old = [run for run in own if before_ns is not None and run.manifest.started_ns < before_ns]
    return [run for run in own if run in beyond or run in old]


def remove(run: Listed) -> None:
    """Remove a run's folder, which must not go on.

    Raises:
        HarnessError: it cannot be removed.
    """
    try:
        shutil.rmtree(run.folder)
    except OSError as error:
        raise HarnessError(f"cannot remove {run.folder}: {error.strerror or error}") from error


def goes_on(run: Listed) -> bool:
    """Whether somebody still works on it.

    A run holds its inventory's lock from its first file to its recorded end. One that another computer
    drives does not hold it here; it appends samples every second.
    """
    manifest = run.manifest
    if manifest.outcome is not None:
        return False
    holder = inventory_holder(REPOSITORY / manifest.inventory)
    if holder is not None and holder.startswith(f"{manifest.run},"):
        return True
    written = max((path.stat().st_mtime for path in run.folder.iterdir()), default=0.0)
    return time.time() - written < GOES_ON_S
