"""One run at a time on an inventory: two would measure each other."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError
from harness.settings import state_dir


@contextmanager
def inventory_lock(inventory: Path, holder: str) -> Iterator[None]:
    """Hold the inventory for one run; the kernel drops the lock when the process ends, however it ends.

    Args:
        inventory: the inventory's file or folder.
        holder: what a refused run is told, e.g. the run's name.

    Raises:
        HarnessError: another run holds this inventory.
    """
    folder = state_dir(inventory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
            raise HarnessError(
                f"inventory {inventory} is taken by another run ({other}); wait for it or stop it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}, pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
