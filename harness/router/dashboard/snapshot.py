"""One snapshot of the router for the dashboard, gathered from its parts. Nothing is connected to."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.text import printable
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.llama.ollama_storage import same_model
from harness.monitor.backend_state import age_s, state_without_redis
from harness.monitor.sample import Sample
from harness.router.config import RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.failures import Failure
from harness.router.http.metrics import Metrics
from harness.router.http.stream_stats import RequestStats
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.routing.resolver import ListedModel, RouteResolver

_DECISIONS = 20
_FAILURES = 10
_REQUESTS = 100
"""Requests, and waiting requests, that are listed; their number is given beside."""
_MODELS_EVERY_S = 5.0
_UP = (CoordinatorPhase.STARTING, CoordinatorPhase.READY)
_LOG_BYTES, _LOG_LINES, _LOG_LINE_CHARACTERS = 16 * 1024, 40, 400
_MEMORY = {"total_bytes", "available_bytes", "used_bytes", "swap_total_bytes", "swap_used_bytes"}
_GPU = {
    *("index", "name", "problem", "memory_total_bytes", "memory_used_bytes", "use_percent", "temperature_c")
}


@dataclass(eq=False)
class Snapshots:
    """Takes snapshots; the list of models, which reads the disk, is renewed every few seconds."""

    config: RouterConfig
    resolver: RouteResolver
    pool: Pool
    coordinator: CoordinatorManager
    metrics: Metrics
    nodes: NodeSamples
    _models: list[ListedModel] = field(default_factory=list, init=False)
    _models_s: float = field(default=-_MODELS_EVERY_S, init=False)

    async def take(self) -> str:
        """One snapshot as JSON in one line. Sizes in bytes, ages in seconds, times in UTC milliseconds."""
        coordinator, now = self.coordinator, time.monotonic()
        state = coordinator.state
        if now - self._models_s >= _MODELS_EVERY_S:
            self._models, self._models_s = await self.resolver.listing(), now
        live = sorted(self.metrics.live, key=lambda stats: stats.started_s)
        queue = coordinator.queue
        log_path = coordinator.log_path(state.start_id) if state.start_id else None
        snapshot = {
            "time_ms": time.time_ns() // 1_000_000,
            "coordinator": {
                "phase": state.phase.value,
                "model": state.model,
                "start": state.start_id,
                "pid": state.pid,
                "in_flight": state.requests_in_flight,
            },
            "models": [
                {
                    "name": model.name,
                    "file_bytes": model.file.file_bytes if model.file else None,
                    "route": model.route,
                    "reason": model.reason,
                    "where": self._places(model.name, state),
                }
                for model in self._models
            ],
            "queue": [entry.model_dump() for entry in queue[:_REQUESTS]],
            "queue_length": len(queue),
            "requests": [_request(stats, now) for stats in live[:_REQUESTS]],
            "requests_in_flight": len(live),
            "backends": await self._backends(state),
            "pool": self.pool.state,
            "decisions": [
                {key: entry[key] for key in ("model", "route", "reason")}
                | {"time_ms": entry["time_ns"] // 1_000_000}
                for entry in self.resolver.last[: -_DECISIONS - 1 : -1]
            ],
            "failures": [
                _failure(failure, coordinator.starts)
                for failure in coordinator.failures[: -_FAILURES - 1 : -1]
            ],
            "log": {"start": state.start_id, "lines": await asyncio.to_thread(log_tail, log_path)},
        }
        return json.dumps(snapshot, separators=(",", ":"), allow_nan=False)

    def _places(self, name: str, state: CoordinatorState) -> list[str]:
        places = []
        if state.model == name and state.phase in _UP and state.plan:
            layers = ", ".join(f"{share.node} ({share.layers} layers)" for share in state.plan.shares)
            places.append(f"{'loaded' if state.phase is CoordinatorPhase.READY else 'loading'}: {layers}")
        for server in self.pool.state:
            if same_model(name) in map(same_model, server["models"]):
                places.append(f"pool of {server['node']}{_memory_note(server, name)}")
        return places or ["disk of the head node"]

    async def _backends(self, state: CoordinatorState) -> list[dict[str, Any]]:
        backends = self.config.backends
        nodes = [backend.node for backend in backends]
        samples = await self.nodes.latest(nodes)
        states = self.nodes.states(nodes)
        shares = state.plan.shares if state.plan and state.phase in _UP else []
        layers = {share.endpoint: share.layers for share in shares}
        drained = self.coordinator.drained.names
        return [
            {
                "node": backend.node,
                "endpoint": backend.endpoint,
                "layers": layers.get(backend.endpoint),
                "state": "drained" if backend.node in drained else current.state.value,
                "reason": f"no load is planned on it; {current.reason}"
                if backend.node in drained
                else current.reason,
                **_figures(samples.get(backend.node)),
            }
            for backend in backends
            for current in [
                states.get(backend.node) or state_without_redis(leased=backend.endpoint in layers)
            ]
        ]


def outcome(failure: Failure, starts: Sequence[CoordinatorState]) -> str:
    """Whether the model was started again after a failure, and how that went.

    Args:
        starts: the last starts of all models, oldest first.
    """
    for start in starts:
        if start.model != failure.model or not start.timings:
            continue
        if start.timings.requested_ns <= failure.time_ns:
            continue
        if start.timings.ready_ns:
            ready_s = (start.timings.ready_ns - failure.time_ns) / 1e9
            return f"started again: ready {ready_s:.1f} s after the failure"
        if start.phase is CoordinatorPhase.STARTING:
            return "is being started again"
        reason = start.diagnosis.failure_class if start.diagnosis else "unknown"
        return f"started again: failed ({reason})"
    return "not started again since"


def log_tail(path: Path | None) -> list[str]:
    """The last lines of a log, oldest first: at most 40 of 400 characters. Empty where there is no file.

    Control characters become U+FFFD.
    """
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - _LOG_BYTES)
            file.seek(start)
            data = file.read(_LOG_BYTES)
    except OSError:
        return []
    lines = data.decode(errors="replace").splitlines()[1 if start else 0 :]
    return [printable(line[:_LOG_LINE_CHARACTERS]) for line in lines[-_LOG_LINES:]]


def _memory_note(server: dict[str, Any], name: str) -> str:
    """Only an Ollama says which of its models are in memory."""
    if not server["seen"]:
        return " (not seen yet)"
    if server["kind"] != "ollama":
        return ""
    return " (in memory)" if name in server["in_memory"] else " (on disk)"


def _figures(sample: Sample | None) -> dict[str, Any]:
    if sample is None:
        return {"memory": None, "gpus": []}
    return {
        "age_s": round(age_s(sample, time.time_ns()), 1),
        "memory": sample.memory.model_dump(include=_MEMORY),
        "gpus": [gpu.model_dump(include=_GPU) for gpu in sample.gpus],
    }


def _request(stats: RequestStats, now: float) -> dict[str, Any]:
    decoding_s = now - stats.first_s if stats.first_s is not None else 0.0
    rate = (stats.tokens - 1) / decoding_s if stats.tokens > 1 and decoding_s > 0 else None
    return {
        "id": stats.request_id,
        "api": stats.api,
        "model": stats.model,
        "route": stats.route if stats.route != "none" else None,
        "age_s": round(now - stats.started_s, 1),
        "tokens": stats.tokens,
        "tokens_per_s": None if rate is None else round(rate, 1),
    }


def _failure(failure: Failure, starts: Sequence[CoordinatorState]) -> dict[str, Any]:
    diagnosis = failure.diagnosis
    evidence = diagnosis.evidence[:3] if diagnosis else []
    return {
        "time_ms": failure.time_ns // 1_000_000,
        "model": failure.model,
        "class": str(diagnosis.failure_class) if diagnosis else failure.failure_class,
        "message": failure.message,
        "evidence": [f"{line.source}: {line.line}" for line in evidence],
        "advice": diagnosis.advice if diagnosis else "",
        "outcome": outcome(failure, starts),
    }
