"""Slow or stalled? Decided by what makes progress, never by how long an answer takes.

A stalled backend leaves llama-server in one ``recv`` for ever: its main thread does not wake, no token comes,
a request for one token gets none, and no backend's rpc-server uses CPU time. A slow one shows at least one of
these. A node that answered when the model was ready, and now neither sends samples nor answers, is cut off. A
main thread that spins in a request's grammar shows none of them either, but it uses CPU time. One that a
signal has stopped says so in its state, and no backend is to blame.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis.rules import STOPPED_BY_OTHERS
from harness.monitor.backend_state import State, backend_state
from harness.monitor.sample import Sample
from harness.router.config import RouterConfig
from harness.router.coordinator.engine import Engine, LoadError, ThreadUse
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.json_log import log_debug
from harness.router.nodes.backends import BackendWatch, cpu_seconds

_SNAPSHOT_S = 1.0
_SLOTS_WAIT_S = 2.0
_SPINS = 0.1
"""A main thread that spins uses at least this part of a core; one that waits uses almost nothing."""
_ADVICE = (
    "See on each backend's node that rpc-server runs and is not stopped (ps, state T), that the node is up "
    "and its link passes traffic."
)


@dataclass(frozen=True)
class Progress:
    """Counters of which at least one grows while a coordinator works."""

    progress_s: float
    """When a byte of an answer last came; monotonic seconds."""
    main_thread: ThreadUse
    """Of llama-server: it wakes at each reply of a backend."""
    samples: Mapping[str, Sample]
    """Newest sample of each backend's node that publishes: it has the CPU time of its rpc-server."""


def stalled(
    still_s: float,
    samples: Mapping[str, Sample],
    nodes: frozenset[str],
    *,
    now_ns: int,
    sampled_limit_s: float,
    unsampled_limit_s: float,
) -> Diagnosis | None:
    """The diagnosis of a coordinator without any progress for ``still_s``; None while it may be slow.

    Args:
        samples: newest samples of the backends' nodes, where there are any.
        nodes: nodes of the plan.
        sampled_limit_s: enough where every node has a sample, or one says that its backend is gone.
        unsampled_limit_s: enough where nodes publish nothing.
    """
    gone = {
        node: state.reason
        for node, sample in samples.items()
        if (state := backend_state(sample, now_ns)).state in (State.DOWN, State.STARTING)
    }
    decided = bool(gone) or nodes <= samples.keys()
    if still_s < (sampled_limit_s if decided else unsampled_limit_s):
        return None
    still = f"for {still_s:.0f} s no token, no wake-up of llama-server's main thread, no answer to a canary"
    lines = [Evidence(source="router", line=still)]
    lines += [Evidence(source=f"samples {node}", line=reason) for node, reason in gone.items()]
    if decided and not gone:
        lines.append(Evidence(source="samples", line="no backend's rpc-server used CPU time meanwhile"))
    return Diagnosis(
        failure_class=FailureClass.BACKEND_STALLED,
        evidence=lines,
        confidence=Confidence.CERTAIN if decided else Confidence.LIKELY,
        advice=_ADVICE,
    )


def cut_off(still_s: float, reasons: Mapping[str, str]) -> Diagnosis:
    """The diagnosis of a coordinator that waits for nodes which no longer answer: by node, how."""
    still = f"for {still_s:.0f} s no token and no wake-up of llama-server's main thread"
    gone = [
        Evidence(
            source=f"node {node}", line=f"sends no samples, and answers no connection any more: {reason}"
        )
        for node, reason in reasons.items()
    ]
    return Diagnosis(
        failure_class=FailureClass.NETWORK_PARTITION,
        evidence=[Evidence(source="router", line=still), *gone],
        confidence=Confidence.CERTAIN,
        advice="See that the node is up, and check its link: address, cable, switch, firewall.",
    )


def broken_off(still_s: float) -> Diagnosis:
    """The diagnosis of a llama-server that broke off a request, and since then neither works nor ends.

    Builds since 11434 do that for ever when a SIGTERM comes while a request is in flight.
    """
    line = f"llama-server broke off a request for one token, then made no progress for {still_s:.0f} s"
    return Diagnosis(
        failure_class=FailureClass.STOPPED_BUSY,
        evidence=[Evidence(source="router", line=line)],
        confidence=Confidence.LIKELY,
        advice=STOPPED_BY_OTHERS,
    )


def spins(still_s: float, cpu_s: float) -> Diagnosis:
    """The diagnosis of a main thread that computes by itself and neither answers nor asks a backend."""
    line = (
        f"for {still_s:.0f} s no token and no word to a backend, while llama-server's main thread "
        f"used {cpu_s:.0f} s of CPU time"
    )
    return Diagnosis(
        failure_class=FailureClass.HUNG,
        evidence=[Evidence(source="router", line=line)],
        confidence=Confidence.CERTAIN,
        advice="Keep its stack (gdb -p) if it comes again; a request's grammar or schema can do that.",
    )


def stopped(still_s: float) -> Diagnosis:
    """The diagnosis of a llama-server that a signal or a debugger has stopped."""
    line = f"for {still_s:.0f} s llama-server's main thread was stopped (state T)"
    return Diagnosis(
        failure_class=FailureClass.STOPPED_BUSY,
        evidence=[Evidence(source="router", line=line)],
        confidence=Confidence.CERTAIN,
        advice="Somebody stopped it with SIGSTOP or a debugger: see the journal of the head node.",
    )


