"""The fault trial: cause one failure at a chosen moment, and compare the diagnosis with the cause."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_on
from harness.cluster.unit_inspection import diagnose_units
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass, Signal
from harness.contracts.plan import LoadRequest
from harness.contracts.run_records import Outcome
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import Inputs
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterRefusedError
from harness.trials.context import Context, Loaded, TrialResult, grade
from harness.trials.faults.catalogue import cause_of, make_fault
from harness.trials.faults.fault import Injected, ensure_serving, injected, run_to_completion
from harness.trials.kinds.coordinator_steps import keep_log, stop
from harness.trials.kinds.diagnosis_inputs import diagnose_ready, diagnose_waiting, diagnose_with_nodes
from harness.trials.load_generator.requests import words
from harness.trials.profile.steps import FaultStep

LONG_ANSWER = 4000
"""Tokens of the request in flight: more than come before the fault is diagnosed."""
LONG_PROMPT = 1500
"""Words: its prompt is still being computed when the fault comes."""
OBSERVE_EVERY_S = 1.0
_POLL_S = 0.1
_INCONCLUSIVE = (FailureClass.UNKNOWN, FailureClass.STOPPED)


@dataclass(frozen=True)
class Observation:
    """One observation; a diagnosis that says nothing of a failure is None."""

    state: CoordinatorState | None = None
    coordinator: Diagnosis | None = None
    backend: Diagnosis | None = None

    def best(self, cause: FailureClass | None) -> Diagnosis | None:
        """The diagnosis that names the cause, if one does; else the coordinator's, else the backend's."""
        diagnoses = [diagnosis for diagnosis in (self.coordinator, self.backend) if diagnosis]
        return next((d for d in diagnoses if d.failure_class == cause), next(iter(diagnoses), None))


async def run_fault(ctx: Context, trial: str, step: FaultStep) -> TrialResult:
    """Inject, observe until the diagnosis is the cause or the time is over, undo; passes if it is the cause.

    The fault is undone whatever happens, Ctrl-C included, and the backend serves again before the trial ends.
    The model is split as it would be without the fault.
    """
    await stop(ctx, trial)
    request = LoadRequest(model=step.model, context=step.context, deadline_s=step.deadline_s)
    request = request.model_copy(update={"plan": (await ctx.router.plan(request)).plan})
    details: dict[str, Any] = {"fault": step.fault, "node": step.node, "moment": step.moment}
    attempt = Attempt(ctx, trial, step, ctx.inventory.node(step.node), request, details)
    begun_s = time.monotonic()
    try:
        async with asyncio.timeout(step.deadline_s):
            await attempt.run()
    except TimeoutError:
        details["deadline_passed"] = True
    finally:
        # A cancelled caller waits for the cleanup too, and stays cancelled if that fails.
        failed_cleanup = await run_to_completion(attempt.clean_up())
    if failed_cleanup:
        raise failed_cleanup
    metrics = {"fault_s": time.monotonic() - begun_s}
    if injected_ns := details.get("injected_ns"):
        metrics["found_after_s"] = (details.get("found_ns", details["undone_ns"]) - injected_ns) / 1e9
    cause = cause_of(step)
    diagnosis = attempt.observation.best(cause)
    answer, state = _answer(step, details, diagnosis), attempt.observation.state
    result = grade(answer, cause, diagnosis, state, metrics, details)
    if "injected_ns" not in details or details.get("deadline_passed"):
        result.outcome = Outcome.FAILED
    return result


@dataclass
class Attempt:
    """One fault trial while it runs. At a deadline, the last observation is the result."""

    ctx: Context
    trial: str
    step: FaultStep
    node: Node
    request: LoadRequest
    details: dict[str, Any]
    observation: Observation = field(default_factory=Observation)

    async def run(self) -> None:
        """Wait for the moment, cause the fault, and observe."""
        if self.step.moment in ("idle", "loading"):
            await self._around_a_load()
            return
        self.observation = await self._load()
        if self.observation.state is None or self.observation.coordinator:
            return
        async with self._request_in_flight() as moment:
            await moment
            async with self._fault(self.observation.state) as record:
                self.ctx.say(f"{self.step.fault} on {self.step.node}: looking for its cause")
                await self._find(record.signals)

    async def clean_up(self) -> HarnessError | None:
        """End the coordinator, and have the backend serve again; the reason where it does not.

        After a cut link rpc-server is restarted: it waits for ever for a peer whose end it could not hear of.
        """
        self.ctx.loaded = None
        with contextlib.suppress(HarnessError):
            await self.ctx.router.unload(0)
        try:
            if self.step.fault in ("cut-link", "slow-link"):
                await run_on(self.node, "systemctl", "restart", RPC_UNIT, root=True)
            await ensure_serving(self.node)
        except HarnessError as error:
            self.ctx.warn(self.node.name, str(error))
            return error
        return None

    async def _around_a_load(self) -> None:
        """A fault before a load, or amid one, which may wait for ever: it is observed meanwhile."""
        async with AsyncExitStack() as stack:
            if self.step.moment == "idle":
                await stack.enter_async_context(self._fault())
            self.ctx.say(f"loading, {self.step.fault} on {self.step.node}")
            loading = asyncio.create_task(self._load())
            stack.callback(loading.cancel)
            if self.step.moment == "loading":
                await self._transfer_began(loading)
                if loading.done():
                    self.observation = await loading
                    return
                await stack.enter_async_context(self._fault())
            await self._find(loading=loading)

    @asynccontextmanager
    async def _fault(self, state: CoordinatorState | None = None) -> AsyncIterator[Injected]:
        """The fault for as long as a block runs, with an event at its start and at its end."""
        fault = make_fault(self.step, self.node, self.ctx.inventory.head, self.ctx.lab, state)
        record, event = None, self.ctx.event
        try:
            async with injected(fault) as record:
                self.details.update(injected_ns=record.time_ns, what=record.what)
                event(record.time_ns, "fault", self.trial, record.node, fault=record.kind, what=record.what)
                yield record
        finally:
            if record and record.undone_ns:
                self.details["undone_ns"] = record.undone_ns
                event(record.undone_ns, "fault_undone", self.trial, record.node, fault=record.kind)

    async def _load(self) -> Observation:
        try:
            state = await self.ctx.router.load(self.request)
        except RouterRefusedError as refusal:
            return Observation(refusal.state, refusal.state.diagnosis if refusal.state else None)
        if state.start_id:
            self.ctx.loaded = Loaded(state.start_id, self.request)
        return Observation(state)

    async def _transfer_began(self, loading: "asyncio.Task[Observation]") -> None:
        """Wait until the coordinator sends tensors to its backends, then as long as the step says.

        llama-server prints the sizes of its model buffers just before it fills them.
        """
        while not loading.done():
            state = await self._starting()
            if state and state.report and any(buffer.model_bytes for buffer in state.report.buffers):
                break
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(self.step.after_s)

    async def _starting(self) -> CoordinatorState | None:
        """The coordinator that loads the model now, if one does."""
        state = await self.ctx.router.coordinator()
        starting = state.model == self.step.model and state.phase is CoordinatorPhase.STARTING
        return state if starting else None

    @asynccontextmanager
    async def _request_in_flight(self) -> AsyncIterator[Awaitable[None]]:
        """A long request; yields what returns at the moment that the step names."""
        step, first_token = self.step, asyncio.Event()
        # One that is longer than the context would be refused, and the fault come while none is in flight.
        longest = words(min(LONG_PROMPT, step.context * 3 // 4))
        prompt = longest if step.moment == "prompt" else "Count to ten thousand."
        limits = (LONG_ANSWER, step.deadline_s)
        chat = ChatRequest(step.model, prompt, *limits, trial=self.trial, index=1, on_token=first_token.set)
        request = asyncio.create_task(self.ctx.router.chat(chat))

        async def moment() -> None:
            if step.moment == "generating":
                waiting = asyncio.create_task(first_token.wait())
                await asyncio.wait({waiting, request}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            await asyncio.sleep(step.after_s)
            if request.done():
                ended = (await request).error or "answered"
                raise HarnessError(f"the request was over before the fault came: {ended}")

        try:
            yield moment()
        finally:
            request.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self.ctx.run.append_request(await request)

    async def _find(
        self, own_signals: Sequence[Signal] = (), loading: "asyncio.Task[Observation] | None" = None
    ) -> None:
        """Observe until a diagnosis is the cause; once, where the fault is no failure."""
        cause, load = cause_of(self.step), self.observation
        while True:
            if loading and (loading.done() or cause is None):
                load, loading = await loading, None
            elif loading:
                load = Observation(await self._starting())
            self.observation = await observe(self.ctx, self.node, load, own_signals)
            best = self.observation.best(cause)
            if cause is None or (best and best.failure_class == cause):
                self.details["found_ns"] = time.time_ns()
                return
            await asyncio.sleep(OBSERVE_EVERY_S)


def _answer(step: FaultStep, details: dict[str, Any], diagnosis: Diagnosis | None) -> str:
    if "injected_ns" not in details:
        return f"{step.fault} could not be caused: its moment, {step.moment}, did not come"
    verdict = "nothing was diagnosed"
    if diagnosis:
        line = diagnosis.evidence[0]
        verdict = f"diagnosed {diagnosis.failure_class}, by {line.source}: {line.line}"
    after_s = (details.get("found_ns", details["undone_ns"]) - details["injected_ns"]) / 1e9
    return f"{details['what']}, {step.moment}; {verdict}, after {after_s:.1f} s"


async def observe(
    ctx: Context, node: Node, load: Observation, own_signals: Sequence[Signal] = ()
) -> Observation:
    """Diagnose the coordinator and the node's backend as they are now.

    Args:
        load: the coordinator that was loaded, or loads, and the diagnosis of a load that failed.
        own_signals: those that the fault sent to the coordinator: the router does not know of them.
    """
    state, coordinator, backend = load.state, load.coordinator, None
    if state and state.start_id:
        state = await ctx.router.start(state.start_id) or state
    if state is not None:
        await keep_log(ctx, state)
        coordinator = await _diagnose_coordinator(ctx, state, own_signals)
    with contextlib.suppress(HarnessError):  # a node whose link is cut
        (unit,) = await diagnose_units([node], RPC_UNIT)
        backend = _conclusive(unit.diagnosis)
    return Observation(state, coordinator, backend)


async def _diagnose_coordinator(
    ctx: Context, state: CoordinatorState, own_signals: Sequence[Signal]
) -> Diagnosis | None:
    if state.phase is CoordinatorPhase.READY and ctx.loaded and not state.requests_in_flight:
        return await diagnose_ready(ctx, state)
    if state.exit and own_signals:
        return classify(Inputs(exit=state.exit, signals=list(own_signals)))
    if state.exit is None:
        state.diagnosis = None
        await diagnose_waiting(ctx, state)
    else:
        await diagnose_with_nodes(ctx, state)
    return _conclusive(state.diagnosis)


def _conclusive(diagnosis: Diagnosis | None) -> Diagnosis | None:
    return None if diagnosis is None or diagnosis.failure_class in _INCONCLUSIVE else diagnosis
