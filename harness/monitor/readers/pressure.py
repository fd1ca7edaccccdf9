"""Pressure stall information: how long tasks waited for memory and io (the kernel's accounting/psi.rst)."""

from pathlib import Path

from harness.monitor.readers.memory import PROC
from harness.monitor.sample import Pressure, Source

_Figures = dict[str, tuple[float, int]]
_NONE = (0.0, 0)


def node_pressure(proc: Path = PROC) -> Pressure | None:
    """Pressure on the whole node; None where its kernel keeps none (built or booted without ``psi``)."""
    folder = proc / "pressure"
    return _pressure(Source.PROC, folder / "memory", folder / "io")


def cgroup_pressure(folder: Path) -> Pressure | None:
    """Pressure on one cgroup; None for version 1, whose kernel counts it for the whole host only."""
    return _pressure(Source.CGROUP, folder / "memory.pressure", folder / "io.pressure")


def parse_pressure(text: str) -> _Figures:
    """Percent of the last ten seconds and microseconds in all, by ``some`` and ``full``.

    Args:
        text: lines such as ``some avg10=0.22 avg60=0.10 avg300=0.02 total=1234``.
    """
    found = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=") for pair in pairs)
        found[kind] = (float(values["avg10"]), int(values["total"]))
    return found


def _pressure(source: Source, memory_file: Path, io_file: Path) -> Pressure | None:
    try:
        memory = parse_pressure(memory_file.read_text())
        io = parse_pressure(io_file.read_text())
    except OSError:  # no such file, or EOPNOTSUPP where it is switched off
        return None
    (memory_some, memory_some_us), (memory_full, memory_full_us) = _both(memory)
    (io_some, io_some_us), (io_full, io_full_us) = _both(io)
    return Pressure(
        source=source,
        memory_some_avg10=memory_some,
        memory_full_avg10=memory_full,
        memory_some_total_us=memory_some_us,
        memory_full_total_us=memory_full_us,
        io_some_avg10=io_some,
        io_full_avg10=io_full,
        io_some_total_us=io_some_us,
        io_full_total_us=io_full_us,
    )


def _both(figures: _Figures) -> tuple[tuple[float, int], tuple[float, int]]:
    return figures.get("some", _NONE), figures.get("full", _NONE)
