"""The node sample: one JSON object a second, the same in the ring file, on the wire and in a run."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

RPC_SERVERS = ("rpc-server", "ggml-rpc-server")
"""What llama.cpp calls a backend's process, by release."""


class Source(StrEnum):
    """Where a group of figures was read."""

    PROC = "proc"
    CGROUP = "cgroup"


class Memory(BaseModel):
    """Memory of the node, or of the machine cgroup around it."""

    model_config = ConfigDict(extra="forbid")

    source: Source = Field(description="where the figures were read: the node's /proc or its machine cgroup")
    total_bytes: int = Field(description="RAM of the node, or the cgroup's limit where that is lower")
    available_bytes: int = Field(
        description="min(MemAvailable, limit - rss - shmem): what a load may still take"
    )
    used_bytes: int = Field(
        description="resident anonymous and shared memory; page cache never counts as used"
    )
    cache_bytes: int = Field(description="page cache")
    swap_total_bytes: int = Field(description="swap the node or cgroup may use")
    swap_used_bytes: int = Field(description="of it, in use now")
    major_faults: int = Field(description="major page faults since boot (counter)")
    refaults_anon: int | None = Field(
        None, description="anonymous refaults since boot (counter), cgroup only"
    )
    oom_kills: int | None = Field(None, description="OOM kills in this cgroup or node since boot (counter)")


class Process(BaseModel):
    """One llama.cpp process."""

    model_config = ConfigDict(extra="forbid")

    pid: int = Field(description="process number on the node")
    name: str = Field(description="rpc-server, ggml-rpc-server or llama-server")
    rss_bytes: int = Field(description="VmRSS of /proc/PID/status: resident memory, mapped files included")
    swap_bytes: int = Field(description="VmSwap of /proc/PID/status")
    cpu_s: float = Field(description="user + system CPU seconds since its start (counter)")


class Unit(BaseModel):
    """State of one systemd unit."""

    model_config = ConfigDict(extra="forbid")

    active: str = Field(description="ActiveState: active, activating, failed, ...")
    sub: str = Field(description="SubState: running, dead, auto-restart, ...")
    main_pid: int = Field(description="MainPID; 0 when nothing runs")
    restarts: int = Field(description="NRestarts")
    result: str = Field(description="Result of the last run: success, exit-code, signal, oom-kill, ...")


class RpcSocket(BaseModel):
    """rpc-server's sockets, read from the node's own socket table; nothing ever connects to it."""

    model_config = ConfigDict(extra="forbid")

    listening: bool = Field(description="something listens on the node's address and the RPC port")
    backlog: int = Field(description="connections waiting to be accepted (Recv-Q of the listening socket)")
    peer: str | None = Field(None, description="address:port of the coordinator being served, when busy")


class Network(BaseModel):
    """Counters of the interface that carries the node's inventory address."""

    model_config = ConfigDict(extra="forbid")

    interface: str = Field(description="name of the interface")
    received_bytes: int = Field(description="bytes received since it came up (counter)")
    sent_bytes: int = Field(description="bytes sent since it came up (counter)")


class Sample(BaseModel):
    """One node at one moment. Sizes in bytes, counters since boot."""

    model_config = ConfigDict(extra="forbid")

    time_ns: int = Field(description="UTC, nanoseconds")
    node: str = Field(description="the node's name in the inventory")
    memory: Memory
    cpu_s: float = Field(description="CPU seconds used by the node (or its cgroup) since boot (counter)")
    processes: list[Process] = []
    units: dict[str, Unit] = {}
    rpc: RpcSocket | None = None
    network: Network | None = None
