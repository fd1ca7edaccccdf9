"""Flat rows of the records, the same for JSON lines and for parquet."""

import json
from collections.abc import Callable
from typing import Any

from harness.contracts.run_records import Request
from harness.monitor.sample import RPC_SERVERS

Row = dict[str, Any]


def flatten(table: str, record: Row) -> Row:
    """One flat row of a record of ``trials``, ``requests`` or ``samples``."""
    return _FLATTENERS[table](record)


_SAMPLE_NESTED = ("memory", "rpc", "network", "pressure", "disk", "kernel", "build")
_GPU_FIGURES: dict[str, Callable[[list[float]], float]] = {
    "memory_total_bytes": sum,
    "memory_used_bytes": sum,
    "power_w": sum,
    "use_percent": max,
    "temperature_c": max,
}
"""What a node with several GPUs is shown with: together, or its busiest and hottest."""


def _sample(record: Row) -> Row:
    row = _dotted(record, nested=_SAMPLE_NESTED, text=("units", "processes", "gpus", "kernel.xids"))
    for name, together in _GPU_FIGURES.items():
        known = [gpu[name] for gpu in record.get("gpus", ()) if gpu.get(name) is not None]
        row[f"gpu_{name}"] = together(known) if known else None
    for prefix, names in (("rpc", RPC_SERVERS), ("server", ("llama-server",))):
        group = [p for p in record.get("processes", ()) if p["name"] in names]
        row[f"{prefix}_rss_bytes"] = sum(p["rss_bytes"] for p in group)
        row[f"{prefix}_swap_bytes"] = sum(p["swap_bytes"] for p in group)
    return row


def _request(record: Row) -> Row:
    request = Request.model_validate(record)
    row = _dotted(record, nested=("server",), text=())
    row |= {
        "ttft_s": request.ttft_s,
        "e2e_s": request.e2e_s,
        "tpot_s": request.tpot_s,
        "itl_s": request.itl_s,
    }
    return row


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


_FLATTENERS: dict[str, Callable[[Row], Row]] = {"samples": _sample, "requests": _request, "trials": _trial}
