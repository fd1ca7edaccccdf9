"""One run at a time on an inventory: two would measure each other."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.settings import state_dir

_ATTEMPTS, _PAUSE_S = 200, 0.01


@contextmanager
def inventory_lock(inventory: Path, holder: str) -> Iterator[None]:
    """Hold the inventory for one run; the kernel drops the lock when the process ends, however it ends.

    Args:
        inventory: the inventory's file or folder.
        holder: shown to a run that is refused, e.g. the run's name.

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
        if not _lock(descriptor):
            other = _read_holder(descriptor)
            raise HarnessError(
                f"inventory {inventory} is taken by another run ({other}); wait for it or stop it"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}, pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def inventory_holder(inventory: Path) -> str | None:
    """``holder`` and process id of the run that holds the inventory on this machine; None without one."""
    try:
        descriptor = os.open(state_dir(inventory) / "run.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(descriptor)
    finally:
        os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Take the lock; False where a run holds it.

    ``inventory_holder`` takes a shared lock for a moment: that is waited for. A run holds an exclusive one,
    beside which no shared one is granted.
    """
    for _ in range(_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_PAUSE_S)
    return False


def _read_holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
