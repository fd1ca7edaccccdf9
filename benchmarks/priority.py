"""What is measured goes before whatever else a shared machine does. Needs root."""

from pathlib import Path

_NICE = -15


def session_first(pid: int) -> None:
    """Put a process's session first, where the kernel shares out the processors by session.

    Not by a real-time class: the kernel stops those for 50 ms of each second.

    Raises:
        SystemExit: this kernel does not (``CONFIG_SCHED_AUTOGROUP``).
    """
    group = Path(f"/proc/{pid}/autogroup")
    if not group.exists():
        raise SystemExit("--first needs a kernel that shares out processors by session; leave it out")
    group.write_text(str(_NICE))
