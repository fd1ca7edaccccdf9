"""Backends as the head node finds them: those of the configuration first, then the networks asked for."""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.llama.releases.installed import installed_release
from harness.llama.rpc.discovery import (
    MAX_ADDRESSES,
    Candidate,
    addresses,
    candidates,
    discover,
    worth_showing,
)
from harness.llama.rpc.messages import Version
from harness.llama.rpc.probe import BackendStatus, Probe
from harness.llama.rpc.sockets import connected_endpoints
from harness.router.config import RouterConfig, load_config
from harness.settings import NODE_CONFIG, RPC_PORT

CONFIG = NODE_CONFIG / "router.json"


def known_backends(config: RouterConfig) -> list[Candidate]:
    """The backends that the configuration lists."""
    found = []
    for backend in config.backends:
        host, _, port = backend.endpoint.rpartition(":")
        found.append(Candidate(host, int(port), backend.node))
    return found


def spoken_protocol(llama_server: Path) -> Version | None:
    """Protocol of the installed llama-server; None where its build is not in the catalogue."""
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

    An endpoint that this machine is connected to serves somebody here: it is reported busy from the socket
    table, without a connection.

    Raises:
        HarnessError: a network that cannot be asked.
    """
    wanted = candidates(known, addresses(cidrs, limit=limit, force=force), port)
    ours = dict.fromkeys(connected_endpoints(), "a process of this machine is connected to it")
    found = await discover(wanted, in_use=ours | in_use, expected=expected)
    return worth_showing(found, {one.endpoint for one in known})


def auto_discover_rpc_backends(
    cidrs: Iterable[str] = (),
    *,
    config: Path = CONFIG,
    port: int = RPC_PORT,
    limit: int = MAX_ADDRESSES,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Backends that are idle and speak our protocol, for ``HybridRouter(rpc_backends=...)``.

    To be called on the head node, which alone is let through to the backends; also from inside a coroutine.

    Args:
        cidrs: private networks to look through beside the backends of the router's configuration.
        config: the router's configuration; one that is not there lists no backends.
        port: RPC port in those networks.
        limit: the most addresses to ask.
        force: admit networks that are not private.

    Returns:
        One dictionary for each: ``host``, ``port``, ``node``, ``version``, ``devices``, ``free_bytes``,
        ``total_bytes`` among others.

    Raises:
        HarnessError: there is nothing to ask, or a network that cannot be asked.
    """
    networks = list(cidrs)
    there = config.exists()
    if not there and not networks:
        raise HarnessError(
            f"no backends to look for: there is no {config} here; run this on the head node, "
            "or name networks: auto_discover_rpc_backends(['10.0.0.0/24'])"
        )
    settings = load_config(config) if there else None
    work = find_backends(
        known_backends(settings) if settings else [],
        networks,
        in_use={},
        expected=spoken_protocol(settings.llama_server) if settings else None,
        port=port,
        limit=limit,
        force=force,
    )
    found: list[Probe] = []
    failed: list[HarnessError] = []

    def run() -> None:
        try:
            found.extend(asyncio.run(work))
        except HarnessError as error:
            failed.append(error)

    # A thread of its own, with a loop of its own: scripts call this from inside their coroutines.
    thread = threading.Thread(target=run, name="discovery")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return [one.as_dict() for one in found if one.status is BackendStatus.IDLE]
