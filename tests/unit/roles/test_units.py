"""The units that the roles write: none stays failed for ever, and a pool server that hangs is restarted."""

import http.server
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

ROLES = Path(__file__).parents[3] / "roles"
WATCHDOG = ROLES / "pool_server" / "files" / "watchdog.py"
RESTARTED = [
    unit for unit in sorted(ROLES.glob("*/templates/*.service.j2")) if "Restart=" in unit.read_text()
]


@pytest.mark.parametrize("unit", RESTARTED, ids=lambda unit: unit.name)
def test_unit_that_restarts_has_no_start_limit(unit: Path) -> None:
    (interval,) = re.findall(r"^StartLimitIntervalSec=(.*)$", unit.read_text(), re.MULTILINE)
    if variable := re.fullmatch(r"\{\{ (\w+) \}\}", interval):
        defaults = yaml.safe_load((unit.parents[1] / "defaults" / "main.yml").read_text())
        interval = defaults[variable[1]]
    assert int(interval) == 0, "with a limit it stays failed until somebody resets it"


class _Server(http.server.BaseHTTPRequestHandler):
    """A main loop that answers, with an error too, until it hangs."""

    hangs = threading.Event()
    keys: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.keys.add(self.headers["authorization"])
        if self.hangs.is_set():
            time.sleep(5)
        self.send_error(503)

    def log_message(self, *given: object) -> None:
        return None


@contextmanager
def watched(folder: Path) -> Iterator[socket.socket]:
    """systemd's end of the watchdog's messages."""
    (folder / "key").write_text("secret\n")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server,
    ):
        server.daemon_threads = True
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(10)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [str(WATCHDOG), "127.0.0.1", str(server.server_port), str(folder / "key"), "0.4"]
        environment = os.environ | {"NOTIFY_SOCKET": str(folder / "notify")}
        with subprocess.Popen(command, env=environment) as process:
            try:
                yield systemd
            finally:
                process.kill()
                server.shutdown()


def silent(systemd: socket.socket) -> bool:
    """Whether no message comes any more, after those that were under way."""
    for _ in range(5):
        try:
            systemd.recv(99)
        except TimeoutError:
            return True
    return False


def test_watchdog_tells_systemd_of_answers_and_is_silent_while_there_are_none(tmp_path: Path) -> None:
    with watched(tmp_path) as systemd:
        assert systemd.recv(99) == b"WATCHDOG=1"
        assert systemd.recv(99) == b"WATCHDOG=1"
        assert _Server.keys == {"Bearer secret"}
        _Server.hangs.set()
        systemd.settimeout(1.5)
        assert silent(systemd)
