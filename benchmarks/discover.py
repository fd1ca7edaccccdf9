"""Measure a scan of 1,024 addresses: no listener, listeners that never answer, and dropped connections.

    sudo python benchmarks/discover.py [--cidr 127.0.0.0/22] [--rounds 3]

It runs in its own network namespace, so that no packet leaves this computer. The goal is 5 s for each case.

``closed``: no listener. ``busy``: every address accepts connections and sends nothing, like a busy
rpc-server. ``silent``: no connection succeeds or fails before the timeout. The last two use one socket that
never accepts; its backlog has room for all connections, or for none.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from harness.llama.rpc.discovery import addresses, candidates, discover
from harness.settings import RPC_PORT

_INSIDE = "DISCOVER_BENCHMARK_INSIDE"
_ROOM_FOR_ALL = 4096


@contextmanager
def nobody() -> Iterator[None]:
    """No listener."""
    yield


@contextmanager
def never_accepting() -> Iterator[None]:
    """A listener whose backlog has room for all connections."""
    with socket.create_server(("0.0.0.0", RPC_PORT), backlog=_ROOM_FOR_ALL):  # noqa: S104 - own namespace
        yield


@contextmanager
def full() -> Iterator[None]:
    """A listener with a full backlog: the kernel does not answer new connections."""
    with ExitStack() as stack:
        stack.enter_context(socket.create_server(("0.0.0.0", RPC_PORT), backlog=0))  # noqa: S104 - own namespace
        stack.enter_context(socket.create_connection(("127.0.0.1", RPC_PORT)))
        yield


CASES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "closed": nobody,
    "busy": never_accepting,
    "silent": full,
}


def measure(cidr: str) -> tuple[float, Counter[str]]:
    """Seconds of one scan, and the number of addresses per state."""
    wanted = candidates([], addresses([cidr]))
    began = time.monotonic()
    found = asyncio.run(discover(wanted, in_use={}))
    return time.monotonic() - began, Counter(one.status.value for one in found)


def main() -> None:
    """Print a line for each case and round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cidr", default="127.0.0.0/22")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        again = ["unshare", "--net", sys.executable, __file__, *sys.argv[1:]]
        sys.exit(subprocess.run(again, env=os.environ | {_INSIDE: "1"}, check=False).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, prepare in CASES.items():
        for number in range(1, options.rounds + 1):
            with prepare():
                seconds, counts = measure(options.cidr)
            said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
            print(f"{name:<7} round {number}: {seconds:5.2f} s  ({said})")


if __name__ == "__main__":
    main()
