"""The dashboard's backends, from samples in a real Redis: states, memory, swap and GPUs.

The samples are written here, not by monitors: a GPU and a unit that failed are not to be had on loopback.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.redis import latest_key
from harness.monitor.sample import Gpu, GpuSource, Memory, RpcSocket, Sample, Source, Unit
from playwright.sync_api import Browser, expect
from tests.browser.dashboard_page import log_in, problems
from tests.integration.redis_server import READER, RedisServer, monitor_of
from tests.integration.router_stack import RouterStack

pytestmark = [pytest.mark.browser, pytest.mark.integration]

GIB = 1 << 30
HOSTILE = "<img src=x onerror=window.owned=1>"


def sample(node: str, **changed: Any) -> Sample:
    """A node with 8 GiB, 6 of them taken, and a quarter of its swap."""
    memory = Memory(
        source=Source.PROC,
        total_bytes=8 * GIB,
        available_bytes=2 * GIB,
        used_bytes=6 * GIB,
        cache_bytes=0,
        swap_total_bytes=4 * GIB,
        swap_used_bytes=GIB,
        major_faults=0,
    )
    return Sample(node=node, time_ns=time.time_ns(), memory=memory, cpu_s=1, **changed)


def busy_with_gpu() -> Sample:
    gpu = Gpu(
        index=0,
        name=f"Board {HOSTILE}",
        source=GpuSource.NVML,
        memory_total_bytes=16 * GIB,
        memory_used_bytes=12 * GIB,
        use_percent=73,
        temperature_c=64,
    )
    # Its backlog is full: to a probe it looks closed.
    return sample("node1", rpc=RpcSocket(listening=True, backlog=2, peer="10.0.0.1:40000"), gpus=[gpu])


def failed() -> Sample:
    unit = Unit(active="failed", sub="failed", main_pid=0, restarts=9, result="signal")
    rpc = RpcSocket(listening=False, backlog=0, peer=None)
    return sample("node2", rpc=rpc, units={RPC_UNIT: unit})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def stack(llama_build: Path, smollm2: Path, tmp_path: Path, server: RedisServer) -> Iterator[RouterStack]:
    redis = server.settings(READER).model_dump(mode="json")
    stack = RouterStack(llama_build, smollm2, tmp_path, redis=redis)
    yield stack
    stack.close()


@pytest.fixture
def monitors(server: RedisServer) -> Iterator[threading.Event]:
    """Samples go on coming until the event is set."""
    silent = threading.Event()

    def publish() -> None:
        with server.client(monitor_of("node1")) as first, server.client(monitor_of("node2")) as second:
            while not silent.wait(0.5):
                for client, one in ((first, busy_with_gpu()), (second, failed())):
                    client.set(latest_key(one.node), one.model_dump_json(), px=5000)

    thread = threading.Thread(target=publish)
    thread.start()
    yield silent
    silent.set()
    thread.join()


def test_backends_show_state_memory_swap_and_gpu_and_fall_silent_not_down(
    chromium: Browser, stack: RouterStack, monitors: threading.Event, artefacts: Path
) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    log_in(page, stack)
    states = page.locator("#backends .state")
    expect(states).to_have_text(["busy", "down"])
    first = page.locator("#backends li").first
    for text in ("Memory: 6.0 GiB of 8.0 GiB", "Swap: 1.0 GiB of 4.0 GiB", "12.0 GiB of 16.0 GiB", "73 %"):
        expect(first).to_contain_text(text)
    expect(first).to_contain_text(HOSTILE)
    expect(page.locator("#backends li").last).to_contain_text("result signal")
    page.screenshot(path=artefacts / "dashboard-backends-phone.png", full_page=True)
    assert problems(page) == []
    assert page.evaluate("window.owned") is None
    monitors.set()
    expect(states).to_have_text(["silent", "silent"], timeout=20_000)
    context.close()
