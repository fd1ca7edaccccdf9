"""The ground that everything else stands on: what a lab's machine is, and that nothing of it stays behind."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.lab.image import declared_packages
from harness.lab.running import MachineStatus, lab_status
from harness.settings import PLAYBOOKS, REPOSITORY, cache_dir
from tests.lab.lab_under_test import LABS, LabUnderTest

MIB = 2**20
INVENTORY = """
all:
  hosts:
    node1: {ansible_host: 10.77.45.11, lab_node_memory: 256M, lab_node_rate: 100mbit, lab_node_cpu: 0.5}
    node2: {ansible_host: 10.77.45.12, lab_node_memory: 256M}
  vars:
    lab_node_lab: t1
    lab_node_network: 10.77.45.0/24
    lab_node_swap: 512M
    lab_node_disk: 256M
    ansible_user: root
    ansible_ssh_private_key_file: /var/lib/llama-harness/labs/t1/ssh/id_ed25519
    ansible_ssh_common_args: >-
      -o UserKnownHostsFile=/var/lib/llama-harness/labs/t1/ssh/known_hosts -o StrictHostKeyChecking=yes
      -o ControlPath=/var/lib/llama-harness/labs/t1/ssh/cp-%h-%p-%r
"""


@pytest.fixture(scope="module")
def throwaway(tmp_path_factory: pytest.TempPathFactory) -> LabUnderTest:
    """A lab of two small machines that a test may break; not up yet."""
    path = tmp_path_factory.mktemp("t1") / "hosts.yml"
    path.write_text(INVENTORY)
    lab = LabUnderTest(path)
    if traces("t1"):  # of a session that was killed
        lab.down()
    return lab


@pytest.fixture(scope="module")
def booted(throwaway: LabUnderTest) -> Iterator[LabUnderTest]:
    """The throw-away lab, up for the tests of this module that ask for it."""
    throwaway.up()
    yield throwaway
    throwaway.down()


def machine(lab: LabUnderTest, name: str) -> MachineStatus:
    return next(status for status in lab_status(lab.folder)[1] if status.machine == name)


def wait_for(lab: LabUnderTest, node: str, *argv: str, deadline_s: float = 60) -> str:
    """What ``argv`` says on the node, once it can be asked."""
    until = time.monotonic() + deadline_s
    while (done := lab.run(node, *argv, check=False)).returncode != 0:
        assert time.monotonic() < until, f"{node} did not answer within {deadline_s} s: {done.stderr}"
        time.sleep(0.2)
    return done.stdout.strip()


def traces(lab: str) -> list[str]:
    """Everything on this computer that bears the lab's name."""

    def lines(*argv: str) -> list[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    found = [line for line in lines("ip", "-br", "link") if line.startswith((f"llh-{lab} ", f"{lab}-"))]
    found += [line for line in lines("nft", "list", "tables") if line.endswith(f"llama_lab_{lab}")]
    found += [line for line in Path("/proc/swaps").read_text().splitlines() if f"/{lab}/" in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/llama-lab/{lab}")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"llama-lab/{lab}")]
    found += [str(path) for path in Path("/run/systemd/nspawn").glob(f"*/{lab}-*")]
    found += [str(path) for path in (LABS / lab, LABS / f".{lab}.lock") if path.exists()]
    found += [str(path) for path in (cache_dir() / "images").glob("*.partial")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, mounts = (process / "cmdline").read_text(), (process / "mountinfo").read_text()
        except OSError:
            continue
        if f"labs/{lab}/" in command or f"labs/{lab}/" in mounts:
            found.append(f"{process}: {command}")
    return found


def assert_no_trace(lab: str) -> None:
    until = time.monotonic() + 5
    while (found := traces(lab)) and time.monotonic() < until:
        time.sleep(0.1)
    assert found == []


def test_a_machine_is_a_whole_system(booted: LabUnderTest) -> None:
    assert booted.run("node1", "cat", "/proc/1/comm").stdout.strip() == "systemd"
    assert booted.run("node1", "systemctl", "is-system-running").stdout.strip() == "running"
    assert booted.run("node1", "hostname").stdout.strip() == "node1"
    assert booted.run("node1", "ls", "/sys/class/net").stdout.split() == ["host0", "lo"]
    booted.run("node1", "nft", "add", "table", "inet", "mine")
    assert "table inet mine" not in booted.run("node2", "nft", "list", "tables").stdout
    booted.run("node1", "nft", "delete", "table", "inet", "mine")


def test_bringing_it_up_again_changes_nothing(booted: LabUnderTest) -> None:
    before = machine(booted, "node1").boots
    assert booted.up().changed_tasks == []
    assert machine(booted, "node1").boots == before


def test_a_dry_run_says_no_change(booted: LabUnderTest) -> None:
    assert booted.ansible("lab.yml", check=True).changed_tasks == []


def test_every_package_that_a_role_declares_is_there(booted: LabUnderTest) -> None:
    declared = declared_packages(REPOSITORY / "roles")
    assert declared
    listed = booted.run("node2", "dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n").stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    assert set(declared) <= installed


def test_the_command_line_says_how_each_machine_is(booted: LabUnderTest) -> None:
    harness = [
        str(Path(sys.executable).with_name("harness")),
        "lab",
        "status",
        "--inventory",
        str(booted.path),
    ]
    said = subprocess.run([*harness, "--json"], capture_output=True, text=True, check=True).stdout
    states = {entry["machine"]: (entry["state"], entry["rate_bits"]) for entry in json.loads(said)}
    assert states == {"node1": ("running", 100_000_000), "node2": ("running", None)}
    table = subprocess.run(harness, capture_output=True, text=True, check=True).stdout
    assert "10.77.45.11" in table


def test_up_on_some_nodes_leaves_the_others_as_they_are(booted: LabUnderTest) -> None:
    harness = [str(Path(sys.executable).with_name("harness")), "lab", "up", "--inventory", str(booted.path)]
    subprocess.run([*harness, "--nodes", "1"], capture_output=True, check=True)
    booted.run("node2", "true")
    assert {status.machine for status in lab_status(booted.folder)[1]} == {"node1", "node2"}


def test_testinfra_reaches_the_node(booted: LabUnderTest) -> None:
    assert booted.host("node1").service("ssh").is_running


def test_a_machine_with_another_host_key_is_refused(booted: LabUnderTest, tmp_path: Path) -> None:
    known = (booted.folder / "ssh/known_hosts").read_text().splitlines()
    swapped = tmp_path / "known_hosts"
    addresses, keys = [line.split(" ", 1)[0] for line in known], [line.split(" ", 1)[1] for line in known]
    swapped.write_text("".join(f"{a} {k}\n" for a, k in zip(addresses, reversed(keys), strict=True)))
    key = str(booted.folder / "ssh/id_ed25519")
    ssh = ["ssh", "-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]

    def login(known_hosts: Path) -> subprocess.CompletedProcess[str]:
        argv = [*ssh, "-o", f"UserKnownHostsFile={known_hosts}", "root@10.77.45.11", "true"]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    assert login(booted.folder / "ssh/known_hosts").returncode == 0
    refused = login(swapped)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_models_are_one_folder_that_machines_only_read(booted: LabUnderTest) -> None:
    probe = cache_dir() / "models" / "probe-of-a-lab-test"
    probe.write_text("seen")
    try:
        assert booted.run("node2", "cat", f"/srv/llama-models/{probe.name}").stdout == "seen"
        refused = booted.run("node2", "touch", f"/srv/llama-models/{probe.name}", check=False)
        assert "Read-only file system" in refused.stderr
    finally:
        probe.unlink()


def test_units_can_deny_addresses(booted: LabUnderTest) -> None:
    connect = "import socket; socket.create_connection(('10.77.45.12', 22), 2)"
    unit = ["systemd-run", "--quiet", "--wait", "--pipe", "-p", "IPAddressDeny=any"]
    allowed = [*unit, "-p", "IPAddressAllow=10.77.45.12", "python3", "-c", connect]
    assert booted.run("node1", *allowed, check=False).returncode == 0
    assert booted.run("node1", *unit, "python3", "-c", connect, check=False).returncode != 0


def test_memory_beyond_the_limit_swaps_in_that_machine_alone(booted: LabUnderTest) -> None:
    quiet = machine(booted, "node2").swap_used
    # Random bytes, so that no page equals another.
    hold = "import os, sys; held = os.urandom(400 * 2**20); print(len(held), flush=True); sys.stdin.read()"
    argv = booted.inventory.node("node1").ssh("python3", "-c", hold)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline().strip() == str(400 * MIB)
        starved, other = machine(booted, "node1"), machine(booted, "node2")
        inside = booted.run("node1", "cat", "/run/llama-lab/cgroup/memory.stat").stdout
        holder.communicate()
    assert starved.memory_limit == 256 * MIB
    assert starved.memory_used <= 256 * MIB
    assert starved.swap_used > 120 * MIB
    assert other.swap_used - quiet < 16 * MIB
    assert booted.run("node1", "cat", "/run/llama-lab/swap_bytes").stdout.strip() == str(512 * MIB)
    seen = dict(line.split() for line in inside.splitlines())
    if "total_swap" in seen:  # cgroup version 1
        assert int(seen["total_swap"]) > 120 * MIB


def test_memory_beyond_limit_and_swap_kills_in_that_machine_alone(booted: LabUnderTest) -> None:
    boots = {name: machine(booted, name).boots for name in ("node1", "node2")}
    take = "import os; held = [os.urandom(2**20) for _ in range(1000)]"
    died = booted.run("node1", "systemd-run", "--quiet", "--wait", "python3", "-c", take, check=False)
    assert died.returncode != 0
    assert {name: machine(booted, name).boots for name in boots} == boots
    assert booted.run("node1", "systemctl", "is-active", "ssh").stdout.strip() == "active"


def test_the_link_carries_its_rate_in_both_directions_and_no_more(booted: LabUnderTest) -> None:
    receive = (
        "import socket, sys, time\n"
        "s = socket.create_server((sys.argv[1], 5001)); print('ready', flush=True); c, _ = s.accept()\n"
        "n, t = 0, time.time()\n"
        "while d := c.recv(1 << 20): n += len(d)\n"
        "print(n * 8 / 1e6 / (time.time() - t))"
    )
    send = "import socket, sys; socket.create_connection((sys.argv[1], 5001)).sendall(bytes(25_000_000))"
    for source, target, address in (("node1", "node2", "10.77.45.12"), ("node2", "node1", "10.77.45.11")):
        argv = booted.inventory.node(target).ssh("python3", "-c", receive, address)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout
            assert receiver.stdout.readline() == "ready\n"
            booted.run(source, "python3", "-c", send, address)
            mbit = float(receiver.stdout.read())
        assert 85 < mbit < 110, f"{source} to {target}: {mbit:.0f} Mbit/s over a link of 100"


def test_a_machine_uses_no_more_than_its_share_of_a_core(booted: LabUnderTest) -> None:
    spin = "import time\nuntil = time.time() + 3\nwhile time.time() < until: pass\nprint(time.process_time())"
    used = float(booted.run("node1", "python3", "-c", spin).stdout)
    assert used < 0.5 * 3 * 1.2


def test_a_reboot_comes_back_with_limit_link_and_ssh(booted: LabUnderTest) -> None:
    boot_id = booted.run("node1", "cat", "/proc/sys/kernel/random/boot_id").stdout.strip()
    before = machine(booted, "node1")
    hardware = booted.run("node1", "cat", "/sys/class/net/host0/address").stdout
    booted.run("node1", "touch", "/root/kept", "/run/lost")
    booted.run("node1", "nft", "add", "table", "inet", "lost")
    booted.run("node1", "systemctl", "reboot", check=False)
    until = time.monotonic() + 60
    while wait_for(booted, "node1", "cat", "/proc/sys/kernel/random/boot_id") == boot_id:
        assert time.monotonic() < until, "node1 never went down"
        time.sleep(0.2)
    after = machine(booted, "node1")
    assert after.boots == before.boots + 1
    assert (after.state, after.memory_limit, after.rate_bits) == ("running", 256 * MIB, 100_000_000)
    assert booted.run("node1", "cat", "/sys/class/net/host0/address").stdout == hardware
    assert "tbf" in booted.run("node1", "tc", "qdisc", "show", "dev", "host0").stdout
    assert booted.run("node1", "ls", "/root/kept", "/run/lost", check=False).stdout.strip() == "/root/kept"
    assert booted.run("node1", "nft", "list", "tables").stdout.strip() == ""
    assert booted.up().changed_tasks == []


def test_a_machine_switched_off_or_orphaned_comes_up_again(booted: LabUnderTest) -> None:
    booted.run("node1", "touch", "/root/survives")
    booted.run("node1", "systemctl", "poweroff", check=False)
    until = time.monotonic() + 60
    while machine(booted, "node1").state != "off":
        assert time.monotonic() < until
        time.sleep(0.2)
    supervisor = int((booted.folder / "machines/node2/supervisor.lock").read_text())
    subprocess.run(["kill", "-KILL", str(supervisor)], check=True)
    while machine(booted, "node2").state != "stopped":
        assert time.monotonic() < until
        time.sleep(0.2)
    assert booted.up().changed == {"node1": 1, "node2": 1}
    assert booted.run("node1", "ls", "/root/survives").returncode == 0
    booted.run("node2", "true")


def test_a_changed_limit_is_put_in_force_without_a_reboot(booted: LabUnderTest) -> None:
    boots = machine(booted, "node2").boots
    booted.ansible("lab.yml", limit="node2", lab_node_memory="300M", lab_node_rate="50mbit")
    changed = machine(booted, "node2")
    assert (changed.boots, changed.memory_limit, changed.rate_bits) == (boots, 300 * MIB, 50_000_000)
    booted.up()
    back = machine(booted, "node2")
    assert (back.boots, back.memory_limit, back.rate_bits) == (boots, 256 * MIB, None)


def test_down_leaves_nothing_and_a_second_down_changes_nothing(booted: LabUnderTest) -> None:
    assert traces("t1")
    assert sum(booted.down().changed.values()) == 1
    assert_no_trace("t1")
    assert sum(booted.down().changed.values()) == 0


@pytest.mark.parametrize(
    ("cut_at", "extra"),
    [
        ("Claim the lab's names", {}),
        ("Create the root file system", {"lab_node_packages": ["tree"]}),
        ("Create the shared keys, swap, bridge", {}),
        ("Keep the machine up", {}),
        ("Check that the machine answers", {}),
    ],
)
def test_up_cut_short_can_be_taken_down(
    throwaway: LabUnderTest, cut_at: str, extra: dict[str, object]
) -> None:
    cut_short(throwaway, cut_at, extra)
    throwaway.down()
    assert_no_trace("t1")


def test_up_cut_short_can_be_brought_up_and_down_cut_short_finished(throwaway: LabUnderTest) -> None:
    cut_short(throwaway, "Keep the machine up", {})
    throwaway.up()
    throwaway.run("node2", "true")
    cut_short(throwaway, "Remove the machines and everything", {"lab_node_state": "absent"}, delay_s=0.5)
    throwaway.down()
    assert_no_trace("t1")


def cut_short(lab: LabUnderTest, task: str, extra: dict[str, object], delay_s: float = 0.3) -> None:
    """Run lab.yml and kill Ansible, with no chance to clean up, a moment after ``task`` begins."""
    argv = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        str(lab.path),
        "-e",
        json.dumps(extra),
    ]
    with subprocess.Popen(
        [*argv, str(PLAYBOOKS / "lab.yml")], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as ansible:
        assert ansible.stdout
        for line in ansible.stdout:
            if task in line:
                time.sleep(3 if "lab_node_packages" in extra else delay_s)
                ansible.kill()
                break
        else:
            pytest.fail(f"lab.yml ended without the task '{task}'")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"lab_node_disk": "900T"}, "machines 1843200.0 GiB"),
        ({"lab_node_swap": "900T"}, "swap 921600.0 GiB"),
        ({"lab_node_host_packages": {"no-such-tool": "the-package"}}, "apt-get install the-package"),
        ({"lab_node_network": "10.77.99.0/24"}, "10.77.45.11"),
        ({"lab_node_memory": "much"}, "'much' is not a size"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_touched(
    throwaway: LabUnderTest, extra: dict[str, object], line: str
) -> None:
    with pytest.raises(HarnessError) as refusal:
        throwaway.ansible("lab.yml", **extra)
    assert line in str(refusal.value)
    assert all(len(said) < 240 for said in str(refusal.value).splitlines())
    assert_no_trace("t1")


def test_a_taken_interface_name_and_subnet_are_refused(throwaway: LabUnderTest) -> None:
    subprocess.run(["ip", "link", "add", "llh-t1", "type", "bridge"], check=True)
    try:
        with pytest.raises(HarnessError, match="a network interface 'llh-t1' exists"):
            throwaway.up()
        subprocess.run(["ip", "addr", "add", "10.77.45.200/25", "dev", "llh-t1"], check=True)
        subprocess.run(["ip", "link", "set", "llh-t1", "up"], check=True)
        with pytest.raises(HarnessError, match=r"10\.77\.45\.0/24 overlaps 10\.77\.45\.\d+/\d+ on llh-t1"):
            throwaway.up()
    finally:
        subprocess.run(["ip", "link", "delete", "llh-t1"], check=True)
    assert_no_trace("t1")


def test_a_folder_that_is_no_lab_is_neither_taken_nor_removed(throwaway: LabUnderTest) -> None:
    folder = LABS / "t1"
    folder.mkdir(parents=True)
    (folder / "precious").write_text("kept")
    try:
        with pytest.raises(HarnessError, match="is not a lab's"):
            throwaway.up()
        with pytest.raises(HarnessError, match="is not a lab's"):
            throwaway.down()
        assert (folder / "precious").read_text() == "kept"
    finally:
        (folder / "precious").unlink()
        folder.rmdir()
