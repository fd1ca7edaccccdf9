"""What the nodes know that the router cannot see: OOM kills, journals, processes, sockets, builds."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

from harness.cluster.inventory import Node
from harness.cluster.node_inspection import Looks, backends_seen, builds, full_disks, look_at, reached
from harness.cluster.ssh import read_journal, read_kernel_log
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis, ExitStatus, FailureClass
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import BackendSeen, Inputs
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.trials.context import Context

NODES_KNOW_MORE = (FailureClass.UNKNOWN, FailureClass.BACKEND_LOST, FailureClass.BACKEND_UNREACHABLE)
"""Classes that an OOM kill, or a backend's own journal, may decide or explain."""
WAITED = (FailureClass.BACKEND_STALLED, FailureClass.HUNG)
"""Classes that say that it waited; of what, the nodes may show."""
WINDOW_S = 3.2
"""How long backends are looked at before they are called idle."""
BEFORE_S = 60.0
"""How far back the samples of one that waits are looked at."""


async def diagnose_with_nodes(ctx: Context, state: CoordinatorState) -> None:
    """Diagnose an end once more, with the samples and journals of the nodes as evidence beside the router's.

    Nothing changes for a coordinator that runs, or whose end its exit and signals explain. One that was ended
    because it waited is diagnosed as it was before: what it waited for is the cause.
    """
    known = state.diagnosis
    if state.exit is None or state.timings is None:
        return
    if known and known.failure_class in WAITED:
        await diagnose_waiting(ctx, state)
    elif known is None or known.failure_class in NODES_KNOW_MORE:
        looks = await _look(ctx, 0)
        found = classify(await _ended(ctx, state, state.exit, looks))
        if known is None or found.failure_class is not FailureClass.UNKNOWN:
            state.diagnosis = found


async def diagnose_waiting(ctx: Context, state: CoordinatorState) -> None:
    """Diagnose a coordinator that makes no progress, or was ended for that, by what the nodes do meanwhile.

    What the router saw of it stays as evidence, and as the diagnosis where the nodes show no cause.
    """
    known = state.diagnosis
    found = classify(await _waiting(ctx, state, await _look(ctx, WINDOW_S)))
    if known is None:
        state.diagnosis = found
    elif found.failure_class not in (FailureClass.UNKNOWN, FailureClass.HUNG):
        evidence = [*found.evidence, *known.evidence]
        state.diagnosis = found.model_copy(update={"evidence": evidence})


async def diagnose_ready(ctx: Context, state: CoordinatorState) -> Diagnosis | None:
    """What is wrong around a coordinator though it answers: other builds, caches without room."""
    looks = await _look(ctx, 0)
    found = classify(
        Inputs(
            node=ctx.inventory.head.name,
            running=True,
            argv=state.argv,
            builds=builds(looks),
            full_disks=full_disks(looks),
            expect_distributed=False,
        )
    )
    return None if found.failure_class is FailureClass.UNKNOWN else found


async def _look(ctx: Context, window_s: float) -> Looks:
    return await look_at(_nodes(ctx), window_s)


def _nodes(ctx: Context) -> list[Node]:
    """The head node and the backends', each once."""
    return list({node.name: node for node in [ctx.inventory.head, *ctx.inventory.backends]}.values())


async def _ended(ctx: Context, state: CoordinatorState, ended: ExitStatus, looks: Looks) -> Inputs:
    """What is known of an end."""
    await ctx.sampler.caught_up(time.time_ns())
    started_ns, series = _started_ns(state), ctx.sampler.series
    return Inputs(
        node=ctx.inventory.head.name,
        argv=state.argv,
        exit=ended,
        signals=state.signals,
        logs=_log(ctx, state),
        journal=await _journals(ctx, looks, started_ns),
        units={
            node.name: {"NRestarts": str(restarts)}
            for node in ctx.inventory.backends
            if (restarts := series.grown(node.name, "rpc_restarts", started_ns, ended.time_ns))
        },
        oom_kills={
            node.name: kills
            for node in _nodes(ctx)
            if (kills := series.grown(node.name, "oom_kills", started_ns, ended.time_ns)) is not None
        },
        builds=builds(looks),
        backends=_backends(ctx, state, looks, 0),
        full_disks=full_disks(looks),
        plan=state.plan,
        report=state.report,
        expect_distributed=state.plan is None or state.plan.distributed,
    )


async def _waiting(ctx: Context, state: CoordinatorState, looks: Looks) -> Inputs:
    """What is known of one that waits, or waited until it was ended."""
    now_ns = time.time_ns()
    since_ns = max(_started_ns(state), now_ns - int(BEFORE_S * 1e9))
    names = [node.name for node in ctx.inventory.backends]
    return Inputs(
        node=ctx.inventory.head.name,
        running=True,
        waiting=True,
        argv=state.argv,
        logs=_log(ctx, state),
        journal=await _journals(ctx, looks, since_ns),
        builds=builds(looks),
        backends=_backends(ctx, state, looks, WINDOW_S),
        pressure=ctx.sampler.series.windows(names, since_ns, now_ns),
        full_disks=full_disks(looks),
        expect_distributed=False,
    )


def _started_ns(state: CoordinatorState) -> int:
    timings = state.timings
    return (timings.exec_ns or timings.requested_ns) if timings else 0


def _log(ctx: Context, state: CoordinatorState) -> dict[str, Path]:
    log = ctx.run.logs / f"{state.start_id}.log"
    return {log.name: log} if log.exists() else {}


def _backends(ctx: Context, state: CoordinatorState, looks: Looks, window_s: float) -> dict[str, BackendSeen]:
    """The backends of its plan, as looked at."""
    planned = {share.node for share in state.plan.shares} if state.plan else None
    nodes = [node for node in ctx.inventory.backends if planned is None or node.name in planned]
    last = {node.name: ctx.sampler.series.last_ns(node.name) for node in nodes}
    ahead, now_ns = ctx.clock_offset_ns, time.time_ns()
    silent_s = {name: (now_ns + ahead.get(name, 0) - ns) / 1e9 for name, ns in last.items() if ns}
    return backends_seen(looks, nodes, silent_s, window_s)


async def _journals(ctx: Context, looks: Looks, since_ns: int) -> dict[str, list[str]]:
    """The journals of the nodes that can be reached."""
    head = ctx.inventory.head
    nodes = [node for node in _nodes(ctx) if node.name in reached(looks)]
    journals = await asyncio.gather(*(_journal(node, node is head, since_ns) for node in nodes))
    return {node.name: lines for node, lines in zip(nodes, journals, strict=True)}


async def _journal(node: Node, head: bool, since_ns: int) -> list[str]:
    """Lines that a node's journal holds of its backend, and on the head node of the router and the kernel."""
    lines = await _lines(read_journal(node, RPC_UNIT, since_ns))
    if head:
        lines += await _lines(read_journal(node, "llama-router", since_ns))
        lines += await _lines(read_kernel_log(node, since_ns))
    return lines


async def _lines(reading: Awaitable[str]) -> list[str]:
    """What was read, line by line; a node that cannot be reached has nothing to say."""
    with suppress(HarnessError):
        return (await reading).splitlines()
    return []
