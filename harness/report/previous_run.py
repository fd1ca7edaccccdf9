"""What changed since the last run of the same profile on the same inventory."""

from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.report.changes import Row, rows
from harness.report.data import RunData
from harness.runs.compare import OutcomeChange, compare, figures_of, read_figures
from harness.runs.read import read_manifest


@dataclass(frozen=True)
class Since:
    """What changed since the last run of the same profile on the same inventory."""

    run: str
    rows: list[Row]
    """Only what is larger than the noise."""
    outcomes: list[OutcomeChange]
    surroundings: list[str]
    compared: int
    """How many figures were compared."""


def since_last(run: RunData) -> Since | None:
    """The changes; None where there is no earlier run beside this one that ended and can be read."""
    mine = figures_of(run.manifest, run.trials, run.requests)
    for before in _earlier(run):
        try:
            found = compare([read_figures(before), mine])
        except HarnessError:  # A damaged neighbour says nothing against this run's own page.
            continue
        told = [change for change in found.changes if change.verdict != "same"]
        return Since(before.name, rows(told), found.outcomes, found.surroundings, len(found.changes))
    return None


def _earlier(run: RunData) -> list[Path]:
    """Folders of the ended runs of this profile on this inventory, by when they began, the last one first."""
    mine, found = run.manifest, list[tuple[int, Path]]()
    for path in run.folder.resolve().parent.glob("*/run.json"):
        try:
            other = read_manifest(path.parent)
        except HarnessError:
            continue
        same = (other.inventory, other.profile) == (mine.inventory, mine.profile)
        if same and other.started_ns < mine.started_ns and other.outcome is not None:
            found.append((other.started_ns, path.parent))
    return [folder for _, folder in sorted(found, reverse=True)]
