"""``/admin``: what the harness and operators drive the coordinator with."""

import asyncio
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.load_request import LoadRequest
from harness.errors import HarnessError
from harness.llama.rpc.discovery import MAX_ADDRESSES
from harness.router.api.cluster_lease import RunLease
from harness.router.config import RouterConfig
from harness.router.coordinator.coordinator import Coordinator
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.nodes.discovery import find_backends, known_backends, spoken_protocol
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.proxy.proxy import Exchange
from harness.router.proxy.upstream import read_body
from harness.router.routing.resolver import Decider
from harness.settings import RPC_PORT


class UnloadRequest(BaseModel):
    """Body of ``POST /admin/unload``."""

    model_config = ConfigDict(extra="forbid")

    signal: Literal["SIGTERM", "SIGINT", "SIGKILL"] = "SIGTERM"
    deadline_s: float = Field(60, ge=0)
    """How long to wait for requests in flight before the signal is sent all the same."""


class DiscoverRequest(BaseModel):
    """Query of ``GET /admin/discover``; ``cidr`` may stand more than once."""

    model_config = ConfigDict(extra="forbid")

    cidr: list[str] = []
    port: int = Field(RPC_PORT, ge=1, le=65535)
    limit: int = Field(MAX_ADDRESSES, ge=1, le=65536)
    force: bool = False


class HoldRequest(BaseModel):
    """Body of ``POST /admin/hold``."""

    model_config = ConfigDict(extra="forbid")

    deadline_s: float = Field(900, gt=0, le=24 * 3600)
    """How long requests wait at most; the hold ends by itself then."""
    drain_s: float = Field(600, ge=0)
    """How long answers in flight may take."""


class LeaseRequest(BaseModel):
    """Body of ``POST`` and ``DELETE /admin/lease``."""

    model_config = ConfigDict(extra="forbid")

    owner: str = Field(min_length=1, max_length=200)
    seconds: float = Field(30, gt=0, le=600)


