"""One backend's state as the network shows it: idle, busy, another version, silent, closed, or a stranger."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.llama.rpc.client import (
    CONNECT_S,
    REPLY_S,
    BackendInfo,
    ClosedError,
    HungUpError,
    SilentError,
    UnansweredError,
    ask,
)
from harness.llama.rpc.messages import ProtocolError, Version


class BackendStatus(StrEnum):
    """What there is at an endpoint."""

    IDLE = "idle"
    """An rpc-server that answers."""
    BUSY = "busy"
    """Known to be in use; or it lets connect and says nothing, as one in use, or stopped, does."""
    WRONG_VERSION = "wrong version"
    """An rpc-server whose protocol our coordinator refuses."""
    SILENT = "silent"
    """No connection came about."""
    CLOSED = "closed"
    """Nobody listens."""
    STRANGER = "stranger"
    """Something listens that is no rpc-server."""


@dataclass(frozen=True)
class Probe:
    """What was found at one endpoint, and why it is called so."""

    host: str
    port: int
    status: BackendStatus
    reason: str
    info: BackendInfo | None = None
    node: str | None = None
    """Name in the inventory."""

    @property
    def endpoint(self) -> str:
        """``address:port``."""
        return f"{self.host}:{self.port}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; memory in bytes, summed over the devices."""
        info = self.info
        return {
            "node": self.node,
            "host": self.host,
            "port": self.port,
            "status": self.status.value,
            "reason": self.reason,
            "version": str(info.version) if info else None,
            "devices": [
                {"free_bytes": device.free_bytes, "total_bytes": device.total_bytes}
                for device in (info.devices if info else ())
            ],
            "free_bytes": info.free_bytes if info else None,
            "total_bytes": info.total_bytes if info else None,
        }


async def probe(
    host: str,
    port: int,
    *,
    expected: Version | None = None,
    connect_s: float = CONNECT_S,
    reply_s: float = REPLY_S,
    node: str | None = None,
) -> Probe:
    """Ask one endpoint that is not known to be in use; says what it saw instead of raising.

    Args:
        host: IPv4 address.
        port: RPC port.
        expected: protocol of our coordinator; None takes any.
        connect_s: seconds that a connection may take.
        reply_s: seconds that each reply may take.
        node: name in the inventory, for the result.
    """

    def found(status: BackendStatus, reason: str, info: BackendInfo | None = None) -> Probe:
        return Probe(host, port, status, reason, info, node)

    try:
        info = await ask(host, port, connect_s=connect_s, reply_s=reply_s)
    except ClosedError as error:
        return found(BackendStatus.CLOSED, str(error))
    except SilentError as error:
        return found(BackendStatus.SILENT, str(error))
    except UnansweredError as error:
        return found(BackendStatus.BUSY, f"{error}: it serves somebody, or is stopped")
    except HungUpError as error:
        return found(BackendStatus.STRANGER, f"{error} on a HELLO")
    except ProtocolError as error:
        return found(BackendStatus.STRANGER, f"no rpc-server: {error}")
    if expected is not None and not info.version.serves(expected):
        reason = f"speaks protocol {info.version}, our coordinator {expected}"
        return found(BackendStatus.WRONG_VERSION, reason, info)
    return found(BackendStatus.IDLE, f"answers with protocol {info.version}", info)
