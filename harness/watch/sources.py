"""Where the live view comes from: Redis on the head node, else each node's own ring; and the router's plan.

Samples come over the SSH that deploys the nodes, so the control machine needs no place in Redis's fence and
no password of it. Backends are never connected to.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from harness.cluster.inventory import Inventory, Node
from harness.contracts.coordinator_state import CoordinatorState
from harness.errors import HarnessError
from harness.monitor.backend_state import SILENT_AFTER_S, age_s
from harness.monitor.redis.reader import Heard, parse_sample
from harness.settings import NODE_VENV
from harness.watch.follow import EndedError, follow_lines
from harness.watch.view import ClusterView, Seen, node_views, plan_in_use, router_view

MONITOR = str(NODE_VENV / "bin" / "llama-node-monitor")
RETRY_S = 5.0
ROUTER_EVERY_S = 2.0
ROUTER_WITHIN_S = 5.0
FIRST_LOOK_WITHIN_S = 15.0
_LOOK_S = 0.1
_RECENT_NS = 5 * 10**9

AskRouter = Callable[[], Awaitable[CoordinatorState]]


class Sources:
    """Keeps asking in the background while it is entered; ``view`` says what is known at any moment."""

    def __init__(self, inventory: Inventory, ask_router: AskRouter, interval_s: float = 1.0) -> None:
        """Nothing is asked before it is entered.

        Raises:
            HarnessError: the inventory has no head node.
        """
        self._inventory = inventory
        self._head = inventory.head
        self._ask_router = ask_router
        self._interval_s = interval_s
        self._heard: tuple[Heard, float] | None = None
        self._redis_problem: str | None = None
        self._seen: dict[str, tuple[Seen, float]] = {}
        """Newest sample by node, with its age when it came, and when that was (monotonic)."""
        self._problems: dict[str, str] = {}
        self._router: CoordinatorState | None = None
        self._router_problem: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._rings: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        coroutines = (self._follow_redis(), self._mind_rings(), self._follow_router())
        self._tasks = [asyncio.create_task(one) for one in coroutines]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _end(self._tasks + self._rings)

    async def first_look(self) -> None:
        """Wait until every node and the router have answered or cannot, or some seconds have passed."""
        for _ in range(int(FIRST_LOOK_WITHIN_S / _LOOK_S)):
            if self._looked_everywhere():
                return
            await asyncio.sleep(_LOOK_S)

    def view(self) -> ClusterView:
        """Everything as it is known now."""
        now = time.monotonic()
        seen = {name: Seen(one.sample, one.age_s + (now - came)) for name, (one, came) in self._seen.items()}
        by_redis = self._redis_is_heard()
        plan = plan_in_use(self._router)
        return ClusterView(
            time_ns=time.time_ns(),
            source="redis" if by_redis else "rings",
            source_problem=None if by_redis else self._redis_problem or "Redis has not answered yet",
            router=router_view(self._router, self._router_problem),
            nodes=node_views(self._inventory.nodes.values(), seen, self._problems, plan),
        )

    def _redis_is_heard(self) -> bool:
        return self._heard is not None and time.monotonic() - self._heard[1] < SILENT_AFTER_S

    def _looked_everywhere(self) -> bool:
        nodes = self._redis_is_heard() or set(self._inventory.nodes) <= {*self._seen, *self._problems}
        return nodes and (self._router is not None or self._router_problem is not None)

    async def _follow_redis(self) -> None:
        head = self._head
        asked = (MONITOR, "latest", "--follow", f"{self._interval_s:g}", *self._inventory.nodes)
        while True:
            try:
                async with aclosing(follow_lines(head.ssh(*asked, root=True))) as lines:
                    async for line in lines:
                        self._take(Heard.model_validate_json(line, extra="ignore"))
            except EndedError as error:
                self._redis_problem = str(error)
            except ValidationError as error:
                self._redis_problem = f"{head.name} answers what cannot be read: {error.errors()[0]['msg']}"
            await asyncio.sleep(RETRY_S)

    def _take(self, heard: Heard) -> None:
        came = time.monotonic()
        self._heard, self._redis_problem = (heard, came), None
        self._problems.clear()
        for name, latest in heard.latest.items():
            if sample := latest or heard.last.get(name):
                self._seen[name] = (Seen(sample, age_s(sample, heard.time_ns)), came)

    async def _mind_rings(self) -> None:
        """Follow each node's ring while Redis tells nothing."""
        while True:
            if self._redis_is_heard():
                await _end(self._rings)
                self._rings = []
            elif self._redis_problem and not self._rings:
                nodes = self._inventory.nodes.values()
                self._rings = [asyncio.create_task(self._follow_ring(node)) for node in nodes]
            await asyncio.sleep(_LOOK_S)

    async def _follow_ring(self, node: Node) -> None:
        argv = node.ssh(MONITOR, "tail", "--follow", "--since", str(-_RECENT_NS))
        while True:
            try:
                async with aclosing(follow_lines(argv)) as lines:
                    async for line in lines:
                        if sample := parse_sample(line):
                            self._problems.pop(node.name, None)
                            # Written this very second: its own clock may be off, and is not asked.
                            self._seen[node.name] = (Seen(sample, 0.0), time.monotonic())
            except EndedError as error:
                self._problems[node.name] = str(error)
            await asyncio.sleep(RETRY_S)

    async def _follow_router(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ROUTER_WITHIN_S):
                    self._router = await self._ask_router()
                self._router_problem = None
            except TimeoutError:
                self._router, self._router_problem = None, f"no answer within {ROUTER_WITHIN_S:.0f} s"
            except HarnessError as error:
                self._router, self._router_problem = None, str(error)
            await asyncio.sleep(ROUTER_EVERY_S)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
