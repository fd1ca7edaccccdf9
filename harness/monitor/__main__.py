"""The command ``llama-node-monitor``: sample this node, or read its samples."""

import argparse
import select
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from harness.monitor.common import DEFAULT_CONFIG, READER_CONFIG, MonitorError, read_json
from harness.monitor.ring import follow, read_since

_POLL_S = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "run":
            from harness.monitor.service import run  # loads pydantic, which tail does without

            return run(arguments.config)
        if arguments.command == "latest":
            return _print(_latest(arguments.config, arguments.nodes, arguments.follow))
        if arguments.command == "check":
            return _check(_ring_folder(arguments.config), arguments.within)
        return _tail(_ring_folder(arguments.config), arguments.since, arguments.follow)
    except MonitorError as error:
        print(f"llama-node-monitor: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llama-node-monitor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="take a sample every second until SIGTERM")
    tail = commands.add_parser("tail", help="print the samples of the last ten minutes as JSON lines")
    tail.add_argument(
        "--since", type=int, default=0, metavar="NS", help="only after this UTC time, ns; below 0: before now"
    )
    tail.add_argument("--follow", action="store_true", help="then print each new sample")
    check = commands.add_parser("check", help="wait for the next sample and print it; exit 1 if none comes")
    check.add_argument("--within", type=float, default=5.0, metavar="S", help="seconds to wait")
    latest = commands.add_parser("latest", help="on the head node: the newest samples in Redis, as JSON")
    latest.add_argument("--follow", type=float, metavar="S", help="print another line every S seconds")
    latest.add_argument("nodes", nargs="+", metavar="NODE", help="names of nodes in the inventory")
    for command in (run, tail, check):
        command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    latest.add_argument("--config", type=Path, default=READER_CONFIG, metavar="FILE")
    return parser


def _ring_folder(config: Path) -> Path:
    ring = read_json(config).get("ring")
    if not isinstance(ring, str):
        raise MonitorError(f"{config} names no folder in 'ring'")
    return Path(ring)


def _latest(config: Path, nodes: Sequence[str], every_s: float | None) -> Iterator[str]:
    """One line of JSON (``LatestSamples``); with ``every_s``, one more after each pause."""
    import asyncio

    from harness.monitor.config import read_model
    from harness.monitor.redis import RedisSettings
    from harness.monitor.redis.reader import LatestReader

    reader = LatestReader(read_model(RedisSettings, config))
    with asyncio.Runner() as runner:
        try:
            while True:
                yield runner.run(reader.read(nodes)).model_dump_json()
                if every_s is None or not _pause(every_s):
                    return
        finally:
            runner.run(reader.close())


def _tail(ring: Path, since_ns: int, following: bool) -> int:
    if not following and not ring.is_dir():
        raise MonitorError(f"no ring at {ring}: is llama-node-monitor.service running?")
    since_ns += time.time_ns() if since_ns < 0 else 0
    lines = follow(ring, since_ns, _pause) if following else read_since(ring, since_ns)
    return _print(lines)


def _check(ring: Path, within_s: float) -> int:
    deadline = time.monotonic() + within_s
    lines = follow(ring, time.time_ns(), lambda: _pause() and time.monotonic() < deadline)
    newest = list(islice(lines, 1))
    if not newest:
        raise MonitorError(f"no new sample in {ring} within {within_s:g} s: see the unit's journal")
    return _print(iter(newest))


def _print(lines: Iterator[str]) -> int:
    try:
        for line in lines:
            print(line, flush=True)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; no traceback at exit
    except KeyboardInterrupt:
        pass
    return 0


def _pause(seconds: float = _POLL_S) -> bool:
    """Wait a little; False when nobody reads our output any more (a cut SSH connection)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not poll.poll(seconds * 1000)


if __name__ == "__main__":
    sys.exit(main())
