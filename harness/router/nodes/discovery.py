"""Backends as the head node sees them: those of the configuration first, then the networks to search."""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.common.sockets import connected_endpoints
from harness.errors import HarnessError
from harness.llama.releases.catalogue import installed_release
from harness.llama.rpc.client import BackendStatus
from harness.llama.rpc.discovery import (
    MAX_ADDRESSES,
    Candidate,
    Probe,
    addresses,
    candidates,
    discover,
    worth_showing,
)
from harness.llama.rpc.messages import Version
from harness.router.config import RouterConfig, load_config
from harness.settings import NODE_CONFIG, RPC_PORT

CONFIG = NODE_CONFIG / "router.json"


def known_backends(config: RouterConfig) -> list[Candidate]:
    return [Candidate(backend.address, backend.port, backend.node) for backend in config.backends]


def installed_protocol(llama_server: Path) -> Version | None:
    """RPC protocol of the installed llama-server; None where its build is not in the catalogue."""
    release = installed_release(llama_server)
    return Version.parse(release.protocol) if release else None


async def find_backends(
    known: Sequence[Candidate],
    cidrs: Iterable[str] = (),
    *,
    in_use: dict[str, str],
    expected: Version | None = None,
    port: int = RPC_PORT,
    limit: int = MAX_ADDRESSES,
    force: bool = False,
) -> list[Probe]:
    """The known backends, and every other endpoint of the networks that answers.

    An endpoint that this machine is connected to is in use, so it is reported busy without a connection.

    Raises:
        HarnessError: a network that must not be searched.
    """
    endpoints = candidates(known, addresses(cidrs, limit=limit, force=force), port)
    ours = dict.fromkeys(connected_endpoints(), "a process of this machine is connected to it")
    probes = await discover(endpoints, in_use=ours | in_use, expected=expected)
    return worth_showing(probes, {candidate.endpoint for candidate in known})


def auto_discover_rpc_backends(
    cidrs: Iterable[str] = (),
    *,
    config: Path = CONFIG,
    port: int = RPC_PORT,
    limit: int = MAX_ADDRESSES,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Backends that are idle and speak our protocol, for ``HybridRouter(rpc_backends=...)``.

    To be called on the head node, which alone is admitted to the backends; also from inside a coroutine.

    Args:
        cidrs: private networks to search beside the backends of the router's configuration.
        config: the router's configuration; one that does not exist lists no backends.
        port: RPC port in those networks.
        limit: the most addresses to search.
        force: admit networks that are not private.

    Returns:
        One dictionary for each: ``host``, ``port``, ``node``, ``version``, ``devices``, ``free_bytes``,
        ``total_bytes`` among others.

    Raises:
        HarnessError: there is nothing to search, or a network that must not be searched.
    """
    networks, settings = list(cidrs), load_config(config) if config.exists() else None
    if settings is None and not networks:
        raise HarnessError(
            f"no backends to look for: there is no {config} here; run this on the head node, "
            "or name networks: auto_discover_rpc_backends(['10.0.0.0/24'])"
        )
    work = find_backends(
        known_backends(settings) if settings else [],
        networks,
        in_use={},
        expected=installed_protocol(settings.llama_server) if settings else None,
        port=port,
        limit=limit,
        force=force,
    )
    # A thread with a loop of its own: scripts call this from inside their coroutines.
    with ThreadPoolExecutor(1) as thread:
        probes = thread.submit(asyncio.run, work).result()
    return [probe.as_dict() for probe in probes if probe.status is BackendStatus.IDLE]