class Liveness:
    """Watches a coordinator, with requests or without, and proves a new one with one token."""

    def __init__(self, config: RouterConfig, engine: Engine, backends: BackendWatch) -> None:
        self._config = config
        self._engine = engine
        self._backends = backends

    async def verify_token(self, instance: CoordinatorInstance) -> None:
        """Have a new coordinator give one token, however slowly.

        Raises:
            LoadError: it makes no progress, or ended.
        """
        if self._config.canary_deadline_s:
            async with self._canary() as canary:
                await asyncio.wait({canary}, timeout=self._config.canary_deadline_s)
                while not canary.done():
                    if diagnosis := await self._examine(instance, canary):
                        instance.state.diagnosis = diagnosis
                        raise LoadError(diagnosis.failure_class, diagnosis.evidence[0].line)
                if canary.result():
                    instance.timings.canary_ns = time.time_ns()
                    log_debug("canary_answered", start=instance.id)
        if instance.process and instance.process.exit:
            raise LoadError(FailureClass.UNKNOWN, "llama-server ended at the first request for a token")

    async def watch(self, instance: CoordinatorInstance) -> Diagnosis | None:
        """Watch until the instance has ended (None) or it makes no progress any more (the diagnosis)."""
        addresses = {share.node: share.endpoint.rpartition(":")[0] for share in instance.plan.shares}
        silent = await self._backends.unreachable(addresses)
        instance.answering = {node: at for node, at in addresses.items() if node not in silent}
        while not instance.ended.is_set():
            if (left_s := self._config.suspect_s - instance.unproven_s) > 0:
                await instance.ended_within(left_s)
                continue
            if not await self._progresses(instance):
                async with self._canary() as canary:
                    if diagnosis := await self._examine(instance, canary):
                        return diagnosis
            instance.prove_alive()
        return None

    @asynccontextmanager
    async def _canary(self) -> AsyncIterator[asyncio.Task[bool]]:
        canary = asyncio.create_task(self._engine.generate_token())
        try:
            yield canary
        finally:
            canary.cancel()
            await asyncio.gather(canary, return_exceptions=True)

    async def _progresses(self, instance: CoordinatorInstance) -> bool:
        slots = await self._engine.slots(_SLOTS_WAIT_S)
        if slots and not slots.busy:
            return True
        before = await self._snapshot(instance)
        await instance.ended_within(_SNAPSHOT_S)
        signs = signs_of_life(before, await self._snapshot(instance))
        # Asked again only if it answered: each question that waits keeps one of its few threads.
        if slots and (later := await self._engine.slots(_SLOTS_WAIT_S)) and later != slots:
            signs.append("tokens")
        log_debug("no_byte_for_long", start=instance.id, signs=signs)
        return bool(signs)

    async def _examine(self, instance: CoordinatorInstance, canary: asyncio.Task[bool]) -> Diagnosis | None:
        """Compare snapshots: None at the first sign of life, the diagnosis after too long without one."""
        began, nodes = time.monotonic(), frozenset(share.node for share in instance.plan.shares)
        before = await self._snapshot(instance)
        cut: dict[str, str] = {}
        while not instance.ended.is_set():
            if canary.done():
                await instance.ended_within(_SNAPSHOT_S)
            else:
                await asyncio.wait({canary}, timeout=_SNAPSHOT_S)
            now = await self._snapshot(instance)
            refused = canary.done() and not canary.result()
            signs = signs_of_life(before, now)
            if signs or (canary.done() and not refused):
                log_debug("progress_seen", start=instance.id, signs=signs or ["canary"])
                return None
            still_s = time.monotonic() - began
            cpu_s = now.main_thread.cpu_s - before.main_thread.cpu_s
            if before.main_thread.stopped and now.main_thread.stopped:
                diagnosis = stopped(still_s) if still_s >= self._config.suspect_s else None
            elif refused:
                diagnosis = broken_off(still_s) if still_s >= self._config.suspect_s else None
            elif cpu_s >= _SPINS * still_s:
                if not instance.plan.distributed:
                    return None  # it computes the layers itself
                diagnosis = spins(still_s, cpu_s) if still_s >= self._config.spin_deadline_s else None
            else:
                known, cut = cut, await self._cut_off(instance, now)
                # Twice in a row: one attempt may be lost.
                certain = {node: reason for node, reason in cut.items() if node in known}
                diagnosis = stalled(
                    still_s,
                    now.samples,
                    nodes,
                    now_ns=time.time_ns(),
                    sampled_limit_s=self._config.suspect_s,
                    unsampled_limit_s=self._config.stall_deadline_s,
                )
                if certain and still_s >= self._config.suspect_s:
                    diagnosis = cut_off(still_s, certain)
            if diagnosis and not instance.ended.is_set():
                evidence = [line.line for line in diagnosis.evidence]
                log_debug("coordinator_stalled", start=instance.id, evidence=evidence)
                return diagnosis
        return None

    async def _cut_off(self, instance: CoordinatorInstance, now: Progress) -> dict[str, str]:
        quiet = {node: at for node, at in instance.answering.items() if node not in now.samples}
        return await self._backends.unreachable(quiet)

    async def _snapshot(self, instance: CoordinatorInstance) -> Progress:
        samples = await self._backends.samples([share.node for share in instance.plan.shares])
        thread = self._engine.main_thread(instance.process) if instance.process else ThreadUse()
        return Progress(instance.alive_s, thread, samples)


def signs_of_life(before: Progress, now: Progress) -> list[str]:
    """What has grown between two snapshots."""
    signs = []
    if now.progress_s != before.progress_s:
        signs.append("bytes")
    if now.main_thread.wakes != before.main_thread.wakes:
        signs.append("main thread")
    cpu_before_s, cpu_now_s = cpu_seconds(before.samples), cpu_seconds(now.samples)
    signs += [f"cpu of {node}" for node in cpu_before_s if cpu_now_s.get(node, 0) > cpu_before_s[node]]
    return signs
