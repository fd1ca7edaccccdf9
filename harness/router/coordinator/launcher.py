"""From a plan to a running llama-server, and to its end: what is signalled, when, and why."""

import asyncio
import logging
import math
import time
from functools import partial

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import FailureClass
from harness.router.config import RouterConfig
from harness.router.coordinator.engine import CoordinatorProcess, Engine, LoadError
from harness.router.coordinator.instance import CoordinatorInstance, prune
from harness.router.coordinator.liveness import Liveness
from harness.router.coordinator.post_mortem import PostMortem, diagnose_load
from harness.router.coordinator.readiness import wait_until_ready
from harness.router.coordinator.recovery import Recovery
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.json_log import log
from harness.router.supervisor import TaskSupervisor

_KILL_WAIT_S = 10
_SECOND_SIGNAL_S = 2.0
"""Builds since 11434 wait for ever after a stop signal during a request; a second signal ends them."""
_SLOTS_WAIT_S = 0.5
_DRAIN_POLL_S = 0.2
"""A drain may be given less time while it waits."""
_BACKENDS_POLL_S = 2.0
_STATUS = {FailureClass.HUNG: 504, FailureClass.BACKEND_UNREACHABLE: 503, FailureClass.DISK_FULL: 507}


class Launcher:
    """Starts and stops one instance at a time; it decides nothing.

    Args:
        tasks: runs what goes on beside a load, and until the end of an instance.
    """

    def __init__(
        self,
        config: RouterConfig,
        engine: Engine,
        *,
        liveness: Liveness,
        recovery: Recovery,
        post_mortem: PostMortem,
        metrics: Metrics,
        tasks: TaskSupervisor,
    ) -> None:
        self._config = config
        self._engine = engine
        self._liveness = liveness
        self._recovery = recovery
        self._post_mortem = post_mortem
        self._metrics = metrics
        self._tasks = tasks

    async def start(self, instance: CoordinatorInstance, *, deadline_s: float) -> None:
        """Start the process and wait until it is ready; one that fails, or is interrupted, is stopped.

        Raises:
            RouterError: it did not become ready; the state says why.
        """
        backends = self._tasks.keep_running("coordinator_backends", partial(self._watch_backends, instance))
        try:
            process = await self._spawn(instance)
            await wait_until_ready(
                instance, process, self._engine, poll_s=self._config.poll_s, deadline_s=deadline_s
            )
            if instance.for_requests:
                await self._liveness.verify_token(instance)
        except LoadError as error:
            raise await self._give_up(instance, error) from None
        except asyncio.CancelledError as cancelled:
            reason = cancelled.args[0] if cancelled.args else "the load was cancelled"
            await self._stop_at_once(instance, reason)
            raise
        except Exception:
            await self._stop_at_once(instance, "the load broke off")
            raise
        finally:
            backends.cancel()
        instance.mark_ready()
        load_s = instance.timings.load_s or 0
        log("coordinator_ready", start=instance.id, load_s=load_s)
        self._metrics.load_seconds.observe(load_s)
        self._tasks.keep_running("coordinator_liveness", partial(self._watch_liveness, instance))

    async def _spawn(self, instance: CoordinatorInstance) -> CoordinatorProcess:
        process = await self._engine.spawn(instance.state.argv, instance.folder)
        self._tasks.start("coordinator_end", self._follow(instance, process))
        instance.process = process
        instance.state.pid = process.pid
        instance.timings.exec_ns = process.exec_ns
        instance.save()
        log("coordinator_started", start=instance.id, pid=process.pid, argv=instance.state.argv)
        self._metrics.coordinator_starts.inc()
        return process

    async def _give_up(self, instance: CoordinatorInstance, error: LoadError) -> RouterError:
        """Stop an instance whose load failed; the error for the requests, with its diagnosis."""
        if instance.state.diagnosis is None:
            instance.state.diagnosis = diagnose_load(instance, error.failure, error.message)
        if instance.state.report:
            instance.state.distributed = False
        await self._stop_at_once(instance, error.message)
        failure = instance.failure if error.failure is FailureClass.UNKNOWN else str(error.failure)
        message = f"{instance.model}: {error.message}"
        return RouterError(_STATUS.get(error.failure, 502), failure, message, state=instance.state)

    async def stop(
        self, instance: CoordinatorInstance, reason: str, *, idle_s: float, signal: str = "SIGTERM"
    ) -> None:
        """End an instance: wait until it is idle, signal it, kill it if it does not exit. All is recorded.

        Args:
            idle_s: how long requests in flight may take before it is signalled all the same.
        """
        if instance.process is None:
            instance.finish(None)
            return
        if instance.ending or not instance.running:
            await instance.ended.wait()
            return
        instance.drain_within(idle_s)
        phase, instance.state.phase = instance.phase, CoordinatorPhase.STOPPING
        try:
            busy = await self._busy_after_drain(instance) if instance.ready_s is not None else 0
        except BaseException:
            if instance.running:
                # Not signalled yet: it continues as before.
                instance.state.phase, instance.drain_until_s = phase, math.inf
            raise
        instance.signal(signal, reason, busy=busy)
        exit_s = self._config.stop_deadline_s
        if busy and not await instance.ended_within(min(exit_s, _SECOND_SIGNAL_S)):
            instance.signal(signal, "a request was in flight, so it needs a second signal", busy=busy)
        if not await instance.ended_within(exit_s):
            instance.signal("SIGKILL", f"still there {exit_s:g} s after {signal}")
            if not await instance.ended_within(_KILL_WAIT_S):
                log("coordinator_survives_sigkill", level=logging.ERROR, pid=instance.process.pid)

    async def _stop_at_once(self, instance: CoordinatorInstance, reason: str) -> None:
        """Stop an instance that is not ready; a cancellation waits until it has ended."""
        stop = self._tasks.start("coordinator_stop", self.stop(instance, reason, idle_s=0))
        cancelled: asyncio.CancelledError | None = None
        while not stop.done():
            try:
                await asyncio.wait({stop})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled:
            raise cancelled
        stop.result()

    async def _follow(self, instance: CoordinatorInstance, process: CoordinatorProcess) -> None:
        """Wait for the exit, diagnose it and record it; whatever fails, the end is recorded."""
        diagnosis = None
        try:
            await self._post_mortem.note_start(instance)
            instance.state.exit = await process.ended()
            diagnosis = await self._post_mortem.diagnose(instance)
        finally:
            try:
                await process.ended()
            finally:
                instance.finish(diagnosis)
            self._metrics.coordinator_ended(instance.state.diagnosis)
            shell_status = process.exit and process.exit.shell
            log("coordinator_ended", start=instance.id, exit=shell_status, failure=instance.failure)
        keep, keep_bytes = self._config.keep_starts, self._config.keep_log_bytes
        await asyncio.to_thread(prune, self._config.log_dir, keep=keep, keep_bytes=keep_bytes)

    async def _watch_backends(self, instance: CoordinatorInstance) -> None:
        """Doom a load once a backend of its plan turns out to be blocked; its node may have been silent."""
        while instance.doomed_reason is None and not instance.ended.is_set():
            await asyncio.sleep(_BACKENDS_POLL_S)
            try:
                await self._recovery.check_plan(instance.plan)
            except RouterError as error:
                instance.doomed_reason = error.message

    async def _watch_liveness(self, instance: CoordinatorInstance) -> None:
        if diagnosis := await self._liveness.watch(instance):
            instance.state.diagnosis = self._post_mortem.diagnose_hang(instance, diagnosis)
            instance.signal("SIGKILL", f"stalled: {diagnosis.evidence[0].line}")

    async def _busy_after_drain(self, instance: CoordinatorInstance) -> int:
        """Wait until no request is left here and in llama-server; how many there are at the deadline."""
        while not instance.ended.is_set():
            left_s = instance.drain_until_s - time.monotonic()
            if instance.state.requests_in_flight and left_s > 0:
                await instance.idle_or_ended(min(left_s, _DRAIN_POLL_S))
                continue
            slots = await self._engine.slots(_SLOTS_WAIT_S)
            busy = slots.busy if slots else 1  # an idle server answers at once
            if not busy or left_s <= 0:
                return busy
            await instance.ended_within(self._config.poll_s)
        return 0
