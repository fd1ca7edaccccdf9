"""The node sample: one JSON object a second, the same in the ring file, on the wire and in a run."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

RPC_SERVERS = ("rpc-server", "ggml-rpc-server")
"""Names of a backend's process, by llama.cpp release."""


class Source(StrEnum):
    """Where a group of figures was read."""

    PROC = "proc"
    CGROUP = "cgroup"


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Memory(_Figures):
    """Memory of the node, or of the machine cgroup around it."""

    source: Source = Field(description="where the figures were read: the node's /proc or its machine cgroup")
    total_bytes: int = Field(description="RAM of the node, or the cgroup's limit where that is lower")
    available_bytes: int = Field(description="min(MemAvailable, limit - rss - shmem): what a load may take")
    used_bytes: int = Field(description="resident anonymous and shared memory, without page cache")
    cache_bytes: int = Field(description="page cache")
    swap_total_bytes: int = Field(description="swap the node or cgroup may use")
    swap_used_bytes: int = Field(description="swap in use")
    major_faults: int = Field(description="major page faults since boot (counter)")
    refaults_anon: int | None = Field(None, description="anonymous refaults since boot (counter, cgroup)")
    oom_kills: int | None = Field(None, description="OOM kills in this cgroup or node since boot (counter)")


class Pressure(_Figures):
    """Time that tasks waited for memory or io (the kernel's accounting/psi.rst).

    Null where the kernel counts none for this node alone: a lab node never shows its host's.
    """

    source: Source = Field(description="whose tasks waited: the whole node's or those of its machine cgroup")
    memory_some_avg10: float = Field(description="percent of the last 10 s in which a task waited for memory")
    memory_full_avg10: float = Field(description="the same, in which every task that could run waited")
    memory_some_total_us: int = Field(description="microseconds of such waiting since boot (counter)")
    memory_full_total_us: int = Field(description="the same for every task at once (counter)")
    io_some_avg10: float = Field(description="percent of the last 10 s in which a task waited for io")
    io_full_avg10: float = Field(description="the same, in which every task that could run waited")
    io_some_total_us: int = Field(description="microseconds of such waiting since boot (counter)")
    io_full_total_us: int = Field(description="the same for every task at once (counter)")


class Disk(_Figures):
    """Traffic between memory and disks, as far as it is certain to be this node's."""

    source: Source = Field(description="whose traffic: the node's disks or its cgroup's share")
    device: str = Field(description="names of the counted disks, separated by commas")
    read_bytes: int = Field(description="bytes read since boot (counter)")
    written_bytes: int = Field(description="bytes written since boot (counter)")
    read_bytes_per_s: float | None = Field(None, description="since the previous sample; null in the first")
    written_bytes_per_s: float | None = Field(
        None, description="since the previous sample; null in the first"
    )


class Process(_Figures):
    """One llama.cpp process."""

    pid: int = Field(description="process number on the node")
    name: str = Field(description="rpc-server, ggml-rpc-server or llama-server")
    rss_bytes: int = Field(description="VmRSS of /proc/PID/status: resident memory, mapped files included")
    swap_bytes: int = Field(description="VmSwap of /proc/PID/status")
    cpu_s: float = Field(description="user + system CPU seconds since its start (counter)")
    threads: int | None = Field(None, description="number of its threads")
    started_ns: int | None = Field(None, description="when it was started, UTC, within a clock tick (10 ms)")


class Unit(_Figures):
    """State of one systemd unit."""

    active: str = Field(description="ActiveState: active, activating, failed, ...")
    sub: str = Field(description="SubState: running, dead, auto-restart, ...")
    main_pid: int = Field(description="MainPID; 0 when nothing runs")
    restarts: int = Field(description="NRestarts")
    result: str = Field(description="Result of the last run: success, exit-code, signal, oom-kill, ...")
    exit_code: str | None = Field(None, description="last exit of its main process: exited, killed or dumped")
    exit_status: int | None = Field(None, description="ExecMainStatus: exit status, or number of the signal")
    exited_ns: int | None = Field(None, description="time of that exit, UTC, precise to a microsecond")


class RpcSocket(_Figures):
    """rpc-server's sockets, read from the node's own socket table; nothing ever connects to it."""

    listening: bool = Field(description="something listens on the node's address and the RPC port")
    backlog: int = Field(description="connections waiting to be accepted (Recv-Q of the listening socket)")
    peer: str | None = Field(None, description="address:port of the coordinator being served, when busy")


