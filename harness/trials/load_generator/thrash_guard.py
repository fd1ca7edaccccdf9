"""Ends a load or a request early where the backends thrash and nothing moves."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from harness.contracts.diagnosis import Diagnosis, Evidence
from harness.diagnosis.node_conditions import find_thrash
from harness.errors import HarnessError
from harness.trials.context import Context
from harness.trials.load_generator.samples import Point

NO_PROGRESS_S = 60.0
"""After so long without progress in thrash, a load or request is ended: it would take hours."""
CHECK_EVERY_S = 2.0
GROWN_BYTES = 64 << 20
"""A load makes progress if its backends hold this much more than a minute ago."""


@dataclass
class ThrashWatch:
    """Why the load or request was ended; None while it was not."""

    diagnosis: Diagnosis | None = None


def find_stalled_thrash(
    windows: Mapping[str, Sequence[Point]], *, progress: bool, over_s: float
) -> Diagnosis | None:
    """The diagnosis of a load or request that thrashes without progress; None otherwise.

    Args:
        windows: per node the points of the last ``over_s`` seconds.
        progress: whether it got any further in that time.
    """
    spans = [(points[-1].time_ns - points[0].time_ns) / 1e9 for points in windows.values() if len(points) > 1]
    thrash = find_thrash(windows)
    if progress or thrash is None or max(spans, default=0) < 0.9 * over_s:
        return None
    line = f"ended early: no progress within {over_s:.0f} s"
    return thrash.model_copy(update={"evidence": [*thrash.evidence, Evidence(source="trial", line=line)]})


def memory_grows(windows: Mapping[str, Sequence[Point]]) -> bool:
    """Whether the backends hold ``GROWN_BYTES`` more than at the window's start."""
    grown = sum(_rpc_bytes(points[-1]) - _rpc_bytes(points[0]) for points in windows.values() if points)
    return grown >= GROWN_BYTES


def _rpc_bytes(point: Point) -> int:
    return point.rpc_rss_bytes + point.rpc_swap_bytes


@asynccontextmanager
async def ends_thrash(
    ctx: Context, last_token: Callable[[], float] | None = None
) -> AsyncIterator[ThrashWatch]:
    """Watch the backends while the block runs; unload where they thrash without progress.

    The load or request that is awaited then fails, and ``diagnosis`` says why.

    Args:
        last_token: monotonic time of the newest token; without it, growing memory is the progress.
    """
    watch = ThrashWatch()
    watching = asyncio.create_task(_check(ctx, watch, last_token))
    try:
        yield watch
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _check(ctx: Context, watch: ThrashWatch, last_token: Callable[[], float] | None) -> None:
    names = [node.name for node in ctx.inventory.backends]
    started_ns = time.time_ns()
    while watch.diagnosis is None:
        await asyncio.sleep(CHECK_EVERY_S)
        now_ns = time.time_ns()
        # Samples from before the start may be of an earlier trial that thrashed.
        since_ns = max(started_ns, now_ns - int(NO_PROGRESS_S * 1e9))
        windows = ctx.sampler.series.windows(names, since_ns, now_ns)
        tokens_arrive = last_token is not None and time.monotonic() - last_token() < NO_PROGRESS_S
        progress = memory_grows(windows) if last_token is None else tokens_arrive
        watch.diagnosis = find_stalled_thrash(windows, progress=progress, over_s=NO_PROGRESS_S)
    ctx.say("backends thrash without progress; unloading")
    with suppress(HarnessError):
        await ctx.router.unload(0)
