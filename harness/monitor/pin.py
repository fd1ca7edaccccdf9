"""Keeps the monitor in memory: on a node that swaps, the one process that must not wait is this one."""

import ctypes
import os

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def keep_resident() -> str | None:
    """Lock the pages in use, and each later one once it is touched (mlockall(2), MCL_ONFAULT).

    Returns:
        None when it worked, else why it did not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return None
    return os.strerror(ctypes.get_errno())
