"""The validated configuration of a monitor."""

import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.monitor.config_file import MonitorError, read_json
from harness.monitor.readers.processes import LLAMA_CPP_NAMES
from harness.monitor.redis.settings import RedisSettings

LAB_CGROUP = Path("/run/llama-lab/cgroup")
LAB_CGROUP_CPU = Path("/run/llama-lab/cgroup-cpu")
LAB_CGROUP_IO = Path("/run/llama-lab/cgroup-io")
LAB_SWAP_BYTES = Path("/run/llama-lab/swap_bytes")
LAB_KERNEL_LOG = Path("/run/llama-lab/kernel.log")
KMSG = Path("/dev/kmsg")
CURRENT_BUILD = Path("/opt/llama.cpp/current")

AUTO = "auto"
NONE = "none"
STDIN = "stdin"


class MonitorConfig(BaseModel):
    """One node, as its monitor sees it."""

    model_config = ConfigDict(extra="forbid")

    node: str = Field(min_length=1)
    address: IPv4Address
    ring: Path
    rpc_port: int | None = Field(None, ge=1, le=65535)
    units: list[str] = []
    process_names: list[str] = list(LLAMA_CPP_NAMES)
    cgroup: str = AUTO
    """Folder of the memory controller; ``auto``: the lab's where there is one; ``none``: /proc."""
    cgroup_cpu: str = AUTO
    """Folder of the CPU controller, in the same words."""
    build: Path = CURRENT_BUILD
    """Folder of the installed llama.cpp build, with its manifest."""
    kernel_log: str = AUTO
    """File of the kernel's log; ``auto``: the lab's, else /dev/kmsg; ``stdin``: handed over; ``none``."""
    redis: RedisSettings | None = None
    """Where samples are published; None: nowhere."""

    @property
    def memory_folder(self) -> Path | None:
        """Folder to read memory from; None means /proc."""
        return _folder(self.cgroup, LAB_CGROUP)

    @property
    def cpu_folder(self) -> Path | None:
        """Folder to read CPU time from; with cgroup v2 that is the memory folder; None means /proc."""
        memory = self.memory_folder
        own = _folder(self.cgroup_cpu, LAB_CGROUP_CPU)
        if own is None and memory is not None and (memory / "cpu.stat").exists():
            return memory
        return own

    @property
    def io_folder(self) -> Path | None:
        """Folder that counts the machine cgroup's disk traffic; with cgroup v2 that is the memory folder."""
        memory = self.memory_folder
        if memory is not None and (memory / "io.stat").exists():
            return memory
        return LAB_CGROUP_IO if memory is not None and LAB_CGROUP_IO.is_dir() else None

    @property
    def kernel_log_source(self) -> Path | int | None:
        """File or descriptor to read the kernel's log from."""
        if self.kernel_log == AUTO:
            return LAB_KERNEL_LOG if LAB_CGROUP.is_dir() else KMSG
        if self.kernel_log == STDIN:
            return sys.stdin.fileno()
        return None if self.kernel_log == NONE else Path(self.kernel_log)


def load_config(path: Path) -> MonitorConfig:
    """Read and check a configuration.

    Raises:
        MonitorError: one line that names the file, the key and what is wrong with it.
    """
    return parse_config(read_json(path), path)


def parse_config(values: dict[str, Any], path: Path) -> MonitorConfig:
    """Check a configuration that was read from ``path``.

    Raises:
        MonitorError: one line that names the file, the key and what is wrong with it.
    """
    try:
        config = MonitorConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise MonitorError(f"{path}: {key}: {first['msg']}") from None
    for key, folder in (("cgroup", config.memory_folder), ("cgroup_cpu", config.cpu_folder)):
        if folder is not None and not folder.is_dir():
            raise MonitorError(f"{path}: {key}: no folder at {folder}; use 'auto' or 'none'")
    return config


def _folder(choice: str, lab: Path) -> Path | None:
    if choice == AUTO:
        return lab if lab.is_dir() else None
    return None if choice == NONE else Path(choice)
