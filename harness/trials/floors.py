"""The least that a load can take: what it reads and hashes, each at a rate that was measured."""

from collections.abc import Mapping
from contextlib import suppress

from harness.errors import HarnessError
from harness.trials.caches import TOOL
from harness.trials.context import Context
from harness.trials.nodes import run_script

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


def load_floors(rates: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds of disk and hash.

    A load reads the file once, and hashes what goes to backends (one thread, before it offers each tensor to
    a cache; tensors of up to 10 MiB are sent unhashed and are a hundredth of a model).
    """
    floors = {}
    if "disk" in rates and "file_bytes" in metrics:
        floors["disk_floor_s"] = metrics["file_bytes"] / rates["disk"]
    if "hash" in rates and "rpc_model_bytes" in metrics:
        floors["hash_floor_s"] = metrics["rpc_model_bytes"] / rates["hash"]
    return floors
