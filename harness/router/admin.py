"""``/admin``: what the harness and operators drive the coordinator with."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness.errors import HarnessError
from harness.router.catalogue import Catalogue
from harness.router.config import RouterConfig
from harness.router.coordinator import Coordinator
from harness.router.errors import RouterError
from harness.router.exchange import Exchange
from harness.router.plans import LoadRequest
from harness.router.upstream import read_body
from harness.runs.schema import CoordinatorState


class UnloadRequest(BaseModel):
    """Body of ``POST /admin/unload``."""

    model_config = ConfigDict(extra="forbid")

    signal: Literal["SIGTERM", "SIGINT", "SIGKILL"] = "SIGTERM"
    deadline_s: float = Field(60, ge=0)
    """How long to wait for requests in flight before the signal is sent all the same."""


class Admin:
    """Handlers of ``/admin``."""

    def __init__(
        self, config: RouterConfig, catalogue: Catalogue, exchange: Exchange, coordinator: Coordinator
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._exchange = exchange
        self._coordinator = coordinator

    async def load(self, request: Request) -> Response:
        """Load a model as asked; answers when it is ready."""
        asked = LoadRequest.model_validate_json(await read_body(request, self._config.body_limit_bytes))
        return _state(await self._coordinator.load(asked))

    async def unload(self, request: Request) -> Response:
        """Stop the coordinator; answers when it has ended."""
        body = await read_body(request, self._config.body_limit_bytes)
        asked = UnloadRequest.model_validate_json(body or b"{}")
        return _state(await self._coordinator.unload(signal=asked.signal, deadline_s=asked.deadline_s))

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

    async def logs(self, request: Request) -> Response:
        """The log of one start."""
        start_id = request.path_params["start_id"]
        path = self._coordinator.log_path(start_id)
        if path is None or not path.exists():
            raise RouterError(404, "unknown_start", f"no log of a start '{start_id}'; see /admin/starts")
        # Whole at once: a file that grows while it is sent is longer than was announced.
        return Response(path.read_bytes(), media_type="text/plain")

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
                "route": self._exchange.decide(file.name).route,
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
                listed.append({"name": name, "path": None, "file_bytes": None, "route": "pool"})
        return JSONResponse({"models": listed})


def _state(state: CoordinatorState) -> Response:
    return Response(state.model_dump_json(), media_type="application/json")


def bad_body(error: ValidationError) -> RouterError:
    """The first thing that is wrong with a body, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return RouterError(400, "bad_request", f"{where}: {first['msg']}")
