"""Diagnoses with evidence that the router does not have: journals, OOM kills, sockets and builds of nodes."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cluster.inventory import Node
from harness.cluster.node_inspection import (
    Inspections,
    backend_evidence,
    builds,
    full_disks,
    inspect_nodes,
    reachable,
    read_journal,
    read_kernel_log,
)
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.run_records import RunManifest, Trial
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import BackendSnapshot, Inputs, NodeEvidence, coordinator_inputs
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.runs.folder import read_manifest, read_samples, read_trials
from harness.trials.context import Context
from harness.trials.load_generator.samples import Series, point

NODES_CAN_DECIDE = (FailureClass.UNKNOWN, FailureClass.BACKEND_LOST, FailureClass.BACKEND_UNREACHABLE)
"""Classes that an OOM kill, or a backend's own journal, may decide or explain."""
WAITING_CLASSES = (FailureClass.BACKEND_STALLED, FailureClass.HUNG)
"""Classes of a coordinator that waited; the nodes may show for what."""
WINDOW_S = 3.2
"""How long the CPU time of backends is measured before they are called idle."""
BEFORE_S = 60.0
"""How far back the samples and journals of a waiting coordinator count."""


async def diagnose_with_nodes(ctx: Context, state: CoordinatorState) -> None:
    """Diagnose an end once more, with the samples and journals of the nodes as evidence beside the router's.

    Nothing changes for a coordinator that runs, or whose end its exit and signals explain. One that was ended
    because it waited is diagnosed as it was before: what it waited for is the cause.
    """
    recorded = state.diagnosis
    if state.exit is None or state.timings is None:
        return
    if recorded and recorded.failure_class in WAITING_CLASSES:
        await diagnose_waiting(ctx, state)
    elif recorded is None or recorded.failure_class in NODES_CAN_DECIDE:
        start_ns = _local_start_ns(ctx, state)
        end_ns = ctx.clocks.to_local(ctx.inventory.head.name, state.exit.time_ns)
        await ctx.sampler.caught_up(time.time_ns())
        nodes = {
            name: replace(evidence, **counters(ctx.sampler.series, name, start_ns, end_ns))
            for name, evidence in (await _node_evidence(ctx, state, start_ns, 0)).items()
        }
        diagnosis = classify(coordinator_inputs(state, ctx.inventory.head.name, _log(ctx, state), nodes))
        if recorded is None or diagnosis.failure_class is not FailureClass.UNKNOWN:
            state.diagnosis = diagnosis


async def diagnose_waiting(ctx: Context, state: CoordinatorState) -> None:
    """Diagnose a coordinator that makes no progress, or was ended for that, by what the nodes do meanwhile.

    The router's own diagnosis stays as evidence, and as the diagnosis where the nodes show no cause.
    """
    recorded, now_ns = state.diagnosis, time.time_ns()
    since_ns = max(_local_start_ns(ctx, state), now_ns - int(BEFORE_S * 1e9))
    evidence = await _node_evidence(ctx, state, since_ns, WINDOW_S)
    backends = [node.name for node in ctx.inventory.backends]
    pressure = ctx.sampler.series.windows(backends, since_ns, time.time_ns())
    nodes = {name: replace(node, pressure=pressure.get(name, ())) for name, node in evidence.items()}
    diagnosis = classify(
        coordinator_inputs(state, ctx.inventory.head.name, _log(ctx, state), nodes, waiting=True)
    )
    if recorded is None:
        state.diagnosis = diagnosis
    elif diagnosis.failure_class not in (FailureClass.UNKNOWN, FailureClass.HUNG):
        both = [*diagnosis.evidence, *recorded.evidence]
        state.diagnosis = diagnosis.model_copy(update={"evidence": both})


async def diagnose_ready(ctx: Context, state: CoordinatorState) -> Diagnosis | None:
    """What is wrong around a coordinator though it answers: other builds, caches without room."""
    inspections = await inspect_nodes(_nodes(ctx))
    diagnosis = classify(
        Inputs(
            node=ctx.inventory.head.name,
            running=True,
            argv=state.argv,
            builds=builds(inspections),
            full_disks=full_disks(inspections),
            expect_distributed=False,
        )
    )
    return None if diagnosis.failure_class is FailureClass.UNKNOWN else diagnosis


def started_ns(state: CoordinatorState) -> int:
    """When the coordinator was started, on the head node's clock; 0 where the state does not say."""
    timings = state.timings
    return (timings.exec_ns or timings.requested_ns) if timings else 0


def _local_start_ns(ctx: Context, state: CoordinatorState) -> int:
    """The same in this machine's time."""
    return ctx.clocks.to_local(ctx.inventory.head.name, started_ns(state)) if state.timings else 0


