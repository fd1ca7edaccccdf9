"""Section 2: the nodes, what is installed on them, and which layers each one held."""

from dataclasses import dataclass

from harness.contracts.load_report import BackendBuffers
from harness.contracts.plan import Plan
from harness.contracts.run_records import NodeFacts, Trial
from harness.report.data import RunData
from harness.report.format import bits, slug


@dataclass(frozen=True)
class NodeRow:
    """One machine at the start of the run."""

    name: str
    colour: int
    """Place of its colour in the page's palette."""
    roles: str
    address: str
    total: int | None
    limit: int | None
    available: int | None
    hardware: str
    build: str
    platform: str
    binaries: list[tuple[str, str]]
    """Name and full sha256."""
    link: str
    """Rate of the link and who says so."""
    link_rate: float | None


@dataclass(frozen=True)
class ShareBox:
    """One backend in the drawing of a placement."""

    node: str
    endpoint: str
    colour: int
    layers: str
    bytes: int
    source: str
    """``reported by llama.cpp`` or ``planned``."""
    available: int
    fill: float
    """Share of the available memory, 0 to 1."""


@dataclass(frozen=True)
class Placement:
    """Where one load put a model."""

    trial: str
    anchor: str
    model: str
    distributed: bool | None
    head: str
    offloaded: str
    boxes: list[ShareBox]
    local_bytes: int
    """Model bytes that llama.cpp kept in the coordinator's own memory."""


@dataclass(frozen=True)
class Cluster:
    """The machines of the run."""

    rows: list[NodeRow]
    uniform: str
    """One sentence: whether all nodes run the same build."""
    mixed: bool
    placements: list[Placement]
    head: str
    pool: list[str]


def cluster(run: RunData) -> Cluster:
    """Nodes, build and placements of a run."""
    facts = run.manifest.nodes
    sentence, mixed = _uniform(facts)
    head = next((n.name for n in facts if "head" in n.groups), "head node")
    return Cluster(
        rows=[_node(run, node) for node in facts],
        uniform=sentence,
        mixed=mixed,
        placements=_placements(run, head),
        head=head,
        pool=[n.name for n in facts if "pool" in n.groups],
    )


def colour_place(run: RunData, node: str) -> int:
    """Place in the palette; 8 colours, then again from the first."""
    nodes = run.nodes
    return nodes.index(node) % 8 if node in nodes else 0


def _node(run: RunData, node: NodeFacts) -> NodeRow:
    cpus = f"{node.cpus} × " if node.cpus else ""
    hardware = f"{cpus}{node.cpu or 'CPU'}"
    if node.accelerator != "cpu":
        hardware += f", {node.accelerator}"
    build = "not installed" if node.build is None else f"{node.build} ({node.commit or 'commit unknown'})"
    return NodeRow(
        name=node.name,
        colour=colour_place(run, node.name),
        roles=", ".join(g for g in ("head", "backends", "pool", "gpu") if g in node.groups),
        address=node.address,
        total=node.memory_total_bytes,
        limit=node.memory_limit_bytes,
        available=node.memory_available_bytes,
        hardware=hardware,
        build=build,
        platform=node.platform or "unknown",
        binaries=sorted(node.binaries.items()),
        link=_link(node),
        link_rate=node.link_bits_per_s,
    )


def _link(node: NodeFacts) -> str:
    if node.link_bits_per_s is None:
        return f"{node.interface}, rate not known" if node.interface else "not recorded"
    by = {"token bucket": "shaped by tc", "driver": "as its card negotiated"}
    said = by.get(node.link_source or "", node.link_source or "")
    return f"{bits(node.link_bits_per_s)}, {said}"


def _uniform(nodes: list[NodeFacts]) -> tuple[str, bool]:
    installed = [n for n in nodes if n.build is not None]
    if not installed:
        return "No build was recorded on any node.", False
    builds = {(n.build, n.commit) for n in installed}
    hashes: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for node in installed:
        hashes.setdefault(node.platform or "unknown", set()).add(tuple(sorted(node.binaries.items())))
    several = [platform for platform, kinds in hashes.items() if len(kinds) > 1]
    if len(builds) > 1:
        shown = ", ".join(f"{n.name}: {n.build}" for n in installed)
        return f"The nodes run different builds ({shown}); figures of such a run cannot be trusted.", True
    if several:
        return f"Same build number, but different binaries on platform {', '.join(several)}.", True
    build, commit = next(iter(builds))
    platforms = len(hashes)
    binaries = "one set of binaries" if platforms == 1 else f"one set of binaries per platform ({platforms})"
    where = (
        f"all {len(installed)} nodes"
        if len(installed) == len(nodes)
        else f"{len(installed)} of {len(nodes)} nodes"
    )
    return f"llama.cpp {build} ({commit or 'commit unknown'}) on {where}, {binaries}.", False


def _placements(run: RunData, head: str) -> list[Placement]:
    """The last load of each model on each set of backends."""
    latest: dict[tuple[str, tuple[str, ...], int], tuple[Trial, Plan]] = {}
    for trial in run.trials:
        plan = trial.coordinator.plan if trial.coordinator else None
        if plan and trial.kind == "load":
            latest[(plan.model, tuple(s.node for s in plan.shares), plan.n_gpu_layers)] = (trial, plan)
    return [_placement(run, trial, plan, head) for trial, plan in latest.values()]


def _placement(run: RunData, trial: Trial, plan: Plan, head: str) -> Placement:
    report = trial.coordinator.report if trial.coordinator else None
    buffers = report.buffers if report else []
    boxes: list[ShareBox] = []
    first = 1
    for share in plan.shares:
        found = buffers_of(buffers, share.node, share.endpoint)
        held = sum(b.model_bytes + b.kv_bytes + b.compute_bytes for b in found)
        used = held if found else share.total_bytes if plan.distributed else 0
        boxes.append(
            ShareBox(
                node=share.node,
                endpoint=share.endpoint,
                colour=colour_place(run, share.node),
                layers=layer_range(first, share.layers) if plan.distributed else "no layers",
                bytes=used,
                source="reported by llama.cpp" if found else "planned",
                available=share.available_bytes,
                fill=min(1.0, used / share.available_bytes) if share.available_bytes else 0.0,
            )
        )
        first += share.layers
    offloaded = (
        f"{report.offloaded}/{report.layers_total}"
        if report and report.offloaded is not None
        else "not reported"
    )
    return Placement(
        trial=trial.id,
        anchor=slug(trial.id),
        model=plan.model,
        distributed=report.distributed if report else None,
        head=head,
        offloaded=offloaded,
        boxes=boxes,
        local_bytes=sum(b.model_bytes for b in buffers if not b.device.startswith("RPC")),
    )


def buffers_of(buffers: list[BackendBuffers], node: str, endpoint: str) -> list[BackendBuffers]:
    """What llama.cpp reported of one backend: matched by node, else by the endpoint in its name."""
    return [
        b
        for b in buffers
        if b.device.startswith("RPC") and (b.node == node if b.node else f"[{endpoint}]" in b.device)
    ]


def layer_range(first: int, count: int) -> str:
    """``layers 1–20``, counting as in ``offloaded N/N``."""
    if count <= 0:
        return "no layers"
    return f"layer {first}" if count == 1 else f"layers {first}–{first + count - 1}"