class Network(_Figures):
    """Counters of the interface that carries the node's inventory address."""

    interface: str = Field(description="name of the interface")
    received_bytes: int = Field(description="bytes received since it came up (counter)")
    sent_bytes: int = Field(description="bytes sent since it came up (counter)")
    received_bytes_per_s: float | None = Field(
        None, description="since the previous sample; null in the first"
    )
    sent_bytes_per_s: float | None = Field(None, description="since the previous sample; null in the first")


class GpuSource(StrEnum):
    """Where a GPU's figures come from."""

    NVML = "nvml"
    AMDGPU = "amdgpu"


class Gpu(_Figures):
    """One GPU. A figure that the driver or the board does not give is null, never zero."""

    index: int = Field(description="the driver's number for it, from 0")
    name: str = Field(description="the driver's name for the board")
    uuid: str | None = Field(None, description="GPU-... (NVML) or the board's unique_id (amdgpu)")
    driver: str | None = Field(None, description="version of the driver")
    source: GpuSource = Field(description="NVIDIA's library or amdgpu's files in /sys")
    problem: str | None = Field(None, description="why it has no figures, such as 'GPU is lost'")
    memory_total_bytes: int | None = Field(None, description="memory of the board")
    memory_used_bytes: int | None = Field(None, description="memory in use by all processes and the driver")
    use_percent: float | None = Field(None, description="percent of the last moments in which it was busy")
    temperature_c: float | None = Field(None, description="degrees Celsius at the chip's edge")
    power_w: float | None = Field(None, description="watts drawn by the board")
    throttle: list[str] = Field([], description="why its clocks are reduced: sw_power_cap, hw_thermal, ...")
    ecc_corrected: int | None = Field(
        None, description="memory errors corrected since driver start (counter)"
    )
    ecc_uncorrected: int | None = Field(None, description="memory errors not corrected (counter)")


class Xid(_Figures):
    """One error report of NVIDIA's kernel driver."""

    time_ns: int = Field(description="when the kernel wrote it, UTC")
    pci: str = Field(description="the board it is about: 0000:65:00")
    code: int = Field(description="Xid number: 13 graphics engine, 48 ECC, 79 fell off the bus, ...")
    line: str = Field(description="the kernel's line")


class Kernel(_Figures):
    """The kernel's reports about this node, as far back as its log goes."""

    log: bool = Field(False, description="whether its log can be read; if not, null below proves nothing")
    oom_kills: int | None = Field(None, description="the same counter as memory.oom_kills")
    last_oom: str | None = Field(
        None,
        description="newest line about a process that the OOM killer ended; in a lab its PID is the host's",
    )
    last_oom_ns: int | None = Field(None, description="when the kernel wrote it, UTC")
    xids: list[Xid] = Field([], description="the newest reports of NVIDIA's driver, oldest first, at most 8")


class Build(_Figures):
    """The llama.cpp build that /opt/llama.cpp/current holds."""

    build: int | None = Field(None, description="build number in its manifest")
    commit: str | None = Field(None, description="commit in its manifest")
    sha256: str = Field(description="sha256 of the manifest's build, commit and hashes of binaries")


class Sample(_Figures):
    """One node at one moment. Sizes in bytes, counters since boot."""

    time_ns: int = Field(description="UTC, nanoseconds")
    node: str = Field(description="the node's name in the inventory")
    memory: Memory
    cpu_s: float = Field(description="CPU seconds used by the node (or its cgroup) since boot (counter)")
    processes: list[Process] = []
    units: dict[str, Unit] = {}
    rpc: RpcSocket | None = None
    network: Network | None = None
    load1: float | None = Field(None, description="load average of one minute; of the host on a lab node")
    pressure: Pressure | None = None
    disk: Disk | None = None
    gpus: list[Gpu] = []
    kernel: Kernel | None = None
    build: Build | None = None
    clock_offset_s: float | None = Field(
        None, description="this node's clock minus the head node's; null without a recent answer from Redis"
    )

    @property
    def head_time_ns(self) -> int:
        """When it was taken, on the head node's clock as far as the offset is known: UTC, nanoseconds."""
        return self.time_ns - int((self.clock_offset_s or 0.0) * 1e9)
