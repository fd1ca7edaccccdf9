"""Reads a run folder into one value, whatever state the run was left in."""

from dataclasses import dataclass, field
from pathlib import Path

from harness.contracts.run_records import Event, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.report.series import NodeSeries, read_series
from harness.runs.read import read_events, read_manifest, read_requests, read_trials


@dataclass(frozen=True)
class RunData:
    """Everything the report needs of one run."""

    folder: Path
    manifest: RunManifest
    trials: list[Trial]
    requests: list[Request]
    events: list[Event]
    samples: dict[str, NodeSeries]
    """By node, in the manifest's order."""
    warnings: list[str] = field(default_factory=list)
    """What could not be read, in plain words."""

    @property
    def nodes(self) -> list[str]:
        """Every node that the manifest or the samples name; the place gives the node its colour."""
        return list(dict.fromkeys([n.name for n in self.manifest.nodes] + sorted(self.samples)))

    @property
    def start_ns(self) -> int:
        """Where the run's time axis begins."""
        return self.manifest.started_ns

    @property
    def end_ns(self) -> int:
        """End of the run: as recorded, or the last thing seen of a run that was cut short."""
        seen = [t.ended_ns for t in self.trials] + [e.time_ns for e in self.events]
        seen += [int(s.time_ns[-1]) for s in self.samples.values() if len(s.time_ns)]
        return self.manifest.ended_ns or max(seen, default=self.start_ns)


def load_run(folder: Path) -> RunData:
    """Read a run folder; a line that a kill cut short becomes a warning.

    Raises:
        HarnessError: the folder is no run, or what it holds is damaged.
    """
    if not folder.is_dir():
        raise HarnessError(f"no run folder at {folder}; `ls reports` shows the runs there are")
    manifest = read_manifest(folder)
    warnings = [
        f"{name}.jsonl: its last line was cut short, as by a kill, and is left out"
        for name in ("trials", "requests", "events", "samples")
        if _cut_short(folder / f"{name}.jsonl")
    ]
    trials, requests, events = (
        list(read_trials(folder)),
        list(read_requests(folder)),
        list(read_events(folder)),
    )
    samples = read_series(folder, [n.name for n in manifest.nodes], warnings)
    return RunData(folder, manifest, trials, requests, events, samples, warnings)


def _cut_short(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() != b"\n"
