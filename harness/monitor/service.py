"""The loop of the monitor: a sample on every whole second into the ring and to Redis, until told to stop."""

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness.monitor.clock import next_tick, sleep_until
from harness.monitor.config import MonitorConfig, load_config
from harness.monitor.pin import keep_resident
from harness.monitor.ring import RingWriter
from harness.monitor.sampler import Sampler

if TYPE_CHECKING:
    from harness.monitor.redis.publisher import Publisher

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
    with ExitStack() as at_end:
        at_end.callback(ring.close)
        publisher = _publisher(config)
        if publisher:
            publisher.start()
            at_end.callback(publisher.stop)
        _loop(sampler, ring, publisher)
    return 0


def _publisher(config: MonitorConfig) -> "Publisher | None":
    if config.redis is None:
        return None
    from harness.monitor.redis.publisher import (
        Publisher,  # Redis's client: not paid for by a node without Redis
    )

    _say(f"publishes to Redis at {config.redis.address}:{config.redis.port}")
    return Publisher(config.redis, config.node, config.ring, _say)


def _loop(sampler: Sampler, ring: RingWriter, publisher: "Publisher | None") -> None:
    trouble = ""
    tick = next_tick(0, time.time())
    while sleep_until(tick, STOP):
        try:
            sample = sampler.sample()
            if publisher:
                sample.clock_offset_s = publisher.clock_offset_s
            line = sample.model_dump_json()
            if publisher:  # first: a disk that is full keeps a node out of the ring, not out of sight
                publisher.offer(sample.time_ns, line)
            ring.append(line)
            trouble = ""
        except OSError as error:  # a full disk or a vanished cgroup: say it once and try again
            if str(error) != trouble:
                trouble = str(error)
                _say(f"no sample: {trouble}")
        tick = next_tick(tick, time.time())


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
