"""Finds rpc-servers, the known ones first, then all addresses of the networks; gives the state of each."""

import asyncio
import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.llama.rpc.client import CONNECT_S, REPLY_S, BackendInfo, BackendStatus, RpcError, ask
from harness.llama.rpc.messages import Version
from harness.settings import RPC_PORT


@dataclass(frozen=True)
class Probe:
    """The state of one endpoint, and the reason for it."""

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
    """Probe one endpoint that is not known to be in use; an error becomes a status.

    Args:
        expected: protocol of our coordinator; None takes any.
        connect_s: seconds that a connection may take, and ``reply_s`` each reply.
        node: name in the inventory, for the result.
    """

    def result(status: BackendStatus, reason: str, info: BackendInfo | None = None) -> Probe:
        return Probe(host, port, status, reason, info, node)

    try:
        info = await ask(host, port, connect_s=connect_s, reply_s=reply_s)
    except RpcError as error:
        busy = error.status is BackendStatus.BUSY
        return result(error.status, f"{error}{_BUSY if busy else ''}")
    if expected is not None and not info.version.serves(expected):
        reason = f"speaks protocol {info.version}, our coordinator {expected}"
        return result(BackendStatus.WRONG_VERSION, reason, info)
    return result(BackendStatus.IDLE, f"answers with protocol {info.version}", info)


MAX_ADDRESSES = 1024
"""Addresses probed at most, unless more are allowed."""
_AT_ONCE = 512
"""Connections that are open at a time."""
_BUSY = ": it serves another client, or is stopped"


@dataclass(frozen=True)
class Candidate:
    """An endpoint to probe."""

    host: str
    port: int
    node: str | None = None
    """Its name in the inventory."""

    @property
    def endpoint(self) -> str:
        """``address:port``."""
        return f"{self.host}:{self.port}"


def addresses(cidrs: Iterable[str], *, limit: int = MAX_ADDRESSES, force: bool = False) -> list[str]:
    """Every host address of the networks, each once, in order.

    Args:
        cidrs: ``10.0.0.0/24``, or a single address; IPv4, as rpc-server knows no other.
        limit: the most addresses in the result.
        force: accept networks that are not private.

    Raises:
        HarnessError: not a network, not private, or too many addresses.
    """
    networks = [_network(cidr, force) for cidr in cidrs]
    count = sum(network.num_addresses for network in networks)
    if count > limit:
        raise HarnessError(f"{count} addresses are more than {limit}; name smaller networks or raise --limit")
    return list(dict.fromkeys(str(host) for network in networks for host in network.hosts()))


def _network(cidr: str, force: bool) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(cidr, strict=False)
    except ValueError as error:
        raise HarnessError(f"'{cidr}' is no IPv4 network such as 10.0.0.0/24: {error}") from None
    if not network.is_private and not force:
        raise HarnessError(
            f"{network} is not a private network; add --force if its machines are yours to probe"
        )
    return network


def candidates(known: Sequence[Candidate], hosts: Iterable[str], port: int = RPC_PORT) -> list[Candidate]:
    """The known backends, then the other addresses, each endpoint once."""
    by_endpoint = {candidate.endpoint: candidate for candidate in known}
    for host in hosts:
        other = Candidate(host, port)
        by_endpoint.setdefault(other.endpoint, other)
    return list(by_endpoint.values())


async def discover(
    wanted: Sequence[Candidate],
    *,
    in_use: Mapping[str, str],
    expected: Version | None = None,
    connect_s: float = CONNECT_S,
    reply_s: float = REPLY_S,
) -> list[Probe]:
    """The state of each endpoint, in the order given.

    Args:
        in_use: endpoints that are known to be in use, with the reason: reported busy and never connected to.
        expected: protocol of our coordinator; None takes any.
        connect_s: seconds that a connection may take, and ``reply_s`` each reply.
    """
    places = asyncio.Semaphore(_AT_ONCE)

    async def probe_one(candidate: Candidate) -> Probe:
        host, port, node = candidate.host, candidate.port, candidate.node
        if reason := in_use.get(candidate.endpoint):
            return Probe(host, port, BackendStatus.BUSY, reason, node=node)
        async with places:
            return await probe(host, port, expected=expected, connect_s=connect_s, reply_s=reply_s, node=node)

    return list(await asyncio.gather(*(probe_one(candidate) for candidate in wanted)))


def worth_showing(probes: Iterable[Probe], known: Collection[str]) -> list[Probe]:
    """The part of a scan for people: the known endpoints, and every other one that answers."""
    absent = {BackendStatus.SILENT, BackendStatus.CLOSED}
    return [probe for probe in probes if probe.status not in absent or probe.endpoint in known]