class Admin:
    """Handlers of ``/admin``."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        exchange: Exchange,
        decider: Decider,
        pool: Pool,
        coordinator: Coordinator,
        nodes: NodeSamples,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._exchange = exchange
        self._decider = decider
        self._pool = pool
        self._coordinator = coordinator
        self._nodes = nodes
        self._lease = RunLease()

    async def lease(self, request: Request) -> Response:
        """Take, renew (``POST``) or give back (``DELETE``) the right to measure on this cluster."""
        asked = LeaseRequest.model_validate_json(await read_body(request, self._config.body_limit_bytes))
        if request.method == "DELETE":
            self._lease.give(asked.owner)
        else:
            self._lease.take(asked.owner, asked.seconds)
        return JSONResponse({})

    async def load(self, request: Request) -> Response:
        """Load a model as asked; answers when it is ready."""
        asked = LoadRequest.model_validate_json(await read_body(request, self._config.body_limit_bytes))
        return _state(await self._coordinator.load(asked))

    async def unload(self, request: Request) -> Response:
        """Stop the coordinator; answers when it has ended."""
        body = await read_body(request, self._config.body_limit_bytes)
        asked = UnloadRequest.model_validate_json(body or b"{}")
        return _state(await self._coordinator.unload(signal=asked.signal, deadline_s=asked.deadline_s))

    async def hold(self, request: Request) -> Response:
        """Let requests wait and stop the coordinator once it is idle; answers with what was loaded."""
        body = await read_body(request, self._config.body_limit_bytes)
        asked = HoldRequest.model_validate_json(body or b"{}")
        return _state(await self._coordinator.hold(deadline_s=asked.deadline_s, drain_s=asked.drain_s))

    async def resume(self, request: Request) -> Response:
        """End the hold."""
        held_s = self._coordinator.held_s
        self._coordinator.resume()
        return JSONResponse({"was_held": held_s > 0})

    async def coordinator(self, request: Request) -> Response:
        """The current start, or the last one."""
        return _state(self._coordinator.state)

    async def starts(self, request: Request) -> Response:
        """The last starts, oldest first."""
        return JSONResponse([state.model_dump(mode="json") for state in self._coordinator.starts])

    async def queue(self, request: Request) -> Response:
        """The requests that wait for the coordinator, next first."""
        return JSONResponse({"waiting": [entry.model_dump() for entry in self._coordinator.queue]})

    async def failures(self, request: Request) -> Response:
        """What went wrong with the last coordinators, oldest first, each with its diagnosis."""
        return JSONResponse([failure.model_dump(mode="json") for failure in self._coordinator.failures])

    async def process(self, request: Request) -> Response:
        """What the router itself holds: tasks, descriptors and the child, to see that nothing leaks."""
        tasks = sorted(str(task.get_coro()).split()[2] for task in asyncio.all_tasks())
        return JSONResponse({"pid": os.getpid(), "tasks": tasks, "descriptors": _descriptors()})

    async def logs(self, request: Request) -> Response:
        """The log of one start."""
        start_id = request.path_params["start_id"]
        path = self._coordinator.log_path(start_id)
        if path is None or not path.exists():
            raise RouterError(404, "unknown_start", f"no log of a start '{start_id}'; see /admin/starts")
        # Whole at once: a file that grows while it is sent is longer than was announced.
        return Response(path.read_bytes(), media_type="text/plain")

    async def discover(self, request: Request) -> Response:
        """The backends, and what else answers in the networks asked for; none in use is connected to."""
        given = request.query_params
        asked = DiscoverRequest.model_validate(dict(given) | {"cidr": given.getlist("cidr")})
        known = known_backends(self._config)
        await self._nodes.refresh([one.node for one in known if one.node])
        in_use = {one.endpoint: why for one in known if one.node and (why := self._nodes.in_use(one.node))}
        try:
            found = await find_backends(
                known,
                asked.cidr,
                in_use=in_use | _leased(self._coordinator.state),
                expected=spoken_protocol(self._config.llama_server),
                port=asked.port,
                limit=asked.limit,
                force=asked.force,
            )
        except HarnessError as error:
            raise RouterError(400, "bad_request", str(error)) from None
        return JSONResponse({"backends": [one.as_dict() for one in found]})

    async def models(self, request: Request) -> Response:
        """Every model, where it is and which way its requests go."""
        files = self._catalogue.files()
        named = {file.name for file in files}
        listed: list[dict[str, object]] = []
        for file in files:
            entry: dict[str, object] = {
                "name": file.name,
                "path": str(file.path),
                "file_bytes": file.file_bytes,
                **await self._way(file.name),
            }
            try:
                header = self._catalogue.header(file)
                entry |= {
                    "layers_total": header.block_count + 1,
                    "architecture": header.architecture,
                    "quantisation": header.quantisation,
                    "synthetic": header.synthetic,
                }
            except HarnessError as error:
                entry["error"] = str(error)
            listed.append(entry)
        for name in self._exchange.models():
            if name not in named:
                way = await self._way(name)
                listed.append({"name": name, "path": None, "file_bytes": None, **way})
        return JSONResponse({"models": listed})

    async def _way(self, name: str) -> dict[str, object]:
        try:
            decision = await self._decider.decide(name, record=False)
        except RouterError as error:
            return {"route": None, "route_reason": error.message}
        return {"route": decision.route, "route_reason": decision.reason}

    async def pool(self, request: Request) -> Response:
        """The pool's servers: models, what they have in memory, requests, health."""
        return JSONResponse({"servers": self._pool.state})

    async def decisions(self, request: Request) -> Response:
        """The last decisions and the figures behind them, oldest first."""
        return JSONResponse({"decisions": self._decider.last})


def _leased(state: CoordinatorState) -> dict[str, str]:
    """Endpoints that our coordinator has, or is about to have."""
    if state.plan is None or state.phase in (CoordinatorPhase.ABSENT, CoordinatorPhase.ENDED):
        return {}
    return {share.endpoint: f"leased to our coordinator ({state.model})" for share in state.plan.shares}


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _state(state: CoordinatorState) -> Response:
    return Response(state.model_dump_json(), media_type="application/json")


def bad_body(error: ValidationError) -> RouterError:
    """The first thing that is wrong with a body, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return RouterError(400, "bad_request", f"{where}: {first['msg']}")
