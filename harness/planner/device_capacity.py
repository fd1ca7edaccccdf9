"""What a backend's devices can give, and how fast they read what they hold."""

from dataclasses import dataclass

_MIB = 1 << 20
_RESERVE = 256 * _MIB
_MARGIN = 0.02


@dataclass(frozen=True)
class Speed:
    """How long a device takes for its part of one token: weights are read once, and it is asked once.

    Decoding reads each weight once per token, so that a layer's time is its bytes over ``bytes_per_s``; what
    a backend costs however little it holds (its round trip, its threads) is ``overhead_s``.
    """

    bytes_per_s: float
    overhead_s: float = 0.0

    def seconds(self, layer_bytes: int) -> float:
        """Time for one token with ``layer_bytes`` of weights there; nothing where it holds nothing."""
        return layer_bytes / self.bytes_per_s + self.overhead_s if layer_bytes else 0.0


@dataclass(frozen=True)
class BackendMemory:
    """A device of a backend and the memory it can give. A CPU backend has one device: its node."""

    node: str
    endpoint: str
    """``address:port``."""
    available_bytes: int
    reserve_bytes: int | None = None
    """Left to the node; by default 256 MiB and 2% of what is available."""
    device: int = 0
    """Its number among the devices of its backend (protocol 3 and later)."""
    speed: Speed | None = None

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill."""
        reserve = self.reserve_bytes
        if reserve is None:
            reserve = _RESERVE + int(self.available_bytes * _MARGIN)
        return max(0, self.available_bytes - reserve)
