"""Node samples of a run: one follower per node, peaks and differences between two moments."""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from harness.cluster.inventory import Node
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.runs.store import RunFolder
from harness.settings import NODE_VENV

BATCH_S = 1.0
RETRY_S = 5.0
Warn = Callable[[str, str], None]
"""Called with a node's name and what is wrong with its samples."""


@dataclass(frozen=True)
class Point:
    """The figures of one sample that trials use."""

    time_ns: int
    used_bytes: int
    swap_bytes: int
    rpc_rss_bytes: int
    rpc_swap_bytes: int
    major_faults: int
    received_bytes: int | None
    sent_bytes: int | None
    oom_kills: int | None = None
    memory_full_avg10: float | None = None
    """PSI, percent; None where the kernel counts none for this node."""
    rpc_restarts: int | None = None


PEAKS = ("used_bytes", "swap_bytes", "rpc_rss_bytes", "rpc_swap_bytes")


def point(sample: Sample) -> Point:
    """Figures of one sample."""
    rpc = [process for process in sample.processes if process.name in RPC_SERVERS]
    return Point(
        time_ns=sample.time_ns,
        used_bytes=sample.memory.used_bytes,
        swap_bytes=sample.memory.swap_used_bytes,
        rpc_rss_bytes=sum(process.rss_bytes for process in rpc),
        rpc_swap_bytes=sum(process.swap_bytes for process in rpc),
        major_faults=sample.memory.major_faults,
        received_bytes=sample.network.received_bytes if sample.network else None,
        sent_bytes=sample.network.sent_bytes if sample.network else None,
        oom_kills=sample.memory.oom_kills,
        memory_full_avg10=sample.pressure.memory_full_avg10 if sample.pressure else None,
        rpc_restarts=sample.units[RPC_UNIT].restarts if RPC_UNIT in sample.units else None,
    )


class Series:
    """Points of each node, in order of time."""

    def __init__(self) -> None:
        self._points: dict[str, list[Point]] = {}

    def add(self, node: str, one: Point) -> None:
        """Append a point; one that is not newer than the last is left out."""
        points = self._points.setdefault(node, [])
        if not points or one.time_ns > points[-1].time_ns:
            points.append(one)

    def last_ns(self, node: str) -> int:
        """Time of a node's newest point; 0 without one."""
        points = self._points.get(node)
        return points[-1].time_ns if points else 0

    def window(self, node: str, start_ns: int, end_ns: int) -> list[Point]:
        """A node's points from ``start_ns`` to ``end_ns``."""
        points = self._points.get(node, [])
        first = bisect_left(points, start_ns, key=lambda p: p.time_ns)
        return points[first : bisect_right(points, end_ns, key=lambda p: p.time_ns)]

    def windows(self, nodes: Iterable[str], start_ns: int, end_ns: int) -> dict[str, list[Point]]:
        """The same for several nodes, by name."""
        return {node: self.window(node, start_ns, end_ns) for node in nodes}

    def peaks(self, start_ns: int, end_ns: int) -> dict[str, dict[str, int]]:
        """Per node the highest value of each figure in the window; nodes without a point are left out."""
        return {
            node: {name: max(getattr(p, name) for p in points) for name in PEAKS}
            for node in self._points
            if (points := self.window(node, start_ns, end_ns))
        }

    def around(self, node: str, start_ns: int, end_ns: int) -> tuple[Point, Point] | None:
        """The last point before a window and the first after it (or the nearest ones inside)."""
        points = self._points.get(node, [])
        if len(points) < 2:
            return None
        first = max(0, bisect_right(points, start_ns, key=lambda p: p.time_ns) - 1)
        last = min(len(points) - 1, bisect_left(points, end_ns, key=lambda p: p.time_ns))
        return (points[first], points[last]) if last > first else None

    def grown(self, node: str, counter: str, start_ns: int, end_ns: int) -> int | None:
        """How far a counter grew in the window, to within the samples around it; None where it is not known.

        Args:
            counter: name of a counter of ``Point``: ``received_bytes``, ``oom_kills``, ...
        """
        pair = self.around(node, start_ns, end_ns)
        before, after = (getattr(one, counter) for one in pair) if pair else (None, None)
        return None if before is None or after is None else max(0, after - before)


class Sampler:
    """Follows every node's monitor for the length of a run, into the run's folder."""

    def __init__(self, nodes: Iterable[Node], run: RunFolder, since_ns: int, warn: Warn) -> None:
        self.series = Series()
        self._nodes = list(nodes)
        self._run = run
        self._since_ns = since_ns
        self._warn = warn
        self._pending: list[Sample] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._warned: set[str] = set()

    def begin(self) -> None:
        """Start one follower per node and the writer."""
        self._tasks = [asyncio.create_task(self._follow(node)) for node in self._nodes]
        self._tasks.append(asyncio.create_task(self._write_batches()))

    async def end(self) -> None:
        """Stop following and write what is pending."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._flush()

    async def caught_up(self, until_ns: int, timeout_s: float = 3.0) -> None:
        """Wait until every node that gives samples has one after ``until_ns``, or time is up."""
        deadline = time.monotonic() + timeout_s
        while any(0 < self.series.last_ns(node.name) <= until_ns for node in self._nodes):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)

    async def _follow(self, node: Node) -> None:
        while True:
            since = max(self._since_ns, self.series.last_ns(node.name) + 1)
            monitor = str(NODE_VENV / "bin" / "llama-node-monitor")
            process = await asyncio.create_subprocess_exec(
                *node.ssh(monitor, "tail", "--follow", "--since", str(since)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 20,
            )
            try:
                await self._read(node, process)
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.sleep(RETRY_S)

    async def _read(self, node: Node, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for above
        assert process.stderr is not None  # noqa: S101 - asked for above
        async for line in process.stdout:
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError as error:
                self._warn_once(node, f"a sample cannot be read: {error.errors()[0]['msg']}")
                continue
            if sample.time_ns > self.series.last_ns(node.name):
                self.series.add(node.name, point(sample))
                self._pending.append(sample)
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        self._warn_once(node, f"its monitor gives no samples: {said[-1] if said else 'the connection ended'}")

    def _warn_once(self, node: Node, message: str) -> None:
        if node.name not in self._warned:
            self._warned.add(node.name)
            self._warn(node.name, message)

    async def _write_batches(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S)
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            batch, self._pending = self._pending, []
            self._run.append_samples(batch)
