"""Sources of the live view: Redis on the head node, else each node's own ring; and the router's state.

Samples come over the SSH that deploys the nodes, so the control machine needs neither access to Redis nor
its password, and the view works while the router is down. Backends are never connected to.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from tempfile import TemporaryFile
from typing import BinaryIO, Self

from pydantic import ValidationError

from harness.cluster.inventory import Inventory, Node
from harness.common.text import last_line
from harness.contracts.coordinator_state import CoordinatorState
from harness.errors import HarnessError
from harness.monitor.backend_state import age_s
from harness.monitor.redis.reader import LatestSamples
from harness.monitor.sample import RefusedSampleError, Sample, parse_sample
from harness.settings import NODE_VENV
from harness.watch.view import ClusterView, node_view, plan_in_use, router_view, shares

MONITOR = str(NODE_VENV / "bin" / "llama-node-monitor")
RETRY_S = 5.0
LINE_WITHIN_S = 15.0
"""The longest wait for a line: a connection takes seconds to a node that swaps."""
ROUTER_EVERY_S = 2.0
ROUTER_WITHIN_S = 5.0
FIRST_SNAPSHOT_WITHIN_S = 15.0
_POLL_S = 0.1
_TAIL_SINCE_NS = 5 * 10**9
_ERROR_BYTES = 1 << 12
"""What is read of a command's errors: their end."""
_LINE_MAX_BYTES = 1 << 24
"""A line holds a sample of every node: some kilobytes each."""

AskRouter = Callable[[], Awaitable[CoordinatorState]]


class Sources:
    """Follows all sources in the background while it is entered; ``view`` gives their newest data."""

    def __init__(self, inventory: Inventory, ask_router: AskRouter, interval_s: float = 1.0) -> None:
        """Nothing is connected to before it is entered.

        Raises:
            HarnessError: the inventory has no head node.
        """
        self._nodes = inventory.nodes
        self._head = inventory.head
        self._ask_router = ask_router
        self._interval_s = interval_s
        self._redis_problem: str | None = "Redis has not answered yet"
        self._redis_failed = asyncio.Event()
        self._samples: dict[str, tuple[Sample, float]] = {}
        """Newest sample by node, and when it was taken on our monotonic clock."""
        self._problems: dict[str, str] = {}
        self._router: CoordinatorState | None = None
        self._router_problem: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        rings = (self._follow_ring(node) for node in self._nodes.values())
        self._tasks = [
            asyncio.create_task(source) for source in (self._follow_redis(), self._follow_router(), *rings)
        ]
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def first_snapshot(self) -> None:
        """Wait until every node and the router have answered or failed, or some seconds have passed."""
        for _ in range(int(FIRST_SNAPSHOT_WITHIN_S / _POLL_S)):
            self._raise_errors()
            samples = self._redis_problem is None or set(self._nodes) <= {*self._samples, *self._problems}
            if samples and (self._router or self._router_problem):
                return
            await asyncio.sleep(_POLL_S)

    def view(self) -> ClusterView:
        """The newest data of all sources. Raises the error of a source that ended by a bug."""
        self._raise_errors()
        now = time.monotonic()
        layers = shares(plan_in_use(self._router))
        drained = self._router.drained if self._router else []
        return ClusterView(
            time_ns=time.time_ns(),
            source="rings" if self._redis_problem else "redis",
            source_problem=self._redis_problem,
            router=router_view(self._router, self._router_problem),
            nodes=[
                node_view(
                    node,
                    sample,
                    now - taken,
                    self._problems.get(name),
                    layers.get(name),
                    drained=name in drained,
                )
                for name, node in self._nodes.items()
                for sample, taken in [self._samples.get(name, (None, now))]
            ],
        )

    def _raise_errors(self) -> None:
        for task in self._tasks:
            if task.done():  # none ends by itself
                task.result()

    async def _follow_redis(self) -> None:
        command = (MONITOR, "latest", "--follow", f"{self._interval_s:g}", *self._nodes)
        while True:
            try:
                argv = self._head.ssh(*command, root=True)
                async with aclosing(_follow_lines(argv, LINE_WITHIN_S + self._interval_s)) as lines:
                    async for line in lines:
                        self._take(LatestSamples.model_validate_json(line, extra="ignore"))
            except _EndedError as error:
                self._redis_problem = str(error)
            except ValidationError as error:
                self._redis_problem = f"unreadable answer of {self._head.name}: {error.errors()[0]['msg']}"
            self._redis_failed.set()
            await asyncio.sleep(RETRY_S)

    def _take(self, read: LatestSamples) -> None:
        now = time.monotonic()
        self._redis_problem = None
        self._redis_failed.clear()
        self._problems.clear()
        for name, latest in read.latest.items():
            if sample := latest or read.last.get(name):
                self._samples[name] = (sample, now - age_s(sample, read.time_ns))
        for name, reason in read.refused.items():
            self._refuse(name, reason)

    def _refuse(self, node: str, reason: str) -> None:
        self._samples.pop(node, None)
        self._problems[node] = f"sample refused: {reason}"

    async def _follow_ring(self, node: Node) -> None:
        """Follow a node's ring from a failure of Redis until Redis answers again."""
        argv = node.ssh(MONITOR, "tail", "--follow", "--since", str(-_TAIL_SINCE_NS))
        while True:
            await self._redis_failed.wait()
            try:
                async with aclosing(_follow_lines(argv, LINE_WITHIN_S)) as lines:
                    async for line in lines:
                        if not self._redis_failed.is_set():
                            break
                        try:
                            sample = parse_sample(line, node.name)
                        except RefusedSampleError as error:
                            self._refuse(node.name, str(error))
                        else:
                            self._problems.pop(node.name, None)
                            # Written in this second: the node's own clock may be off, and is not used.
                            self._samples[node.name] = (sample, time.monotonic())
            except _EndedError as error:
                if self._redis_failed.is_set():
                    self._problems[node.name] = str(error)
                await asyncio.sleep(RETRY_S)

    async def _follow_router(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ROUTER_WITHIN_S):
                    self._router, self._router_problem = await self._ask_router(), None
            except TimeoutError:
                self._router, self._router_problem = None, f"no answer within {ROUTER_WITHIN_S:.0f} s"
            except HarnessError as error:
                self._router, self._router_problem = None, str(error)
            await asyncio.sleep(ROUTER_EVERY_S)


class _EndedError(Exception):
    """A command that should continue has ended or prints nothing; the message says why."""


async def _follow_lines(argv: Sequence[str], within_s: float) -> AsyncGenerator[str, None]:
    """Each line that ``argv`` prints; its process ends with the iteration.

    Its errors go to a file and not to a pipe: however much it writes there never blocks it, and ssh's master
    process, which keeps stderr open, delays nothing.

    Raises:
        _EndedError: the command cannot be run, has ended, or printed no line for ``within_s`` seconds.
    """
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    with TemporaryFile() as errors:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=none, stdout=pipe, stderr=errors, limit=_LINE_MAX_BYTES
            )
        except OSError as error:
            raise _EndedError(str(error)) from None
        assert process.stdout is not None  # noqa: S101 - a pipe, by the call above
        try:
            while True:
                async with asyncio.timeout(within_s):
                    line = await process.stdout.readline()
                if not line:
                    break
                yield line.decode(errors="replace")
            status = await process.wait()
            raise _EndedError(last_line(_end_of(errors), f"exit {status}"))
        except TimeoutError:
            raise _EndedError(f"nothing received for {within_s:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _end_of(file: BinaryIO) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _ERROR_BYTES))
    return file.read()
