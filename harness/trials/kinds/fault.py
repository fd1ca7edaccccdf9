"""The fault trial: cause one failure at a chosen moment, and hold the diagnosis against the cause."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_on
from harness.cluster.unit_inspection import diagnose_units
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass, Signal
from harness.contracts.run_records import Outcome, Request
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import Inputs
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import LoadRequest, RouterRefusedError
from harness.trials.context import Context, Finding, Loaded, judge
from harness.trials.faults.catalogue import cause_of, make_fault
from harness.trials.faults.fault import Injected, injected, serve_again, to_the_end
from harness.trials.faults.processes import KillCoordinator
from harness.trials.kinds.coordinator_steps import keep_log, stop
from harness.trials.kinds.diagnosis_inputs import diagnose_ready, diagnose_waiting, diagnose_with_nodes
from harness.trials.load_generator.prompts import words
from harness.trials.profile.steps import FaultStep

LONG_ANSWER = 4000
"""Tokens of the request that is under way: more than come before the fault is found."""
LONG_PROMPT = 1500
"""Words: its prompt is still being computed when the fault comes."""
TRANSFERS = "model buffer size"
"""What llama-server prints once its buffers are there, just before it fills them."""
LOOK_EVERY_S = 1.0


@dataclass
class Seen:
    """What there is to say of the coordinator, and of the node's backend, after a fault."""

    state: CoordinatorState | None = None
    coordinator: Diagnosis | None = None
    backend: Diagnosis | None = None

    def take(self, other: "Seen") -> None:
        """Be what was seen last: at a deadline it is all there is to say."""
        self.state, self.coordinator, self.backend = other.state, other.coordinator, other.backend

    def best(self, wanted: FailureClass | None) -> Diagnosis | None:
        """The diagnosis that names the cause, where one does; else the coordinator's, else the backend's."""
        told = [one for one in (self.coordinator, self.backend) if one]
        return next((one for one in told if one.failure_class == wanted), told[0] if told else None)


@dataclass
class Attempt:
    """One fault trial while it runs: what it was asked, what it did, and what was seen last."""

    ctx: Context
    trial: str
    step: FaultStep
    request: LoadRequest
    details: dict[str, Any]
    seen: Seen = field(default_factory=Seen)

    @property
    def node(self) -> Node:
        return self.ctx.inventory.node(self.step.node)

    def fault(self, state: CoordinatorState | None = None) -> AbstractAsyncContextManager[Injected]:
        """Cause the fault for as long as the block runs, and write both moments down."""
        made = make_fault(self.step, self.node, self.ctx.inventory.head, self.ctx.lab, state)
        return injected(made, self._tell, self._undone)

    def _tell(self, record: Injected) -> None:
        self.details.update(injected_ns=record.time_ns, what=record.what)
        told = {"fault": record.kind, "what": record.what}
        self.ctx.event(record.time_ns, "fault", self.trial, record.node, **told)

    def _undone(self) -> None:
        self.details["undone_ns"] = now_ns = time.time_ns()
        if "injected_ns" in self.details:
            self.ctx.event(now_ns, "fault_undone", self.trial, self.node.name, fault=self.step.fault)


