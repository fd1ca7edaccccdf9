"""What the nodes know of an end that the router cannot see: OOM kills, restarts, journals."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress

from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import Inputs
from harness.diagnosis.model import FailureClass
from harness.errors import HarnessError
from harness.inventory import Node
from harness.runs.schema import CoordinatorState
from harness.trials.context import Context
from harness.trials.nodes import read_journal, read_kernel_log
from harness.trials.samples import RPC_UNIT

NODES_KNOW_MORE = (FailureClass.UNKNOWN, FailureClass.BACKEND_LOST, FailureClass.BACKEND_UNREACHABLE)
"""Classes that an OOM kill, or a backend's own journal, may decide or explain."""


async def diagnose_with_nodes(ctx: Context, state: CoordinatorState) -> None:
    """Diagnose an end once more, with the samples and journals of the nodes as evidence beside the router's.

    Nothing changes for a coordinator that runs, or whose end its exit and signals explain.
    """
    known = state.diagnosis
    if state.exit is None or state.timings is None or (known and known.failure_class not in NODES_KNOW_MORE):
        return
    await ctx.sampler.caught_up(time.time_ns())
    started_ns = state.timings.exec_ns or state.timings.requested_ns
    head = ctx.inventory.head
    nodes = list({node.name: node for node in [head, *ctx.inventory.backends]}.values())
    journals = await asyncio.gather(*(_journal(node, node is head, started_ns) for node in nodes))
    series, ended_ns = ctx.sampler.series, state.exit.time_ns
    log = ctx.run.logs / f"{state.start_id}.log"
    found = classify(
        Inputs(
            node=head.name,
            argv=state.argv,
            exit=state.exit,
            signals=state.signals,
            logs={log.name: log} if log.exists() else {},
            journal={node.name: lines for node, lines in zip(nodes, journals, strict=True)},
            units={
                node.name: {"NRestarts": str(restarts)}
                for node in ctx.inventory.backends
                if (restarts := series.grown(node.name, "rpc_restarts", started_ns, ended_ns))
            },
            oom_kills={
                node.name: series.grown(node.name, "oom_kills", started_ns, ended_ns) or 0 for node in nodes
            },
            plan=state.plan,
            report=state.report,
            expect_distributed=state.plan is None or state.plan.distributed,
        )
    )
    if known is None or found.failure_class is not FailureClass.UNKNOWN:
        state.diagnosis = found


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
