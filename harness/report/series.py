"""Each node's samples as columns of numbers, from the run's parquet or from its JSON lines."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from harness.monitor.sample import RPC_SERVERS
from harness.runs.tables import flatten

CHUNK_BYTES = 64 * 1024**2
MEMORY = {
    "memory.total_bytes": "total",
    "memory.available_bytes": "available",
    "memory.used_bytes": "used",
    "memory.swap_used_bytes": "swap",
    "memory.major_faults": "major_faults",
}
"""Columns of a packed run that every sample has, and what the report calls them."""
BESIDE = {
    "pressure.memory_some_avg10": "memory_some",
    "pressure.memory_full_avg10": "memory_full",
    "pressure.io_some_avg10": "io_some",
    "pressure.io_full_avg10": "io_full",
    "load1": "load1",
    "disk.read_bytes_per_s": "disk_read",
    "disk.written_bytes_per_s": "disk_written",
    "network.received_bytes_per_s": "received",
    "network.sent_bytes_per_s": "sent",
    "rpc_rss_bytes": "rpc_rss",
    "rpc_swap_bytes": "rpc_swap",
    "gpu_memory_total_bytes": "gpu_total",
    "gpu_memory_used_bytes": "gpu_used",
    "gpu_use_percent": "gpu_use",
    "gpu_power_w": "gpu_power",
    "gpu_temperature_c": "gpu_temperature",
    "clock_offset_s": "clock_offset",
}
"""Columns that a run has where its monitors gave them; older runs have none."""
COLUMNS = MEMORY | BESIDE
_GPU = ("memory_total_bytes", "memory_used_bytes", "use_percent", "power_w", "temperature_c")
_GROUPS = ("memory", "pressure", "disk", "network")
Numbers = npt.NDArray[np.floating[Any]]


def _group(name: str) -> pa.DataType:
    fields = [column.removeprefix(f"{name}.") for column in COLUMNS if column.startswith(f"{name}.")]
    return pa.struct([(field, pa.int64() if name == "memory" else pa.float64()) for field in fields])


LINES = pa.schema(
    [
        ("time_ns", pa.int64()),
        ("node", pa.string()),
        *((name, _group(name)) for name in _GROUPS),
        ("load1", pa.float64()),
        ("clock_offset_s", pa.float64()),
        (
            "processes",
            pa.list_(
                pa.struct([("name", pa.string()), ("rss_bytes", pa.int64()), ("swap_bytes", pa.int64())])
            ),
        ),
        ("gpus", pa.list_(pa.struct([(name, pa.float64()) for name in _GPU]))),
    ]
)
"""The part of a sample that the report draws; the rest of each line is skipped unread."""
FLAT = pa.schema(
    [("time_ns", pa.int64()), ("node", pa.string()), *((name, pa.float64()) for name in COLUMNS)]
)


@dataclass(frozen=True)
class NodeSeries:
    """One node's samples in time order: nanoseconds, and an array per figure."""

    node: str
    time_ns: npt.NDArray[np.int64]
    values: dict[str, Numbers]
    """By the names of ``COLUMNS``: bytes, counters, per cent, bytes/s, as in the node sample.

    A figure that no sample has is absent; where a single sample lacks it, it is NaN.
    """

    def known(self, figure: str) -> Numbers | None:
        """A figure where any sample has it."""
        return self.values.get(figure)


def read_series(folder: Path, order: list[str], warnings: list[str]) -> dict[str, NodeSeries]:
    """Samples of a run by node.

    Args:
        folder: the run folder.
        order: nodes in the order wanted; others follow by name.
        warnings: what could not be read is added here, in plain words.
    """
    packed = folder / "samples.parquet"
    lines = folder / "samples.jsonl"
    if packed.is_file() and not (lines.is_file() and lines.stat().st_mtime_ns > packed.stat().st_mtime_ns):
        try:
            return _split(_packed(packed), order)
        except (OSError, KeyError, pa.ArrowException) as error:
            warnings.append(f"samples.parquet cannot be read ({error}); samples.jsonl was read instead")
    chunks = list(_chunks(lines, warnings)) if lines.is_file() else []
    table = pa.concat_tables([FLAT.empty_table(), *chunks])
    return _split(lambda name: table[name], order)


