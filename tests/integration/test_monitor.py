"""The command llama-node-monitor as a process: samples on time, ends on a signal or without a reader."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.monitor.ring import RingWriter, follow
from harness.monitor.sample import Sample

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "monitor.json"
    values = {"node": "node1", "address": "127.0.0.1", "rpc_port": 50052, "ring": str(tmp_path / "ring")}
    path.write_text(json.dumps({**values, "cgroup": "none", "cgroup_cpu": "none"}))
    return path


def start(config: Path, *words: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "harness.monitor", *words, "--config", str(config)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def first_samples(ring: Path, count: int, deadline_s: float = 30) -> list[Sample]:
    deadline = time.monotonic() + deadline_s
    samples: list[Sample] = []

    def wait() -> bool:
        time.sleep(0.05)
        return time.monotonic() < deadline

    for line in follow(ring, 0, wait):
        samples.append(Sample.model_validate_json(line))
        if len(samples) == count:
            break
    return samples


def test_samples_come_on_whole_seconds_and_sigterm_ends_cleanly(config: Path) -> None:
    monitor = start(config, "run")
    try:
        samples = first_samples(config.parent / "ring", 3)
        monitor.send_signal(signal.SIGTERM)
        _, log = monitor.communicate(timeout=5)
    finally:
        monitor.kill()
    assert monitor.returncode == 0
    events = {record["event"]: record for record in map(json.loads, log.splitlines())}
    assert events["sampling_started"]["node"] == "node1"
    seconds = [round(sample.time_ns / 1e9) for sample in samples]
    assert seconds == list(range(seconds[0], seconds[0] + 3))
    assert all(sample.time_ns / 1e9 - second < 0.5 for sample, second in zip(samples, seconds, strict=True))


def test_follower_ends_when_its_reader_is_gone(config: Path) -> None:
    ring = RingWriter(config.parent / "ring")
    ring.append(json.dumps({"time_ns": 1}))
    ring.close()
    follower = start(config, "tail", "--follow")
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert json.loads(follower.stdout.readline()) == {"time_ns": 1}
    assert follower.poll() is None
    follower.stdout.close()
    assert follower.wait(timeout=5) == 0
    assert follower.stderr.read() == ""
    follower.stderr.close()
