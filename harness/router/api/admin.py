"""``/admin``: control of the coordinator, its records, and the lease of the run that measures."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from harness.contracts import Record
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.plan import LoadRequest
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from harness.router.http.disconnect import read_body

Body = TypeVar("Body", bound=BaseModel)

_LOG_PIECE_BYTES = 256 * 1024


class UnloadRequest(Record):
    """Body of ``POST /admin/unload``."""

    signal: Literal["SIGTERM", "SIGINT", "SIGKILL"] = "SIGTERM"
    deadline_s: float = Field(60, ge=0)
    """How long to wait for requests in flight before the signal is sent all the same."""


class HoldRequest(Record):
    """Body of ``POST /admin/hold``."""

    deadline_s: float = Field(900, gt=0, le=24 * 3600)
    """How long requests wait at most; the hold ends by itself then."""
    drain_s: float = Field(600, ge=0)
    """How long answers in flight may take."""


class UndrainRequest(Record):
    """Body of ``POST /admin/undrain``."""

    nodes: list[str] = Field(min_length=1)


class DrainRequest(UndrainRequest):
    """Body of ``POST /admin/drain``."""

    drain_s: float = Field(600, ge=0)
    """How long answers in flight may take."""


class LeaseRequest(Record):
    """Body of ``POST`` and ``DELETE /admin/lease``."""

    owner: str = Field(min_length=1, max_length=200)
    seconds: float = Field(30, gt=0, le=600)


@dataclass
class ClusterLease:
    """Which run measures on this cluster: one at a time, from whatever machine it was started.

    Unless renewed the lease ends by itself, so a killed run blocks the next one for seconds only.
    Times are on the monotonic clock.
    """

    owner: str | None = None
    since_s: float = 0.0
    until_s: float = 0.0

    def take(self, owner: str, seconds: float) -> None:
        """Take or renew it.

        Raises:
            RouterError: another owner has it (409).
        """
        now = time.monotonic()
        if self.owner not in (None, owner) and now < self.until_s:
            raise RouterError(
                409,
                "leased",
                f"run {self.owner} has this cluster, for {now - self.since_s:.0f} s now; "
                f"wait for it or stop it (if it was killed, its lease ends in {self.until_s - now:.0f} s)",
            )
        if self.owner != owner:
            self.owner, self.since_s = owner, now
        self.until_s = now + seconds

    def give_back(self, owner: str) -> None:
        """End the lease of ``owner``; another owner's stays."""
        if self.owner == owner:
            self.owner = None


@dataclass(eq=False)
class Admin:
    """Handlers of ``/admin`` that drive the coordinator or report on it."""

    coordinator: CoordinatorManager
    body_limit_bytes: int
    cluster_lease: ClusterLease = field(default_factory=ClusterLease)

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/admin/load", self.load, methods=["POST"]),
            Route("/admin/unload", self.unload, methods=["POST"]),
            Route("/admin/hold", self.hold, methods=["POST"]),
            Route("/admin/resume", self.resume, methods=["POST"]),
            Route("/admin/drain", self.drain, methods=["POST"]),
            Route("/admin/undrain", self.undrain, methods=["POST"]),
            Route("/admin/lease", self.lease, methods=["POST", "DELETE"]),
            Route("/admin/coordinator", self.state),
            Route("/admin/starts", self.starts),
            Route("/admin/queue", self.queue),
            Route("/admin/failures", self.failures),
            Route("/admin/process", self.process),
            Route("/admin/logs/{start_id}", self.logs),
        ]

    async def load(self, request: Request) -> Response:
        """Load a model; the response comes when it is ready."""
        body = await parse_body(request, LoadRequest, self.body_limit_bytes)
        return self._state(await self.coordinator.load(body))

    async def unload(self, request: Request) -> Response:
        """Stop the coordinator; the response comes when it has ended."""
        body = await parse_body(request, UnloadRequest, self.body_limit_bytes)
        return self._state(await self.coordinator.unload(signal=body.signal, deadline_s=body.deadline_s))

    async def hold(self, request: Request) -> Response:
        """Let requests wait and stop the coordinator once it is idle; answers with what was loaded."""
        body = await parse_body(request, HoldRequest, self.body_limit_bytes)
        return self._state(await self.coordinator.hold(deadline_s=body.deadline_s, drain_s=body.drain_s))

    async def resume(self, request: Request) -> Response:
        held_s = self.coordinator.held_s
        self.coordinator.resume()
        return JSONResponse({"was_held": held_s > 0})

    async def drain(self, request: Request) -> Response:
        """Plan without backends; the response comes when no coordinator of ours uses one."""
        body = await parse_body(request, DrainRequest, self.body_limit_bytes)
        await self.coordinator.drain(body.nodes, drain_s=body.drain_s)
        return JSONResponse({"drained": self.coordinator.drained.names})

    async def undrain(self, request: Request) -> Response:
        """Let the next load use backends again."""
        body = await parse_body(request, UndrainRequest, self.body_limit_bytes)
        self.coordinator.drained.remove(*body.nodes)
        return JSONResponse({"drained": self.coordinator.drained.names})

    async def lease(self, request: Request) -> Response:
        """Take, renew (``POST``) or give back (``DELETE``) the right to measure on this cluster."""
        body = await parse_body(request, LeaseRequest, self.body_limit_bytes)
        if request.method == "DELETE":
            self.cluster_lease.give_back(body.owner)
        else:
            self.cluster_lease.take(body.owner, body.seconds)
        return JSONResponse({})

    async def state(self, request: Request) -> Response:
        """The current start, or the last one."""
        return self._state(self.coordinator.state)

    async def starts(self, request: Request) -> Response:
        return JSONResponse([state.model_dump(mode="json") for state in self.coordinator.starts])

    async def queue(self, request: Request) -> Response:
        return JSONResponse({"waiting": [entry.model_dump() for entry in self.coordinator.queue]})

    async def failures(self, request: Request) -> Response:
        """The last failures of coordinators, oldest first, each with its diagnosis."""
        return JSONResponse([failure.model_dump(mode="json") for failure in self.coordinator.failures])

    async def process(self, request: Request) -> Response:
        """The router's own tasks and descriptors, to see that nothing leaks."""
        tasks = sorted(str(task.get_coro()).split()[2] for task in asyncio.all_tasks())
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - their number alone
        return JSONResponse({"pid": os.getpid(), "tasks": tasks, "descriptors": descriptors})

    def _state(self, state: CoordinatorState) -> Response:
        now = state.model_copy(update={"drained": self.coordinator.drained.names})
        return Response(now.model_dump_json(), media_type="application/json")

    async def logs(self, request: Request) -> Response:
        """The log of one start, as long as it is at this moment."""
        start_id = request.path_params["start_id"]
        path = self.coordinator.log_path(start_id)
        if path is None or not path.exists():
            raise RouterError(404, "unknown_start", f"no log of a start '{start_id}'; see /admin/starts")
        return StreamingResponse(_log_pieces(path), media_type="text/plain")


async def parse_body(request: Request, kind: type[Body], limit_bytes: int) -> Body:
    """A request's body as a ``kind``; an empty one has its defaults.

    Raises:
        RouterError: it is too long (413) or too slow (408).
        ValidationError: it is something else.
    """
    return kind.model_validate_json(await read_body(request, limit_bytes) or b"{}")


def _log_pieces(path: Path) -> Iterator[bytes]:
    """A file up to its size at the start: a verbose log may grow faster than it is sent."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0 and (piece := file.read(min(left, _LOG_PIECE_BYTES))):
            left -= len(piece)
            yield piece
