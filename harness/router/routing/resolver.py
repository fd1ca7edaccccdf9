"""Resolves the route of each request from facts, and keeps the last decisions with their reasons."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from harness.common.text import gib
from harness.contracts.diagnosis import FailureClass
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.llama.ollama_storage import same_model
from harness.planner.memory import compute_bytes, kv_bytes, weights
from harness.router.config import Route, RouterConfig
from harness.router.errors import UNKNOWN_MODEL, RouterError
from harness.router.json_log import log, request_id
from harness.router.models.catalogue import Catalogue, ModelFile
from harness.router.models.planner import Planner
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.pool.server import Need
from harness.router.routing.rule import Decision, Facts, Refusal, Sharded, choose_route

_KEPT_DECISIONS = 200
_CACHED_ROUTES = 256
"""A client may spell an Ollama name in any case: 2^n spellings of one model must not fill the memory."""
_FRESH_S = 1.0
"""How long a route is used again: the facts behind it are not read more often either."""


@dataclass(frozen=True)
class _CachedRoute:
    """A route, and the log entry for each request that takes it."""

    decision: Decision
    entry: dict[str, Any]
    until_s: float
    """On the monotonic clock."""
    loaded: str | None
    """What the coordinator had loaded."""
    drained_version: int


@dataclass(frozen=True)
class _Footprint:
    """Memory that one file takes, on one machine and over the backends; the same until the file
    or the drained backends change."""

    file: ModelFile
    need: Need | None
    sharded: Sharded
    drained_version: int


@dataclass(frozen=True)
class ListedModel:
    """A model and the route that a request for it would take."""

    name: str
    file: ModelFile | None
    """On the head node; None where only pool servers have it."""
    route: Route | None
    """None where a request would be refused; ``reason`` says why."""
    reason: str


@dataclass(eq=False)
class RouteResolver:
    """Resolves routes from the catalogue, the pool, the planner and the nodes' samples."""

    config: RouterConfig
    catalogue: Catalogue
    pool: Pool
    nodes: NodeSamples
    planner: Planner
    loaded: Callable[[], str | None]
    """Gives the model that the coordinator can answer for at this moment."""
    _footprints: dict[str, _Footprint] = field(default_factory=dict, init=False)
    """By name of the file."""
    _routes: dict[str, _CachedRoute] = field(default_factory=dict, init=False)
    """By the name in the request; refusals are not cached."""
    _last: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_KEPT_DECISIONS), init=False)

    @property
    def last(self) -> list[dict[str, Any]]:
        """The last decisions, oldest first."""
        return list(self._last)

    async def models(self) -> list[str]:
        """Names of all models, each once, as the head node calls it where it has its file."""
        return self._names(await self.catalogue.list_files())

    async def listing(self) -> list[ListedModel]:
        """All models with their routes, by name. Nothing is recorded."""
        files = {file.name: file for file in await self.catalogue.list_files()}
        models = []
        for name in self._names(files.values()):
            route: Route | None = None
            try:
                decision = await self.decide(name, record=False)
                route, reason = decision.route, decision.reason
            except RouterError as error:
                reason = error.message
            models.append(ListedModel(name, files.get(name), route, reason))
        return models

    def _names(self, files: Iterable[ModelFile]) -> list[str]:
        names = {file.name for file in files}
        here = {same_model(name) for name in names}
        return sorted(names | {name for name in self.pool.models if same_model(name) not in here})

    async def facts(self, model: str) -> Facts:
        """The facts about a model now."""
        offers = self.pool.offers(model, self.nodes.available_bytes)
        try:
            file = self.catalogue.find(model)
        except HarnessError as error:
            if not offers:
                raise RouterError(422, FailureClass.MODEL_INVALID, str(error)) from None
            file = None
        if file is None:
            return Facts(model, need=self.pool.need(model, self.config.context), offers=offers)
        footprint = self._footprints.get(file.name)
        version = self.planner.drained.version
        if footprint is None or (footprint.file, footprint.drained_version) != (file, version):
            footprint = await asyncio.to_thread(self._footprint, file, version)
            self._footprints[file.name] = footprint
        loaded = self.loaded() == file.name
        return Facts(model, file.file_bytes, footprint.need, offers, footprint.sharded, file.name, loaded)

    async def decide(self, model: str, *, record: bool = True) -> Decision:
        """Which way a model goes.

        Args:
            model: as the client named it.
            record: keep the decision, and log a refusal.

        Raises:
            RouterError: nobody has it (404), or it fits nowhere (507).
        """
        cached = self._routes.get(model)
        now = (self.loaded(), self.planner.drained.version)
        if (
            cached is None
            or (cached.loaded, cached.drained_version) != now
            or time.monotonic() > cached.until_s
        ):
            cached = await self._resolve(model, record)
        if record:
            self._keep(cached.entry)
        return cached.decision

    async def _resolve(self, model: str, record: bool) -> _CachedRoute:
        self._routes.pop(model, None)
        loaded, version = self.loaded(), self.planner.drained.version
        facts = await self.facts(model)
        chosen = choose_route(facts, self.config.routes, large_model_bytes=self.config.large_model_bytes)
        entry = _entry(facts, chosen)
        if isinstance(chosen, Refusal):
            if record:
                log("request_not_routed", **{name: entry[name] for name in ("model", "route", "reason")})
                if facts.file_bytes is not None or facts.offers:
                    self._keep(entry)  # the name of an unknown model is any text: it would push out the rest
            blocked = self.planner.drained.blocked
            if chosen.status == 507 and facts.file_bytes is not None and blocked:
                raise RouterError(503, "no_backends", blocked)
            if chosen.status != 404:
                raise RouterError(chosen.status, chosen.error_class, chosen.message)
            hint = f"there are: {', '.join(await self.models()) or 'none'}"
            raise RouterError(404, UNKNOWN_MODEL, f"model '{model}' not found", hint=hint)
        chosen = replace(chosen, model=facts.name or model)
        cached = _CachedRoute(chosen, entry, time.monotonic() + _FRESH_S, loaded, version)
        self._routes[model] = cached
        while len(self._routes) > _CACHED_ROUTES:
            del self._routes[next(iter(self._routes))]
        return cached

    def _keep(self, entry: dict[str, Any]) -> None:
        self._last.append(entry | {"time_ns": time.time_ns(), "request_id": request_id.get()})

    def _footprint(self, file: ModelFile, version: int) -> _Footprint:
        try:
            header = self.catalogue.header(file)
            need = Need(bytes_on_one_machine(header, self.config.context), header.block_count + 1)
        except HarnessError as error:
            return _Footprint(file, None, Sharded(None, f"cannot be sized: {error}"), version)
        try:
            # By the memory that the nodes have, not by what is left beside the running coordinator.
            plan = self.planner.plan(LoadRequest(model=file.name), header, {})
        except RouterError as error:
            return _Footprint(file, need, Sharded(False, error.message), version)
        used = gib(sum(share.total_bytes for share in plan.shares), 2)
        available = gib(sum(share.available_bytes for share in plan.shares), 2)
        count = f"{len(plan.shares)} backend{'s' if len(plan.shares) > 1 else ''}"
        text = f"{header.block_count + 1} layers and {used} over {count} of {available}"
        return _Footprint(file, need, Sharded(True, text), version)


def _entry(facts: Facts, chosen: Decision | Refusal) -> dict[str, Any]:
    """An entry of ``/router/decisions``, without the request."""
    return {
        "model": facts.model,
        "route": None if isinstance(chosen, Refusal) else chosen.route.value,
        "reason": chosen.message if isinstance(chosen, Refusal) else chosen.reason,
        "file_bytes": facts.file_bytes,
        "need_bytes": facts.need.bytes if facts.need else None,
        "layers": facts.need.layers if facts.need else None,
        "pool": [
            {"node": offer.node, "certain": offer.certain, "capacity_bytes": offer.capacity_bytes}
            for offer in facts.offers
        ],
        "backends_fit": facts.sharded.fits if facts.sharded else None,
    }


def bytes_on_one_machine(header: GgufModel, context: int) -> int:
    """Memory of a model that is not sharded: every tensor, the KV cache and one compute buffer.

    Raises:
        HarnessError: an architecture that cannot be sized, or one part of a split file.
    """
    parts = weights(header)
    tensors = sum(parts.layers) + parts.output + parts.input + parts.shared
    return tensors + sum(kv_bytes(header, context)) + compute_bytes(header, context, 1, True, True)
