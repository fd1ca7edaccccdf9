"""Gives the measured programs a higher priority than other work on a shared machine. Needs root."""

from pathlib import Path

_NICE = -15


def session_first(pid: int) -> None:
    """Give a process's session a higher priority, on a kernel that schedules by session (autogroup).

    It does not use a real-time class, because the kernel stops such processes for 50 ms of each second.

    Raises:
        SystemExit: the kernel has no autogroups (``CONFIG_SCHED_AUTOGROUP``).
    """
    group = Path(f"/proc/{pid}/autogroup")
    if not group.exists():
        raise SystemExit("--first needs a kernel with CONFIG_SCHED_AUTOGROUP; run without --first")
    group.write_text(str(_NICE))
