"""Traffic of the interface that carries the node's inventory address."""

import socket
import sys
from pathlib import Path

from harness.monitor.readers.memory import PROC
from harness.monitor.readers.rate import Rate
from harness.monitor.sample import Network

_LOOPBACK = "lo"


class NetworkReader:
    """Finds the interface once and reads its counters; looks again when the interface is gone."""

    def __init__(self, address: str, proc: Path = PROC) -> None:
        self._address = address
        self._proc = proc
        self._interface: str | None = None
        self._received, self._sent = Rate(), Rate()

    def read(self, now_s: float) -> Network | None:
        """Counters and rates now; None while no interface has the address's subnet.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._interface is None:
            self._interface = interface_of((self._proc / "net" / "route").read_text(), self._address)
        if self._interface is None:
            return None
        counters = _counters((self._proc / "net" / "dev").read_text(), self._interface)
        if counters is None:
            self._interface = None
            return None
        received, sent = counters
        return Network(
            interface=self._interface,
            received_bytes=received,
            sent_bytes=sent,
            received_bytes_per_s=self._received(now_s, received),
            sent_bytes_per_s=self._sent(now_s, sent),
        )


def interface_of(routes: str, address: str) -> str | None:
    """Interface whose directly connected subnet holds ``address``, from the text of /proc/net/route.

    The routing table is read because asking for an interface's address takes a socket of a family
    that the monitor's sandbox does not admit.
    """
    if address.startswith("127."):
        return _LOOPBACK
    wanted = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    best: tuple[int, str] | None = None
    for line in routes.splitlines()[1:]:
        interface, destination, gateway, *_, mask, _mtu, _window, _irtt = line.split()
        bits = int(mask, 16)
        connected = int(gateway, 16) == 0 and bits != 0
        if connected and wanted & bits == int(destination, 16):
            length = bits.bit_count()
            if best is None or length > best[0]:
                best = (length, interface)
    return best[1] if best else None


def _counters(devices: str, interface: str) -> tuple[int, int] | None:
    for line in devices.splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() == interface:
            fields = counters.split()
            return int(fields[0]), int(fields[8])
    return None