Column = Callable[[str], pa.ChunkedArray]
"""Gives one column of the samples."""


def _packed(path: Path) -> Column:
    """Columns one by one, so that a long run is never held as a whole beside its arrays."""
    file = pq.ParquetFile(path)
    schema = file.schema_arrow

    def read(name: str) -> pa.ChunkedArray:
        # A figure that no sample had was packed as text, or is not there at all.
        if name in BESIDE and (name not in schema.names or pa.types.is_string(schema.field(name).type)):
            return pa.chunked_array([], pa.float64())
        return file.read([name], use_threads=False)[name]

    return read


def _split(column: Column, order: list[str]) -> dict[str, NodeSeries]:
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
    known = [name for name in order if name in places]
    series = {n: NodeSeries(n, moments[places[n]], {}) for n in known + sorted(set(places) - set(known))}
    for label, figure in COLUMNS.items():
        held = column(label)
        if label in BESIDE and held.null_count == len(held):
            continue
        numbers = held.to_numpy().astype(np.float64 if label in MEMORY else np.float32)
        for name, one in series.items():
            one.values[figure] = numbers[places[name]]
    return series


def _chunks(path: Path, warnings: list[str]) -> Iterator[pa.Table]:
    """Tables of whole lines, so that a long run is never held as text."""
    rest = b""
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            head, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield _parse(head, path.name, warnings)


def _parse(text: bytes, name: str, warnings: list[str]) -> pa.Table:
    options = pj.ParseOptions(explicit_schema=LINES, unexpected_field_behavior="ignore")
    try:
        return _flat(pj.read_json(io.BytesIO(text), parse_options=options))
    except pa.ArrowInvalid:
        lines = text.splitlines()
        rows = [row for line in lines if (row := _row(line))]
        warnings.append(f"{name}: {len(lines) - len(rows)} lines could not be read and are left out")
        return pa.Table.from_pylist(rows, schema=FLAT)


def _row(line: bytes) -> dict[str, Any] | None:
    """One line, read by itself."""
    try:
        flat = flatten("samples", json.loads(line))
        row = {"time_ns": int(flat["time_ns"]), "node": str(flat["node"])}
        return row | {
            name: None if flat.get(name) is None and name in BESIDE else float(flat[name]) for name in COLUMNS
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _flat(table: pa.Table) -> pa.Table:
    """The columns that packing makes, of parsed lines."""
    rows = len(table)
    processes, gpus = table["processes"].combine_chunks(), table["gpus"].combine_chunks()
    columns: dict[str, Any] = {}
    for name in ("rss_bytes", "swap_bytes"):
        columns[f"rpc_{name}"] = np.nan_to_num(_per_row(processes, name, rows, np.add, only=RPC_SERVERS))
    for name in _GPU:
        together = np.fmax if name in ("use_percent", "temperature_c") else np.add
        columns[f"gpu_{name}"] = _per_row(gpus, name, rows, together)
    flat = table.drop_columns(["processes", "gpus"]).flatten()
    for name, column in columns.items():
        flat = flat.append_column(name, pa.array(column, from_pandas=True))
    return flat.select(FLAT.names).cast(FLAT)


def _per_row(
    lists: pa.ListArray, field: str, rows: int, together: np.ufunc, only: tuple[str, ...] = ()
) -> Numbers:
    """Sum or maximum of a field over each sample's list; NaN where the list holds none."""
    values = pc.list_flatten(lists)
    parents = pc.list_parent_indices(lists).to_numpy()
    numbers = values.field(field).to_numpy(zero_copy_only=False).astype(np.float64)
    wanted = ~np.isnan(numbers)
    if only:
        wanted &= pc.is_in(values.field("name"), pa.array(only)).to_numpy(zero_copy_only=False)
    result = np.full(rows, np.nan)
    result[parents[wanted]] = -np.inf if together is np.fmax else 0.0
    together.at(result, parents[wanted], numbers[wanted])
    return result
