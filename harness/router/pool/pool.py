"""The pool: servers for small models. A request goes to the least busy one that does not fail."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import aiohttp

from harness.errors import HarnessError
from harness.planner.memory import compute_bytes, kv_bytes
from harness.router.config import PoolServer, read_keys
from harness.router.errors import RouterError
from harness.router.failures import Fate
from harness.router.in_flight import InFlight, SentRequest
from harness.router.json_log import log
from harness.router.pool.crashes import PoolCrashes
from harness.router.pool.server import (
    Need,
    PoolOffer,
    PoolTarget,
    ProbeError,
    ServerState,
    SilentServerError,
    check_main_loop,
    probe,
)
from harness.router.supervisor import TaskSupervisor

_CHECK_S = 15.0
"""Between two probes of a healthy server; a fifth more or less, so that probes do not coincide."""
_RETRY_S = 30
"""The watchdog of a server that is hung restarts it; then it loads its model."""


class Pool:
    """Knows which server has which model, and chooses the server for a request.

    Args:
        supervisor: runs the probes.
        crashes: finds the requests that end servers; without it, none is blamed.
        silent_s: how long the main loop of a server may not answer before the server is taken for hung.
    """

    def __init__(
        self,
        servers: Sequence[PoolServer],
        supervisor: TaskSupervisor | None = None,
        *,
        crashes: PoolCrashes | None = None,
        silent_s: float = 60,
    ) -> None:
        self._servers = [
            ServerState(server, read_keys(server.key_file)[0] if server.key_file else None)
            for server in servers
        ]
        self._supervisor = supervisor or TaskSupervisor()
        self._crashes = crashes
        self._silent_s = silent_s

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(name for server in self._servers for name in server.models))

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
                "in_memory": sorted(server.snapshot.loaded) if server.snapshot else [],
                "in_flight": server.in_flight,
                "seen": server.snapshot is not None,
                "set_aside_s": round(
                    max(0.0, server.cooling_until - now, self._silent_s if server.silent else 0.0), 1
                ),
                "last_failure": server.last_failure,
            }
            for server in self._servers
        ]

    def offers(self, model: str, available: Callable[[str], int | None]) -> tuple[PoolOffer, ...]:
        """The servers that have ``model``, and the memory that each can give it.

        Args:
            model: as the client named it.
            available: memory left on a node by its name, bytes; None where it is not known.
        """
        return tuple(
            PoolOffer(
                server.target.url,
                server.config.node,
                server.certain(model),
                server.capacity_bytes(available(server.config.node)),
            )
            for server in self._servers
            if server.has(model)
        )

    def need(self, model: str, context: int) -> Need | None:
        """Memory that ``model`` takes, by the servers' descriptions; None where they do not give its size."""
        described = next(filter(None, (server.model(model) for server in self._servers)), None)
        if described is None or described.size_bytes is None:
            return None
        size_bytes, header = described.size_bytes, described.header
        if header is None:
            return Need(size_bytes)
        try:
            runtime_bytes = sum(kv_bytes(header, context)) + compute_bytes(header, context, 1, True, False)
            return Need(size_bytes + runtime_bytes, header.block_count + 1)
        except HarnessError:
            return Need(size_bytes)

    def pick(
        self, model: str, servers: Sequence[str] = (), *, exclude: str | None = None
    ) -> PoolTarget | None:
        """The server for a request: not cooling down, then with the model in memory, then the least busy.

        Args:
            model: it must be one that some server has. A server that is hung is not chosen.
            servers: URLs of those that may be chosen; all where empty.
            exclude: URL of one that has just failed.
        """
        now = time.monotonic()

        def rank(server: ServerState) -> tuple[float, bool, int]:
            cooling_until = server.cooling_until if server.cooling_until > now else 0.0
            return cooling_until, not server.has_in_memory(model), server.in_flight

        able = (s for s in self._servers if s.has(model) and s.target.url != exclude and not s.silent)
        chosen = min((s for s in able if not servers or s.target.url in servers), key=rank, default=None)
        return chosen.target if chosen else None

    @contextmanager
    def use(self, target: PoolTarget) -> Iterator[None]:
        """Count a request to a server while it runs."""
        server = self._server(target)
        server.in_flight += 1
        try:
            yield
        finally:
            server.in_flight -= 1

    def build(self, target: PoolTarget) -> int | None:
        """Release number of a llama-server, by its last probe; None where it is not known."""
        snapshot = self._server(target).snapshot
        return snapshot.build if snapshot else None

    def why_none(self, model: str) -> RouterError | None:
        """The error where all servers that have ``model`` are hung; None where none has it."""
        silent = [server for server in self._servers if server.silent and server.has(model)]
        if not silent:
            return None
        reasons = "; ".join(f"pool server of {s.config.node}: {s.last_failure}" for s in silent)
        message = f"no server answers for {model}: {reasons}"
        return RouterError(503, "pool_unreachable", message, retry_after_s=_RETRY_S)

    def sent_to(self, target: PoolTarget) -> InFlight:
        """The requests that a server has."""
        return self._server(target).sent

    async def fate(self, target: PoolTarget, request: SentRequest) -> Fate:
        """What became of a server that broke a request off."""
        return await self._crashes.fate(self._server(target), request) if self._crashes else Fate.NOTHING

    def look_later(self, target: PoolTarget, request: SentRequest) -> None:
        """Find out in the background whether ``request``, or another one, ended the server."""
        if self._crashes:
            self._supervisor.start("pool_crash", self._look(target, request))

    async def _look(self, target: PoolTarget, request: SentRequest) -> None:
        await self.fate(target, request)

    def succeeded(self, target: PoolTarget) -> None:
        self._server(target).succeeded()

    def failed(self, target: PoolTarget, reason: str) -> None:
        """The server did not answer: others are preferred for a while."""
        server = self._server(target)
        server.failed(time.monotonic(), reason)
        failures = server.failures
        log("pool_server_failed", node=target.node, url=target.url, failures=failures, reason=reason)

    async def start(self, session: aiohttp.ClientSession, patience_s: float = 1.0) -> None:
        """Probe every server until ``close``; returns once all have been probed, or after ``patience_s``."""
        first = [asyncio.Event() for _ in self._servers]
        for server, probed in zip(self._servers, first, strict=True):
            self._supervisor.keep_running("pool_probe", partial(self._check, session, server, probed))
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*(probed.wait() for probed in first))

    async def close(self) -> None:
        await self._supervisor.close()

    async def _check(
        self, session: aiohttp.ClientSession, server: ServerState, probed: asyncio.Event
    ) -> None:
        while True:
            failure: ProbeError | None = None
            try:
                server.snapshot = await probe(session, server.target, server.snapshot)
            except ProbeError as error:
                failure = error
            probed.set()
            try:
                await check_main_loop(session, server.target, self._silent_s)
            except SilentServerError as error:
                failure = error
            if failure:
                server.silent = isinstance(failure, SilentServerError)
                self.failed(server.target, str(failure))
            else:
                server.succeeded()
            if self._crashes:
                await self._crashes.look(server)
            left_s = server.cooling_until - time.monotonic()
            pause_s = left_s if left_s > 0 else _CHECK_S
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    def _server(self, target: PoolTarget) -> ServerState:
        return next(server for server in self._servers if server.target == target)


def unreachable(target: PoolTarget, model: str, reason: str) -> RouterError:
    """The error for a pool server that does not answer."""
    unit = "ollama" if target.kind == "ollama" else "llama-pool-server"
    return RouterError(
        502,
        "pool_unreachable",
        f"pool server of {target.node} ({target.url}) broke off for {model}: {reason}; "
        f"see 'systemctl status {unit}' there",
    )
