"""Samples of the nodes as trials use them: followed into the run's folder, and kept as series of points."""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from harness.cluster.inventory import Node
from harness.common.text import last_line
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.sample import (
    MAX_SAMPLE_BYTES,
    RPC_SERVERS,
    RefusedSampleError,
    Sample,
    check_time,
    parse_sample,
)
from harness.runs.folder import RunFolder
from harness.runs.tables import process_totals
from harness.settings import NODE_VENV


@dataclass(frozen=True)
class NodeClocks:
    """How far each node's clock is ahead of this machine's, in ns; a node that is not named counts as 0.

    Windows of trials are in this machine's time; samples, journals and coordinator states in their node's.
    """

    ahead_ns: Mapping[str, int] = field(default_factory=dict)

    def to_local(self, node: str, node_ns: int) -> int:
        """A moment on a node's clock in this machine's time."""
        return node_ns - self.ahead_ns.get(node, 0)

    def to_node(self, node: str, local_ns: int) -> int:
        """A moment of this machine's time on a node's clock."""
        return local_ns + self.ahead_ns.get(node, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one sample that trials use."""

    time_ns: int
    """In the time of whoever asks, the node's offset taken out."""
    used_bytes: int
    swap_bytes: int
    rpc_rss_bytes: int
    rpc_swap_bytes: int
    major_faults: int
    received_bytes: int | None = None
    oom_kills: int | None = None
    memory_full_avg10: float | None = None
    """PSI, percent; None where the kernel counts none for this node."""
    rpc_restarts: int | None = None


PEAKS = ("used_bytes", "swap_bytes", "rpc_rss_bytes", "rpc_swap_bytes")


def point(sample: Sample, time_ns: int) -> Point:
    """Figures of one sample.

    Args:
        time_ns: when it was taken, on the clock that the series is asked by.
    """
    processes = (process.model_dump() for process in sample.processes)
    return Point(
        time_ns=time_ns,
        used_bytes=sample.memory.used_bytes,
        swap_bytes=sample.memory.swap_used_bytes,
        **process_totals(processes, "rpc", RPC_SERVERS),
        major_faults=sample.memory.major_faults,
        received_bytes=sample.network.received_bytes if sample.network else None,
        oom_kills=sample.memory.oom_kills,
        memory_full_avg10=sample.pressure.memory_full_avg10 if sample.pressure else None,
        rpc_restarts=sample.units[RPC_UNIT].restarts if RPC_UNIT in sample.units else None,
    )


class Series:
    """Points of each node, in order of time."""

    def __init__(self) -> None:
        self._points: dict[str, list[Point]] = {}

    def add(self, node: str, point: Point) -> bool:
        """Append a point; False, and nothing is changed, for one that is not newer than the last."""
        points = self._points.setdefault(node, [])
        if points and point.time_ns <= points[-1].time_ns:
            return False
        points.append(point)
        return True

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

    def grown(self, node: str, counter: str, start_ns: int, end_ns: int) -> int | None:
        """How far a counter of ``Point`` grew in the window; None where it is not known.

        It is read at the last point before the window and the first after it, or the nearest ones inside.
        """
        points = self._points.get(node, [])
        first = max(0, bisect_right(points, start_ns, key=lambda p: p.time_ns) - 1)
        last = min(len(points) - 1, bisect_left(points, end_ns, key=lambda p: p.time_ns))
        if last <= first:
            return None
        before, after = getattr(points[first], counter), getattr(points[last], counter)
        return None if before is None or after is None else max(0, after - before)


BATCH_S = 1.0
RETRY_S = 5.0
MAX_LINE_BYTES = 2 * MAX_SAMPLE_BYTES
AHEAD_S = 60.0
"""Clocks are compared at the start of a run, and may drift."""
MAX_PENDING = 5_000
"""Samples that wait for a disk that is full: 20 minutes of four nodes."""
Warn = Callable[[str | None, str], None]
"""Called with a node's name, None for the run's folder, and what is wrong."""


class Sampler:
    """One follower per node and one writer, whose disk never holds up the event loop that times tokens.

    A follower whose connection ends connects again; a batch that cannot be written is kept and tried again.
    Each kind of trouble is one warning per node.
    """

    def __init__(
        self, nodes: Iterable[Node], run: RunFolder, since_ns: int, clocks: NodeClocks, warn: Warn
    ) -> None:
        """``since_ns`` is the oldest sample that is wanted, in this machine's time. Does not connect yet."""
        self.series = Series()
        self._nodes = list(nodes)
        self._run = run
        self._since_ns = since_ns
        self._clocks = clocks
        self._warn = warn
        self._warned: set[tuple[str | None, str]] = set()
        self._pending: list[Sample] = []
        self._lost = 0
        self._followers: list[asyncio.Task[None]] = []
        self._writer: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def begin(self) -> None:
        """Start the followers and the writer."""
        self._followers = [self._start(node.name, self._follow(node)) for node in self._nodes]
        self._writer = self._start(None, self._write_batches())

    async def end(self) -> None:
        """Stop following and write what is pending; what cannot be written is counted in a warning."""
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        self._ending.set()
        if self._writer:
            with suppress(Exception):  # _start has warned of it
                await self._writer
        if lost := self._lost + len(self._pending):
            self._warn(None, f"{lost} samples are lost: they could not be written")

    async def caught_up(self, until_ns: int, timeout_s: float = 3.0) -> None:
        """Wait until every node that gives samples has one after ``until_ns``, or time is up."""
        deadline = time.monotonic() + timeout_s
        while any(0 < self.series.last_ns(node.name) <= until_ns for node in self._nodes):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)

    def add(self, sample: Sample) -> None:
        """Take a sample of any node; one that is not newer than the node's last is left out.

        Raises:
            RefusedSampleError: it is dated in the future, where it would hide the node's later ones.
        """
        taken_ns = self._clocks.to_local(sample.node, sample.time_ns)
        check_time(taken_ns, time.time_ns(), AHEAD_S)
        if self.series.add(sample.node, point(sample, taken_ns)):
            self._pending.append(sample)
            if len(self._pending) > MAX_PENDING:
                del self._pending[0]
                self._lost += 1

    def _start(self, node: str | None, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self._warn(node, f"sampling has stopped: {error!r}")

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        return task

    def _warn_once(self, node: str | None, kind: str, detail: str) -> None:
        if (node, kind) not in self._warned:
            self._warned.add((node, kind))
            self._warn(node, f"{kind}: {detail}")

    async def _follow(self, node: Node) -> None:
        monitor = str(NODE_VENV / "bin" / "llama-node-monitor")
        while True:
            since_ns = max(self._since_ns, self.series.last_ns(node.name) + 1)
            command = node.ssh(
                monitor, "tail", "--follow", "--since", str(self._clocks.to_node(node.name, since_ns))
            )
            try:
                await self._read(node.name, command)
            except OSError as error:
                self._warn_once(node.name, "no samples", f"cannot start {command[0]}: {error.strerror}")
            await asyncio.sleep(RETRY_S)

    async def _read(self, node: str, command: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        assert process.stdout is not None  # noqa: S101 - asked for above
        assert process.stderr is not None  # noqa: S101 - asked for above
        try:
            async for line in self._lines(node, process.stdout):
                try:
                    self.add(parse_sample(line, node))
                except RefusedSampleError as error:
                    self._warn_once(node, "a sample is refused", str(error))
            reason = last_line(await process.stderr.read(), "the connection ended")
            self._warn_once(node, "its monitor gives no samples", reason)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _lines(self, node: str, stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                self._warn_once(
                    node, "a sample is refused", f"its line is longer than {MAX_LINE_BYTES} bytes"
                )
                continue
            if not line:
                return
            yield line

    async def _write_batches(self) -> None:
        while True:
            last = self._ending.is_set()
            await self._write_pending()
            if last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), BATCH_S)

    async def _write_pending(self) -> None:
        batch, self._pending = self._pending, []
        try:
            await asyncio.to_thread(self._run.append_samples, batch)
        except HarnessError as error:
            self._warn_once(None, "samples wait for the disk", str(error))
            self._pending = batch + self._pending
