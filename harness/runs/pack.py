"""Packing a run's JSON lines into parquet, in constant memory."""

from itertools import islice
from pathlib import Path

from harness.errors import HarnessError
from harness.runs.read import read_lines
from harness.runs.tables import Row, flatten

PACKED = ("trials", "requests", "samples")
BATCH = 50_000


def pack(run: Path) -> list[Path]:
    """Write ``trials.parquet``, ``requests.parquet`` and ``samples.parquet`` beside the JSON lines.

    Each comes into being by a rename, so a kill leaves the earlier file or none; tables without a record
    are not written.

    Raises:
        HarnessError: a line is damaged, or a table cannot be written; the lines stay what they were.
    """
    return [packed for table in PACKED if (packed := _pack_table(run, table)) is not None]


def _pack_table(run: Path, table: str) -> Path | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = run / f"{table}.jsonl"
    columns = _columns(source, table)
    if not columns:
        return None
    target = run / f"{table}.parquet"
    temporary = target.with_name(f".{target.name}.tmp")
    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items()])
    lines = read_lines(source)
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while batch := [flatten(table, line) for line in islice(lines, BATCH)]:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HarnessError(f"cannot write {target}: {error}; the run is whole without it") from error
    return target


def _columns(source: Path, table: str) -> dict[str, str]:
    """Every column that any row has, with the widest kind its values need."""
    kinds: dict[str, str] = {}
    for line in read_lines(source):
        for name, value in flatten(table, line).items():
            kinds[name] = _wider(kinds.get(name, "null"), _kind(value))
    return kinds


_ORDER = ("null", "bool", "int", "float", "ints", "floats", "text")


def _kind(value: Row | object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list):
        return "floats" if any(isinstance(item, float) for item in value) else "ints"
    return "text"


def _wider(one: str, other: str) -> str:
    return max(one, other, key=_ORDER.index)


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
