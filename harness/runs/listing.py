"""The runs of a reports folder: which there are, which fit a filter, and which may be removed."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.contracts.run_records import Outcome, RunManifest
from harness.errors import HarnessError
from harness.runs.folder import read_manifest
from harness.runs.lock import inventory_holder
from harness.settings import REPOSITORY

EXAMPLE = "example"
"""The committed run; never removed."""
ACTIVE_S = 60.0
"""A run without a recorded end whose files changed within so many seconds is active."""


@dataclass(frozen=True)
class RunEntry:
    """One line of a list of runs."""

    folder: Path
    manifest: RunManifest
    size_bytes: int

    @property
    def took_s(self) -> float | None:
        """Seconds from start to end; None where no end is recorded."""
        ended = self.manifest.ended_ns
        return None if ended is None else (ended - self.manifest.started_ns) / 1e9


@dataclass(frozen=True)
class RunFilter:
    """Which runs are wanted; a field that is None admits all."""

    profile: str | None = None
    outcome: str | None = None
    """``passed``, ``failed``, ``interrupted``, or ``cut`` for one without a recorded end."""
    model: str | None = None
    since_ns: int | None = None

    def admits(self, run: RunManifest) -> bool:
        """Whether a run fits."""
        outcome = run.outcome.value if run.outcome else "cut"
        return (
            self.profile in (None, run.profile)
            and self.outcome in (None, outcome)
            and (self.model is None or self.model in run.models)
            and (self.since_ns is None or run.started_ns >= self.since_ns)
        )


OUTCOMES = (*(outcome.value for outcome in Outcome if outcome is not Outcome.SKIPPED), "cut")


def list_runs(reports: Path, wanted: RunFilter) -> list[RunEntry]:
    """Runs that fit, newest first; a folder whose run.json cannot be read is left out."""
    entries = []
    for path in reports.glob("*/run.json"):
        try:
            manifest = read_manifest(path.parent)
        except HarnessError:
            continue
        if wanted.admits(manifest):
            entries.append(RunEntry(path.parent, manifest, _size(path.parent)))
    return sorted(entries, key=lambda run: run.manifest.started_ns, reverse=True)


def _size(folder: Path) -> int:
    """Bytes in a folder; files that a run renames or removes meanwhile are not counted."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def to_prune(runs: Sequence[RunEntry], *, keep: int | None, before_ns: int | None) -> list[RunEntry]:
    """Runs beyond the newest ``keep``, and runs started before ``before_ns``; never the example.

    Args:
        runs: newest first.
    """
    own = [run for run in runs if run.folder.name != EXAMPLE]
    beyond = own[keep:] if keep is not None else []
    old = [run for run in own if before_ns is not None and run.manifest.started_ns < before_ns]
    return [run for run in own if run in beyond or run in old]


def remove(run: RunEntry) -> None:
    """Remove the folder of a run that is not active.

    Raises:
        HarnessError: it cannot be removed.
    """
    try:
        shutil.rmtree(run.folder)
    except OSError as error:
        raise HarnessError(f"cannot remove {run.folder}: {error.strerror or error}") from error


def is_active(run: RunEntry) -> bool:
    """Whether the run is still under way.

    A run holds its inventory's lock from its first file to its recorded end. A run of another computer does
    not hold it here, but appends samples every second.
    """
    manifest = run.manifest
    if manifest.outcome is not None:
        return False
    holder = inventory_holder(REPOSITORY / manifest.inventory)
    if holder is not None and holder.startswith(f"{manifest.run},"):
        return True
    written = max((path.stat().st_mtime for path in run.folder.iterdir()), default=0.0)
    return time.time() - written < ACTIVE_S
