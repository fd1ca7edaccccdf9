"""The load trial: a model put over the backends, from cold caches or warm ones."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from harness.cluster.inventory import Node
from harness.cluster.ssh import make_cold
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.plan import Plan
from harness.contracts.run_records import Outcome
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import Inputs
from harness.errors import HarnessError
from harness.llama.load_log import missing_backends
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import LoadRequest, RouterRefusedError
from harness.trials.context import Context, Finding, Loaded, LoadKey, judge
from harness.trials.kinds.coordinator_steps import (
    any_late,
    diagnose_requests,
    ended_state,
    keep_log,
    record_end,
    stop,
)
from harness.trials.kinds.diagnosis_inputs import diagnose_ready, diagnose_with_nodes
from harness.trials.kinds.load_figures import load_answer, load_metrics, local_footprint, wire_metrics
from harness.trials.kinds.lower_bounds import load_floors, measured_rates
from harness.trials.lab import lab_memory_limit
from harness.trials.load_generator.thrash_guard import ends_thrash
from harness.trials.profile.steps import LoadStep, Starve

REFUSED = "refused"
"""In the details of a load that the router refused: the class of its refusal."""
WARM_SHARE = 0.5
"""A warm load that moves this much of what the cold one moved found nothing in the caches."""


async def run_load(ctx: Context, trial: str, step: LoadStep) -> Finding:
    """Unload what is up, make the caches what the step says, load, and prove it with one token."""
    nodes = ctx.backends(step.nodes)
    key = load_key(step, nodes or ())
    if reason := _skipped(ctx, step, nodes, key):
        return Finding(Outcome.SKIPPED, reason, step.expected)
    assert nodes is not None  # noqa: S101 - _skipped says so
    ctx.say("unloading what is up")
    await stop(ctx, trial)
    details: dict[str, Any] = {"cache": step.cache, "nodes": [node.name for node in nodes]}
    if step.cache == "cold":
        ctx.say("emptying caches")
        path = str(ctx.models[step.model]["path"])
        made = await make_cold(ctx.inventory.backends, ctx.inventory.head, path)
        details["made_cold"] = made
        _warn_of_warm_pages(ctx, trial, made)
    request = load_request(step, nodes, _plan(ctx, step, key))
    if step.starve:
        starve(ctx, step.starve)
        details["starved"] = step.starve.model_dump()
    details["rates_bytes_per_s"] = await measured_rates(ctx, step.model)
    with suppress(RouterRefusedError):  # which the load itself will say better
        details["hashed_bytes"] = (await ctx.router.plan(request)).forecast.hash_bytes
    ctx.say("loading")
    started_ns = time.time_ns()
    try:
        async with ends_thrash(ctx) as watch:
            state = await ctx.router.load(request)
    except RouterRefusedError as refusal:
        if watch.found:
            return await _hopeless(ctx, trial, step, refusal, watch.found, details)
        details[REFUSED] = refusal.failure_class
        if step.may_not_fit and refusal.failure_class == "does_not_fit":
            return Finding(Outcome.SKIPPED, f"it does not fit: {refusal}", step.expected, details=details)
        return await refused(ctx, trial, step.expected, refusal, details)
    return await _ready(ctx, trial, step, key, request, state, started_ns, details)


def load_key(step: LoadStep, nodes: Sequence[Node]) -> LoadKey:
    """What makes another load the same as this one."""
    return LoadKey(
        step.model,
        tuple(node.name for node in nodes),
        step.n_gpu_layers,
        tuple(step.flags),
        step.context,
        step.parallel,
    )


def load_request(step: LoadStep, nodes: Sequence[Node], plan: Plan | None) -> LoadRequest:
    """What the router is asked for."""
    return LoadRequest(
        model=step.model,
        plan=plan,
        nodes=[node.name for node in nodes],
        n_gpu_layers=step.n_gpu_layers,
        flags=tuple(step.flags),
        context=step.context,
        deadline_s=step.deadline_s,
        cold=step.cache == "cold",
        parallel=step.parallel,
    )


def starve(ctx: Context, wanted: Starve) -> None:
    """Lower a lab machine's memory limit; ``feed_again`` gives it back.

    Raises:
        HarnessError: this inventory has no lab that is up here, or no such machine.
    """
    if ctx.lab is None:
        raise HarnessError("only a lab's machine can be starved; leave 'starve' out")
    ctx.starved.add(ctx.lab.machine(wanted.node).name)
    lab_memory_limit(ctx.lab, wanted.node, wanted.memory)


def _skipped(ctx: Context, step: LoadStep, nodes: list[Node] | None, key: LoadKey) -> str | None:
    if nodes is None:
        return f"the inventory has {len(ctx.inventory.backends)} backends, the trial asks for {step.nodes}"
    if step.cache == "warm" and key not in ctx.plans:
        return (
            f"a warm load of {step.model} needs an earlier one over the same nodes in this run; none came up"
        )
    if step.starve and ctx.lab is None:
        return "only a lab's node can be starved, and this inventory names no lab that is up on this computer"
    return None


def _plan(ctx: Context, step: LoadStep, key: LoadKey) -> Plan | None:
    """A warm load repeats the earlier split; a starved one keeps the split made before the node shrank."""
    return ctx.plans.get(key) if step.cache == "warm" or step.starve else None


async def _ready(
    ctx: Context,
    trial: str,
    step: LoadStep,
    key: LoadKey,
    request: LoadRequest,
    state: CoordinatorState,
    started_ns: int,
    details: dict[str, Any],
) -> Finding:
    ended_ns = time.time_ns()
    if state.start_id is None or state.plan is None:
        raise HarnessError(
            "the router calls the load ready but gives no start and no plan; deploy the router again"
        )
    ctx.loaded = Loaded(state.start_id, step.model, request)
    gap = undistributed(state)
    diagnosis = gap
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
        diagnosis = _with_log(ctx, state, gap)
        metrics |= local_footprint(state)
    answer = load_answer(state, metrics, diagnosis)
    if diagnosis is None and (reason := _not_warm(ctx, step, key, metrics)):
        return Finding(Outcome.FAILED, f"{answer}: {reason}", step.expected, state, None, metrics, details)
    outcome, answer = judge(diagnosis, step.expected, answer)
    return Finding(outcome, answer, step.expected, state, diagnosis, metrics, details)


def _warn_of_warm_pages(ctx: Context, trial: str, made_cold: dict[str, Any]) -> None:
    """Say which node kept pages of a file that was to leave its page cache: such a load is not quite cold."""
    for node, done in made_cold.items():
        for path, kept in done["resident_after"].items():
            if kept:
                message = f"{kept / 2**20:,.0f} MiB of {path} stayed in the page cache of a cold load"
                ctx.event(time.time_ns(), "warning", trial, node, message=message)


def _not_warm(ctx: Context, step: LoadStep, key: LoadKey, metrics: dict[str, float]) -> str | None:
    """Why a warm load does not count as one: too much crossed the wire. None where it counts."""
    crossed = metrics.get("wire_bytes")
    if crossed is None:
        return None
    if step.cache == "cold":
        ctx.cold_wire_bytes[key] = crossed
    cold = ctx.cold_wire_bytes.get(key)
    if step.cache == "cold" or cold is None or crossed < WARM_SHARE * cold:
        return None
    return (
        f"not warm: the cold load moved {cold / 2**20:,.0f} MiB, so the backends' caches were of no use "
        "(llama.cpp asks them for tensors over 10 MiB only)"
    )


async def _canary(
    ctx: Context, trial: str, step: LoadStep, state: CoordinatorState
) -> tuple[CoordinatorState, Diagnosis | None]:
    """Ask for one token: until then a load has not shown that every backend computes.

    Returns:
        The coordinator's state after it, and why no token came.
    """
    ctx.say("one token")
    seen = await ctx.router.chat(
        ChatRequest(step.model, "the", 1, min(step.deadline_s, 300), trial=trial, warmup=True)
    )
    ctx.run.append_request(seen)
    if seen.error:
        ended = await ended_state(ctx, late=any_late([seen]))
        return ended or state, diagnose_requests(ended, [seen], f"one-token canary: {seen.error}")
    if state.timings and seen.token_ns:
        offset = ctx.clock_offset_ns.get(ctx.inventory.head.name, 0)
        state.timings.canary_ns = seen.token_ns[0] + offset
    return state, None


async def _hopeless(
    ctx: Context,
    trial: str,
    step: LoadStep,
    refusal: RouterRefusedError,
    found: Diagnosis,
    details: dict[str, Any],
) -> Finding:
    """A load that was ended because it thrashed and stood still."""
    state = refusal.state
    if state is not None:
        await keep_log(ctx, state)
        record_end(ctx, trial, state)
    told = "; ".join(f"{one.source}: {one.line}" for one in found.evidence)
    outcome, answer = judge(found, step.expected, told)
    return Finding(outcome, answer, step.expected, state, found, details=details)


async def refused(
    ctx: Context,
    trial: str,
    expected: FailureClass | None,
    refusal: RouterRefusedError,
    details: dict[str, Any],
) -> Finding:
    """What a load that the router refused, or that did not come up, says about itself."""
    state = refusal.state
    if state is not None:
        await keep_log(ctx, state)
        await diagnose_with_nodes(ctx, state)
        record_end(ctx, trial, state)
    diagnosis = state.diagnosis if state and state.diagnosis else _from_class(refusal)
    outcome, answer = judge(diagnosis, expected, str(refusal))
    metrics = local_footprint(state) if state else {}
    return Finding(outcome, answer, expected, state, diagnosis, metrics, details)


def _from_class(refusal: RouterRefusedError) -> Diagnosis:
    known = {member.value for member in FailureClass}
    name = refusal.failure_class if refusal.failure_class in known else FailureClass.UNKNOWN
    return Diagnosis(
        failure_class=FailureClass(name),
        evidence=[Evidence(source="router", line=str(refusal))],
        confidence=Confidence.POSSIBLE,
        advice="The router refused the load; its message says what it needs.",
    )


def undistributed(state: CoordinatorState) -> Diagnosis | None:
    """Why a ready coordinator does not count as distributed; None where it does.

    It counts only if every layer is offloaded and each planned backend holds part of the model.
    """
    report = state.report
    if report and report.distributed and state.plan and not missing_backends(report, state.plan):
        return None
    # A plan with -ngl 0 is not distributed by intent; the trial says so all the same.
    found = classify(Inputs(running=True, argv=state.argv, plan=state.plan, report=report))
    if found.failure_class is FailureClass.NOT_DISTRIBUTED:
        return found
    return Diagnosis(
        failure_class=FailureClass.NOT_DISTRIBUTED,
        evidence=[Evidence(source="load report", line=report.model_dump_json() if report else "no report")],
        confidence=Confidence.LIKELY,
        advice="The log does not show every layer on the planned backends.",
    )


def _with_log(ctx: Context, state: CoordinatorState, gap: Diagnosis) -> Diagnosis:
    """The same verdict with the log's own line as its evidence."""
    log = ctx.run.logs / f"{state.start_id}.log"
    if not log.exists():
        return gap
    lines = {log.name: log.read_text(errors="replace").splitlines()}
    found = classify(Inputs(running=True, argv=state.argv, logs=lines, plan=state.plan, report=state.report))
    return found if found.failure_class is FailureClass.NOT_DISTRIBUTED else gap