async def run_fault(ctx: Context, trial: str, step: FaultStep) -> Finding:
    """Inject, look until the diagnosis is the cause or the time is over, undo; passes if they are the same.

    The fault is undone whatever happens, Ctrl-C included, and the backend serves again before the trial ends.
    The model is split as it would be without the fault.
    """
    await stop(ctx, trial)
    request = LoadRequest(model=step.model, context=step.context, deadline_s=step.deadline_s)
    request = replace(request, plan=(await ctx.router.plan(request)).plan)
    details: dict[str, Any] = {"fault": step.fault, "node": step.node, "moment": step.moment}
    attempt = Attempt(ctx, trial, step, request, details)
    begun_s = time.monotonic()
    try:
        async with asyncio.timeout(step.deadline_s):
            await _acted(attempt)
    except TimeoutError:
        details["deadline_passed"] = True
    finally:
        # Whoever is cancelled waits for what the fault has left, too; and stays cancelled if that fails.
        unserved = await to_the_end(_forget_peer(ctx, step, attempt.node))
    if unserved:
        raise unserved
    metrics = {"fault_s": time.monotonic() - begun_s}
    if injected_ns := details.get("injected_ns"):
        metrics["found_after_s"] = (details.get("found_ns", details["undone_ns"]) - injected_ns) / 1e9
    cause = cause_of(step)
    diagnosis = attempt.seen.best(cause)
    outcome, answer = judge(diagnosis, cause, _answer(step, details, diagnosis))
    if "injected_ns" not in details or details.get("deadline_passed"):
        outcome = Outcome.FAILED
    return Finding(outcome, answer, cause, attempt.seen.state, diagnosis, metrics, details)


async def _acted(attempt: Attempt) -> None:
    """Bring the moment about, cause the fault, and look."""
    ctx, step, seen = attempt.ctx, attempt.step, attempt.seen
    if step.moment in ("idle", "loading"):
        await _around_a_load(attempt)
        return
    seen.take(await _load(ctx, attempt.request))
    if seen.state is None or seen.coordinator:
        return
    async with _request(ctx, attempt.trial, step) as asked:
        await asked
        async with attempt.fault(seen.state) as record:
            ctx.say(f"{step.fault} on {step.node}: looking for its cause")
            # The router did not send the signal that ends its child; this trial did, and knows it.
            ours = record.signals if record.kind == KillCoordinator.kind else ()
            await _find(attempt, ours)


async def _around_a_load(attempt: Attempt) -> None:
    """A fault before a load, or amid one, which may wait for ever: it is looked at meanwhile."""
    ctx, step = attempt.ctx, attempt.step
    async with AsyncExitStack() as stack:
        if step.moment == "idle":
            await stack.enter_async_context(attempt.fault())
        ctx.say(f"loading, {step.fault} on {step.node}")
        loading = asyncio.create_task(_load(ctx, attempt.request))
        stack.callback(loading.cancel)
        if step.moment == "loading":
            await _load_began(ctx, step, loading)
            if loading.done():
                attempt.seen.take(await loading)
                return
            await stack.enter_async_context(attempt.fault())
        await _find(attempt, loading=loading)


async def _load(ctx: Context, request: LoadRequest) -> Seen:
    try:
        state = await ctx.router.load(request)
    except RouterRefusedError as refusal:
        return Seen(refusal.state, refusal.state.diagnosis if refusal.state else None)
    if state.start_id:
        ctx.loaded = Loaded(state.start_id, request.model, request)
    return Seen(state)


async def _load_began(ctx: Context, step: FaultStep, loading: "asyncio.Task[Seen]") -> None:
    """Wait until the coordinator sends tensors to its backends, then as long as the step says."""
    while not loading.done():
        state = await _starting(ctx, step)
        if state and state.start_id and TRANSFERS in await ctx.router.log(state.start_id):
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(step.after_s)


