"""One run at a time on a cluster, wherever it was started: a lease that the router keeps."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.trials.client import RouterClient

LEASE_S = 20.0
RENEW_S = 5.0


@asynccontextmanager
async def cluster_lease(router: RouterClient, folder: Path) -> AsyncIterator[None]:
    """Hold the cluster for one run. One that is killed blocks others for ``LEASE_S``, but not its resumption.

    A router that restarts forgets the lease and is given it again.

    Args:
        folder: of the run; with this computer's name it tells two runs apart.

    Raises:
        HarnessError: another run holds it, or the router does not answer.
    """
    owner = f"{folder.name} ({socket.gethostname()}:{folder.parent.resolve()})"
    await router.lease(owner, LEASE_S)
    renewing = asyncio.create_task(_renew(router, owner))
    try:
        yield
    finally:
        renewing.cancel()
        with suppress(HarnessError):
            await router.give_back(owner)


async def _renew(router: RouterClient, owner: str) -> None:
    while True:
        await asyncio.sleep(RENEW_S)
        with suppress(HarnessError):  # away for a moment; the next round tells again
            await router.lease(owner, LEASE_S)
