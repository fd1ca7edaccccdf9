"""The configuration of a node's monitor, and the check of a configuration file."""

import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.monitor.common import MonitorError, read_json
from harness.monitor.redis import RedisSettings

LAB_CGROUP = Path("/run/llama-lab/cgroup")
LAB_CGROUP_CPU = Path("/run/llama-lab/cgroup-cpu")
LAB_CGROUP_IO = Path("/run/llama-lab/cgroup-io")
LAB_SWAP_BYTES = Path("/run/llama-lab/swap_bytes")
LAB_KERNEL_LOG = Path("/run/llama-lab/kernel.log")
KMSG = Path("/dev/kmsg")

_Model = TypeVar("_Model", bound=BaseModel)


class MonitorConfig(BaseModel):
    """What the monitor of one node reads, and where its samples go."""

    model_config = ConfigDict(extra="forbid")

    node: str = Field(min_length=1)
    address: IPv4Address
    ring: Path
    rpc_port: int | None = Field(None, ge=1, le=65535)
    units: list[str] = []
    cgroup: str = "auto"
    """Folder of the memory controller; ``auto``: the lab's where there is one; ``none``: /proc."""
    cgroup_cpu: str = "auto"
    """Folder of the CPU controller, with the same values."""
    build: Path = Path("/opt/llama.cpp/current")
    """Folder of the installed llama.cpp build, with its manifest."""
    kernel_log: Literal["auto", "stdin"] = "auto"
    """The kernel's log; ``auto``: the lab's file, else /dev/kmsg; ``stdin``: passed open."""
    redis: RedisSettings | None = None
    """Where samples are published; None: in the ring only."""

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
    def kernel_log_source(self) -> Path | int:
        """File or descriptor to read the kernel's log from."""
        if self.kernel_log == "stdin":
            return sys.stdin.fileno()
        return LAB_KERNEL_LOG if LAB_CGROUP.is_dir() else KMSG


def load_config(path: Path) -> MonitorConfig:
    """Read and check a monitor's configuration.

    Raises:
        MonitorError: one line that names the file, the key and what is wrong with it.
    """
    config = read_model(MonitorConfig, path)
    for key, folder in (("cgroup", config.memory_folder), ("cgroup_cpu", config.cpu_folder)):
        if folder is not None and not folder.is_dir():
            raise MonitorError(f"{path}: {key}: no folder at {folder}; use 'auto' or 'none'")
    return config


def read_model(model: type[_Model], path: Path) -> _Model:
    """A configuration file, checked against its model.

    Raises:
        MonitorError: one line that names the file, the key and what is wrong with it.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise MonitorError(f"{path}: {key}: {first['msg']}") from None


def _folder(choice: str, lab: Path) -> Path | None:
    if choice == "auto":
        return lab if lab.is_dir() else None
    return None if choice == "none" else Path(choice)
