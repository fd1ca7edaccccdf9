"""A coordinator that the kernel kills for want of memory takes neither the router nor a request with it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.router_stack import RouterStack

CGROUP = Path("/sys/fs/cgroup/memory")
"""Version 1: what machines that do not run systemd as PID 1 usually have."""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not (CGROUP / "memory.limit_in_bytes").exists()
        or not os.access("/dev/kmsg", os.R_OK),
        reason="needs root, the kernel's log and a memory cgroup (v1) to starve one process",
    ),
]


@pytest.fixture
def stack(llama_build: Path, smollm2: Path, tmp_path: Path) -> Iterator[RouterStack]:
    made = RouterStack(llama_build, smollm2, tmp_path)
    yield made
    made.close()


@pytest.fixture
def starving() -> Iterator[Path]:
    """A cgroup in which the next pages that a process asks for are its end."""
    group = CGROUP / f"llama-harness-starving-{os.getpid()}"
    group.mkdir()
    for limit in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if (group / limit).exists():
            (group / limit).write_text(str(64 << 10))
    yield group
    group.rmdir()


def test_coordinator_killed_for_memory_is_replaced_and_its_request_answered(
    stack: RouterStack, starving: Path
) -> None:
    ask = {"model": "smollm2", "prompt": "One two " * 200, "max_tokens": 4, "temperature": 0}
    assert stack.call("/v1/completions", ask | {"prompt": "One"})[0] == 200
    _, before = stack.admin("coordinator")
    (starving / "cgroup.procs").write_text(str(before["pid"]))
    status, answer, headers = stack.call("/v1/completions", ask)
    assert (status, headers.get("x-llama-attempt")) == (200, "2"), answer
    killed = dict(line.split() for line in (starving / "memory.oom_control").read_text().splitlines())
    assert int(killed["oom_kill"]) >= 1
    (lost,) = [start for start in stack.admin("starts")[1] if start["start_id"] == before["start_id"]]
    assert lost["exit"]["signal"] == 9
    assert lost["signals"] == []
    assert lost["diagnosis"]["class"] == "oom_killed", lost["diagnosis"]
    line = lost["diagnosis"]["evidence"][0]["line"]
    assert f"Killed process {before['pid']} (llama-server)" in line
    assert stack.router.poll() is None
