"""Gathers the facts that decide which way a model goes, and keeps the last decisions with their reasons."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.contracts.diagnosis import FailureClass
from harness.contracts.load_request import LoadRequest
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.llama.ollama_storage import same_model
from harness.planner.memory import compute_bytes, kv_bytes, weights
from harness.router.config import RouterConfig
from harness.router.errors import UNKNOWN_MODEL, RouterError
from harness.router.logs import log, request_id
from harness.router.models.catalogue import Catalogue, ModelFile
from harness.router.models.planner import Planner
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.routing.rule import Decision, Facts, Need, Refusal, Rule, Sharded, choose_route, gib

_KEPT = 200
_FRESH_S = 1.0
"""A route that was found is good for so long: what it is made from is not looked at more often either."""


@dataclass(frozen=True)
class _Made:
    """A route, and what is kept of each request that takes it."""

    decision: Decision
    entry: dict[str, Any]
    until_s: float
    """On the monotonic clock."""
    loaded: str | None
    """What the coordinator had loaded."""


@dataclass(frozen=True)
class _Sized:
    """What the planner makes of one file; the same until the file changes."""

    need: Need | None
    sharded: Sharded


class Decider:
    """Decides for each request, from the catalogue, the pool, the planner and the nodes' samples."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        pool: Pool,
        nodes: NodeSamples,
        planner: Planner,
        loaded: Callable[[], str | None],
    ) -> None:
        """Know nothing yet.

        Args:
            loaded: the model that the coordinator can answer for at this moment.
        """
        self._config = config
        self._catalogue = catalogue
        self._pool = pool
        self._nodes = nodes
        self._planner = planner
        self._loaded = loaded
        self._rules = [Rule(rule.pattern, rule.route) for rule in config.routes]
        self._sized: dict[ModelFile, _Sized] = {}
        self._made: dict[str, _Made] = {}
        """By the name that was asked for; a refusal is never in it."""
        self._last: deque[dict[str, Any]] = deque(maxlen=_KEPT)

    @property
    def last(self) -> list[dict[str, Any]]:
        """The last decisions, oldest first."""
        return list(self._last)

    def models(self) -> list[str]:
        """Every model that can be asked for, each once, as the head node calls it where it has its file."""
        here = [file.name for file in self._catalogue.files()]
        known = {same_model(name) for name in here}
        return sorted({*here, *(name for name in self._pool.models if same_model(name) not in known)})

    async def facts(self, model: str) -> Facts:
        """What is known of a model now."""
        await self._nodes.refresh(self._pool.nodes)
        offers = self._pool.offers(model, self._nodes.available_bytes)
        try:
            file = self._catalogue.find(model)
        except HarnessError as error:
            if not offers:
                raise RouterError(422, FailureClass.MODEL_INVALID, str(error)) from None
            file = None
        if file is None:
            return Facts(model, need=self._pool.need(model, self._config.context), offers=offers)
        sized = await self._size(file)
        loaded = self._loaded() == file.name
        return Facts(model, file.file_bytes, sized.need, offers, sized.sharded, file.name, loaded)

    async def decide(self, model: str, *, record: bool = True) -> Decision:
        """Which way a model goes.

        Args:
            model: as the client named it.
            record: keep the decision, and log a refusal.

        Raises:
            RouterError: nobody has it (404), or it fits nowhere (507).
        """
        made = self._made.get(model)
        if made is None or made.loaded != self._loaded() or time.monotonic() > made.until_s:
            made = await self._make(model, record)
        if record:
            self._keep(made.entry)
        return made.decision

    async def _make(self, model: str, record: bool) -> _Made:
        self._made.pop(model, None)
        loaded = self._loaded()
        facts = await self.facts(model)
        chosen = choose_route(facts, self._rules, large_model_bytes=self._config.large_model_bytes)
        entry = _entry(facts, chosen)
        if isinstance(chosen, Refusal):
            if record:
                log("not routed", **{name: entry[name] for name in ("model", "route", "reason")})
                if facts.file_bytes is not None or facts.offers:
                    self._keep(entry)  # else nobody's model, anybody's text: it would push out the rest
            raise self._refused(model, chosen)
        chosen = replace(chosen, model=facts.name or model)
        made = self._made[model] = _Made(chosen, entry, time.monotonic() + _FRESH_S, loaded)
        return made

    def _keep(self, entry: dict[str, Any]) -> None:
        self._last.append(entry | {"time_ns": time.time_ns(), "request_id": request_id.get()})

    def _refused(self, model: str, refusal: Refusal) -> RouterError:
        if refusal.status != 404:
            return RouterError(refusal.status, refusal.error_class, refusal.message)
        known = ", ".join(self.models()) or "none"
        return RouterError(404, UNKNOWN_MODEL, f"model '{model}' not found", hint=f"there are: {known}")

    async def _size(self, file: ModelFile) -> _Sized:
        if file not in self._sized:
            self._sized[file] = await asyncio.to_thread(self._plan, file)
        return self._sized[file]

    def _plan(self, file: ModelFile) -> _Sized:
        try:
            header = self._catalogue.header(file)
            need = Need(bytes_on_one_machine(header, self._config.context), header.block_count + 1)
        except HarnessError as error:
            return _Sized(None, Sharded(None, f"cannot be sized: {error}"))
        try:
            # By what the nodes have, not by what is left beside the coordinator of the moment.
            plan = self._planner.plan(LoadRequest(model=file.name), header, {})
        except RouterError as error:
            return _Sized(need, Sharded(False, error.message))
        held = sum(share.total_bytes for share in plan.shares)
        room = sum(share.available_bytes for share in plan.shares)
        count = len(plan.shares)
        over = f"{count} backend{'s' if count > 1 else ''} of {gib(room)}"
        text = f"{header.block_count + 1} layers and {gib(held)} over {over}"
        return _Sized(need, Sharded(True, text))


def _entry(facts: Facts, chosen: Decision | Refusal) -> dict[str, Any]:
    """What ``/router/decisions`` shows of it, but for the request."""
    return {
        "model": facts.model,
        "route": None if isinstance(chosen, Refusal) else chosen.route.value,
        "reason": chosen.message if isinstance(chosen, Refusal) else chosen.reason,
        "file_bytes": facts.file_bytes,
        "need_bytes": facts.need.bytes if facts.need else None,
        "layers": facts.need.layers if facts.need else None,
        "pool": [
            {"node": one.node, "certain": one.certain, "capacity_bytes": one.capacity_bytes}
            for one in facts.offers
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
