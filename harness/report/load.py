"""Reads a run folder into one value, whatever state the run was left in."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.runs.read import read_events, read_manifest, read_requests, read_trials
from harness.runs.schema import Event, Request, RunManifest, Trial

CHUNK_BYTES = 64 * 1024**2
MEMORY_FIELDS = {
    "total_bytes": "total",
    "available_bytes": "available",
    "used_bytes": "used",
    "cache_bytes": "cache",
    "swap_used_bytes": "swap",
    "major_faults": "major_faults",
}
SAMPLE_SCHEMA = pa.schema(
    [
        ("time_ns", pa.int64()),
        ("node", pa.string()),
        ("memory", pa.struct([(name, pa.int64()) for name in MEMORY_FIELDS])),
    ]
)
"""The part of a sample that the report draws; the rest of each line is skipped unread."""
EMPTY = SAMPLE_SCHEMA.empty_table().flatten()


@dataclass(frozen=True)
class NodeSeries:
    """One node's samples in time order: nanoseconds, and bytes per figure."""

    node: str
    time_ns: npt.NDArray[np.int64]
    values: dict[str, npt.NDArray[np.float64]]
    """``total``, ``available``, ``used``, ``cache``, ``swap`` in bytes, ``major_faults`` as a counter."""


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
    samples = _split(_samples(folder, warnings), [n.name for n in manifest.nodes])
    return RunData(folder, manifest, trials, requests, events, samples, warnings)


def _cut_short(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() != b"\n"


def _samples(folder: Path, warnings: list[str]) -> pa.Table:
    packed = folder / "samples.parquet"
    lines = folder / "samples.jsonl"
    if packed.is_file() and not (lines.is_file() and lines.stat().st_mtime_ns > packed.stat().st_mtime_ns):
        columns = ["time_ns", "node", *(f"memory.{name}" for name in MEMORY_FIELDS)]
        try:
            return pq.read_table(packed, columns=columns)
        except (OSError, pa.ArrowException) as error:
            warnings.append(f"samples.parquet cannot be read ({error}); samples.jsonl was read instead")
    chunks = list(_sample_chunks(lines, warnings)) if lines.is_file() else []
    return pa.concat_tables([EMPTY, *chunks])


def _sample_chunks(path: Path, warnings: list[str]) -> Iterator[pa.Table]:
    """Tables of whole lines, so that a long run is never held as text."""
    rest = b""
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            head, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield _parse_samples(head, path.name, warnings)


def _parse_samples(text: bytes, name: str, warnings: list[str]) -> pa.Table:
    options = pj.ParseOptions(explicit_schema=SAMPLE_SCHEMA, unexpected_field_behavior="ignore")
    try:
        return pj.read_json(io.BytesIO(text), parse_options=options).flatten()
    except pa.ArrowInvalid:
        lines = text.splitlines()
        rows = [row for line in lines if (row := _sample_row(line))]
        warnings.append(f"{name}: {len(lines) - len(rows)} lines could not be read and are left out")
        return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA).flatten()


def _sample_row(line: bytes) -> dict[str, object] | None:
    try:
        parsed = json.loads(line)
        return {
            "time_ns": int(parsed["time_ns"]),
            "node": str(parsed["node"]),
            "memory": {name: int(parsed["memory"][name]) for name in MEMORY_FIELDS},
        }
    except (ValueError, KeyError, TypeError):
        return None


def _split(table: pa.Table, order: list[str]) -> dict[str, NodeSeries]:
    found = {str(name) for name in pc.unique(table["node"]).to_pylist() if name is not None}
    known = [name for name in order if name in found]
    return {name: _series(table, name) for name in known + sorted(found - set(known))}


def _series(table: pa.Table, name: str) -> NodeSeries:
    rows = table.filter(pc.and_(pc.equal(table["node"], name), pc.is_valid(table["time_ns"])))
    times = rows["time_ns"].to_numpy()
    order = np.argsort(times, kind="stable")
    values = {
        short: rows[f"memory.{field}"].to_numpy().astype(np.float64)[order]
        for field, short in MEMORY_FIELDS.items()
    }
    return NodeSeries(name, times[order], values)
