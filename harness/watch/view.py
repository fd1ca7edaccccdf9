"""What the live view says of each node: a function of its newest sample, its age and the router's plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from harness.cluster.inventory import Node
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import Plan
from harness.monitor.backend_state import SILENT_AFTER_S, BackendState, State, backend_state
from harness.monitor.sample import Gpu, Sample

UP = "up"
"""State of a node without a backend that was heard of."""
_HOLDING = frozenset({CoordinatorPhase.STARTING, CoordinatorPhase.READY, CoordinatorPhase.STOPPING})


@dataclass(frozen=True)
class Seen:
    """A node's newest sample and how old it is."""

    sample: Sample
    age_s: float


class ModelShare(BaseModel):
    """What the plan of the coordinator that is up puts on one node."""

    model: str
    first_layer: int
    """Counted from 0; the layer after the last repeating one is the output."""
    last_layer: int
    layers_total: int
    model_bytes: int


class NodeView(BaseModel):
    """One row of the live view. Sizes in bytes."""

    name: str
    address: str
    groups: list[str]
    state: str
    """Of its backend: idle, busy, starting, down or silent; of a node without one: up or silent."""
    reason: str
    """The observation that decides it."""
    age_s: float | None = None
    """Of the sample that the rest is from; None for a node never heard of."""
    share: ModelShare | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    gpus: list[Gpu] = []
    load1: float | None = None
    restarts: int | None = None
    """Of its units together, by systemd (NRestarts)."""
    units: dict[str, str] = {}
    """ActiveState of each unit."""
    clock_offset_s: float | None = None


class RouterView(BaseModel):
    """What the router says of its coordinator."""

    problem: str | None = None
    """Why nothing is known; the rest is then empty."""
    phase: CoordinatorPhase | None = None
    model: str | None = None
    requests_in_flight: int = 0


class ClusterView(BaseModel):
    """Everything at one moment."""

    time_ns: int
    source: str
    """``redis``, or ``rings``: each node's ring, over SSH."""
    source_problem: str | None = None
    """Why it is not Redis."""
    router: RouterView
    nodes: list[NodeView]


def router_view(state: CoordinatorState | None, problem: str | None) -> RouterView:
    """What is shown of the router."""
    if state is None:
        return RouterView(problem=problem or "not asked yet")
    return RouterView(phase=state.phase, model=state.model, requests_in_flight=state.requests_in_flight)


def plan_in_use(state: CoordinatorState | None) -> Plan | None:
    """The plan of the coordinator that is up or on its way; None where backends hold nothing by plan."""
    if state is None or state.plan is None or state.phase not in _HOLDING:
        return None
    return state.plan if state.plan.distributed else None


def shares(plan: Plan | None) -> dict[str, ModelShare]:
    """By node, the layers that a plan puts there: shares are in order, the first get the first layers."""
    found: dict[str, ModelShare] = {}
    next_layer = 0
    for share in plan.shares if plan else []:
        first, next_layer = next_layer, next_layer + share.layers
        if plan is None or share.layers == 0:
            continue
        before = found.get(share.node)  # several devices of one node follow one another
        found[share.node] = ModelShare(
            model=plan.model,
            first_layer=before.first_layer if before else first,
            last_layer=next_layer - 1,
            layers_total=plan.layers_total,
            model_bytes=share.model_bytes + (before.model_bytes if before else 0),
        )
    return found


def node_views(
    nodes: Iterable[Node], seen: Mapping[str, Seen], problems: Mapping[str, str], plan: Plan | None
) -> list[NodeView]:
    """A row for each node, in the inventory's order.

    Args:
        seen: newest sample by node; nodes never heard of are left out.
        problems: why a node is not heard of, where that is known.
        plan: the plan in use.
    """
    held = shares(plan)
    return [_node(node, seen.get(node.name), problems.get(node.name), held.get(node.name)) for node in nodes]


def _node(node: Node, seen: Seen | None, problem: str | None, share: ModelShare | None) -> NodeView:
    found = _state(node, seen)
    silent = found.state == State.SILENT
    view = NodeView(
        name=node.name,
        address=node.address,
        groups=sorted(node.groups),
        state=found.state,
        reason=f"{found.reason}: {problem}" if silent and problem else found.reason,
        share=share,
    )
    return view if seen is None else view.model_copy(update=_figures(seen))


@dataclass(frozen=True)
class _State:
    state: str
    reason: str


def _state(node: Node, seen: Seen | None) -> _State | BackendState:
    if seen is None:
        return BackendState(State.SILENT, "never heard of")
    if seen.age_s > SILENT_AFTER_S:
        return BackendState(State.SILENT, f"last heard {seen.age_s:.0f} s ago")
    if "backends" not in node.groups:
        return _State(UP, "no backend here")
    # Its age is known already, and by the right clock: the state is asked for the sample's own moment.
    at_ns = seen.sample.time_ns - int((seen.sample.clock_offset_s or 0.0) * 1e9)
    return backend_state(seen.sample, at_ns)


def _figures(seen: Seen) -> dict[str, object]:
    sample = seen.sample
    return {
        "age_s": round(seen.age_s, 1),
        "memory_total_bytes": sample.memory.total_bytes,
        "memory_used_bytes": sample.memory.used_bytes,
        "memory_available_bytes": sample.memory.available_bytes,
        "swap_total_bytes": sample.memory.swap_total_bytes,
        "swap_used_bytes": sample.memory.swap_used_bytes,
        "gpus": sample.gpus,
        "load1": sample.load1,
        "restarts": sum(unit.restarts for unit in sample.units.values()) if sample.units else None,
        "units": {name: unit.active for name, unit in sample.units.items()},
        "clock_offset_s": sample.clock_offset_s,
    }
