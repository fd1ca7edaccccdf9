"""Metrics of the router in Prometheus' text format: one registry, made with the router and passed down.

Names, labels and units are in docs/operation.md; times are seconds, as Prometheus asks for.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.router.errors import RouterError

if TYPE_CHECKING:
    from harness.router.http.stream_stats import RequestStats

_TTFT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
_ITL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_LIMITS = (
    "too_many_connections", "too_many_connections_of_address", "idle_connection_closed",
    "head_too_large", "head_timeout", "too_large", "body_timeout", "send_timeout",
    "too_many_requests", "too_many_requests_of_key", "too_many_requests_a_second",
    "queue_full", "queue_full_for_key", "bodies_full", "bodies_full_for_key",
)  # fmt: skip
"""Label ``limit``: the class of the error that a client got, or the action that was taken."""
_LOAD = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1800)


class Metrics:
    """All counters, gauges and histograms; each part of the router reports its events here."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.live: set[RequestStats] = set()
        """Requests for a model that are in flight."""
        SandboxedProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._requests = counter(
            "llama_router_requests", "Requests that have ended", ["route", "api", "status"]
        )
        self._tokens = counter("llama_router_tokens", "Tokens, as the servers counted them", ["kind"])
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind)  # there before the first request
        self._broken = counter("llama_router_streams_broken", "Streams that ended with an error event")
        self._fields = counter(
            "llama_router_request_fields", "Fields of requests that were refused or had no effect", ["action"]
        )
        for action in ("refused", "ignored"):
            self._fields.labels(action)
        self.ttft = histogram(
            "llama_router_ttft_seconds", "First token of a stream after its request", ["route"], buckets=_TTFT
        )
        self._itl = histogram(
            "llama_router_itl_seconds",
            "Each gap between successive tokens of a stream",
            ["route"],
            buckets=_ITL,
        )
        self._background_failures = counter(
            "llama_router_background_failures", "Background tasks that ended with an unforeseen exception"
        )
        self._samples_refused = counter(
            "llama_router_samples_refused", "Samples of a node that cannot be believed", ["node"]
        )
        self._samples_age = gauge(
            "llama_router_samples_age_seconds", "Since the nodes' samples were last read from Redis"
        )
        in_flight = gauge("llama_router_requests_in_flight", "Requests for a model in flight")
        in_flight.set_function(lambda: len(self.live))
        self._connections = gauge("llama_router_connections", "Open client connections")
        self._body_bytes = gauge(
            "llama_router_body_bytes", "Bodies of requests in flight, in memory and in files"
        )
        self._limits = counter(
            "llama_router_limits_reached", "Limits of clients that were reached", ["limit"]
        )
        for limit in _LIMITS:
            self._limits.labels(limit)
        self._queue_length = gauge("llama_router_queue_length", "Requests that wait for a model")
        self._queue_age = gauge("llama_router_queue_oldest_seconds", "How long the first of them has waited")
        self.coordinator_starts = counter("llama_router_coordinator_starts", "Coordinators that were started")
        self._ends = counter(
            "llama_router_coordinator_ends", "Coordinators that have ended, by diagnosis", ["diagnosis"]
        )
        self._log_lines = counter(
            "llama_router_coordinator_log_lines",
            "Lines of coordinators' logs that are not there as they were printed, by what became of them",
            ["fate"],
        )
        for fate in ("cut", "left_out", "rotated", "lost"):
            self._log_lines.labels(fate)
        self._restarts = counter(
            "llama_router_coordinator_restarts",
            "Starts after a failure, by the diagnosis of that failure",
            ["diagnosis"],
        )
        self._poison_requests = counter(
            "llama_router_poison_requests", "Requests that ended their model server, by key", ["key"]
        )
        self.poison_refusals = counter(
            "llama_router_poison_refusals", "Requests refused because they, or their key's, ended a server"
        )
        self.load_seconds = histogram("llama_router_load_seconds", "Coordinator exec to ready", buckets=_LOAD)
        self._phase = gauge(
            "llama_router_coordinator_phase", "1 for the phase that the coordinator is in", ["phase"]
        )
        self._states = {
            kind: gauge(
                f"llama_router_{kind}_state",
                f"1 for the state that the {kind.replace('_', ' ')} is in",
                ["node", "state"],
            )
            for kind in ("backend", "node", "pool_server")
        }

    def next_tokens(self, route: str, gap_s: float, count: int) -> None:
        """``count`` further tokens were sent together, ``gap_s`` after the one before."""
        itl = self._itl.labels(route)
        itl.observe(gap_s)
        for _ in range(count - 1):
            itl.observe(0)

    def request_ended(self, *, route: str, api: str, status: int, broken: bool = False) -> None:
        """A request has ended; status 499: its client disconnected."""
        self._requests.labels(route, api, str(status)).inc()
        if broken:
            self._broken.inc()

    def request_fields(self, action: str, count: int) -> None:
        """Fields of one request were ``refused`` or ``ignored``."""
        self._fields.labels(action).inc(count)

    def used(self, *, prompt: int, completion: int) -> None:
        """Tokens of one response."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def count_connections(self, number: Callable[[], int]) -> None:
        """Have the open connections counted by ``number`` for each page."""
        self._connections.set_function(number)

    def count_body_bytes(self, size_bytes: Callable[[], int]) -> None:
        """Have the bytes of bodies counted by ``size_bytes`` for each page."""
        self._body_bytes.set_function(size_bytes)

    def limit_reached(self, limit: str) -> None:
        self._limits.labels(limit).inc()

    def refused(self, error: RouterError) -> None:
        """A client gets this error; it is counted if it is for a limit."""
        if error.error_class in _LIMITS:
            self.limit_reached(error.error_class)

    def background_task_failed(self) -> None:
        self._background_failures.inc()

    def show_samples(self, nodes: Iterable[str], age_s: Callable[[], float]) -> None:
        """The nodes whose samples are read, and since when they have not been."""
        for node in nodes:
            self._samples_refused.labels(node)  # there before the first one
        self._samples_age.set_function(age_s)

    def sample_refused(self, node: str) -> None:
        self._samples_refused.labels(node).inc()

    def coordinator_ended(self, diagnosis: Diagnosis | None) -> None:
        self._ends.labels(_name(diagnosis)).inc()

    def coordinator_restarted(self, diagnosis: Diagnosis | None) -> None:
        """A coordinator is started again after a failure, which ``diagnosis`` names."""
        self._restarts.labels(_name(diagnosis)).inc()

    def coordinator_log_lines(self, fate: str, lines: int) -> None:
        """Lines of a coordinator's log were cut, left out, rotated away or lost; any thread may call this."""
        self._log_lines.labels(fate).inc(lines)

    def poison_request(self, key: str) -> None:
        """A request of ``key`` ended its server; the key is named, not shown."""
        self._poison_requests.labels(key).inc()

    def show_queue(self, length: int, oldest_s: float) -> None:
        self._queue_length.set(length)
        self._queue_age.set(oldest_s)

    def show_phase(self, phase: CoordinatorPhase) -> None:
        for label in CoordinatorPhase:
            self._phase.labels(label).set(label is phase)

    def show_states(self, kind: str, states: Mapping[str, str]) -> None:
        """States of all ``backend``, ``node`` or ``pool_server`` by node; they replace those shown before."""
        gauge = self._states[kind]
        gauge.clear()
        for node, state in states.items():
            gauge.labels(node, state).set(1)

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that the header ``Accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class SandboxedProcessCollector(ProcessCollector):
    """``process_*`` also where ``ProcSubset=pid`` hides ``/proc/stat``, which has the time of the boot."""

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _name(diagnosis: Diagnosis | None) -> str:
    return str(diagnosis.failure_class if diagnosis else FailureClass.UNKNOWN)
