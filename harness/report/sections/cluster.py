"""Section 2: the nodes, their builds and systemd units, and the layers that each one held."""

from harness.contracts.coordinator_state import BackendBuffers, LoadReport, rpc_endpoint
from harness.contracts.plan import Plan
from harness.contracts.run_records import NodeFacts, Trial
from harness.report.data import Row, RunData
from harness.report.format import bits, size


def cluster_section(run: RunData) -> Row:
    """Nodes, placements, and whether all nodes run the same build (a sentence, and ``mixed``)."""
    facts = run.manifest.nodes
    sentence, mixed = _uniform(facts)
    return {
        "rows": [_node(run, node) for node in facts],
        "uniform": sentence,
        "mixed": mixed,
        "placements": _placements(run),
        "head": run.manifest.head or "head node",
        "pool": [n.name for n in facts if "pool" in n.groups],
    }


def colour_place(run: RunData, node: str) -> int:
    """Index in the palette; after 8 colours it starts again."""
    nodes = run.nodes
    return nodes.index(node) % 8 if node in nodes else 0


def _node(run: RunData, node: NodeFacts) -> Row:
    cpus = f"{node.cpus} × " if node.cpus else ""
    hardware = f"{cpus}{node.cpu or 'CPU'}"
    if node.accelerator != "cpu":
        hardware += f", {node.accelerator}"
    build = "not installed" if node.build is None else f"{node.build} ({node.commit or 'commit unknown'})"
    return {
        "facts": node,
        "colour": colour_place(run, node.name),
        "roles": ", ".join(g for g in ("head", "backends", "pool", "gpu") if g in node.groups),
        "hardware": hardware,
        "build": build,
        "link": _link(node),
    }


def _link(node: NodeFacts) -> str:
    if node.link_bits_per_s is None:
        return f"{node.interface}, rate not known" if node.interface else "not recorded"
    sources = {"token bucket": "shaped by tc", "driver": "negotiated by its card"}
    source = sources.get(node.link_source or "", node.link_source or "")
    return f"{bits(node.link_bits_per_s)}, {source}"


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
        each = ", ".join(f"{n.name}: {n.build}" for n in installed)
        return f"The nodes run different builds ({each}); do not trust figures of such a run.", True
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


def _placements(run: RunData) -> list[Row]:
    """The last load of each model on each set of backends."""
    latest: dict[tuple[str, tuple[str, ...], int], tuple[Trial, Plan]] = {}
    for trial in run.trials:
        plan = trial.coordinator.plan if trial.coordinator else None
        if plan and trial.kind == "load":
            latest[(plan.model, tuple(s.node for s in plan.shares), plan.n_gpu_layers)] = (trial, plan)
    return [_placement(run, trial, plan) for trial, plan in latest.values()]


def _placement(run: RunData, trial: Trial, plan: Plan) -> Row:
    report = trial.coordinator.report if trial.coordinator else None
    buffers = report.buffers if report else []
    boxes: list[Row] = []
    first = 1
    for share in plan.shares:
        own = buffers_of(buffers, share.node, share.endpoint)
        reported = sum(buffer.total_bytes for buffer in own)
        used = reported if own else share.total_bytes if plan.distributed else 0
        boxes.append(
            {
                "node": share.node,
                "colour": colour_place(run, share.node),
                "layers": layer_range(first, share.layers) if plan.distributed else "no layers",
                "bytes": used,
                "source": "reported by llama.cpp" if own else "planned",
                "available": share.available_bytes,
                "fill": min(1.0, used / share.available_bytes) if share.available_bytes else 0.0,
            }
        )
        first += share.layers
    return {
        "trial": trial.id,
        "model": plan.model,
        "distributed": report.distributed if report else None,
        "offloaded": offloaded(report) or "not reported",
        "boxes": boxes,
        # Model bytes that llama.cpp kept in the coordinator's own memory.
        "local_bytes": sum(b.model_bytes for b in report.local_buffers) if report else 0,
    }


def offloaded(report: LoadReport | None) -> str:
    """``31/31`` layers; empty where llama.cpp did not report it."""
    return f"{report.offloaded}/{report.layers_total}" if report and report.offloaded is not None else ""


def buffers_of(buffers: list[BackendBuffers], node: str, endpoint: str) -> list[BackendBuffers]:
    """What llama.cpp reported of one backend: matched by node, else by the endpoint in its name."""
    return [
        b for b in buffers if b.is_rpc and (b.node == node if b.node else rpc_endpoint(b.device) == endpoint)
    ]


def layer_range(first: int, count: int) -> str:
    """``layers 1–20``, counting as in ``offloaded N/N``."""
    if count <= 0:
        return "no layers"
    return f"layer {first}" if count == 1 else f"layers {first}–{first + count - 1}"


CLOSED, OPEN = 2.0, 5.0
"""Exposure up to which a unit counts as closed, and from which as open (systemd-analyze calls 5 medium)."""
LIMITS = {"MemoryHigh": "high", "MemoryMax": "max", "MemorySwapMax": "swap max"}
UNLIMITED = ("infinity", str(2**64 - 1))
SETTINGS = {
    "User": "user",
    "Restart": "restart",
    "OOMScoreAdjust": "OOM score",
    "ProtectSystem": "system",
    "IPAddressAllow": "admits",
}


def unit_rows(run: RunData) -> list[Row]:
    """Every unit of the project that was found on a node."""
    return [
        _unit(run, node, name, properties)
        for node in run.manifest.nodes
        for name, properties in sorted(node.units.items())
    ]


def _unit(run: RunData, node: NodeFacts, name: str, properties: dict[str, str]) -> Row:
    state, sub = properties.get("ActiveState", "unknown"), properties.get("SubState")
    restarts = properties.get("NRestarts", "")
    score = node.exposure.get(name)
    return {
        "node": node.name,
        "colour": colour_place(run, node.name),
        "unit": name.removesuffix(".service").removeprefix("llama-"),
        "state": f"{state} ({sub})" if sub and sub != state else state,
        "good": state == "active",
        "restarts": int(restarts) if restarts.isdigit() else None,
        "exposure": score,
        "rating": _rating(score),
        "settings": _settings(properties),
    }


def _rating(score: float | None) -> str:
    if score is None:
        return ""
    return "closed" if score <= CLOSED else "open" if score >= OPEN else "medium"


def _settings(properties: dict[str, str]) -> list[tuple[str, str]]:
    settings = [(word, properties[key]) for key, word in SETTINGS.items() if properties.get(key)]
    limits = [
        f"{word} {size(float(properties[key]))}"
        for key, word in LIMITS.items()
        if properties.get(key, "").isdigit() and properties[key] not in UNLIMITED
    ]
    if any(key in properties for key in LIMITS):
        settings.append(("memory", ", ".join(limits) or "no limit"))
    return settings
