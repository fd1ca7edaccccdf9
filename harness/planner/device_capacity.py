"""What a backend's devices can give and how fast they read it, as ``harness calibrate`` measured it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from harness.common.text import MIB
from harness.contracts.plan import MAX_RPC_DEVICES

_RESERVE = 256 * MIB
_MARGIN = 0.02


@dataclass(frozen=True)
class DeviceCapacity:
    """A device of a backend and the memory it can give. A CPU backend has one device: its node."""

    node: str
    endpoint: str
    """``address:port``."""
    available_bytes: int
    reserve_bytes: int | None = None
    """Left to the node; by default 256 MiB and 2% of what is available."""
    device: int = 0
    """Its number among the devices of its backend (protocol 3 and later)."""
    bytes_per_s: float | None = None
    """Bytes of weights that it reads per second while it decodes; None where that was not measured."""

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill."""
        reserve = self.reserve_bytes
        if reserve is None:
            reserve = _RESERVE + int(self.available_bytes * _MARGIN)
        return max(0, self.available_bytes - reserve)

    def seconds(self, layer_bytes: int) -> float:
        """Time for one token with these weights: decoding reads each once. 0 where the speed is unknown."""
        return layer_bytes / self.bytes_per_s if self.bytes_per_s else 0.0


def largest_usable(devices: Sequence[DeviceCapacity]) -> list[DeviceCapacity]:
    """The devices, in order; of more than one coordinator can use, those of the backends that give most.

    A backend is taken with all its devices or not at all: a coordinator uses every device that it offers.
    """
    if len(devices) <= MAX_RPC_DEVICES:
        return list(devices)
    backends: dict[str, list[DeviceCapacity]] = {}
    for device in devices:
        backends.setdefault(device.endpoint, []).append(device)
    chosen: set[str] = set()
    left = MAX_RPC_DEVICES
    for endpoint, own in sorted(
        backends.items(), key=lambda item: -sum(device.usable_bytes for device in item[1])
    ):
        if len(own) <= left:
            chosen.add(endpoint)
            left -= len(own)
    return [device for device in devices if device.endpoint in chosen]


class NodeSpeed(BaseModel):
    """One node's measurement."""

    model_config = ConfigDict(extra="forbid")

    node: str
    bytes_per_s: float = Field(gt=0)
    """Bytes of weights that its backend reads per second while it decodes."""
    build: int | None
    """Build of llama.cpp that was measured."""
    sha256: str | None = None
    """Of that build's rpc-server."""
    hardware: str = ""
    """What it was measured on: processor, cores, memory limit."""
    model: str
    measured_ns: int
    tokens_per_s: list[float] = []
    """Every value that went into it."""


class Calibration(BaseModel):
    """Measurements by node; a node that was measured again replaces its earlier one."""

    model_config = ConfigDict(extra="forbid")

    nodes: list[NodeSpeed] = []

    def with_nodes(self, measured: list[NodeSpeed]) -> "Calibration":
        by_node = {speed.node: speed for speed in [*self.nodes, *measured]}
        return Calibration(nodes=list(by_node.values()))

    def speeds(self, build: int | None) -> dict[str, float]:
        """Speeds by node, those that were measured with ``build``: another build may be faster or slower."""
        return {node.node: node.bytes_per_s for node in self.nodes if node.build == build}
