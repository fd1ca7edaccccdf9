"""The shape of a diagnosis and of the evidence it is made from."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from harness.contracts import Record


class FailureClass(StrEnum):
    """Why a process ended or stalled; each value is explained in docs/diagnoses.md."""

    STOPPED = "stopped"
    STOPPED_BUSY = "stopped_busy"
    BACKEND_LOST = "backend_lost"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_STALLED = "backend_stalled"
    RPC_VERSION_MISMATCH = "rpc_version_mismatch"
    BUILD_MISMATCH = "build_mismatch"
    NOT_DISTRIBUTED = "not_distributed"
    OOM_KILLED = "oom_killed"
    OUT_OF_MEMORY = "out_of_memory"
    GPU_DRIVER = "gpu_driver"
    ASSERTION = "assertion"
    SEGFAULT = "segfault"
    ILLEGAL_INSTRUCTION = "illegal_instruction"
    SIGPIPE = "sigpipe"
    MODEL_INVALID = "model_invalid"
    BAD_ARGUMENTS = "bad_arguments"
    PORT_IN_USE = "port_in_use"
    DISK_FULL = "disk_full"
    SWAP_THRASH = "swap_thrash"
    HUNG = "hung"
    POISON_REQUEST = "poison_request"
    NETWORK_PARTITION = "network_partition"
    UNKNOWN = "unknown"


class Confidence(StrEnum):
    """How far the evidence decides the class."""

    CERTAIN = "certain"
    LIKELY = "likely"
    POSSIBLE = "possible"


class Signal(Record):
    """A signal that we sent, logged when it was sent."""

    name: str
    """``SIGTERM``, ``SIGKILL``, ..."""
    time_ns: int
    """UTC, nanoseconds."""
    reason: str
    requests_in_flight: int


class ExitStatus(Record):
    """How a child ended, as ``wait`` reported it."""

    time_ns: int
    code: int | None = None
    """Exit code, when it exited."""
    signal: int | None = None
    """Signal number, when a signal ended it."""

    @property
    def shell(self) -> int:
        """The number a shell would show: the code, or 128 + signal."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


class Evidence(Record):
    """One line that was seen, and where."""

    source: str
    """``exit status``, ``signals``, ``server.log:194``, ``journal node1``, ``samples node3``, ..."""
    line: str


class Diagnosis(Record):
    """A class, the evidence that decides it, and what else was considered."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    failure_class: FailureClass = Field(alias="class")
    evidence: list[Evidence]
    confidence: Confidence
    ruled_out: list[str] = []
    advice: str
