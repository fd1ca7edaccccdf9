"""Takes one sample of the node: every reader's figures in one record."""

import time
from pathlib import Path

from harness.monitor.config import LAB_SWAP_BYTES, MonitorConfig
from harness.monitor.readers.build import BuildReader
from harness.monitor.readers.cgroup import cgroup_cpu_s, cgroup_memory
from harness.monitor.readers.disk import DiskReader
from harness.monitor.readers.gpu import GpuReader
from harness.monitor.readers.kernel_log import KernelLog
from harness.monitor.readers.memory import PROC, load1, meminfo, node_cpu_s, node_memory
from harness.monitor.readers.network import NetworkReader
from harness.monitor.readers.pressure import cgroup_pressure, node_pressure
from harness.monitor.readers.processes import ProcessTable
from harness.monitor.readers.sockets import rpc_socket
from harness.monitor.readers.systemd import UnitStates
from harness.monitor.sample import Memory, Pressure, Sample


class Sampler:
    """Keeps the readers of one node between samples."""

    def __init__(self, config: MonitorConfig, proc: Path = PROC, units: UnitStates | None = None) -> None:
        self._config = config
        self._proc = proc
        self._address = str(config.address)
        self._memory_folder = config.memory_folder
        self._cpu_folder = config.cpu_folder
        self._swap_bytes = _swap_bytes(LAB_SWAP_BYTES) if self._memory_folder else None
        self._processes = ProcessTable(config.process_names, proc)
        self._units = units or UnitStates(config.units, proc=proc)
        self._network = NetworkReader(self._address, proc)
        self._disk = DiskReader(config.io_folder, self._memory_folder is not None, proc)
        self._build = BuildReader(config.build)
        self._gpus = GpuReader(proc)
        self._kernel = KernelLog(config.kernel_log_source)

    @property
    def memory_source(self) -> str:
        """Where memory is read, for people."""
        return str(self._memory_folder or self._proc)

    def sample(self) -> Sample:
        """The node at this moment."""
        time_ns, now_s = time.time_ns(), time.monotonic()
        processes = self._processes.read()
        port = self._config.rpc_port
        memory = self._memory()
        return Sample(
            time_ns=time_ns,
            node=self._config.node,
            memory=memory,
            cpu_s=cgroup_cpu_s(self._cpu_folder) if self._cpu_folder else node_cpu_s(self._proc),
            processes=processes,
            units=self._units.read(now_s, (process.pid for process in processes)),
            rpc=rpc_socket(self._address, port, self._proc) if port else None,
            network=self._network.read(now_s),
            load1=load1(self._proc),
            pressure=self._pressure(),
            disk=self._disk.read(now_s),
            gpus=self._gpus.read(now_s),
            kernel=self._kernel.read(memory.oom_kills),
            build=self._build.read(),
        )

    def _memory(self) -> Memory:
        info = meminfo(self._proc)
        if self._memory_folder:
            return cgroup_memory(self._memory_folder, info, self._swap_bytes)
        return node_memory(info, self._proc)

    def _pressure(self) -> Pressure | None:
        return cgroup_pressure(self._memory_folder) if self._memory_folder else node_pressure(self._proc)


def _swap_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
