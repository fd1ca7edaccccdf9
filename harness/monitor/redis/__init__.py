"""Keys of node samples in Redis, and how to connect to it.

Two keys for each node: a bounded stream of its samples, and its newest sample, which expires after a few
seconds, so that a silent node is seen as silent. Connections use Redis's default protocol (RESP2), have
short timeouts and never retry: the caller does.
"""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness.monitor.common import MonitorError

PORT = 6379
LATEST_TTL_MS = 5000
"""Lifetime of a node's newest sample."""
STREAM_SAMPLES = 3600
"""Samples that a stream keeps, about: Redis trims it in whole blocks."""
FIELD = "sample"
WAIT_S = 2.0
"""Timeout of a connection, and of an answer."""


class RedisSettings(BaseModel):
    """Address and user of Redis: the key ``redis`` of monitor.json and router.json."""

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


def connection_options(settings: RedisSettings) -> dict[str, Any]:
    """Arguments for ``redis.Redis`` or ``redis.asyncio.Redis``, but for ``retry``.

    Raises:
        MonitorError: the password cannot be read.
    """
    path = settings.password_file
    try:
        password = path.read_text().strip()
    except OSError as error:
        message = f"cannot read Redis's password {path}: {error.strerror}; role redis makes it"
        raise MonitorError(message) from None
    if not password:
        raise MonitorError(f"Redis's password file {path} is empty; deploy again to write it")
    return {
        "host": str(settings.address),
        "port": settings.port,
        "username": settings.username,
        "password": password,
        "decode_responses": False,  # what a node wrote may be no text
        "protocol": 2,
        "driver_info": None,  # Redis 7.0 does not know CLIENT SETINFO
        "socket_timeout": WAIT_S,
        "socket_connect_timeout": WAIT_S,
    }
