"""Bytes read from and written to disks, of the whole node or of one cgroup."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.monitor.readers import PROC, SYS, Rate, read_text
from harness.monitor.sample import Disk, Source

_SECTOR_BYTES = 512
"""The unit of /proc/diskstats, whatever the disk's own (the kernel's admin-guide/iostats.rst)."""
_LOOP_MAJOR = "7"
"""Loop devices: what goes through them is counted again at the disk below."""
_BLKIO_V1 = "blkio.throttle.io_service_bytes_recursive"


class Traffic(NamedTuple):
    """Counters of some disks together."""

    devices: tuple[str, ...]
    read_bytes: int
    written_bytes: int


class DiskReader:
    """Reads a cgroup's share or the node's disks; keeps the last counters, for the rates."""

    def __init__(self, cgroup: Path | None, in_cgroup: bool, proc: Path = PROC, sys: Path = SYS) -> None:
        """Reads nothing yet.

        Args:
            cgroup: folder of the controller that counts io; None where there is none.
            in_cgroup: the node is a machine cgroup: its host's disks are not its own.
            proc: where /proc is.
            sys: where /sys is.
        """
        self._cgroup = cgroup
        self._in_cgroup = in_cgroup
        self._proc, self._sys = proc, sys
        self._reads, self._writes = Rate(), Rate()

    def read(self, now_s: float) -> Disk | None:
        """Counters and rates now; None where nothing that is the node's own can be counted.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._in_cgroup:
            traffic = cgroup_traffic(self._cgroup)
        else:
            traffic = disk_traffic(read_text(self._proc / "diskstats") or "", self._sys)
        if traffic is None or not traffic.devices:
            return None
        return Disk(
            source=Source.CGROUP if self._in_cgroup else Source.PROC,
            device=",".join(traffic.devices),
            read_bytes=traffic.read_bytes,
            written_bytes=traffic.written_bytes,
            read_bytes_per_s=self._reads(now_s, traffic.read_bytes),
            written_bytes_per_s=self._writes(now_s, traffic.written_bytes),
        )


def disk_traffic(diskstats: str, sys: Path = SYS) -> Traffic:
    """Traffic of the disks that are hardware: partitions, loops, RAID and LVM lie on top of them.

    Args:
        diskstats: the text of /proc/diskstats.
        sys: where /sys is: a disk has a ``device`` there.
    """
    names, read, written = [], 0, 0
    for line in diskstats.splitlines():
        _major, _minor, name, _, _, sectors_read, _, _, _, sectors_written, *_ = line.split()
        used = sectors_read != "0" or sectors_written != "0"
        if used and (sys / "block" / name.replace("/", "!") / "device").exists():
            names.append(name)
            read += int(sectors_read) * _SECTOR_BYTES
            written += int(sectors_written) * _SECTOR_BYTES
    return Traffic(tuple(names), read, written)


def cgroup_traffic(folder: Path | None) -> Traffic | None:
    """A cgroup's share: ``io.stat`` (version 2) or blkio's throttle counters (version 1).

    Version 1 counts what the group's own tasks sent to a disk; what the kernel wrote back for them later
    is nobody's there.
    """
    if folder is None:
        return None
    for name, parse in (("io.stat", _rows_v2), (_BLKIO_V1, _rows_v1)):
        if (text := read_text(folder / name)) is None:
            continue
        rows = [row for row in parse(text) if row[0].partition(":")[0] != _LOOP_MAJOR]
        names = sorted({name for name, _, _ in rows})
        return Traffic(tuple(names), sum(row[1] for row in rows), sum(row[2] for row in rows))
    return None


def _rows_v2(text: str) -> Iterator[tuple[str, int, int]]:
    for line in text.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        yield device, int(values.get("rbytes", 0)), int(values.get("wbytes", 0))


def _rows_v1(text: str) -> Iterator[tuple[str, int, int]]:
    for line in text.splitlines():
        device, *words = line.split()
        match words:
            case ["Read", count]:
                yield device, int(count), 0
            case ["Write", count]:
                yield device, 0, int(count)
