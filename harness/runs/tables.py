"""Flat rows of the records, the same for JSON lines and for parquet, and the parquet files."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.monitor.sample import RPC_SERVERS
from harness.runs.folder import read_lines

Row = dict[str, Any]

_SAMPLE_NESTED = ("memory", "rpc", "network", "pressure", "disk", "kernel", "build")
_GPU_FIGURES: dict[str, Callable[[list[float]], float]] = {
    "memory_total_bytes": sum,
    "memory_used_bytes": sum,
    "power_w": sum,
    "use_percent": max,
    "temperature_c": max,
}
"""Of a node with several GPUs: the sum, or the busiest and the hottest."""


def flatten(table: str, record: Row) -> Row:
    """One flat row of a record of ``trials``, ``requests`` or ``samples``."""
    return _FLATTENERS[table](record)


def flatten_sample(record: Row) -> Row:
    """One row of a node sample, as its monitor wrote it: ``memory.used_bytes``, ``rpc_rss_bytes``, ...

    Groups and counters that the sample does not have are absent or None; lists (processes, units, GPUs) are
    JSON text beside their totals.
    """
    row = _dotted(record, nested=_SAMPLE_NESTED, text=("units", "processes", "gpus", "kernel.xids"))
    for name, combine in _GPU_FIGURES.items():
        values = [gpu[name] for gpu in record.get("gpus", ()) if gpu.get(name) is not None]
        row[f"gpu_{name}"] = combine(values) if values else None
    for prefix, names in (("rpc", RPC_SERVERS), ("server", ("llama-server",))):
        row |= process_totals(record.get("processes", ()), prefix, names)
    return row


def process_totals(processes: Iterable[Row], prefix: str, names: Iterable[str]) -> dict[str, int]:
    """Resident and swapped bytes of the processes with one of ``names``, 0 without one: ``rpc_rss_bytes``."""
    group = [process for process in processes if process["name"] in names]
    return {f"{prefix}_{name}": sum(p[name] for p in group) for name in ("rss_bytes", "swap_bytes")}


def _request(record: Row) -> Row:
    request = Request.model_validate(record)
    row = _dotted(record, nested=("server",), text=())
    return row | {name: getattr(request, name) for name in ("ttft_s", "e2e_s", "tpot_s", "itl_s")}


def _trial(record: Row) -> Row:
    return _dotted(record, nested=("metrics",), text=("coordinator", "diagnosis", "peak", "details"))


def _dotted(record: Row, nested: tuple[str, ...], text: tuple[str, ...]) -> Row:
    row: Row = {}
    for key, value in record.items():
        if key in nested:
            row |= {f"{key}.{inner}": content for inner, content in (value or {}).items()}
        else:
            row[key] = value
    return row | {key: json.dumps(row[key]) for key in text if row.get(key) is not None}


_FLATTENERS: dict[str, Callable[[Row], Row]] = {
    "samples": flatten_sample,
    "requests": _request,
    "trials": _trial,
}


PACKED = ("trials", "requests", "samples")
BATCH = 50_000


def pack(run: Path) -> list[Path]:
    """Write ``trials.parquet``, ``requests.parquet`` and ``samples.parquet`` beside the JSON lines.

    Each is renamed into place, so a kill leaves the earlier file or none; tables without a record are not
    written.

    Raises:
        HarnessError: a line is damaged, or a table cannot be written; lines and other tables are whole.
    """
    packed, errors = [], []
    for table in PACKED:
        try:
            packed += _pack_table(run, table)
        except HarnessError as error:
            errors.append(str(error))
    if errors:
        raise HarnessError("; ".join(errors))
    return packed


def _pack_table(run: Path, table: str) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, target = run / f"{table}.jsonl", run / f"{table}.parquet"
    columns = _columns(source, table)
    if not columns:
        return []
    temporary = target.with_name(f".{target.name}.tmp")
    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items()])
    rows = _rows(source, table)
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while batch := list(islice(rows, BATCH)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        temporary.replace(target)
    except OSError as error:
        raise HarnessError(f"cannot write {target}: {error}; the run is whole without it") from error
    except (pa.ArrowException, OverflowError) as error:
        raise HarnessError(f"cannot pack {source}: {error}; the run is whole without it") from error
    finally:
        temporary.unlink(missing_ok=True)
    return [target]


def _rows(source: Path, table: str) -> Iterator[Row]:
    for number, line in enumerate(read_lines(source), start=1):
        try:
            yield flatten(table, line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise HarnessError(f"cannot pack {source}: line {number} is no record: {first}") from error


def _columns(source: Path, table: str) -> dict[str, str]:
    """Every column that any row has, with the widest kind its values need."""
    kinds: dict[str, str] = {}
    for row in _rows(source, table):
        for name, value in row.items():
            kinds[name] = max(kinds.get(name, "null"), _kind(value), key=_ORDER.index)
    return kinds


_ORDER = ("null", "bool", "int", "float", "ints", "floats", "text")


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "floats" if any(isinstance(item, float) for item in value) else "ints"
    return {type(None): "null", bool: "bool", int: "int", float: "float"}.get(type(value), "text")


def _arrow_type(kind: str) -> object:
    import pyarrow as pa

    return {
        "null": pa.string(),
        "bool": pa.bool_(),
        "int": pa.int64(),
        "float": pa.float64(),
        "ints": pa.list_(pa.int64()),
        "floats": pa.list_(pa.float64()),
        "text": pa.string(),
    }[kind]
