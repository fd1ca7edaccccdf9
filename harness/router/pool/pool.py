"""The pool: servers for small models, each asked as much as it can bear and left alone while it fails."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp

from harness.errors import HarnessError
from harness.planner.memory import compute_bytes, kv_bytes
from harness.router.config import PoolServer, read_key
from harness.router.errors import RouterError
from harness.router.logs import log
from harness.router.pool.probe import LookError, look
from harness.router.pool.server import PoolModel, PoolTarget, ServerState
from harness.router.routing.rule import Need, Offer

CHECK_S = 15.0
"""Between two looks at a server that is well; a fifth more or less, so that they do not come together."""


class Pool:
    """Knows which server has which model, and which one to ask."""

    def __init__(self, servers: Sequence[PoolServer], *, check_s: float = CHECK_S) -> None:
        self._servers = [
            ServerState(server, read_key(server.key_file) if server.key_file else None) for server in servers
        ]
        self._check_s = check_s
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def models(self) -> list[str]:
        """Names of the models that some server has."""
        return list(dict.fromkeys(name for server in self._servers for name in server.models))

    @property
    def nodes(self) -> list[str]:
        """Nodes of the servers."""
        return list(dict.fromkeys(server.config.node for server in self._servers))

    @property
    def state(self) -> list[dict[str, Any]]:
        """Each server for people: models, what is in memory, load and health."""
        now = time.monotonic()
        return [
            {
                "node": server.config.node,
                "url": server.target.url,
                "kind": server.config.kind,
                "models": server.models,
                "in_memory": sorted(server.seen.loaded) if server.seen else [],
                "in_flight": server.in_flight,
                "seen": server.seen is not None,
                "set_aside_s": round(max(0.0, server.aside_until - now), 1),
                "last_failure": server.last_failure,
            }
            for server in self._servers
        ]

    def description(self, model: str) -> PoolModel | None:
        """What a server says of ``model``."""
        return next((found for server in self._servers if (found := server.model(model))), None)

    def offers(self, model: str, available: Callable[[str], int | None]) -> tuple[Offer, ...]:
        """The servers that have ``model``, and what each can give.

        Args:
            model: as the client named it.
            available: memory left on a node by its name, bytes; None where it is not known.
        """
        return tuple(
            Offer(
                server.target.url,
                server.config.node,
                server.certain(model),
                server.capacity_bytes(available(server.config.node)),
            )
            for server in self._servers
            if server.has(model)
        )

    def need(self, model: str, context: int) -> Need | None:
        """What ``model`` takes, from the servers' own descriptions; None where they do not tell its size."""
        found = self.description(model)
        if found is None or found.size_bytes is None:
            return None
        if found.header is None:
            return Need(found.size_bytes)
        try:
            layers = found.header.block_count + 1
            cache = sum(kv_bytes(found.header, context))
            return Need(
                found.size_bytes + cache + compute_bytes(found.header, context, 1, True, False), layers
            )
        except HarnessError:
            return Need(found.size_bytes)

    def pick(self, model: str, servers: Sequence[str] = (), *, but: str | None = None) -> PoolTarget | None:
        """The server to ask: not set aside, then with the model in memory, then with the fewest requests.

        Args:
            model: it must be one that some server has.
            servers: URLs of those that may be asked; all where empty.
            but: one that has just failed.
        """
        now = time.monotonic()
        able = [
            server
            for server in self._servers
            if server.has(model)
            and server.target.url != but
            and (not servers or server.target.url in servers)
        ]
        if not able:
            return None

        def burden(server: ServerState) -> tuple[float, bool, int]:
            aside = server.aside_until if server.aside(now) else 0.0
            return aside, not server.has_in_memory(model), server.in_flight

        return min(able, key=burden).target

    @contextmanager
    def use(self, target: PoolTarget) -> Iterator[None]:
        """Count one request to a server."""
        server = self._server(target)
        server.in_flight += 1
        try:
            yield
        finally:
            server.in_flight -= 1

    def succeeded(self, target: PoolTarget) -> None:
        """The server answered a request."""
        self._server(target).succeeded()

    def failed(self, target: PoolTarget, seen: str) -> None:
        """The server did not answer: others are asked first for a while."""
        server = self._server(target)
        server.failed(time.monotonic(), seen)
        log("pool server set aside", node=target.node, url=target.url, failures=server.failures, seen=seen)

    async def start(self, session: aiohttp.ClientSession, patience_s: float = 1.0) -> None:
        """Look at every server, for ``patience_s`` before this returns, then again and again."""
        looks = {asyncio.create_task(self._look(session, server)): server for server in self._servers}
        if looks:
            await asyncio.wait(looks, timeout=patience_s)
        self._tasks = [
            asyncio.create_task(self._check(session, server, first)) for first, server in looks.items()
        ]

    async def close(self) -> None:
        """Stop looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _check(
        self, session: aiohttp.ClientSession, server: ServerState, first: asyncio.Task[None]
    ) -> None:
        await first
        while True:
            left = server.aside_until - time.monotonic()
            pause = left if left > 0 else self._check_s
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            await self._look(session, server)

    async def _look(self, session: aiohttp.ClientSession, server: ServerState) -> None:
        try:
            server.seen = await look(session, server.target, server.seen)
        except LookError as error:
            self.failed(server.target, str(error))
        else:
            server.succeeded()

    def _server(self, target: PoolTarget) -> ServerState:
        return next(server for server in self._servers if server.target is target or server.target == target)


def unreachable(target: PoolTarget, model: str, seen: str) -> RouterError:
    """The error for a pool server that does not answer."""
    unit = "ollama" if target.kind == "ollama" else "llama-pool-server"
    return RouterError(
        502,
        "pool_unreachable",
        f"pool server of {target.node} ({target.url}) broke off for {model}: {seen}; "
        f"see 'systemctl status {unit}' there",
    )
