"""The node sample: one JSON object a second, the same in the ring file, on the wire and in a run.

A node can write anything, so each figure has a range and each text and list a length. They are wide: each
honest sample is within them, and none within is too large for a column of 64 bits or for a page.
"""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness.monitor.common import MonitorError

MAX_SAMPLE_BYTES = 256 * 1024
"""Length of a sample as JSON; one of a node with 16 GPUs has some 10 KiB."""
AHEAD_S = 5.0
"""How far the time of a sample may be in the reader's future: clocks differ."""
_REASON_CHARACTERS = 200
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def _without_control_characters(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A counter, a process number or a time in nanoseconds."""
Size = Annotated[int, Field(ge=0, lt=1 << 53)]
"""Bytes of memory; the sum of many is below 64 bits."""
Offset = Annotated[float, Field(ge=-1e10, le=1e10)]
"""Difference of two clocks, seconds: three centuries."""
Figure = Annotated[float, Field(ge=0, le=1e15)]
"""A rate, seconds, watts or per cent."""
Celsius = Annotated[float, Field(ge=-273, le=1000)]
Text = Annotated[str, Field(max_length=4096), AfterValidator(_without_control_characters)]
"""Control characters become U+FFFD: samples are shown on terminals."""
_MANY = 256
"""Entries of a list or a table."""

RPC_SERVERS = ("rpc-server", "ggml-rpc-server")
"""Names of a backend's process, by llama.cpp release."""


class Source(StrEnum):
    """Where a group of figures was read."""

    PROC = "proc"
    CGROUP = "cgroup"


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Memory(_Figures):
    """Memory of the node, or of the machine cgroup around it."""

    source: Source = Field(description="where the figures were read: the node's /proc or its machine cgroup")
    total_bytes: Size = Field(description="RAM of the node, or the cgroup's limit where that is lower")
    available_bytes: Size = Field(description="min(MemAvailable, limit - rss - shmem): what a load may take")
    used_bytes: Size = Field(description="resident anonymous and shared memory, without page cache")
    cache_bytes: Size = Field(description="page cache")
    swap_total_bytes: Size = Field(description="swap the node or cgroup may use")
    swap_used_bytes: Size = Field(description="swap in use")
    major_faults: Count = Field(description="major page faults since boot (counter)")
    refaults_anon: Count | None = Field(None, description="anonymous refaults since boot (counter, cgroup)")
    oom_kills: Count | None = Field(None, description="OOM kills in this cgroup or node since boot (counter)")


class Pressure(_Figures):
    """Time that tasks waited for memory or io (the kernel's accounting/psi.rst).

    Null where the kernel counts none for this node alone: a lab node never shows its host's.
    """

    source: Source = Field(description="whose tasks waited: the whole node's or those of its machine cgroup")
    memory_some_avg10: Figure = Field(
        description="percent of the last 10 s in which a task waited for memory"
    )
    memory_full_avg10: Figure = Field(description="the same, in which every task that could run waited")
    memory_some_total_us: Count = Field(description="microseconds of such waiting since boot (counter)")
    memory_full_total_us: Count = Field(description="the same for every task at once (counter)")
    io_some_avg10: Figure = Field(description="percent of the last 10 s in which a task waited for io")
    io_full_avg10: Figure = Field(description="the same, in which every task that could run waited")
    io_some_total_us: Count = Field(description="microseconds of such waiting since boot (counter)")
    io_full_total_us: Count = Field(description="the same for every task at once (counter)")


class Disk(_Figures):
    """Traffic between memory and disks, as far as it is certain to be this node's."""

    source: Source = Field(description="whose traffic: the node's disks or its cgroup's share")
    device: Text = Field(description="names of the counted disks, separated by commas")
    read_bytes: Count = Field(description="bytes read since boot (counter)")
    written_bytes: Count = Field(description="bytes written since boot (counter)")
    read_bytes_per_s: Figure | None = Field(None, description="since the previous sample; null in the first")
    written_bytes_per_s: Figure | None = Field(
        None, description="since the previous sample; null in the first"
    )


class Process(_Figures):
    """One llama.cpp process."""

    pid: Count = Field(description="process number on the node")
    name: Text = Field(description="rpc-server, ggml-rpc-server or llama-server")
    rss_bytes: Size = Field(description="VmRSS of /proc/PID/status: resident memory, mapped files included")
    swap_bytes: Size = Field(description="VmSwap of /proc/PID/status")
    cpu_s: Figure = Field(description="user + system CPU seconds since its start (counter)")
    threads: Count | None = Field(None, description="number of its threads")
    started_ns: Count | None = Field(
        None, description="when it was started, UTC, within a clock tick (10 ms)"
    )


class Unit(_Figures):
    """State of one systemd unit."""

    active: Text = Field(description="ActiveState: active, activating, failed, ...")
    sub: Text = Field(description="SubState: running, dead, auto-restart, ...")
    main_pid: Count = Field(description="MainPID; 0 when nothing runs")
    restarts: Count = Field(description="NRestarts")
    result: Text = Field(description="Result of the last run: success, exit-code, signal, oom-kill, ...")
    exit_code: Text | None = Field(
        None, description="last exit of its main process: exited, killed or dumped"
    )
    exit_status: Count | None = Field(
        None, description="ExecMainStatus: exit status, or number of the signal"
    )
    exited_ns: Count | None = Field(None, description="time of that exit, UTC, precise to a microsecond")


class RpcSocket(_Figures):
    """rpc-server's sockets, read from the node's own socket table; nothing ever connects to it."""

    listening: bool = Field(description="something listens on the node's address and the RPC port")
    backlog: Count = Field(description="connections waiting to be accepted (Recv-Q of the listening socket)")
    peer: Text | None = Field(None, description="address:port of the coordinator being served, when busy")


class Network(_Figures):
    """Counters of the interface that carries the node's inventory address."""

    interface: Text = Field(description="name of the interface")
    received_bytes: Count = Field(description="bytes received since it came up (counter)")
    sent_bytes: Count = Field(description="bytes sent since it came up (counter)")
    received_bytes_per_s: Figure | None = Field(
        None, description="since the previous sample; null in the first"
    )
    sent_bytes_per_s: Figure | None = Field(None, description="since the previous sample; null in the first")


class GpuSource(StrEnum):
    """Where a GPU's figures come from."""

    NVML = "nvml"
    AMDGPU = "amdgpu"


class Gpu(_Figures):
    """One GPU. A figure that the driver or the board does not give is null, never zero."""

    index: Count = Field(description="the driver's number for it, from 0")
    name: Text = Field(description="the driver's name for the board")
    uuid: Text | None = Field(None, description="GPU-... (NVML) or the board's unique_id (amdgpu)")
    driver: Text | None = Field(None, description="version of the driver")
    source: GpuSource = Field(description="NVIDIA's library or amdgpu's files in /sys")
    problem: Text | None = Field(None, description="why it has no figures, such as 'GPU is lost'")
    memory_total_bytes: Size | None = Field(None, description="memory of the board")
    memory_used_bytes: Size | None = Field(None, description="memory in use by all processes and the driver")
    memory_own_bytes: Size | None = Field(
        None,
        description="of the memory in use, what this node's rpc-server holds; null if not known",
    )
    unified: bool = Field(
        False, description="it computes in the node's own memory, which the figures of node and board share"
    )
    use_percent: Figure | None = Field(None, description="percent of the last moments in which it was busy")
    temperature_c: Celsius | None = Field(None, description="degrees Celsius at the chip's edge")
    power_w: Figure | None = Field(None, description="watts drawn by the board")
    throttle: list[Text] = Field(
        [], max_length=_MANY, description="why its clocks are reduced: sw_power_cap, hw_thermal, ..."
    )
    ecc_corrected: Count | None = Field(
        None, description="memory errors corrected since driver start (counter)"
    )
    ecc_uncorrected: Count | None = Field(None, description="memory errors not corrected (counter)")


class Xid(_Figures):
    """One error report of NVIDIA's kernel driver."""

    time_ns: Count = Field(description="when the kernel wrote it, UTC")
    pci: Text = Field(description="the board it is about: 0000:65:00")
    code: Count = Field(description="Xid number: 13 graphics engine, 48 ECC, 79 fell off the bus, ...")
    line: Text = Field(description="the kernel's line")


class Kernel(_Figures):
    """The kernel's reports about this node, as far back as its log goes."""

    log: bool = Field(False, description="whether its log can be read; if not, null below proves nothing")
    oom_kills: Count | None = Field(None, description="the same counter as memory.oom_kills")
    last_oom: Text | None = Field(
        None,
        description="newest line about a process that the OOM killer ended; in a lab its PID is the host's",
    )
    last_oom_ns: Count | None = Field(None, description="when the kernel wrote it, UTC")
    xids: list[Xid] = Field(
        [], max_length=_MANY, description="the newest reports of NVIDIA's driver, oldest first, at most 8"
    )


class Build(_Figures):
    """The llama.cpp build that /opt/llama.cpp/current holds."""

    build: Count | None = Field(None, description="build number in its manifest")
    commit: Text | None = Field(None, description="commit in its manifest")
    sha256: Text = Field(description="sha256 of the manifest's build, commit and hashes of binaries")


class Sample(_Figures):
    """One node at one moment. Sizes in bytes, counters since boot."""

    time_ns: Count = Field(description="UTC, nanoseconds")
    node: Text = Field(description="the node's name in the inventory")
    memory: Memory
    cpu_s: Figure = Field(description="CPU seconds used by the node (or its cgroup) since boot (counter)")
    processes: list[Process] = Field([], max_length=_MANY)
    units: dict[Text, Unit] = Field({}, max_length=_MANY)
    rpc: RpcSocket | None = None
    network: Network | None = None
    load1: Figure | None = Field(None, description="load average of one minute; of the host on a lab node")
    pressure: Pressure | None = None
    disk: Disk | None = None
    gpus: list[Gpu] = Field([], max_length=_MANY)
    kernel: Kernel | None = None
    build: Build | None = None
    clock_offset_s: Offset | None = Field(
        None, description="this node's clock minus the head node's; null without a recent answer from Redis"
    )

    @property
    def head_time_ns(self) -> int:
        """When it was taken, on the head node's clock as far as the offset is known: UTC, nanoseconds."""
        return self.time_ns - int((self.clock_offset_s or 0.0) * 1e9)


class RefusedSampleError(MonitorError):
    """The sample of a node is refused; the message says why."""


def parse_sample(data: bytes | str, node: str) -> Sample:
    """The sample in ``data``, JSON in UTF-8. Unknown fields are ignored: nodes are upgraded one by one.

    Args:
        node: whose sample it has to be.

    Raises:
        RefusedSampleError: it is too long, no sample, or another node's.
    """
    if len(data) > MAX_SAMPLE_BYTES:
        raise RefusedSampleError(f"it is longer than {MAX_SAMPLE_BYTES // 1024} KiB")
    try:
        sample = Sample.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "sample"
        reason = _without_control_characters(f"{where}: {first['msg']}")
        raise RefusedSampleError(reason[:_REASON_CHARACTERS]) from None
    if sample.node != node:
        other = sample.node[:_REASON_CHARACTERS]
        raise RefusedSampleError(f"it says that it is of node '{other}'")
    return sample


def check_time(time_ns: int, now_ns: int, ahead_s: float = AHEAD_S) -> None:
    """Refuse a sample whose time is in the reader's future.

    Args:
        time_ns: when it was taken, on the reader's clock: UTC, nanoseconds.
        now_ns: the reader's clock.
        ahead_s: how far it may be ahead, seconds.

    Raises:
        RefusedSampleError: it is further ahead.
    """
    if (ahead := (time_ns - now_ns) / 1e9) > ahead_s:
        raise RefusedSampleError(f"its time is {ahead:.0f} s ahead of the clock here")
