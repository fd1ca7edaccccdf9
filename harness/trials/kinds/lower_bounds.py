"""The least that a load can take: what it reads and hashes, each at a rate that was measured."""

from collections.abc import Mapping
from contextlib import suppress

from harness.cluster.ssh import run_script
from harness.errors import HarnessError
from harness.tensor_cache.client import TOOL
from harness.trials.context import Context

SAMPLE_BYTES = 128 << 20
"""Enough for a rate, little beside a model."""


async def measured_rates(ctx: Context, model: str) -> dict[str, float]:
    """Bytes per second of the head node's disk and of llama.cpp's hash, once for each model of a run.

    Empty where they cannot be measured: an older deployment has no tool for it.
    """
    if model not in ctx.rates:
        ctx.rates[model] = {}
        argument = {"path": str(ctx.models[model]["path"]), "size": SAMPLE_BYTES, "tool": TOOL}
        with suppress(HarnessError):
            found = await run_script(ctx.inventory.head, "rates.py", argument, root=True)
            ctx.rates[model] = {name: float(rate) for name, rate in found.items() if rate}
    return ctx.rates[model]


def load_floors(
    rates: Mapping[str, float], file_bytes: float | None, hashed_bytes: float | None
) -> dict[str, float]:
    """Seconds of disk and hash; one whose bytes or rate are not known is left out.

    Args:
        rates: bytes per second of each.
        file_bytes: what is read; None where the page cache may have it.
        hashed_bytes: what the planner says is hashed: tensors over 10 MiB that go to backends.
    """
    bytes_of = {"disk": file_bytes, "hash": hashed_bytes}
    return {
        f"{name}_floor_s": size / rates[name]
        for name, size in bytes_of.items()
        if size is not None and name in rates
    }
