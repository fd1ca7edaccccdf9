"""The part of the Ollama API that tells about models: ``/api/tags``, ``show``, ``ps`` and ``version``."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import aiohttp
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.load_report import BackendBuffers
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.router.api.ollama import model_info as facts
from harness.router.config import RouterConfig
from harness.router.coordinator.coordinator import Coordinator
from harness.router.http.json_body import Json, model_of, parse_answer, parse_object, respond
from harness.router.models.catalogue import Catalogue, ModelFile
from harness.router.pool.pool import Pool
from harness.router.pool.server import PoolTarget, canonical
from harness.router.proxy.proxy import Exchange
from harness.router.proxy.upstream import BROKEN, read_body, while_connected
from harness.router.routing.rule import Route as Way

_LOOK_S = 2
"""A pool server that does not answer in this time is left out of a list."""


class OllamaModels:
    """Handlers of ``/api`` that ask no model anything."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        pool: Pool,
        coordinator: Coordinator,
        exchange: Exchange,
        session: aiohttp.ClientSession,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._pool = pool
        self._coordinator = coordinator
        self._exchange = exchange
        self._session = session

    @property
    def routes(self) -> list[Route]:
        """Paths and their handlers."""
        return [
            Route("/api/tags", self.tags),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/ps", self.ps),
            Route("/api/version", self.version),
        ]

    async def version(self, request: Request) -> Response:
        """``/api/version``: the release of Ollama whose API this is."""
        return respond({"version": facts.API_VERSION})

    async def tags(self, request: Request) -> Response:
        """``/api/tags``: every model that can be asked for."""
        listed = {file.name: await self._entry(file) for file in self._catalogue.files()}
        away = [model for model in self._exchange.models() if model not in listed]
        listed |= await self._pool_entries(away)
        return respond({"models": [listed[name] for name in sorted(listed)]})

    async def show(self, request: Request) -> Response:
        """``/api/show``: what a model's file says of it."""
        body = await read_body(request, self._config.body_limit_bytes)
        asked = parse_object(body)
        model = model_of(asked)
        decision = await self._exchange.decide(model)
        target = self._pool.pick(model) if decision.route is Way.POOL else None
        if target and target.kind == "ollama":
            return await self._shown_by_pool(request, model, body)
        if file := self._catalogue.find(model):
            header = await asyncio.to_thread(self._catalogue.header, file)
            return respond(facts.show(file, header, verbose=bool(asked.get("verbose"))))
        entries = await self._pool_entries([model])
        return respond(
            {"details": entries[model]["details"], "model_info": {}, "capabilities": ["completion"]}
        )

    async def ps(self, request: Request) -> Response:
        """``/api/ps``: what is in memory, on the backends and in the pool."""
        running = await self._pool_running()
        state = self._coordinator.state
        if (
            state.phase is CoordinatorPhase.READY
            and state.model
            and (file := self._catalogue.find(state.model))
        ):
            buffers = state.report.buffers if state.report else []
            away = [b for b in buffers if b.device.startswith("RPC")]
            held = {
                "size": _sum_bytes(buffers),
                "size_vram": _sum_bytes(away),
                "expires_at": self._expires_at(),
                "context_length": state.plan.context if state.plan else self._config.context,
            }
            running.insert(0, await self._entry(file) | held)
        return respond({"models": running})

    def _expires_at(self) -> str:
        """The earliest moment at which it could go: an idle time from now."""
        if not self._config.idle_unload_s:
            return facts.NEVER
        return (datetime.now(UTC) + timedelta(seconds=self._config.idle_unload_s)).isoformat()

    async def _entry(self, file: ModelFile) -> Json:
        return facts.entry(file, await asyncio.to_thread(self._header, file))

    def _header(self, file: ModelFile) -> GgufModel | None:
        try:
            return self._catalogue.header(file)
        except HarnessError:
            return None

    async def _shown_by_pool(self, request: Request, model: str, body: bytes) -> Response:
        call = await while_connected(request, self._exchange.open(request, model))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            answer = await while_connected(request, self._exchange.send(call, "/api/show", body, stack))
            whole = await while_connected(request, self._exchange.whole(call, answer))
            return Response(whole, answer.status, call.headers, answer.headers.get("content-type"))

    async def _pool_entries(self, models: list[str]) -> dict[str, Json]:
        """What the pool's servers say of models that only they have; little, where they do not answer."""
        found = {model: facts.server_entry(model, {}) for model in models}
        targets = {model: target for model in models if (target := self._pool.pick(model))}
        servers = {target.url: target for target in targets.values()}
        asked = await asyncio.gather(*(self._look(t, _LISTS[t.kind]) for t in servers.values()))
        answers = dict(zip(servers, asked, strict=True))
        for model, target in targets.items():
            found[model] |= _listed(model, target, answers[target.url])
        return found

    async def _pool_running(self) -> list[Json]:
        models = [(model, target) for model in self._pool.models if (target := self._pool.pick(model))]
        ollamas = {target.url: target for _, target in models if target.kind == "ollama"}
        asked = await asyncio.gather(*(self._look(target, "/api/ps") for target in ollamas.values()))
        running = [one for answer in asked for one in _objects(answer.get("models"))]
        # A llama-server holds its model for as long as it runs.
        steady = [model for model, target in models if target.kind == "openai"]
        for name, known in (await self._pool_entries(steady)).items():
            if known["size"]:
                running.append(known | {"model": name, "size_vram": 0, "expires_at": facts.NEVER})
        return running

    async def _look(self, target: PoolTarget, path: str) -> Json:
        headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
        timeout = aiohttp.ClientTimeout(total=_LOOK_S)
        try:
            async with self._session.get(target.url + path, headers=headers, timeout=timeout) as answer:
                return parse_answer(await answer.read()) if answer.status == 200 else {}
        except BROKEN:
            return {}


_LISTS = {"openai": "/v1/models", "ollama": "/api/tags"}


def _listed(model: str, target: PoolTarget, answer: Json) -> Json:
    """The entry of ``model`` in a server's own list."""
    if target.kind == "ollama":
        wanted = canonical("ollama", model)
        listed = _objects(answer.get("models"))
        return next((one for one in listed if canonical("ollama", str(one.get("name"))) == wanted), {})
    for one in _objects(answer.get("data")):
        if one.get("id") == model and isinstance(one.get("meta"), dict):
            return facts.server_entry(model, one["meta"])
    return {}


def _objects(value: object) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _sum_bytes(buffers: Iterable[BackendBuffers]) -> int:
    return sum(b.model_bytes + b.kv_bytes + b.compute_bytes for b in buffers)
