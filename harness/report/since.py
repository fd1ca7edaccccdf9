"""What changed since the last run of the same profile on the same inventory."""

from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.report.changes import Row, rows
from harness.report.load import RunData
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
    """The changes; None where there is no earlier run beside this one that ended."""
    before = _last_before(run)
    if before is None:
        return None
    found = compare([read_figures(before), figures_of(run.manifest, run.trials, run.requests)])
    told = [change for change in found.changes if change.verdict != "same"]
    return Since(before.name, rows(told), found.outcomes, found.surroundings, len(found.changes))


def _last_before(run: RunData) -> Path | None:
    mine = run.manifest
    for path in sorted(run.folder.resolve().parent.glob("*/run.json"), reverse=True):
        try:
            other = read_manifest(path.parent)
        except HarnessError:
            continue
        same = (other.inventory, other.profile) == (mine.inventory, mine.profile)
        if same and other.started_ns < mine.started_ns and other.outcome is not None:
            return path.parent
    return None
