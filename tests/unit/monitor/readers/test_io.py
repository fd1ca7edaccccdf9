"""Pressure, disks and rates as the monitor reads them, from recorded files."""

import shutil
from pathlib import Path

import pytest
from harness.monitor.readers import Rate
from harness.monitor.readers.disk import DiskReader, cgroup_traffic, disk_traffic
from harness.monitor.readers.memory import cgroup_pressure, load1, node_pressure
from harness.monitor.sample import Source

DATA = Path(__file__).parents[3] / "data" / "monitor"
PROC = DATA / "proc"
V1, V2 = DATA / "cgroup-v1", DATA / "cgroup-v2"
V1_IO = DATA / "cgroup-v1-io"


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A /sys in which vda is hardware, and loop0 and zram0 are not."""
    (tmp_path / "block" / "vda" / "device").mkdir(parents=True)
    for name in ("loop0", "zram0"):
        (tmp_path / "block" / name).mkdir()
    return tmp_path


def test_node_pressure_is_the_kernels() -> None:
    pressure = node_pressure(PROC)
    assert pressure is not None
    assert pressure.source is Source.PROC
    assert pressure.memory_some_total_us >= pressure.memory_full_total_us > 0
    assert pressure.io_some_total_us >= pressure.io_full_total_us > 0


def test_cgroup_has_its_own_pressure_with_version_2() -> None:
    pressure = cgroup_pressure(V2)
    assert pressure is not None
    assert pressure.source is Source.CGROUP
    assert (pressure.memory_some_avg10, pressure.memory_full_avg10) == (12.5, 7.25)
    assert (pressure.io_some_total_us, pressure.io_full_total_us) == (9_000_000, 8_000_000)


def test_cgroup_of_version_1_is_never_given_the_hosts_pressure() -> None:
    assert cgroup_pressure(V1) is None


def test_kernel_without_pressure_is_no_error(tmp_path: Path) -> None:
    assert node_pressure(tmp_path) is None


def test_load_is_that_of_one_minute(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("0.94 1.60 1.21 1/240 736\n")
    assert load1(tmp_path) == 0.94


def test_disks_are_counted_once_and_partitions_loops_and_zram_not(sys: Path) -> None:
    rows = "".join(
        f"254 {minor} {name} 10 0 {read} 5 20 0 {written} 5 0 5 5 0 0 0 0 0 0\n"
        for minor, name, read, written in (
            (0, "vda", 100, 200),
            (1, "vda1", 100, 200),
            (7, "loop0", 40, 0),
            (9, "zram0", 1, 1),
        )
    )
    assert disk_traffic(rows, sys).devices == ("vda",)
    assert disk_traffic(rows, sys).read_bytes == 100 * 512
    assert disk_traffic(rows, sys).written_bytes == 200 * 512


def test_recorded_disk_of_a_node_is_read(sys: Path) -> None:
    disk = DiskReader(None, in_cgroup=False, proc=PROC, sys=sys).read(10.0)
    assert disk is not None
    assert (disk.source, disk.device) == (Source.PROC, "vda")
    assert disk.written_bytes > disk.read_bytes > 1 << 30


def test_cgroup_of_version_2_has_its_share_of_the_disks() -> None:
    traffic = cgroup_traffic(V2)
    assert traffic is not None
    assert traffic.devices == ("8:0", "8:16")  # the loop device lies on one of them
    assert (traffic.read_bytes, traffic.written_bytes) == (5_096_000, 3_024_000)


def test_cgroup_of_version_1_has_its_share_of_the_disks() -> None:
    traffic = cgroup_traffic(V1_IO)  # 20 MiB were written and read
    assert traffic is not None
    assert (traffic.read_bytes, traffic.written_bytes) == (20 << 20, 20 << 20)


def test_lab_node_is_never_given_its_hosts_disks(sys: Path) -> None:
    for folder in (None, V1):
        assert DiskReader(folder, in_cgroup=True, proc=PROC, sys=sys).read(10.0) is None


def test_disk_rates_come_with_the_second_look(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(V1_IO, tmp_path / "io"))
    (stat,) = folder.iterdir()
    reader = DiskReader(folder, in_cgroup=True)
    first = reader.read(10.0)
    stat.write_text(stat.read_text().replace("Read 20971520", "Read 31457280"))
    second = reader.read(12.0)
    assert first is not None
    assert second is not None
    assert first.read_bytes_per_s is None
    assert (second.read_bytes_per_s, second.written_bytes_per_s) == (5 << 20, 0)


def test_rate_is_growth_per_second() -> None:
    rate = Rate()
    assert rate(1.0, 100) is None
    assert rate(3.0, 500) == 200


def test_counter_that_began_anew_has_no_rate_once() -> None:
    rate = Rate()
    rate(1.0, 100)
    assert rate(2.0, 5) is None
    assert rate(3.0, 15) == 10
