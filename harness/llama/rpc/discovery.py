"""Finds rpc-servers: those that are known first, then every address of the networks that were asked for."""

import asyncio
import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.llama.rpc.client import CONNECT_S, REPLY_S
from harness.llama.rpc.messages import Version
from harness.llama.rpc.probe import BackendStatus, Probe, probe
from harness.settings import RPC_PORT

MAX_ADDRESSES = 1024
"""Addresses asked at most, unless more are allowed."""
AT_ONCE = 512
"""Connections that are open at a time."""


@dataclass(frozen=True)
class Candidate:
    """An endpoint to look at."""

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
        limit: the most addresses that may come of it.
        force: admit networks that are not private.

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
            f"{network} is not a private network; add --force if its machines are yours to ask"
        )
    return network


def candidates(known: Sequence[Candidate], hosts: Iterable[str], port: int = RPC_PORT) -> list[Candidate]:
    """The known backends, then the other addresses, each endpoint once."""
    found = {one.endpoint: one for one in known}
    for host in hosts:
        other = Candidate(host, port)
        found.setdefault(other.endpoint, other)
    return list(found.values())


async def discover(
    wanted: Sequence[Candidate],
    *,
    in_use: Mapping[str, str],
    expected: Version | None = None,
    connect_s: float = CONNECT_S,
    reply_s: float = REPLY_S,
    at_once: int = AT_ONCE,
) -> list[Probe]:
    """What there is at each endpoint, in the order given.

    Args:
        wanted: endpoints to look at.
        in_use: endpoints that are known to be in use, with the reason: reported busy and never connected to.
        expected: protocol of our coordinator; None takes any.
        connect_s: seconds that a connection may take.
        reply_s: seconds that each reply may take.
        at_once: connections open at a time.
    """
    places = asyncio.Semaphore(at_once)

    async def look(one: Candidate) -> Probe:
        if reason := in_use.get(one.endpoint):
            return Probe(one.host, one.port, BackendStatus.BUSY, reason, node=one.node)
        async with places:
            return await probe(
                one.host, one.port, expected=expected, connect_s=connect_s, reply_s=reply_s, node=one.node
            )

    return list(await asyncio.gather(*(look(one) for one in wanted)))


def worth_showing(found: Iterable[Probe], known: Collection[str]) -> list[Probe]:
    """What a person wants to see of a scan: the known endpoints, and every other one that answers.

    Args:
        found: the scan's result.
        known: endpoints of the inventory.
    """
    nothing = {BackendStatus.SILENT, BackendStatus.CLOSED}
    return [one for one in found if one.status not in nothing or one.endpoint in known]
