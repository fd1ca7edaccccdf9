"""What every trial is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.cluster.inventory import Inventory, Node
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.plan import Plan
from harness.contracts.run_records import Event, NodeFacts, Outcome
from harness.lab.spec import LabSpec
from harness.router_client.client import LoadRequest, RouterClient
from harness.runs.store import RunFolder
from harness.trials.load_generator.prompts import PromptSizer
from harness.trials.load_generator.telemetry import Sampler


@dataclass(frozen=True)
class LoadKey:
    """What makes two loads the same, so that the second can be warm."""

    model: str
    nodes: tuple[str, ...]
    n_gpu_layers: int | None
    flags: tuple[str, ...]
    context: int
    parallel: int = 1


@dataclass(frozen=True)
class Loaded:
    """The coordinator that is up, as far as this run knows."""

    start_id: str
    model: str
    request: LoadRequest


@dataclass
class Context:
    """One run's surroundings, and what its trials have learnt so far."""

    inventory: Inventory
    router: RouterClient
    run: RunFolder
    sampler: Sampler
    models: dict[str, dict[str, Any]]
    facts: dict[str, NodeFacts]
    clock_offset_ns: dict[str, int]
    """Per node: its clock minus ours, where the difference can be told from the noise; else 0."""
    lab: LabSpec | None
    say: Callable[[str], None]
    loaded: Loaded | None = None
    plans: dict[LoadKey, Plan] = field(default_factory=dict)
    """Plans of the loads that came to be ready in this run."""
    cold_wire_bytes: dict[LoadKey, float] = field(default_factory=dict)
    """What each cold load of this run moved: the measure of a warm one."""
    sizers: dict[str, PromptSizer] = field(default_factory=dict)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    """By model, bytes per second that the head node reads and hashes its file at."""
    starved: set[str] = field(default_factory=set)

    def sizer(self, model: str) -> PromptSizer:
        """What is known of a model's prompts."""
        return self.sizers.setdefault(model, PromptSizer())

    def backends(self, wanted: int | list[str] | None) -> list[Node] | None:
        """Backends that a profile asks for; None where the inventory has too few."""
        everyone = self.inventory.backends
        if isinstance(wanted, int):
            return everyone[:wanted] if wanted <= len(everyone) else None
        return everyone if wanted is None else [self.inventory.node(name) for name in wanted]

    def backend_restarts(self, start_ns: int, end_ns: int) -> dict[str, int]:
        """How often each backend's unit was started anew in a window; those not known of are left out."""
        series = self.sampler.series
        names = [node.name for node in self.inventory.backends]
        grown = {name: series.grown(name, "rpc_restarts", start_ns, end_ns) for name in names}
        return {name: count for name, count in grown.items() if count is not None}

    def event(self, time_ns: int, kind: str, trial: str | None, node: str | None = None, **data: Any) -> None:
        """Append an event to the run."""
        self.run.append_event(Event(time_ns=time_ns, kind=kind, trial=trial, node=node, data=data))


@dataclass
class Finding:
    """What a trial found; the runner adds its times and the nodes' peaks."""

    outcome: Outcome
    answer: str
    expected: FailureClass | None = None
    coordinator: CoordinatorState | None = None
    diagnosis: Diagnosis | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def judge(diagnosis: Diagnosis | None, expected: FailureClass | None, answer: str) -> tuple[Outcome, str]:
    """Whether what was seen is what the profile expects; an expected failure that does not come is one."""
    seen = diagnosis.failure_class if diagnosis else None
    if seen == expected:
        return Outcome.PASSED, f"{answer} (as expected: {expected})" if expected else answer
    if expected is None:
        # The router's own words may name the class already.
        return Outcome.FAILED, answer if str(seen) in answer else f"{seen}: {answer}"
    return Outcome.FAILED, f"expected {expected}, saw {seen or 'no failure'}: {answer}"
