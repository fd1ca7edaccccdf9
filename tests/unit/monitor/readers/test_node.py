"""Processes, sockets, network and units as the monitor reads them, from recordings."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.monitor.readers.llama_cpp import ProcessTable
from harness.monitor.readers.network import NetworkReader, interface_of, parse_tcp_table, rpc_socket
from harness.monitor.readers.systemd import UnitStates, keep_last_exits, parse_show

DATA = Path(__file__).parents[3] / "data" / "monitor"
PROC = DATA / "proc"
SHOW = DATA / "systemd" / "show.txt"
EXITS = DATA / "systemd" / "exits.txt"
RPC_PID = 1867


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PROC, tmp_path / "proc"))


def test_llama_cpp_processes_are_found_among_others() -> None:
    (process,) = ProcessTable(proc=PROC).read()
    assert (process.pid, process.name) == (RPC_PID, "rpc-server")
    assert process.rss_bytes == 4012 * 1024
    assert process.swap_bytes == 820 * 1024


def test_cpu_time_is_user_plus_system(proc: Path) -> None:
    fields = ["S", *"0000000000", "150", "50", *"00000", "0", "4200"]
    (proc / str(RPC_PID) / "stat").write_text(f"{RPC_PID} (rpc-server) {' '.join(fields)}\n")
    assert ProcessTable(proc=proc).read()[0].cpu_s == 2.0


def test_threads_of_a_process_are_counted(proc: Path) -> None:
    status = proc / str(RPC_PID) / "status"
    status.write_text(status.read_text().replace("Threads:\t1\n", "Threads:\t17\n"))
    assert ProcessTable(proc=proc).read()[0].threads == 17


def test_start_of_a_real_process_is_known_and_stays_the_same() -> None:
    before_ns = time.time_ns()
    child = subprocess.Popen(["sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.read(1)  # it runs, but may have its first name still
        table = ProcessTable(["sh", "cat"])
        first, second = (next(p.started_ns for p in table.read() if p.pid == child.pid) for _ in range(2))
        assert first is not None
        assert before_ns - 20_000_000 <= first <= time.time_ns()  # a tick is 10 ms
        assert second == first
    finally:
        child.communicate()


def test_process_that_ends_is_gone_from_the_next_sample(proc: Path) -> None:
    table = ProcessTable(proc=proc)
    assert table.read()
    shutil.rmtree(proc / str(RPC_PID))
    assert table.read() == []


def test_process_that_has_not_yet_execed_is_found_afterwards(proc: Path) -> None:
    comm = proc / str(RPC_PID) / "comm"
    comm.write_text("systemd\n")
    table = ProcessTable(proc=proc)
    assert table.read() == []
    comm.write_text("rpc-server\n")
    assert [process.pid for process in table.read()] == [RPC_PID]


def test_reused_process_number_is_noticed(proc: Path) -> None:
    table = ProcessTable(proc=proc)
    assert table.read()
    (proc / str(RPC_PID) / "comm").write_text("cron\n")
    for _ in range(30):
        table.read()
    assert table.read() == []


def test_zombie_is_not_a_running_process(proc: Path) -> None:
    (proc / str(RPC_PID) / "status").write_text("Name:\trpc-server\nState:\tZ (zombie)\n")
    assert ProcessTable(proc=proc).read() == []


def test_busy_backend_shows_who_is_served_and_who_waits() -> None:
    busy = rpc_socket("10.77.44.11", 50152, PROC)
    assert busy.listening
    assert busy.backlog == 1
    assert busy.peer == "10.77.44.11:37484"  # the one that waits came from port 37486


def test_idle_backend_has_no_peer() -> None:
    idle = rpc_socket("10.77.44.11", 50052, PROC)
    assert (idle.listening, idle.backlog, idle.peer) == (True, 0, None)


def test_socket_on_another_address_does_not_serve() -> None:
    assert not rpc_socket("10.77.44.12", 50052, PROC).listening


def test_socket_on_every_address_serves() -> None:
    assert parse_tcp_table((PROC / "net" / "tcp").read_text(), "10.77.44.11", 22).listening


def test_client_of_another_backend_is_not_taken_for_a_server() -> None:
    assert rpc_socket("10.77.44.11", 37484, PROC).listening is False


def test_interface_is_the_one_whose_subnet_holds_the_address() -> None:
    network = NetworkReader("10.77.44.11", PROC).read(1.0)
    assert network is not None
    assert network.interface == "host0"
    assert network.received_bytes > network.sent_bytes > 0


def test_default_route_does_not_make_an_interface_ours() -> None:
    routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    routes += "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n"
    assert interface_of(routes, "10.1.2.3") is None


def test_narrowest_subnet_wins() -> None:
    routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    routes += "wide 0000000A 00000000 0001 0 0 0 000000FF 0 0 0\n"
    routes += "narrow 002C4D0A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
    assert interface_of(routes, "10.77.44.11") == "narrow"


def test_network_rates_come_with_the_second_look(proc: Path) -> None:
    reader = NetworkReader("10.77.44.11", proc)
    first = reader.read(10.0)
    assert first is not None
    assert first.received_bytes_per_s is None
    dev = proc / "net" / "dev"
    dev.write_text(dev.read_text().replace(str(first.received_bytes), str(first.received_bytes + 4000)))
    second = reader.read(12.0)
    assert second is not None
    assert (second.received_bytes_per_s, second.sent_bytes_per_s) == (2000, 0)


def test_interface_that_vanished_is_looked_for_again(proc: Path) -> None:
    reader = NetworkReader("10.77.44.11", proc)
    assert reader.read(1.0) is not None
    dev = proc / "net" / "dev"
    text = dev.read_text()
    dev.write_text(text.replace("host0", "other"))
    assert reader.read(1.0) is None
    dev.write_text(text)
    assert reader.read(1.0) is not None


def test_unit_states_leave_out_units_that_do_not_exist() -> None:
    units = parse_show(SHOW.read_text())
    assert set(units) == {"llama-node-monitor.service", "ssh.service", "apt-daily.service"}
    assert units["ssh.service"].active == "active"
    assert (units["ssh.service"].sub, units["ssh.service"].main_pid) == ("running", 34)
    assert units["apt-daily.service"].main_pid == 0


@pytest.mark.parametrize(
    ("unit", "code", "status"),
    [("rec-killed", "killed", 9), ("rec-dumped", "killed", 6), ("rec-exited", "exited", 3)],
)
def test_unit_says_how_it_ended_last(unit: str, code: str, status: int) -> None:
    ended = parse_show(EXITS.read_text())[f"{unit}.service"]
    assert (ended.exit_code, ended.exit_status) == (code, status)
    assert ended.exited_ns is not None
    assert ended.exited_ns // 1_000_000_000 == 1_795_619_011  # 2026-11-25 15:03:31 UTC
    assert ended.exited_ns % 1_000 == 0


def test_core_dump_is_told_from_a_kill() -> None:
    text = EXITS.read_text().replace("ExecMainCode=2", "ExecMainCode=3")
    assert parse_show(text)["rec-dumped.service"].exit_code == "dumped"


def test_unit_that_runs_or_never_ran_has_no_last_exit() -> None:
    units = parse_show(EXITS.read_text())
    for name in ("rec-running.service", "apt-daily.service"):
        assert (units[name].exit_code, units[name].exit_status, units[name].exited_ns) == (None, None, None)


def test_last_exit_outlives_the_restart_that_makes_systemd_forget_it() -> None:
    ended = parse_show(EXITS.read_text())["rec-killed.service"]
    again = parse_show(EXITS.read_text())["rec-running.service"]
    (kept,) = keep_last_exits({"u": ended}, {"u": again}).values()
    assert (kept.active, kept.exit_code, kept.exit_status, kept.exited_ns) == (
        "active",
        "killed",
        9,
        ended.exited_ns,
    )


def test_newer_exit_replaces_the_one_before() -> None:
    units = parse_show(EXITS.read_text())
    (kept,) = keep_last_exits({"u": units["rec-killed.service"]}, {"u": units["rec-exited.service"]}).values()
    assert (kept.exit_code, kept.exit_status) == ("exited", 3)


def states(show: Path, proc: Path) -> UnitStates:
    """Unit states that come from a file; their main processes run."""
    for pid in ("34", "671"):
        (proc / pid).mkdir()
    return UnitStates([str(show)], command=("cat",), proc=proc)


def test_systemd_is_not_asked_every_second(tmp_path: Path, proc: Path) -> None:
    show = tmp_path / "show.txt"
    show.write_text(SHOW.read_text())
    units = states(show, proc)
    first = units.read(100.0, [RPC_PID])
    show.write_text(SHOW.read_text().replace("NRestarts=0", "NRestarts=1"))
    assert units.read(101.0, [RPC_PID]) == first
    assert units.read(105.0, [RPC_PID])["ssh.service"].restarts == 1


def test_systemd_is_asked_at_once_when_a_main_process_is_gone(tmp_path: Path, proc: Path) -> None:
    show = tmp_path / "show.txt"
    show.write_text(SHOW.read_text())
    units = states(show, proc)
    units.read(100.0, [])
    show.write_text(SHOW.read_text().replace("MainPID=34", "MainPID=0").replace("running", "auto-restart"))
    (proc / "34").rmdir()
    assert units.read(101.0, [])["ssh.service"].sub == "auto-restart"


def test_systemd_is_asked_at_once_when_llama_processes_change(tmp_path: Path, proc: Path) -> None:
    show = tmp_path / "show.txt"
    show.write_text(SHOW.read_text())
    units = states(show, proc)
    units.read(100.0, [])
    show.write_text(SHOW.read_text().replace("NRestarts=0", "NRestarts=2"))
    assert units.read(101.0, [4711])["ssh.service"].restarts == 2


def test_sample_does_not_wait_for_a_slow_systemd(tmp_path: Path) -> None:
    """The command ends only after the test has opened the pipe: a read that waits would never return."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = tmp_path / "slow.py"
    script.write_text(f"open({str(pipe)!r}).read(); print(open({str(SHOW)!r}).read())")
    units = UnitStates([str(script)], command=(sys.executable,), proc=PROC)
    assert units.read(100.0, []) == {}
    pipe.write_text("")
    assert any("ssh.service" in units.read(101.0, []) for _ in range(100))


def test_unknown_unit_states_are_logged_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    units = UnitStates([str(tmp_path / "none")], command=("cat",), proc=PROC)
    assert units.read(100.0, []) == {}
    assert units.read(106.0, []) == {}
    assert capfd.readouterr().err.count("unit_states_unknown") == 1
