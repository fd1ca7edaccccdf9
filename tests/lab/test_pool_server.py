"""Role pool_server on a real systemd machine: its server comes back however it ends, also when it hangs."""

import time
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host
from tests.lab.lab_under_test import LabUnderTest

UNIT = "llama-pool-server.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d/test.conf"
CRASHES = 25
"""More than systemd's limits were."""

pytestmark = pytest.mark.lab


def shown(node: Host, name: str) -> str:
    return str(node.check_output(f"systemctl show --property={name} --value {UNIT}"))


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def node(deployed: LabUnderTest) -> Iterator[Host]:
    """The node of the pool, with shorter times than the role's."""
    node = deployed.host("node2")
    node.check_output(f"mkdir -p $(dirname {DROP_IN})")
    node.check_output(f"printf '[Service]\\nWatchdogSec=20\\nRestartSec=100ms\\n' > {DROP_IN}")
    node.check_output(f"systemctl daemon-reload && systemctl restart {UNIT}")
    yield node
    node.check_output(f"rm {DROP_IN} && systemctl daemon-reload && systemctl restart {UNIT}")


def test_pool_server_that_hangs_is_killed_and_starts_again(node: Host) -> None:
    pid = shown(node, "MainPID")
    time.sleep(25)
    assert shown(node, "MainPID") == pid, "one that answers is left alone"
    node.check_output(f"kill -STOP {pid}")
    wait_until(lambda: shown(node, "MainPID") not in ("0", pid), 60)
    assert "watchdog" in node.check_output(f"journalctl --unit {UNIT} --lines 50 --output cat")


def test_pool_server_that_crashes_again_and_again_does_not_stay_failed(node: Host) -> None:
    for _ in range(CRASHES):
        pid = shown(node, "MainPID")
        node.check_output(f"kill -SEGV {pid}")
        wait_until(lambda before=pid: shown(node, "MainPID") not in ("0", before), 30)  # type: ignore[misc]
    wait_until(lambda: shown(node, "ActiveState") == "active", 30)
