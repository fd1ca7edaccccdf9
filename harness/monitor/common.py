"""What every part of the monitor uses: its error, its log lines, its configuration files as JSON.

Nothing here loads pydantic, so that ``tail``, which runs on each node through a whole run, stays at 12 MB.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

DEFAULT_CONFIG = Path("/etc/llama-harness/monitor.json")
READER_CONFIG = Path("/etc/llama-harness/redis-reader.json")
"""On the head node, for the superuser: how to read the samples of all nodes from Redis."""
INFO, WARNING = "info", "warning"


class MonitorError(Exception):
    """An error that a person can act on, in one line."""


def log(event: str, level: str = INFO, **fields: object) -> None:
    """Write one line of JSON to the journal, in the router's format (docs/log-events.md).

    Args:
        event: a stable snake_case name.
        fields: values with a meaning for this event; what is no JSON becomes text.
    """
    line = {"time_ns": time.time_ns(), "level": level, "event": event, **fields}
    print(json.dumps(line, default=str), file=sys.stderr, flush=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration file.

    Raises:
        MonitorError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise MonitorError(f"cannot read {path}: {error.strerror}; playbooks/site.yml writes it") from None
    except ValueError as error:
        raise MonitorError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise MonitorError(f"{path} holds no JSON object")
    return values
