"""The loop of the monitor: a sample of the node every whole second to the ring and Redis, until SIGTERM."""

import ctypes
import math
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness.monitor.common import WARNING, MonitorError, log
from harness.monitor.config import LAB_SWAP_BYTES, MonitorConfig, load_config
from harness.monitor.readers import PROC, memory, read_text
from harness.monitor.readers.disk import DiskReader
from harness.monitor.readers.gpu import GpuReader
from harness.monitor.readers.kernel_log import KernelLog
from harness.monitor.readers.llama_cpp import BuildReader, ProcessTable
from harness.monitor.readers.network import NetworkReader, rpc_socket
from harness.monitor.readers.systemd import UnitStates
from harness.monitor.ring import RingWriter
from harness.monitor.sample import Sample

if TYPE_CHECKING:
    from harness.monitor.redis.publisher import Publisher

_STOP = {signal.SIGTERM, signal.SIGINT}
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


class Sampler:
    """Takes samples of one node; its readers keep state between them."""

    def __init__(self, config: MonitorConfig) -> None:
        self._config = config
        self._address = str(config.address)
        self._memory_folder = config.memory_folder
        self._cpu_folder = config.cpu_folder
        swap_bytes = (read_text(LAB_SWAP_BYTES) or "").strip() if self._memory_folder else ""
        self._swap_bytes = int(swap_bytes) if swap_bytes.isdigit() else None
        self._processes = ProcessTable()
        self._units = UnitStates(config.units)
        self._network = NetworkReader(self._address)
        self._disk = DiskReader(config.io_folder, self._memory_folder is not None)
        self._build = BuildReader(config.build)
        self._gpus = GpuReader()
        self._kernel = KernelLog(config.kernel_log_source)

    def sample(self) -> Sample:
        """The node at this moment."""
        time_ns, now_s = time.time_ns(), time.monotonic()
        processes = self._processes.read()
        port, folder = self._config.rpc_port, self._memory_folder
        info = memory.meminfo()
        used = memory.cgroup_memory(folder, info, self._swap_bytes) if folder else memory.node_memory(info)
        return Sample(
            time_ns=time_ns,
            node=self._config.node,
            memory=used,
            cpu_s=memory.cgroup_cpu_s(self._cpu_folder) if self._cpu_folder else memory.node_cpu_s(),
            processes=processes,
            units=self._units.read(now_s, (process.pid for process in processes)),
            rpc=rpc_socket(self._address, port) if port else None,
            network=self._network.read(now_s),
            load1=memory.load1(),
            pressure=memory.cgroup_pressure(folder) if folder else memory.node_pressure(),
            disk=self._disk.read(now_s),
            gpus=self._gpus.read(now_s),
            kernel=self._kernel.read(used.oom_kills),
            build=self._build.read(),
        )


def run(config_path: Path) -> int:
    """Sample until SIGTERM or SIGINT; returns the exit status.

    Raises:
        MonitorError: the configuration cannot be used, or the publisher has ended by a bug.
    """
    config = load_config(config_path)
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)  # taken by _sleep_until, never in the middle of a write
    sampler = Sampler(config)
    ring = RingWriter(config.ring)
    if error := _lock_memory():
        log("memory_not_locked", level=WARNING, error=error)
    memory_from = config.memory_folder or PROC
    log("sampling_started", node=config.node, ring=config.ring, memory_from=memory_from)
    with ExitStack() as at_end:
        at_end.callback(ring.close)
        publisher = None
        if config.redis:
            from harness.monitor.redis.publisher import (
                Publisher,
            )  # loads Redis's client only where it is used

            log("publishing_started", address=config.redis.address, port=config.redis.port)
            publisher = Publisher(config.redis, config.node, config.ring)
            publisher.start()
            at_end.callback(publisher.stop)
        sample_every_second(sampler, ring, publisher)
    return 0


def next_tick(previous: int, now: float) -> int:
    """The whole second to sample at next.

    Seconds that passed while a sample was slow are skipped; a second is never sampled twice; after the
    clock was set back, sampling continues from the new time.

    Args:
        previous: the second sampled last.
        now: wall clock, seconds.
    """
    following = math.floor(now) + 1
    if previous >= following and previous + 1 - now < 1.5:  # woken a moment early
        return previous + 1
    return following


def sample_every_second(sampler: Sampler, ring: RingWriter, publisher: "Publisher | None") -> None:
    """Sample until SIGTERM or SIGINT.

    Raises:
        MonitorError: the publisher has ended by a bug: the monitor ends too, for systemd to start it again.
    """
    logged_error = ""
    tick = next_tick(0, time.time())
    while _sleep_until(tick):
        if publisher and not publisher.alive:
            raise MonitorError("the publisher has ended; see its traceback in the journal")
        try:
            sample = sampler.sample()
            if publisher:
                sample.clock_offset_s = publisher.clock_offset_s
            line = sample.model_dump_json()
            if publisher:  # before the ring: a node whose disk is full is still seen in Redis
                publisher.offer(sample.time_ns, line)
            ring.append(line)
            logged_error = ""
        except (OSError, ValidationError) as error:  # a full disk, a vanished cgroup, a figure out of range
            if str(error) != logged_error:
                logged_error = str(error)
                log("sample_failed", level=WARNING, error=logged_error)
        tick = next_tick(tick, time.time())


def _sleep_until(tick: int) -> bool:
    """Sleep until the wall clock is at ``tick``, seconds; False when a signal asks to stop."""
    return signal.sigtimedwait(_STOP, max(0.0, tick - time.time())) is None


def _lock_memory() -> str | None:
    """Lock the pages in use, and each later one once it is touched (mlockall(2), MCL_ONFAULT).

    On a node that swaps, the monitor is the process that must not wait. Returns the error, if any.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return None
    return os.strerror(ctypes.get_errno())
