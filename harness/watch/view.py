"""One row of the live view a node: a function of its newest sample, its age and the router's plan."""

from pydantic import BaseModel

from harness.cluster.inventory import Node
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import Plan
from harness.monitor.backend_state import missing_firewalls, state_at_age
from harness.monitor.sample import Gpu, Sample

_UP = frozenset({CoordinatorPhase.STARTING, CoordinatorPhase.READY, CoordinatorPhase.STOPPING})


class ModelShare(BaseModel):
    """The layers that the running coordinator's plan puts on one node."""

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
    """Of its backend: idle, busy, starting, down, silent or drained; of a node without one: up or silent."""
    reason: str
    """The observation that decides it."""
    age_s: float | None = None
    """Of the sample that the rest comes from; None for a node without a sample."""
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
    missing_firewalls: list[str] = []
    """Units that should keep a firewall loaded and do not run."""
    clock_offset_s: float | None = None


class RouterView(BaseModel):
    """The state of the router's coordinator."""

    problem: str | None = None
    """Why the state is not known; the rest is then empty."""
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
    """The router's row."""
    if state is None:
        return RouterView(problem=problem or "not asked yet")
    return RouterView(phase=state.phase, model=state.model, requests_in_flight=state.requests_in_flight)


def plan_in_use(state: CoordinatorState | None) -> Plan | None:
    """The distributed plan of the coordinator that runs or starts; None where backends hold no layers."""
    plan = state.plan if state and state.phase in _UP else None
    return plan if plan and plan.distributed else None


def shares(plan: Plan | None) -> dict[str, ModelShare]:
    """By node, the layers that a plan puts there: shares are in order, the first get the first layers."""
    if plan is None:
        return {}
    by_node: dict[str, ModelShare] = {}
    next_layer = 0
    for share in plan.shares:
        first, next_layer = next_layer, next_layer + share.layers
        if share.layers == 0:
            continue
        before = by_node.get(share.node)  # several devices of one node follow one another
        by_node[share.node] = ModelShare(
            model=plan.model,
            first_layer=before.first_layer if before else first,
            last_layer=next_layer - 1,
            layers_total=plan.layers_total,
            model_bytes=share.model_bytes + (before.model_bytes if before else 0),
        )
    return by_node


def node_view(
    node: Node,
    sample: Sample | None,
    age_s: float,
    problem: str | None,
    share: ModelShare | None,
    *,
    drained: bool = False,
) -> NodeView:
    """A node's row.

    Args:
        sample: its newest sample; None where there is none.
        age_s: age of the sample, seconds.
        problem: why no sample comes, where that is known.
        share: its layers of the plan in use.
        drained: whether the router plans without it.
    """
    state = state_at_age(sample, age_s, has_backend="backends" in node.groups)
    view = NodeView(
        name=node.name,
        address=node.address,
        groups=sorted(node.groups),
        state=state.state,
        reason=f"{state.reason}: {problem}" if problem and not state.has_samples else state.reason,
        share=share,
    )
    if drained:
        view.state, view.reason = "drained", f"no load is planned on it; {view.reason}"
    if sample:
        view.age_s = round(age_s, 1)
        view.memory_total_bytes = sample.memory.total_bytes
        view.memory_used_bytes = sample.memory.used_bytes
        view.memory_available_bytes = sample.memory.available_bytes
        view.swap_total_bytes = sample.memory.swap_total_bytes
        view.swap_used_bytes = sample.memory.swap_used_bytes
        view.gpus = sample.gpus
        view.load1 = sample.load1
        view.restarts = sum(unit.restarts for unit in sample.units.values()) if sample.units else None
        view.missing_firewalls = missing_firewalls(sample)
        view.units = {name: unit.active for name, unit in sample.units.items()}
        view.clock_offset_s = sample.clock_offset_s
    return view
