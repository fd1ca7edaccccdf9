"""The monitor on real systemd machines: one is starved, only its curve moves."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.lab.cgroup import Groups
from harness.lab.machine import Machine, apply_limits
from harness.lab.spec import parse_spec
from harness.monitor.sample import Sample, Source
from testinfra.host import Host
from tests.lab.lab_under_test import LabUnderTest

NODES = ("node1", "node2")
UNIT = "llama-node-monitor.service"
COMMAND = "/opt/llama-harness/venv/bin/llama-node-monitor"
MIB = 1 << 20
# As control groups version 2 name it, or version 1.
LIMIT = "cat /run/llama-lab/cgroup/memory.max || cat /run/llama-lab/cgroup/memory.limit_in_bytes"

RPC_UNIT = "llama-rpc-server.service"

pytestmark = pytest.mark.lab

# Takes memory until it is killed for it, before anything else.
VICTIM = """
open("/proc/self/oom_score_adj", "w").write("1000")
held = []
while True:
    held.append(b"x" * (8 << 20))
"""

# Touches more memory than the node has, again and again, for some seconds.
HOG = """
import sys, time
size, end = int(sys.argv[1]), time.time() + float(sys.argv[2])
memory = bytearray(size)
while time.time() < end:
    for start in range(0, size, 4096):
        memory[start] = 1
        if start % (64 << 20) == 0 and time.time() > end:
            break
"""


@pytest.fixture(scope="module")
def nodes(deployed: LabUnderTest) -> dict[str, Host]:
    """The lab's nodes with the monitor deployed."""
    return {name: deployed.host(name) for name in NODES}


def samples(node: Host, since_ns: int = 0) -> list[Sample]:
    lines = node.check_output(f"{COMMAND} tail --since {since_ns}").splitlines()
    return [Sample.model_validate_json(line) for line in lines]


def next_sample(node: Host) -> Sample:
    return Sample.model_validate_json(node.check_output(f"{COMMAND} check --within 10"))


@pytest.mark.parametrize("name", NODES)
def test_monitor_is_enabled_and_runs_unprivileged(nodes: dict[str, Host], name: str) -> None:
    service = nodes[name].service(UNIT)
    assert service.is_enabled
    assert service.is_running
    assert service.systemd_properties["User"] == "llama-monitor"


def test_monitor_runs_in_a_sandbox(nodes: dict[str, Host]) -> None:
    report = nodes["node1"].check_output(f"systemd-analyze security --no-pager {UNIT}")
    exposure = float(report.splitlines()[-1].split(": ")[1].split()[0])
    assert exposure <= 1.5


@pytest.mark.parametrize(("accelerator", "limit"), [("cpu", 1.5), ("rocm", 1.5), ("cuda", 1.7)])
def test_sandbox_holds_with_the_kernels_log_and_a_gpu(
    deployed: LabUnderTest, nodes: dict[str, Host], accelerator: str, limit: float
) -> None:
    deployed.ansible(Path(__file__).parent / "node_monitor_unit.yml")
    unit = f"/run/node-monitor-units/{accelerator}/{UNIT}"
    report = nodes["node2"].check_output(f"systemd-analyze security --offline=true --no-pager {unit}")
    assert float(report.splitlines()[-1].split(": ")[1].split()[0]) <= limit
    text = nodes["node2"].file(unit).content_string
    assert "CapabilityBoundingSet=\n" in text  # the log is handed over, not opened by the monitor
    assert ("char-nvidiactl" in text) is (accelerator == "cuda")


def test_samples_come_every_second_from_the_nodes_own_cgroup(nodes: dict[str, Host]) -> None:
    since = {name: next_sample(node).time_ns for name, node in nodes.items()}
    time.sleep(11)
    for name, node in nodes.items():
        taken = samples(node, since[name])
        seconds = [round(sample.time_ns / 1e9) for sample in taken]
        assert len(set(seconds)) == len(seconds) >= 9
        assert seconds[-1] - seconds[0] <= len(seconds)  # at most one was late
        memory = taken[-1].memory
        assert memory.source is Source.CGROUP
        assert memory.total_bytes == int(node.check_output(LIMIT))
        assert taken[-1].node == name
        assert taken[-1].network is not None
        assert taken[-1].cpu_s > taken[0].cpu_s


def test_monitor_stays_small(nodes: dict[str, Host]) -> None:
    pid = nodes["node1"].check_output(f"systemctl show --property MainPID --value {UNIT}")
    resident = nodes["node1"].check_output(f"grep VmHWM /proc/{pid}/status").split()[1]
    assert int(resident) * 1024 < 60 * MIB


def test_starved_node_is_the_only_one_whose_curve_moves(nodes: dict[str, Host]) -> None:
    since = {name: next_sample(node).time_ns for name, node in nodes.items()}
    limit = samples(nodes["node1"])[-1].memory.total_bytes
    hog = nodes["node1"].run("timeout 120 /usr/bin/python3 -c %s %s 15", HOG, str(limit + 256 * MIB))
    assert hog.rc == 0, hog.stderr
    curves = {name: [sample.memory for sample in samples(node, since[name])] for name, node in nodes.items()}

    starved, fed = curves["node1"], curves["node2"]
    assert len(starved) >= 10
    assert max(memory.swap_used_bytes for memory in starved) > 128 * MIB
    assert min(memory.available_bytes for memory in starved) < 0.1 * limit
    faults = starved[-1].major_faults - starved[0].major_faults  # how many depends on how fast the swap is
    assert faults > 100
    swap = [memory.swap_used_bytes for memory in fed]
    used = [memory.used_bytes for memory in fed]
    assert max(swap) - min(swap) < 16 * MIB
    assert max(used) - min(used) < 256 * MIB
    assert fed[-1].major_faults - fed[0].major_faults < faults / 2


