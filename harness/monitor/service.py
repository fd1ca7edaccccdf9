"""The loop of the monitor: a sample on every whole second into the ring, until told to stop."""

import signal
import sys
import time
from pathlib import Path

from harness.monitor.clock import next_tick, sleep_until
from harness.monitor.model import load_config
from harness.monitor.pin import keep_resident
from harness.monitor.ring import RingWriter
from harness.monitor.sampler import Sampler

STOP = {signal.SIGTERM, signal.SIGINT}


def run(config_path: Path) -> int:
    """Sample until SIGTERM or SIGINT; returns the exit status.

    Raises:
        MonitorError: the configuration cannot be used.
    """
    config = load_config(config_path)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # taken by sleep_until, never in the middle of a write
    sampler = Sampler(config)
    ring = RingWriter(config.ring)
    if reason := keep_resident():
        _say(f"may be swapped out: {reason}")
    _say(f"{config.node}: a sample every second into {config.ring}, memory from {sampler.memory_source}")
    try:
        _loop(sampler, ring)
    finally:
        ring.close()
    return 0


def _loop(sampler: Sampler, ring: RingWriter) -> None:
    trouble = ""
    tick = next_tick(0, time.time())
    while sleep_until(tick, STOP):
        try:
            ring.append(sampler.sample().model_dump_json())
            trouble = ""
        except OSError as error:  # a full disk or a vanished cgroup: say it once and try again
            if str(error) != trouble:
                trouble = str(error)
                _say(f"no sample: {trouble}")
        tick = next_tick(tick, time.time())


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
