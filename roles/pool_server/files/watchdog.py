#!/usr/bin/python3 -IS
"""Tells systemd of each answer of llama-server: systemd restarts a server of which it hears nothing.

Runs beside llama-server in its unit (``WatchdogSec=``, ``NotifyAccess=all``) and ends with it. llama-server
answers ``/slots`` from its main loop, which makes the tokens; ``/health`` it answers though that loop hangs.
Any answer counts, an error too: while it loads, it says so.

    watchdog.py ADDRESS PORT KEY_FILE SECONDS
"""

import http.client
import os
import socket
import sys
import time
from pathlib import Path

PAUSE_S = 5.0


def answers(address: str, port: int, key: str, patience_s: float) -> bool:
    """Whether the main loop answered within ``patience_s``; a long prompt may delay it."""
    connection = http.client.HTTPConnection(address, port, timeout=patience_s)
    try:
        connection.request("GET", "/slots", headers={"Authorization": f"Bearer {key}", "Connection": "close"})
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def notify(message: bytes) -> None:
    """Send a message to systemd, as sd_notify(3) does."""
    path = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.sendto(message, "\0" + path[1:] if path.startswith("@") else path)


def main() -> None:
    """Watch until systemd ends this process with its unit."""
    address, port, key_file, patience_s = sys.argv[1:]
    key = Path(key_file).read_text(encoding="utf-8").strip()
    while True:
        if answers(address, int(port), key, float(patience_s)):
            notify(b"WATCHDOG=1")
        time.sleep(min(PAUSE_S, float(patience_s) / 4))


if __name__ == "__main__":
    main()