def until(node: Host, true: Callable[[Sample], bool], deadline_s: float = 30) -> Sample:
    """The first sample from now on of which something is true."""
    end = time.monotonic() + deadline_s
    while not true(sample := next_sample(node)):
        assert time.monotonic() < end, sample
    return sample


def test_sample_says_what_runs_since_when_and_from_which_build(
    nodes: dict[str, Host], lab2: LabUnderTest
) -> None:
    taken = {name: next_sample(node) for name, node in nodes.items()}
    for name, sample in taken.items():
        backend = next(process for process in sample.processes if process.name == "rpc-server")
        booted_ns = int(nodes[name].check_output("stat -c %Y /run/systemd/system")) * 1_000_000_000
        assert backend.threads is not None
        assert backend.threads >= 1
        assert backend.started_ns is not None
        assert booted_ns <= backend.started_ns < sample.time_ns
        assert sample.units[RPC_UNIT].main_pid == backend.pid
        assert sample.load1 is not None
        assert sample.gpus == []
    builds = [sample.build for sample in taken.values()]
    assert builds[0] is not None
    assert builds[0].build == lab2.pin
    assert builds[0] == builds[1]


def test_lab_node_shows_its_own_disks_and_pressure_or_none(nodes: dict[str, Host]) -> None:
    node = nodes["node1"]
    size = 32 * MIB
    before, quiet = next_sample(node), next_sample(nodes["node2"])
    node.check_output(f"dd if=/dev/zero of=/root/direct bs={MIB} count=32 oflag=direct status=none")
    node.check_output("rm /root/direct")
    after, quiet_after = next_sample(node), next_sample(nodes["node2"])
    for sample in (before, after):
        assert sample.pressure is None or sample.pressure.source is Source.CGROUP
    if after.disk is None:
        pytest.skip("this host's kernel counts no disk traffic of control groups")
    assert after.disk.source is Source.CGROUP
    assert before.disk is None or after.disk.written_bytes - before.disk.written_bytes >= size
    moved = [sample.disk.written_bytes if sample.disk else 0 for sample in (quiet, quiet_after)]
    assert moved[1] - moved[0] < size


def test_killed_backend_leaves_how_it_ended_in_the_sample(nodes: dict[str, Host]) -> None:
    node = nodes["node2"]
    before = next_sample(node).units[RPC_UNIT]
    node.check_output(f"systemctl kill --signal KILL {RPC_UNIT}")
    after = until(node, lambda sample: sample.units[RPC_UNIT].restarts > before.restarts)
    unit = after.units[RPC_UNIT]
    assert (unit.exit_code, unit.exit_status) == ("killed", 9)
    assert unit.exited_ns is not None
    assert after.time_ns - unit.exited_ns < 60e9
    node.check_output(f"systemctl reset-failed {RPC_UNIT}")


def test_oom_kill_is_seen_with_its_line_on_the_node_it_happened_on(
    deployed: LabUnderTest, nodes: dict[str, Host]
) -> None:
    machine = Machine(parse_spec((deployed.folder / "lab.json").read_text()), "node1")
    kills = {name: (next_sample(node).kernel, node) for name, node in nodes.items()}
    groups = Groups()
    held = groups.usage(machine.group)
    groups.limit(machine.group, held.used + 192 * MIB, held.swap, 0)
    try:
        nodes["node1"].check_output("/usr/bin/python3 -c %s; test $? = 137", VICTIM)
    finally:
        apply_limits(machine)
    sample = until(nodes["node1"], lambda sample: bool(sample.kernel and sample.kernel.last_oom))
    assert sample.kernel is not None
    assert sample.kernel.log
    assert "Killed process" in (sample.kernel.last_oom or "")
    assert "(python3)" in (sample.kernel.last_oom or "")
    assert sample.kernel.last_oom_ns is not None
    assert abs(sample.time_ns - sample.kernel.last_oom_ns) < 60e9
    before, _ = kills["node1"]
    assert before is not None
    assert (sample.kernel.oom_kills or 0) > (before.oom_kills or 0)
    other, _ = kills["node2"]
    assert next_sample(nodes["node2"]).kernel == other


@pytest.mark.parametrize("how", ["systemctl restart", "systemctl kill --signal KILL"])
def test_ring_survives_a_restart(nodes: dict[str, Host], how: str) -> None:
    node = nodes["node1"]
    before = [sample.time_ns for sample in samples(node)][-30:]
    node.check_output(f"{how} {UNIT}")
    fresh = next_sample(node)
    kept = {sample.time_ns for sample in samples(node)}
    assert set(before) <= kept
    assert fresh.time_ns - before[-1] < 10e9


def test_samples_go_on_after_a_reboot(nodes: dict[str, Host]) -> None:
    node = nodes["node1"]
    before = samples(node)[-1].time_ns
    node.run("touch /run/not-rebooted-yet && systemctl reboot")
    wait_for_reboot(node)
    fresh = next_sample(node)
    assert fresh.time_ns > before
    assert before in {sample.time_ns for sample in samples(node)}
    assert node.service(UNIT).is_running


def wait_for_reboot(node: Host, deadline_s: float = 90) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        time.sleep(1)
        try:
            if node.run("test ! -e /run/not-rebooted-yet && systemctl is-active --quiet %s", UNIT).rc == 0:
                return
        except RuntimeError:  # not reachable while it boots
            continue
    pytest.fail(f"node1 was not back within {deadline_s:.0f} s")
