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
        HarnessError: another run holds this inventory, or the lock cannot be made.
    """
    path = state_dir(inventory) / "run.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HarnessError(f"cannot make {path}: {error.strerror}; or set LLAMA_HARNESS_STATE") from error
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


def inventory_holder(inventory: Path) -> str | None:
    """Who holds the inventory on this machine, as :func:`inventory_lock` was told; None where nobody does."""
    try:
        descriptor = os.open(state_dir(inventory) / "run.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None
