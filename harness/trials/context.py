"""The context that every trial of a run shares, and the result that each returns."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.cluster.inventory import Inventory, Node
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.plan import LoadRequest, Plan
from harness.contracts.run_records import Event, NodeFacts, Outcome
from harness.errors import HarnessError
from harness.lab.spec import LabSpec
from harness.router_client.client import RouterClient
from harness.runs.folder import RunFolder
from harness.trials.lab import limit_memory, restore_memory
from harness.trials.load_generator.samples import NodeClocks, Sampler


@dataclass(frozen=True)
class Loaded:
    """The coordinator that runs, as far as this run knows."""

    start_id: str
    request: LoadRequest


def load_key(request: LoadRequest) -> str:
    """What makes two loads the same, so that the second can be warm, as JSON."""
    return request.model_dump_json(include={"model", "nodes", "n_gpu_layers", "flags", "context", "parallel"})


@dataclass
class Context:
    """The cluster and folder of one run, and what its trials have learnt so far."""

    inventory: Inventory
    router: RouterClient
    run: RunFolder
    sampler: Sampler
    models: dict[str, dict[str, Any]]
    facts: dict[str, NodeFacts]
    clocks: NodeClocks
    lab: LabSpec | None
    say: Callable[[str], None]
    loaded: Loaded | None = None
    plans: dict[str, Plan] = field(default_factory=dict)
    """Plans of the loads of this run that were ready, by :func:`load_key`."""
    cold_wire_bytes: dict[str, float] = field(default_factory=dict)
    """What each cold load of this run moved, by the same key: a warm one is compared with it."""
    template_tokens: dict[str, int] = field(default_factory=dict)
    """By model, tokens that its chat template adds to a prompt, as the server counted."""
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    """By model, bytes per second that the head node reads and hashes its file at."""
    starved: set[str] = field(default_factory=set)

    def backends(self, wanted: int | list[str] | None) -> list[Node] | None:
        """Backends that a step names, or so many; None where the inventory has too few."""
        backends = self.inventory.backends
        if isinstance(wanted, int):
            return backends[:wanted] if wanted <= len(backends) else None
        return backends if wanted is None else [self.inventory.node(name) for name in dict.fromkeys(wanted)]

    def backend_restarts(self, start_ns: int, end_ns: int) -> dict[str, int]:
        """Restarts of each backend's unit in a window; backends without samples are left out."""
        series = self.sampler.series
        restarts = {
            node.name: series.grown(node.name, "rpc_restarts", start_ns, end_ns)
            for node in self.inventory.backends
        }
        return {name: count for name, count in restarts.items() if count is not None}

    def limit_memory(self, node: str, memory: int) -> None:
        """Lower a lab machine's memory limit, until :meth:`restore_memory`; HarnessError without a lab."""
        if self.lab is None:
            raise HarnessError("only a lab's machine can be starved; leave 'starve' out")
        self.starved.add(self.lab.machine(node).name)
        limit_memory(self.lab, node, memory)

    def restore_memory(self) -> None:
        """Give every starved machine its memory back; a refusal of the kernel is a warning of the run."""
        for node in sorted(self.starved):
            try:
                if self.lab is not None:
                    restore_memory(self.lab, node)
            except HarnessError as error:
                self.warn(node, f"still starved: {error}")
        self.starved.clear()

    def event(self, time_ns: int, kind: str, trial: str | None, node: str | None = None, **data: Any) -> None:
        """Append an event to the run."""
        self.run.append_event(Event(time_ns=time_ns, kind=kind, trial=trial, node=node, data=data))

    def warn(self, node: str | None, message: str, trial: str | None = None) -> None:
        """Append a warning of this moment to the run."""
        self.event(time.time_ns(), "warning", trial, node, message=message)


@dataclass
class TrialResult:
    """What a trial resulted in; the runner adds its times and the nodes' peaks."""

    outcome: Outcome
    answer: str
    """One sentence: what was observed."""
    expected: FailureClass | None = None
    coordinator: CoordinatorState | None = None
    diagnosis: Diagnosis | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def grade(
    answer: str,
    expected: FailureClass | None,
    diagnosis: Diagnosis | None,
    coordinator: CoordinatorState | None = None,
    metrics: dict[str, float] | None = None,
    details: dict[str, Any] | None = None,
) -> TrialResult:
    """The result of a trial: passed where the diagnosis is the expected one, or neither is there."""
    failure = diagnosis.failure_class if diagnosis else None
    outcome = Outcome.PASSED if failure == expected else Outcome.FAILED
    if outcome is Outcome.PASSED:
        answer = f"{answer} (as expected: {expected})" if expected else answer
    elif expected is not None:
        answer = f"expected {expected}, saw {failure or 'no failure'}: {answer}"
    elif str(failure) not in answer:  # the router's message may name the class already
        answer = f"{failure}: {answer}"
    return TrialResult(outcome, answer, expected, coordinator, diagnosis, metrics or {}, details or {})