@asynccontextmanager
async def _request(ctx: Context, trial: str, step: FaultStep) -> AsyncIterator[Awaitable[None]]:
    """A long request under way; what it yields is over at the moment that the step asks for."""
    came = asyncio.Event()
    # A longer one than the context would be refused, and the fault come while nothing is under way.
    longest = words(min(LONG_PROMPT, step.context * 3 // 4))
    prompt = longest if step.moment == "prompt" else "Count to ten thousand."
    ask = ChatRequest(
        step.model, prompt, LONG_ANSWER, step.deadline_s, trial=trial, index=1, on_token=came.set
    )
    asking: asyncio.Task[Request] = asyncio.create_task(ctx.router.chat(ask))

    async def moment() -> None:
        if step.moment == "generating":
            waiting = asyncio.create_task(came.wait())
            await asyncio.wait({waiting, asking}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        await asyncio.sleep(step.after_s)
        if asking.done():
            raise HarnessError(
                f"the request was over before the fault came: {(await asking).error or 'answered'}"
            )

    try:
        yield moment()
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            ctx.run.append_request(await asking)


async def _find(
    attempt: Attempt, ours: Sequence[Signal] = (), loading: "asyncio.Task[Seen] | None" = None
) -> None:
    """Look again and again, until a diagnosis is the cause; without one to come, once is enough."""
    ctx, step, seen = attempt.ctx, attempt.step, attempt.seen
    cause, first = cause_of(step), replace(seen)
    while True:
        if loading and (loading.done() or cause is None):
            first, loading = await loading, None
        elif loading:
            first = Seen(await _starting(ctx, step))
        seen.take(await _look(ctx, attempt.node, first, ours))
        if cause is None or ((found := seen.best(cause)) and found.failure_class == cause):
            attempt.details["found_ns"] = time.time_ns()
            return
        await asyncio.sleep(LOOK_EVERY_S)


async def _starting(ctx: Context, step: FaultStep) -> CoordinatorState | None:
    """The coordinator that loads the model now, if one does."""
    state = await ctx.router.coordinator()
    return state if state.model == step.model and state.phase is CoordinatorPhase.STARTING else None


async def _look(ctx: Context, node: Node, first: Seen, ours: Sequence[Signal]) -> Seen:
    state = first.state
    if state and state.start_id:
        state = await ctx.router.start(state.start_id) or state
    seen = Seen(state, first.coordinator)
    if state is not None:
        await keep_log(ctx, state)
        if state.phase is CoordinatorPhase.READY and ctx.loaded and not state.requests_in_flight:
            seen.coordinator = await diagnose_ready(ctx, state)
        elif state.exit and ours:
            seen.coordinator = classify(Inputs(exit=state.exit, signals=list(ours)))
        elif state.exit is None:
            state.diagnosis = None
            await diagnose_waiting(ctx, state)
            seen.coordinator = _told(state.diagnosis)
        else:
            await diagnose_with_nodes(ctx, state)
            seen.coordinator = _told(state.diagnosis)
    with contextlib.suppress(HarnessError):  # a node whose link is cut
        (unit,) = await diagnose_units([node], RPC_UNIT)
        seen.backend = _told(unit.diagnosis)
    return seen


def _told(found: Diagnosis | None) -> Diagnosis | None:
    """A diagnosis that says something: neither a stop, nor that nothing is known."""
    quiet = (FailureClass.UNKNOWN, FailureClass.STOPPED)
    return None if found is None or found.failure_class in quiet else found


async def _forget_peer(ctx: Context, step: FaultStep, node: Node) -> HarnessError | None:
    """End the coordinator, and have the backend serve again; why it does not, where it does not.

    One that was cut off cannot have heard of that: rpc-server waits for a peer that is gone for ever.
    """
    ctx.loaded = None
    with contextlib.suppress(HarnessError):
        await ctx.router.unload(0)
    try:
        if step.fault in ("cut-link", "slow-link"):
            await run_on(node, "systemctl", "restart", RPC_UNIT, root=True)
        await serve_again(node)
    except HarnessError as error:
        ctx.event(time.time_ns(), "warning", None, node.name, message=str(error))
        return error
    return None


def _answer(step: FaultStep, details: dict[str, Any], diagnosis: Diagnosis | None) -> str:
    if "injected_ns" not in details:
        return f"{step.fault} could not be caused: its moment, {step.moment}, did not come"
    told = "nothing was diagnosed"
    if diagnosis:
        line = diagnosis.evidence[0]
        told = f"diagnosed {diagnosis.failure_class}, by {line.source}: {line.line}"
    after = (details.get("found_ns", details["undone_ns"]) - details["injected_ns"]) / 1e9
    return f"{details['what']}, {step.moment}; {told}, after {after:.1f} s"
