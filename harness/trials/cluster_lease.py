"""One run at a time on a cluster, wherever it was started: a lease that the router keeps."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.router_client.client import RouterClient, RouterRefusedError

LEASE_S = 20.0
RENEW_S = 5.0


@asynccontextmanager
async def cluster_lease(
    router: RouterClient, folder: Path, warn: Callable[[str], None]
) -> AsyncIterator[None]:
    """Hold the cluster for one run. One that is killed blocks others for ``LEASE_S``, but not its resumption.

    A router that restarts forgets the lease and is given it again.

    Args:
        folder: of the run; with this computer's name it tells two runs apart.
        warn: told when another run has taken the cluster meanwhile: both measure each other then.

    Raises:
        HarnessError: another run holds it, or the router does not answer.
    """
    place = hashlib.sha256(str(folder.parent.resolve()).encode()).hexdigest()[:8]
    owner = f"{folder.name[:120]} of {socket.gethostname()[:60]}, {place}"
    await router.lease(owner, LEASE_S)
    renewing = asyncio.create_task(_renew(router, owner, warn))
    try:
        yield
    finally:
        renewing.cancel()
        with suppress(HarnessError):
            await router.give_back(owner)


async def _renew(router: RouterClient, owner: str, warn: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(RENEW_S)
        try:
            await router.lease(owner, LEASE_S)
        except RouterRefusedError as refusal:
            warn(f"this run's lease ran out, and another run has the cluster: {refusal}")
        except HarnessError:
            pass  # away for a moment; the next round tells again
