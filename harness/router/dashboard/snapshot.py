"""What the dashboard shows of one moment, gathered from the router's parts. Nothing is connected to."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.llama.ollama_storage import same_model
from harness.monitor.backend_state import BackendState, age_s
from harness.monitor.sample import Sample
from harness.router.config import RouterConfig
from harness.router.coordinator.coordinator import Coordinator
from harness.router.coordinator.restarts import Failure
from harness.router.dashboard.outcome import outcome
from harness.router.dashboard.tail import log_tail
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.http.stream_stats import Observed
from harness.router.models.catalogue import Catalogue
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.routing.resolver import Decider

_DECISIONS = 20
_FAILURES = 10
_SHOWN = 100
"""Requests, and waiting requests, that one page lists; it says how many there are."""
_MODELS_EVERY_S = 5.0
_UP = (CoordinatorPhase.STARTING, CoordinatorPhase.READY)


@dataclass(frozen=True)
class Sources:
    """The parts of the router that are looked at."""

    config: RouterConfig
    catalogue: Catalogue
    decider: Decider
    pool: Pool
    coordinator: Coordinator
    metrics: Metrics
    nodes: NodeSamples


class Snapshots:
    """Takes snapshots; the list of models, which costs a look at the disk, every few seconds."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._models: list[dict[str, Any]] = []
        self._models_s = -_MODELS_EVERY_S

    async def take(self) -> str:
        """One snapshot as JSON in one line. Sizes in bytes, ages in seconds, times in UTC milliseconds."""
        coordinator, now = self._from.coordinator, time.monotonic()
        state = coordinator.state
        if now - self._models_s >= _MODELS_EVERY_S:
            self._models, self._models_s = await self._list_models(), now
        live = sorted(self._from.metrics.live, key=lambda one: one.started_s)
        queue = coordinator.queue
        log_path = coordinator.log_path(state.start_id) if state.start_id else None
        shown = {
            "time_ms": time.time_ns() // 1_000_000,
            "coordinator": _coordinator(state),
            "models": [model | {"where": self._where(model["name"], state)} for model in self._models],
            "queue": [entry.model_dump() for entry in queue[:_SHOWN]],
            "queue_length": len(queue),
            "requests": [_request(one, now) for one in live[:_SHOWN]],
            "requests_in_flight": len(live),
            "backends": await self._backends(state),
            "pool": self._from.pool.state,
            "decisions": [_decision(one) for one in self._from.decider.last[: -_DECISIONS - 1 : -1]],
            "failures": [
                _failure(one) | {"outcome": outcome(one, coordinator.starts)}
                for one in coordinator.failures[: -_FAILURES - 1 : -1]
            ],
            "log": {"start": state.start_id, "lines": await asyncio.to_thread(log_tail, log_path)},
        }
        return json.dumps(shown, separators=(",", ":"))

    async def _list_models(self) -> list[dict[str, Any]]:
        files = {file.name: file.file_bytes for file in await asyncio.to_thread(self._from.catalogue.files)}
        listed = []
        for name in self._from.decider.models():
            entry: dict[str, Any] = {"name": name, "file_bytes": files.get(name)}
            try:
                chosen = await self._from.decider.decide(name, record=False)
            except RouterError as error:
                entry |= {"route": None, "reason": error.message}
            else:
                entry |= {"route": chosen.route.value, "reason": chosen.reason}
            listed.append(entry)
        return listed

    def _where(self, name: str, state: CoordinatorState) -> list[str]:
        places = []
        if state.model == name and state.phase in _UP and state.plan:
            layers = ", ".join(f"{share.node} ({share.layers} layers)" for share in state.plan.shares)
            places.append(f"{'loaded' if state.phase is CoordinatorPhase.READY else 'loading'}: {layers}")
        for server in self._from.pool.state:
            if same_model(name) in map(same_model, server["models"]):
                places.append(f"pool of {server['node']}{_held(server, name)}")
        return places or ["disk of the head node"]

    async def _backends(self, state: CoordinatorState) -> list[dict[str, Any]]:
        names = [backend.node for backend in self._from.config.backends]
        samples = await self._from.nodes.heard(names)
        states = self._from.nodes.states(names)
        held = {share.endpoint: share.layers for share in state.plan.shares} if state.plan else {}
        if state.phase not in _UP:
            held = {}
        return [
            {
                "node": backend.node,
                "endpoint": backend.endpoint,
                "layers": held.get(backend.endpoint),
                **shown_state(states.get(backend.node), backend.endpoint in held),
                **_figures(samples.get(backend.node)),
            }
            for backend in self._from.config.backends
        ]


def shown_state(seen: BackendState | None, held: bool) -> dict[str, str]:
    """State of a backend; without a monitor only what the router itself knows: busy, or unknown."""
    if seen is not None:
        return {"state": seen.state.value, "reason": seen.reason}
    if held:
        return {"state": "busy", "reason": "leased to our coordinator; no Redis to ask for more"}
    return {"state": "unknown", "reason": "no Redis to ask; a backend is never connected to for this"}


def _held(server: dict[str, Any], name: str) -> str:
    """Only an Ollama says which of its models are in memory."""
    if not server["seen"]:
        return " (not seen yet)"
    if server["kind"] != "ollama":
        return ""
    return " (in memory)" if name in server["in_memory"] else " (on disk)"


def _figures(sample: Sample | None) -> dict[str, Any]:
    if sample is None:
        return {"memory": None, "gpus": []}
    wanted = {"total_bytes", "available_bytes", "used_bytes", "swap_total_bytes", "swap_used_bytes"}
    about = {
        "index",
        "name",
        "problem",
        "memory_total_bytes",
        "memory_used_bytes",
        "use_percent",
        "temperature_c",
    }
    return {
        "age_s": round(age_s(sample, time.time_ns()), 1),
        "memory": sample.memory.model_dump(include=wanted),
        "gpus": [gpu.model_dump(include=about) for gpu in sample.gpus],
    }


def _coordinator(state: CoordinatorState) -> dict[str, Any]:
    return {
        "phase": state.phase.value,
        "model": state.model,
        "start": state.start_id,
        "pid": state.pid,
        "in_flight": state.requests_in_flight,
    }


def _request(one: Observed, now: float) -> dict[str, Any]:
    decoding_s = now - one.first_s if one.first_s is not None else 0.0
    return {
        "id": one.request_id,
        "api": one.api,
        "model": one.model,
        "route": one.route if one.route != "none" else None,
        "age_s": round(now - one.started_s, 1),
        "tokens": one.tokens,
        "tokens_per_s": round((one.tokens - 1) / decoding_s, 1)
        if one.tokens > 1 and decoding_s > 0
        else None,
    }


def _decision(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "time_ms": entry["time_ns"] // 1_000_000,
        "model": entry["model"],
        "route": entry["route"],
        "reason": entry["reason"],
    }


def _failure(failure: Failure) -> dict[str, Any]:
    found = failure.diagnosis
    return {
        "time_ms": failure.time_ns // 1_000_000,
        "model": failure.model,
        "class": str(found.failure_class) if found else failure.failure_class,
        "message": failure.message,
        "evidence": [f"{one.source}: {one.line}" for one in found.evidence[:3]] if found else [],
        "advice": found.advice if found else "",
    }
