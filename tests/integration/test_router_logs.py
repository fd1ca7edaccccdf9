"""The log of a real llama-server: bounded, without what requests say, and named when its disk is full."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.release_proof.local import local_build
from tests.integration.router_stack import RouterStack

pytestmark = pytest.mark.integration

SECRET = "HUNTER2"
MEGABYTES = SECRET * (4_000_000 // len(SECRET))


@pytest.fixture(scope="module", params=[None, pytest.param(6751, marks=pytest.mark.long)])
def stack(
    request: pytest.FixtureRequest, llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    binaries = local_build(request.param) if request.param else llama_build
    stack = RouterStack(binaries, smollm2, tmp_path_factory.mktemp("router"), log_bytes=1 << 20)
    yield stack
    stack.close()


def test_log_has_nothing_of_requests_and_stays_within_its_bound(stack: RouterStack) -> None:
    """Two prompts that differ, and 4 MB in fields that llama-server echoes once and twice."""
    url, tokens = "/v1/chat/completions", {"model": "smollm2", "max_tokens": 2}
    for word in ("one", "two"):
        text = f"Say {SECRET} and then {word} {SECRET}\n{SECRET} is a secret that nobody may read. " * 3
        status, answer, _ = stack.call(url, tokens | {"messages": [{"role": "user", "content": text}]})
        assert status == 200, answer
    question = {"messages": [{"role": "user", "content": SECRET}]}
    for field in (
        {"response_format": {"type": MEGABYTES}},
        {"tools": [{"type": MEGABYTES}]},
        {"tools": MEGABYTES},
        {"grammar": f"root ::= [\n{MEGABYTES}"},
    ):
        assert stack.call(url, tokens | question | field)[0] >= 400
    log = Path(stack.admin("coordinator")[1]["log_dir"], "server.log").read_text()
    assert SECRET not in log
    assert "offloaded 31/31 layers" in log
    assert len(log) < 1 << 20
    status, metrics, _ = stack.call("/metrics")
    assert 'llama_router_coordinator_log_lines_total{fate="left_out"}' in metrics


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_is_named_before_anything_is_unloaded(
    llama_build: Path, smollm2: Path, tmp_path: Path, small_disk: Path
) -> None:
    folder = tmp_path / "router"
    folder.mkdir()
    stack = RouterStack(llama_build, smollm2, folder, log_dir=str(small_disk / "starts"), log_bytes=1 << 20)
    try:
        assert stack.admin("load", {"model": "smollm2"})[0] == 200
        (small_disk / "of somebody else").write_bytes(b"x" * 3_500_000)
        status, answer = stack.admin("load", {"model": "other"})
        assert (status, answer["error"]["class"]) == (507, "disk_full")
        assert answer["error"]["diagnosis"]["class"] == "disk_full"
        assert "the head node's disk is full" in answer["error"]["message"]
        question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        assert stack.call("/v1/chat/completions", {"model": "other"} | question)[0] == 507
        assert stack.admin("coordinator")[1]["phase"] == "ready"  # the first model is untouched
        assert stack.call("/v1/chat/completions", {"model": "smollm2"} | question)[0] == 200
        json.loads((Path(stack.admin("coordinator")[1]["log_dir"]) / "start.json").read_text())
    finally:
        stack.close()
