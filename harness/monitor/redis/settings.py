"""Where node samples are kept in Redis, and how to reach it.

Two keys for each node: a bounded stream of its samples, and its newest sample, which lives for a few
seconds only, so that a node that has fallen silent is seen as silent. Connections speak what Redis
speaks by itself (RESP2), never wait long, and never try again on their own: who asks decides that.
"""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness.monitor.config_file import MonitorError

PORT = 6379
LATEST_TTL_MS = 5000
"""How long the newest sample of a node is its latest state."""
STREAM_SAMPLES = 3600
"""About how many samples a stream keeps: Redis trims it in whole blocks."""
FIELD = "sample"
WAIT_S = 2.0
"""Longest wait for a connection, and for an answer."""


class RedisSettings(BaseModel):
    """Where Redis is and who asks it: the key ``redis`` of monitor.json and router.json."""

    model_config = ConfigDict(extra="forbid")

    address: IPv4Address
    port: int = Field(PORT, ge=1, le=65535)
    username: str = Field(min_length=1)
    password_file: Path


def stream_key(node: str) -> str:
    """Stream of a node's samples; an entry's id is its sample's time: ``<ms>-0``."""
    return f"llama:samples:{node}"


def latest_key(node: str) -> str:
    """A node's newest sample; gone once it is older than LATEST_TTL_MS."""
    return f"llama:latest:{node}"


def entry_id(time_ns: int) -> str:
    """Id of a sample's entry in its stream: Redis refuses one that is not newer than the last."""
    return f"{time_ns // 1_000_000}-0"


def entry_ms(entry: str) -> int:
    """Milliseconds of an entry's id."""
    return int(entry.partition("-")[0])


def connection_options(settings: RedisSettings) -> dict[str, Any]:
    """Arguments for ``redis.Redis`` or ``redis.asyncio.Redis``, but for ``retry``.

    Raises:
        MonitorError: the password cannot be read.
    """
    return {
        "host": str(settings.address),
        "port": settings.port,
        "username": settings.username,
        "password": read_password(settings.password_file),
        "decode_responses": True,
        "protocol": 2,
        "driver_info": None,  # Redis 7.0 does not know CLIENT SETINFO
        "socket_timeout": WAIT_S,
        "socket_connect_timeout": WAIT_S,
    }


def read_password(path: Path) -> str:
    """The password in a file of its own.

    Raises:
        MonitorError: the file cannot be read, or is empty.
    """
    try:
        password = path.read_text().strip()
    except OSError as error:
        raise MonitorError(
            f"cannot read Redis's password {path}: {error.strerror}; role redis makes it"
        ) from None
    if not password:
        raise MonitorError(f"Redis's password file {path} is empty; deploy again to write it")
    return password
