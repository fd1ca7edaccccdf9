"""The kernel's log as the monitor and the lab read it, from recorded records."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from harness.lab.supervisor import OomRecords, wait_and_copy
from harness.monitor.readers import kernel_log as kernel
from harness.monitor.readers.kernel_log import KernelLog, parse_record, parse_xid

KMSG = Path(__file__).parents[3] / "data" / "monitor" / "kmsg"
OOM, XID = KMSG / "oom.txt", KMSG / "xid.txt"
KILLED = "Memory cgroup out of memory: Killed process 12357 (rpc-server) total-vm:408696kB"


def test_last_oom_kill_is_the_line_that_names_the_process() -> None:
    log = KernelLog(OOM).read(oom_kills=1)
    assert log.log
    assert log.oom_kills == 1
    assert log.last_oom is not None
    assert log.last_oom.startswith(KILLED)


def test_time_of_a_record_is_the_wall_clocks() -> None:
    log = KernelLog(OOM).read(None)
    assert log.last_oom_ns is not None
    booted_ns = time.time_ns() - time.monotonic_ns()
    assert abs(log.last_oom_ns - booted_ns - 2_892_207_947_000) < 1e9


def test_xids_are_read_with_board_and_number_in_order() -> None:
    log = KernelLog(XID).read(None)
    assert [(xid.pci, xid.code) for xid in log.xids] == [
        ("0000:65:00", 31),
        ("0000:65:00", 79),
        ("0000:b3:00.0", 79),
        ("0000:03:00", 13),
    ]
    assert "GPU has fallen off the bus" in log.xids[1].line
    assert "\n" not in log.xids[2].line
    assert log.last_oom is None


def test_newest_xids_are_kept_and_no_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"4,{n},{n},-;NVRM: Xid (PCI:0000:65:00): {n}, pid=1\n" for n in range(1, 21)))
    assert [xid.code for xid in KernelLog(log).read(None).xids] == list(range(13, 21))


def test_log_is_followed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    reader = KernelLog(log)
    assert reader.read(0).last_oom is None
    whole = OOM.read_text()
    with log.open("a") as file:
        file.write(whole[:-20])  # cut in the middle of the last record
        file.flush()
        assert reader.read(1).last_oom is None
        file.write(whole[-20:])
    assert reader.read(1).last_oom is not None
    assert reader.read(1).last_oom is not None  # and it stays


def test_records_that_were_overwritten_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = KernelLog(OOM)
    real, failed = os.read, []

    def read(fd: int, size: int) -> bytes:
        if not failed:
            failed.append(True)
            raise BrokenPipeError(errno.EPIPE, "overwritten")
        return real(fd, size)

    monkeypatch.setattr(kernel.os, "read", read)
    assert reader.read(1).last_oom is not None


def test_unreadable_log_is_logged_once_and_differs_from_a_quiet_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reader = KernelLog(tmp_path / "none")
    for _ in range(3):
        assert not reader.read(7).log
    assert reader.read(7).oom_kills == 7
    assert capfd.readouterr().err.count("kernel_log_unreadable") == 1
    (tmp_path / "quiet").write_text("")
    assert KernelLog(tmp_path / "quiet").read(0).log


def test_standard_input_that_is_not_the_log_is_not_read(capfd: pytest.CaptureFixture[str]) -> None:
    with Path(os.devnull).open() as null:
        assert not KernelLog(null.fileno()).read(0).log
    assert "not /dev/kmsg" in capfd.readouterr().err


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="this user cannot read the kernel's log")
def test_real_log_is_read_to_its_end_without_waiting() -> None:
    log = os.open("/dev/kmsg", os.O_RDONLY)
    try:
        reader = KernelLog(log)
        assert reader.read(0).log
        assert reader.read(0).log
    finally:
        os.close(log)


@pytest.mark.parametrize("record", ["", " SUBSYSTEM=pci", "nonsense", "1,2;short", "4,1,x,-;no time", ";"])
def test_line_that_is_no_record_is_left_out(record: str) -> None:
    assert parse_record(record) is None


def test_other_messages_of_the_driver_are_no_xid() -> None:
    assert (
        parse_xid("NVRM: GPU 0000:65:00.0: GPU has fallen off the bus.") is None
    )  # said again after its Xid
    assert parse_xid("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.163.01") is None


def test_lab_copies_the_records_of_its_own_machine_only() -> None:
    def copied(group: str) -> int:
        records = OomRecords(Path(group))
        return sum(records.ours(line) for line in OOM.read_text().splitlines())

    assert copied("llama-lab/t2/node1") == 2
    assert copied("llama-lab/t2/node2") == 0
    assert copied("llama-lab/t2/node") == 0  # a name that another begins with


def test_kill_below_the_machines_group_is_its_own() -> None:
    records = OomRecords(Path("llama-lab/t2/node1"))
    chosen, killed = (
        OOM.read_text()
        .replace("task_memcg=/llama-lab/t2/node1,", "task_memcg=/llama-lab/t2/node1/system.slice/x.service,")
        .splitlines()[1:]
    )
    assert records.ours(chosen)
    assert records.ours(killed)
    assert not records.ours(killed)  # a number is used again: the next kill has its own record


def test_lab_copies_while_the_machine_runs(tmp_path: Path) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)  # a read gives one record, as of /dev/kmsg
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    for record in OOM.read_text().splitlines(keepends=True):
        os.write(write_end, record.encode())
    target = tmp_path / "kernel.log"
    process.stdin.close()
    assert wait_and_copy(process, read_end, Path("llama-lab/t2/node1"), target) == 0
    assert target.read_text().splitlines() == OOM.read_text().splitlines()[1:]
    assert KernelLog(target).read(1).last_oom is not None
    os.close(read_end)
    os.close(write_end)
