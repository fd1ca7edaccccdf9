"""Reads a run folder into one value, whatever state the run was left in: records, and samples as columns."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.contracts.run_records import Event, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.folder import read_events, read_manifest, read_requests, read_trials
from harness.runs.tables import flatten_sample

BATCH_LINES = 50_000
MEMORY = {
    "memory.total_bytes": "total",
    "memory.available_bytes": "available",
    "memory.used_bytes": "used",
    "memory.swap_used_bytes": "swap",
    "memory.major_faults": "major_faults",
}
"""Columns that every sample has, and what the report calls them."""
OPTIONAL = {
    "pressure.memory_some_avg10": "memory_some",
    "pressure.memory_full_avg10": "memory_full",
    "pressure.io_some_avg10": "io_some",
    "pressure.io_full_avg10": "io_full",
    "load1": "load1",
    "disk.read_bytes_per_s": "disk_read",
    "disk.written_bytes_per_s": "disk_written",
    "rpc_rss_bytes": "rpc_rss",
    "rpc_swap_bytes": "rpc_swap",
    "gpu_memory_total_bytes": "gpu_total",
    "gpu_memory_used_bytes": "gpu_used",
    "clock_offset_s": "clock_offset",
}
"""Columns that a run has where its monitors reported them; older runs have none."""
COLUMNS = MEMORY | OPTIONAL
FLAT = pa.schema(
    [("time_ns", pa.int64()), ("node", pa.string()), *((name, pa.float64()) for name in COLUMNS)]
)
Numbers = npt.NDArray[np.floating[Any]]
Row = dict[str, Any]
"""One line of a table, or a part of a section, by the names that its template reads."""
Column = Callable[[str], pa.ChunkedArray]
"""Gives one column of the samples."""


@dataclass(frozen=True)
class NodeSeries:
    """One node's samples in time order: nanoseconds, and an array per figure."""

    node: str
    time_ns: npt.NDArray[np.int64]
    values: dict[str, Numbers]
    """By the names of ``COLUMNS``: bytes, counters, per cent, bytes/s, as in the node sample.

    A figure that no sample has is absent; where a single sample lacks it, it is NaN.
    """


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
        """Every node in the manifest or the samples; its position gives a node its colour."""
        return list(dict.fromkeys([n.name for n in self.manifest.nodes] + sorted(self.samples)))

    @property
    def start_ns(self) -> int:
        """Where the run's time axis begins."""
        return self.manifest.started_ns

    @property
    def end_ns(self) -> int:
        """End of the run: as recorded, or the latest record of a run that was interrupted."""
        times = [t.ended_ns for t in self.trials] + [e.time_ns for e in self.events]
        times += [int(s.time_ns[-1]) for s in self.samples.values() if len(s.time_ns)]
        return self.manifest.ended_ns or max(times, default=self.start_ns)


def load_run(folder: Path) -> RunData:
    """Read a run folder; an incomplete last line becomes a warning.

    Raises:
        HarnessError: the folder is no run, or a record in it is damaged.
    """
    if not folder.is_dir():
        raise HarnessError(f"no run folder at {folder}; `harness runs` lists the runs")
    manifest = read_manifest(folder)
    warnings = [
        f"{name}.jsonl: its last line is incomplete, for example after a kill, and is left out"
        for name in ("trials", "requests", "events", "samples")
        if _is_cut_short(folder / f"{name}.jsonl")
    ]
    trials, requests = list(read_trials(folder)), list(read_requests(folder))
    events = list(read_events(folder))
    samples = read_series(folder, [n.name for n in manifest.nodes], warnings)
    return RunData(folder, manifest, trials, requests, events, samples, warnings)


def read_series(folder: Path, order: list[str], warnings: list[str]) -> dict[str, NodeSeries]:
    """Samples of a run by node, from its parquet or, where that is missing or older, from its JSON lines.

    Args:
        folder: the run folder.
        order: nodes in the order wanted; others follow by name.
        warnings: what could not be read is added here, in plain words.
    """
    packed = folder / "samples.parquet"
    lines = folder / "samples.jsonl"
    if packed.is_file() and not (lines.is_file() and lines.stat().st_mtime_ns > packed.stat().st_mtime_ns):
        try:
            return _split_by_node(_packed_columns(packed), order)
        except (OSError, KeyError, pa.ArrowException) as error:
            warnings.append(f"samples.parquet cannot be read ({error}); samples.jsonl was read instead")
    table = _read_lines(lines, warnings) if lines.is_file() else FLAT.empty_table()
    return _split_by_node(lambda name: table[name], order)


def _is_cut_short(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() != b"\n"


def _packed_columns(path: Path) -> Column:
    """Columns one by one, so that a long run is never held as a whole beside its arrays."""
    file = pq.ParquetFile(path)
    schema = file.schema_arrow

    def read(name: str) -> pa.ChunkedArray:
        # A figure that no sample had was packed as text, or is not there at all.
        if name in OPTIONAL and (name not in schema.names or pa.types.is_string(schema.field(name).type)):
            return pa.chunked_array([], pa.float64())
        return file.read([name], use_threads=False)[name]

    return read


def _read_lines(path: Path, warnings: list[str]) -> pa.Table:
    """The lines in batches, so that a long run is never held as text; damaged ones are left out."""
    tables, damaged = [FLAT.empty_table()], 0
    with path.open("rb") as stream:
        while lines := list(islice(stream, BATCH_LINES)):
            rows = [row for line in lines if line.endswith(b"\n") and (row := _read_line(line))]
            damaged += sum(line.endswith(b"\n") for line in lines) - len(rows)
            tables.append(pa.Table.from_pylist(rows, schema=FLAT))
    if damaged:
        warnings.append(f"{path.name}: {damaged} lines could not be read and are left out")
    return pa.concat_tables(tables)


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        flat = flatten_sample(json.loads(line))
        row: Row = {"time_ns": int(flat["time_ns"]), "node": str(flat["node"])}
        row |= {name: float(flat[name]) for name in MEMORY}
        row |= {name: None if flat.get(name) is None else float(flat[name]) for name in OPTIONAL}
        figures = [value for value in row.values() if isinstance(value, float)]
        return row if row["time_ns"] < 1 << 63 and all(map(math.isfinite, figures)) else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _split_by_node(column: Column, order: list[str]) -> dict[str, NodeSeries]:
    """Each node's rows in time order; rows without a node or a time are left out."""
    encoded = pc.dictionary_encode(column("node")).combine_chunks()
    times = column("time_ns")
    codes = np.where(pc.is_null(times).to_numpy(), -1, pc.fill_null(encoded.indices, -1).to_numpy())
    moments = pc.fill_null(times, 0).to_numpy()
    places = {}
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        rows = np.flatnonzero(codes == code)
        if len(rows):
            places[str(name)] = rows[np.argsort(moments[rows], kind="stable")]
    first = [name for name in order if name in places]
    series = {n: NodeSeries(n, moments[places[n]], {}) for n in first + sorted(set(places) - set(first))}
    for label, figure in COLUMNS.items():
        values = column(label)
        if label in OPTIONAL and values.null_count == len(values):
            continue
        numbers = values.to_numpy().astype(np.float64 if label in MEMORY else np.float32)
        for name, node_series in series.items():
            node_series.values[figure] = numbers[places[name]]
    return series
