"""A real Redis on loopback, with the configuration that the role ``redis`` writes."""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from ansible.module_utils.common.text.formatters import human_to_bytes
from harness.monitor.redis import RedisSettings
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tests.integration.router_stack import free_port

TEMPLATES = Path(__file__).parents[2] / "roles" / "redis" / "templates"
PROGRAM = "redis-check-rdb"
"""What Debian's redis-tools calls the server's program."""
READER = "llama-reader"
NODES = ("node1", "node2", "node3")
PASSWORDS = {READER: "of-the-readers"} | {
    f"llama-monitor-{node}": f"of-the-monitor-of-{node}" for node in NODES
}


def monitor_of(node: str) -> str:
    """Redis user of a node's monitor, as the role names it."""
    return f"llama-monitor-{node}"


def configuration(port: int, memory: str) -> str:
    """``redis.conf`` from the role's own template."""
    environment = Environment(  # noqa: S701 - no HTML
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined
    )
    environment.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    environment.filters["ansible.builtin.human_to_bytes"] = human_to_bytes
    return environment.get_template("redis.conf.j2").render(
        ansible_managed="a test",
        redis_address="127.0.0.1",
        redis_port=port,
        redis_memory=memory,
        redis_nodes=NODES,
        _redis_monitor_passwords={node: PASSWORDS[monitor_of(node)] for node in NODES},
        _redis_reader_password=PASSWORDS[READER],
    )


@dataclass
class RedisServer:
    """One Redis, to be started, killed, held and started again on the same port."""

    folder: Path
    memory: str = "64M"
    port: int = field(init=False)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port = free_port()
        (self.folder / "redis.conf").write_text(configuration(self.port, self.memory))
        for user, password in PASSWORDS.items():
            (self.folder / f"{user}.key").write_text(f"{password}\n")

    def settings(self, user: str) -> RedisSettings:
        """How ``user`` reaches it."""
        values = {"address": "127.0.0.1", "port": self.port, "username": user}
        return RedisSettings.model_validate({**values, "password_file": self.folder / f"{user}.key"})

    def client(self, user: str = READER) -> Any:
        """A connection of its own."""
        return redis.Redis(
            port=self.port, username=user, password=PASSWORDS[user], decode_responses=True, protocol=2
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = shutil.which(PROGRAM)
        assert program, f"{PROGRAM} is not installed: apt-get install redis-tools"
        argv = ["redis-server", str(self.folder / "redis.conf")]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(argv, executable=program, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except redis.ConnectionError:
                assert self._process.poll() is None, (self.folder / "redis.log").read_text()
                assert time.monotonic() < end, "Redis did not answer"
                time.sleep(0.05)
            else:
                return

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        assert self._process
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
