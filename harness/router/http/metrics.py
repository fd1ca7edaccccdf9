"""What ``/metrics`` says, in Prometheus' text format: one registry, made with the router and passed down.

Names, labels and units are in docs/operation.md; times are seconds, as Prometheus asks for.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.router.http.stream_stats import Observed

_TTFT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
_ITL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_LOAD = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1800)


class Metrics:
    """Everything that is counted. Whoever knows of an event tells it here."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.live: set[Observed] = set()
        """Requests for a model that are in flight, oldest unknown: a set."""
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "llama_router_requests",
            "Requests that have ended",
            ["route", "api", "status"],
            registry=self.registry,
        )
        self._ended: dict[tuple[str, str, int], Counter] = {}
        """``_requests`` by its labels: looking one up there costs a hundredth of a request."""
        tokens = Counter(
            "llama_router_tokens", "Tokens, as the servers counted them", ["kind"], registry=self.registry
        )
        self._prompt_tokens = tokens.labels("prompt")
        self._completion_tokens = tokens.labels("completion")
        self._broken = Counter(
            "llama_router_streams_broken", "Streams that ended with an error event", registry=self.registry
        )
        self._ttft = Histogram(
            "llama_router_ttft_seconds",
            "First token of a stream after its request",
            ["route"],
            buckets=_TTFT,
            registry=self.registry,
        )
        self._itl = Histogram(
            "llama_router_itl_seconds",
            "Each gap between successive tokens of a stream",
            ["route"],
            buckets=_ITL,
            registry=self.registry,
        )
        in_flight = Gauge(
            "llama_router_requests_in_flight", "Requests for a model in flight", registry=self.registry
        )
        in_flight.set_function(lambda: len(self.live))
        self._queue_length = Gauge(
            "llama_router_queue_length", "Requests that wait for a model", registry=self.registry
        )
        self._queue_age = Gauge(
            "llama_router_queue_oldest_seconds",
            "How long the first of them has waited",
            registry=self.registry,
        )
        self._starts = Counter(
            "llama_router_coordinator_starts", "Coordinators that were started", registry=self.registry
        )
        self._ends = Counter(
            "llama_router_coordinator_ends",
            "Coordinators that have ended, by diagnosis",
            ["diagnosis"],
            registry=self.registry,
        )
        self._restarts = Counter(
            "llama_router_coordinator_restarts",
            "Starts after a failure, by the diagnosis of that failure",
            ["diagnosis"],
            registry=self.registry,
        )
        self._load = Histogram(
            "llama_router_load_seconds",
            "Coordinator exec to ready",
            buckets=_LOAD,
            registry=self.registry,
        )
        self._phase = Gauge(
            "llama_router_coordinator_phase",
            "1 for the phase that the coordinator is in",
            ["phase"],
            registry=self.registry,
        )
        self._states = {
            kind: Gauge(
                f"llama_router_{kind}_state",
                f"1 for the state that the {kind.replace('_', ' ')} is in",
                ["node", "state"],
                registry=self.registry,
            )
            for kind in ("backend", "node", "pool_server")
        }

    def first_token(self, route: str, seconds: float) -> None:
        """A stream's first token has come."""
        self._ttft.labels(route).observe(seconds)

    def next_tokens(self, route: str, gap_s: float, count: int) -> None:
        """``count`` further tokens have come together, ``gap_s`` after the one before."""
        itl = self._itl.labels(route)
        itl.observe(gap_s)
        for _ in range(count - 1):
            itl.observe(0)

    def request_ended(self, *, route: str, api: str, status: int, broken: bool = False) -> None:
        """A request has been answered, or given up (499: its client left)."""
        ended = self._ended.get((route, api, status))
        if ended is None:
            ended = self._ended[route, api, status] = self._requests.labels(route, api, str(status))
        ended.inc()
        if broken:
            self._broken.inc()

    def used(self, *, prompt: int, completion: int) -> None:
        """Tokens of one answer."""
        self._prompt_tokens.inc(prompt)
        self._completion_tokens.inc(completion)

    def coordinator_started(self) -> None:
        """A child was started."""
        self._starts.inc()

    def coordinator_loaded(self, seconds: float) -> None:
        """It became ready, ``seconds`` after its exec."""
        self._load.observe(seconds)

    def coordinator_ended(self, diagnosis: Diagnosis | None) -> None:
        """The child has ended."""
        self._ends.labels(_name(diagnosis)).inc()

    def coordinator_restarted(self, diagnosis: Diagnosis | None) -> None:
        """A new start follows a failure, which ``diagnosis`` names."""
        self._restarts.labels(_name(diagnosis)).inc()

    def show_queue(self, length: int, oldest_s: float) -> None:
        """How many requests wait for a model, and how long the first of them has."""
        self._queue_length.set(length)
        self._queue_age.set(oldest_s)

    def show_phase(self, phase: CoordinatorPhase) -> None:
        """Where the coordinator is in its life."""
        for each in CoordinatorPhase:
            self._phase.labels(each).set(each is phase)

    def show_states(self, kind: str, states: Mapping[str, str]) -> None:
        """State by node of every ``backend``, ``node`` or ``pool_server``; those not named are forgotten."""
        gauge = self._states[kind]
        gauge.clear()
        for node, state in states.items():
            gauge.labels(node, state).set(1)

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that the reader accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _name(diagnosis: Diagnosis | None) -> str:
    return str(diagnosis.failure_class if diagnosis else FailureClass.UNKNOWN)
