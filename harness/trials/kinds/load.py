"""The load trial: a model put over the backends, from cold caches or warm ones."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.cluster.inventory import Node
from harness.contracts.coordinator_state import CoordinatorState, distribution_gap
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.plan import LoadRequest
from harness.contracts.run_records import Outcome
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import Inputs
from harness.errors import HarnessError
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterRefusedError
from harness.tensor_cache.client import make_cold
from harness.trials.context import Context, Loaded, TrialResult, grade, load_key
from harness.trials.kinds.coordinator_steps import (
    any_timed_out,
    diagnose_requests,
    ended_state,
    keep_log,
    record_end,
    stop,
)
from harness.trials.kinds.diagnosis_inputs import diagnose_ready, diagnose_with_nodes
from harness.trials.kinds.load_figures import (
    load_answer,
    load_floors,
    load_metrics,
    local_footprint,
    measured_rates,
    wire_metrics,
)
from harness.trials.load_generator.thrash_guard import ends_thrash
from harness.trials.profile.steps import LoadStep

REFUSED = "refused"
"""In the details of a load that the router refused: the class of its refusal."""
WARM_SHARE = 0.5
"""A warm load that moves this much of what the cold one moved found nothing in the caches."""


async def run_load(ctx: Context, trial: str, step: LoadStep) -> TrialResult:
    """Unload the loaded model, prepare the caches as the step says, load, and request one token."""
    nodes = ctx.backends(step.nodes)
    if nodes is None:
        return TrialResult(Outcome.SKIPPED, too_few_backends(ctx, step.nodes), step.expected)
    request = load_request(step, nodes)
    key = load_key(request)
    if reason := _skipped(ctx, step, key):
        return TrialResult(Outcome.SKIPPED, reason, step.expected)
    if step.repeats_split:
        # A starved load keeps the split made before the node shrank.
        request = request.model_copy(update={"plan": ctx.plans.get(key)})
    ctx.say("unloading the loaded model")
    await stop(ctx, trial)
    details: dict[str, Any] = {"cache": step.cache, "nodes": [node.name for node in nodes]}
    if step.cache == "cold":
        ctx.say("emptying caches")
        path = str(ctx.models[step.model]["path"])
        details["made_cold"] = await make_cold(ctx.inventory.backends, ctx.inventory.head, path)
        for node, result in details["made_cold"].items():
            for file, resident in result["resident_after"].items():
                if resident:
                    message = f"{resident / 2**20:,.0f} MiB of {file} stayed in the page cache of a cold load"
                    ctx.warn(node, message, trial)
    if step.starve:
        ctx.limit_memory(step.starve.node, step.starve.memory)
        details["starved"] = step.starve.model_dump()
    details["rates_bytes_per_s"] = await measured_rates(ctx, step.model)
    with suppress(RouterRefusedError):  # the load itself reports it with its state
        details["hashed_bytes"] = (await ctx.router.plan(request)).forecast.hash_bytes
    ctx.say("loading")
    started_ns = time.time_ns()
    try:
        async with ends_thrash(ctx) as watch:
            state = await ctx.router.load(request)
    except RouterRefusedError as refusal:
        if watch.diagnosis:
            return await refused(ctx, trial, step.expected, refusal, details, watch.diagnosis)
        details[REFUSED] = refusal.failure_class
        if step.may_not_fit and refusal.failure_class == "does_not_fit":
            return TrialResult(Outcome.SKIPPED, f"it does not fit: {refusal}", step.expected, details=details)
        return await refused(ctx, trial, step.expected, refusal, details)
    return await _ready(ctx, trial, step, key, request, state, started_ns, details)


def load_request(step: LoadStep, nodes: Sequence[Node]) -> LoadRequest:
    """The body of the load, without a plan: the router makes one."""
    return LoadRequest(
        model=step.model,
        nodes=[node.name for node in nodes],
        n_gpu_layers=step.n_gpu_layers,
        flags=step.flags,
        context=step.context,
        deadline_s=step.deadline_s,
        cold=step.cache == "cold",
        parallel=step.parallel,
    )


def too_few_backends(ctx: Context, wanted: int | list[str] | None) -> str:
    """Why a trial that wants more backends than there are is skipped."""
    return f"the inventory has {len(ctx.inventory.backends)} backends, the trial asks for {wanted}"


def _skipped(ctx: Context, step: LoadStep, key: str) -> str | None:
    if step.cache == "warm" and key not in ctx.plans:
        return (
            f"a warm load of {step.model} needs an earlier one over the same nodes in this run; none came up"
        )
    if step.starve and ctx.lab is None:
        return "only a lab's node can be starved, and this inventory names no lab that runs on this computer"
    return None


async def _ready(
    ctx: Context,
    trial: str,
    step: LoadStep,
    key: str,
    request: LoadRequest,
    state: CoordinatorState,
    started_ns: int,
    details: dict[str, Any],
) -> TrialResult:
    ended_ns = time.time_ns()
    if state.start_id is None or state.plan is None:
        raise HarnessError(
            "the router calls the load ready but gives no start and no plan; deploy the router again"
        )
    ctx.loaded = Loaded(state.start_id, request)
    gap = diagnosis = undistributed(state)
    if gap is None:
        ctx.plans[key] = state.plan
        state, diagnosis = await _canary(ctx, trial, step, state)
        diagnosis = diagnosis or await diagnose_ready(ctx, state)
    await keep_log(ctx, state)
    await ctx.sampler.caught_up(ended_ns)
    metrics = load_metrics(state) | wire_metrics(ctx, state, started_ns, ended_ns, details)
    read = metrics.get("file_bytes") if step.cache == "cold" else None
    metrics |= load_floors(details["rates_bytes_per_s"], read, details.get("hashed_bytes"))
    if gap:
        diagnosis = undistributed(state, ctx.run.logs / f"{state.start_id}.log")
        metrics |= local_footprint(state)
    answer = load_answer(state, metrics, diagnosis)
    if diagnosis is None and (reason := _not_warm(ctx, step, key, metrics)):
        answer = f"{answer}: {reason}"
        return TrialResult(Outcome.FAILED, answer, step.expected, state, None, metrics, details)
    return grade(answer, step.expected, diagnosis, state, metrics, details)


def _not_warm(ctx: Context, step: LoadStep, key: str, metrics: dict[str, float]) -> str | None:
    """Why a warm load does not count as one: too much crossed the wire. None where it counts."""
    crossed, cold = metrics.get("wire_bytes"), ctx.cold_wire_bytes.get(key)
    if crossed is not None and step.cache == "cold":
        ctx.cold_wire_bytes[key] = crossed
    if step.cache == "cold" or crossed is None or cold is None or crossed < WARM_SHARE * cold:
        return None
    return (
        f"not warm: the cold load moved {cold / 2**20:,.0f} MiB, so the backends' caches were of no use "
        "(llama.cpp asks them for tensors over 10 MiB only)"
    )


async def _canary(
    ctx: Context, trial: str, step: LoadStep, state: CoordinatorState
) -> tuple[CoordinatorState, Diagnosis | None]:
    """Ask for one token: it proves that every backend computes.

    Returns:
        The coordinator's state after it, and why no token came.
    """
    ctx.say("one token")
    canary = await ctx.router.chat(
        ChatRequest(step.model, "the", 1, min(step.deadline_s, 300), trial=trial, warmup=True)
    )
    ctx.run.append_request(canary)
    if canary.error:
        ended = await ended_state(ctx, late=any_timed_out([canary]))
        return ended or state, diagnose_requests(ended, [canary], f"one-token canary: {canary.error}")
    if state.timings and canary.token_ns:
        state.timings.canary_ns = ctx.clocks.to_node(ctx.inventory.head.name, canary.token_ns[0])
    return state, None


async def refused(
    ctx: Context,
    trial: str,
    expected: FailureClass | None,
    refusal: RouterRefusedError,
    details: dict[str, Any],
    thrash: Diagnosis | None = None,
) -> TrialResult:
    """The result of a load that the router refused, or that did not become ready.

    Args:
        thrash: why the trial itself ended the load.
    """
    state = refusal.state
    if state is not None:
        await keep_log(ctx, state)
        if thrash is None:
            await diagnose_with_nodes(ctx, state)
        record_end(ctx, trial, state)
    if thrash:
        answer = "; ".join(f"{evidence.source}: {evidence.line}" for evidence in thrash.evidence)
        return grade(answer, expected, thrash, state, details=details)
    diagnosis = state.diagnosis if state and state.diagnosis else _from_class(refusal)
    metrics = local_footprint(state) if state else {}
    return grade(str(refusal), expected, diagnosis, state, metrics, details)


def _from_class(refusal: RouterRefusedError) -> Diagnosis:
    name = refusal.failure_class
    return Diagnosis(
        failure_class=FailureClass(name) if name in set(FailureClass) else FailureClass.UNKNOWN,
        evidence=[Evidence(source="router", line=str(refusal))],
        confidence=Confidence.POSSIBLE,
        advice="The router refused the load; its message says what it needs.",
    )


def undistributed(state: CoordinatorState, log: Path | None = None) -> Diagnosis | None:
    """Why a ready coordinator does not count as distributed; None where it does.

    It counts only if every layer is offloaded and each planned backend holds part of the model.

    Args:
        log: the coordinator's, for a line of it as evidence.
    """
    report = state.report
    if report and state.plan and distribution_gap(report, state.plan) is None:
        return None
    logs = {log.name: log} if log and log.exists() else {}
    # A plan with -ngl 0 is not distributed by intent; the trial says so all the same.
    diagnosis = classify(Inputs(running=True, argv=state.argv, logs=logs, plan=state.plan, report=report))
    if diagnosis.failure_class is FailureClass.NOT_DISTRIBUTED:
        return diagnosis
    return Diagnosis(
        failure_class=FailureClass.NOT_DISTRIBUTED,
        evidence=[Evidence(source="load report", line=report.model_dump_json() if report else "no report")],
        confidence=Confidence.LIKELY,
        advice="The log does not show every layer on the planned backends.",
    )