def counters(series: Series, node: str, start_ns: int, end_ns: int) -> dict[str, Any]:
    """Fields of a node's evidence that its samples count in a window; None where they do not say."""
    return {name: series.grown(node, name, start_ns, end_ns) for name in ("oom_kills", "rpc_restarts")}


def _nodes(ctx: Context) -> list[Node]:
    """The head node and the backends', each once."""
    return list({node.name: node for node in [ctx.inventory.head, *ctx.inventory.backends]}.values())


def _log(ctx: Context, state: CoordinatorState) -> Path:
    return ctx.run.logs / f"{state.start_id}.log"


async def _node_evidence(
    ctx: Context, state: CoordinatorState, since_ns: int, window_s: float
) -> dict[str, NodeEvidence]:
    """What each node shows now, and its journals.

    Args:
        since_ns: of the journals, in this machine's time.
        window_s: how long the CPU time of the processes is measured.
    """
    nodes = _nodes(ctx)
    inspections = await inspect_nodes(nodes, window_s)
    reached = [node for node in nodes if node.name in reachable(inspections)]
    journals = await asyncio.gather(*(_journal(ctx, node, since_ns) for node in reached))
    journal_of = dict(zip((node.name for node in reached), journals, strict=True))
    build_of, disk_of = builds(inspections), full_disks(inspections)
    backend_of = _backends(ctx, state, inspections, window_s)
    return {
        node.name: NodeEvidence(
            journal=journal_of.get(node.name, ()),
            build=build_of.get(node.name),
            server_build=build_of.get(f"{node.name} (llama-server)"),
            backend=backend_of.get(node.name),
            full_disk=disk_of.get(node.name),
        )
        for node in nodes
    }


def _backends(
    ctx: Context, state: CoordinatorState, inspections: Inspections, window_s: float
) -> dict[str, BackendSnapshot]:
    """The backends of the coordinator's plan, as their nodes show them."""
    planned = {share.node for share in state.plan.shares} if state.plan else None
    nodes = [node for node in ctx.inventory.backends if planned is None or node.name in planned]
    last = {node.name: ctx.sampler.series.last_ns(node.name) for node in nodes}
    now_ns = time.time_ns()
    silent_s = {name: (now_ns - ns) / 1e9 for name, ns in last.items() if ns}
    return backend_evidence(inspections, nodes, silent_s, window_s)


async def _journal(ctx: Context, node: Node, since_ns: int) -> list[str]:
    """Lines of a node's journal on its backend, and on the head node on the router and the kernel too."""
    node_ns = ctx.clocks.to_node(node.name, since_ns)
    readings = [read_journal(node, RPC_UNIT, node_ns)]
    if node is ctx.inventory.head:
        readings += [read_journal(node, "llama-router", node_ns), read_kernel_log(node, node_ns)]
    lines: list[str] = []
    for reading in readings:
        with suppress(HarnessError):
            lines += (await reading).splitlines()
    return lines


def diagnose_run(run: Path) -> Iterator[tuple[Trial, Diagnosis, str | None]]:
    """Diagnose every trial of a run that had an end or a diagnosis, as the rules do now.

    A diagnosis that was made of what the run does not store (a request's deadline, a watch on the backends)
    stays as it was recorded.

    Returns:
        Each trial with its diagnosis, and the class that the run recorded.

    Raises:
        HarnessError: the folder is no run, or is damaged.
    """
    manifest = read_manifest(run)
    series = Series()
    for sample in read_samples(run):
        # On the head node's clock, as the coordinator's states are.
        series.add(sample.node, point(sample, sample.head_time_ns))
    for trial in read_trials(run):
        if diagnosis := _rediagnose(run, manifest, series, trial):
            recorded = trial.diagnosis or (trial.coordinator and trial.coordinator.diagnosis)
            yield trial, diagnosis, recorded.failure_class.value if recorded else None


def _rediagnose(run: Path, manifest: RunManifest, series: Series, trial: Trial) -> Diagnosis | None:
    state = trial.coordinator
    recorded = trial.diagnosis or (state.diagnosis if state else None)
    if state is None or state.exit is None:
        return recorded
    start_ns, end_ns = started_ns(state) or state.exit.time_ns, state.exit.time_ns
    nodes = {
        node.name: NodeEvidence(
            build=f"{node.build} ({node.commit})" if node.build else None,
            **counters(series, node.name, start_ns, end_ns),
        )
        for node in manifest.nodes
    }
    log = run / "logs" / f"{state.start_id}.log"
    diagnosis = classify(coordinator_inputs(state, manifest.head or "head", log, nodes))
    return recorded if recorded and diagnosis.failure_class is FailureClass.UNKNOWN else diagnosis
