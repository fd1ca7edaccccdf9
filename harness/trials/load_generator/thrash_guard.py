"""The early end of a hopeless load or request: one that lives off swap and gets nowhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from harness.contracts.diagnosis import Diagnosis, Evidence
from harness.diagnosis.thrash import find_thrash
from harness.errors import HarnessError
from harness.trials.context import Context
from harness.trials.load_generator.telemetry import Point

HOPELESS_S = 60.0
"""Thrashing for so long without progress: what is awaited would take hours."""
LOOK_EVERY_S = 2.0
GROWN_BYTES = 64 << 20
"""A load whose backends hold this much more than a minute ago gets somewhere."""


@dataclass
class ThrashWatch:
    """Whether what is watched was ended, and the figures that say why."""

    found: Diagnosis | None = None


def hopeless(windows: Mapping[str, Sequence[Point]], progress: str | None, over_s: float) -> Diagnosis | None:
    """The diagnosis of something that thrashes and stands still; None while it moves or does not thrash.

    Args:
        windows: per node the points of the last ``over_s`` seconds.
        progress: how far it got in that time; None for nowhere.
    """
    spans = [(points[-1].time_ns - points[0].time_ns) / 1e9 for points in windows.values() if len(points) > 1]
    if progress is not None or not spans or max(spans) < 0.9 * over_s:
        return None
    found = find_thrash(windows)
    if found is None:
        return None
    line = f"ended early: no progress within {over_s:.0f} s"
    return found.model_copy(update={"evidence": [*found.evidence, Evidence(source="trial", line=line)]})


def held_more(windows: Mapping[str, Sequence[Point]]) -> str | None:
    """How much more the backends hold than at the window's start: the progress of a load."""
    grown = sum(_held(points[-1]) - _held(points[0]) for points in windows.values() if points)
    return f"{grown / 2**20:,.0f} MiB" if grown >= GROWN_BYTES else None


def _held(point: Point) -> int:
    return point.rpc_rss_bytes + point.rpc_swap_bytes


@asynccontextmanager
async def ends_thrash(
    ctx: Context, last_token: Callable[[], float] | None = None
) -> AsyncIterator[ThrashWatch]:
    """Watch the backends while the block runs; what thrashes and stands still is unloaded.

    The load or request that is awaited then fails, and ``found`` says why.

    Args:
        last_token: monotonic time of the newest token; without it, growing memory is the progress.
    """
    watch = ThrashWatch()
    looking = asyncio.create_task(_look(ctx, watch, last_token))
    try:
        yield watch
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def _look(ctx: Context, watch: ThrashWatch, last_token: Callable[[], float] | None) -> None:
    names = [node.name for node in ctx.inventory.backends]
    begun_ns = time.time_ns()
    while watch.found is None:
        await asyncio.sleep(LOOK_EVERY_S)
        now_ns = time.time_ns()
        # What went before is not this one's doing: a trial that thrashed may have just ended.
        since_ns = max(begun_ns, now_ns - int(HOPELESS_S * 1e9))
        windows = ctx.sampler.series.windows(names, since_ns, now_ns)
        if last_token is None:
            progress = held_more(windows)
        else:
            progress = "a token" if time.monotonic() - last_token() < HOPELESS_S else None
        watch.found = hopeless(windows, progress, HOPELESS_S)
    ctx.say("hopeless: it thrashes and stands still; unloading")
    with suppress(HarnessError):
        await ctx.router.unload(0)
