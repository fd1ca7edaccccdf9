"""What the monitor is told about its node: /etc/llama-harness/monitor.json."""

import json
from pathlib import Path
from typing import Any

DEFAULT_CONFIG = Path("/etc/llama-harness/monitor.json")
READER_CONFIG = Path("/etc/llama-harness/redis-reader.json")
"""On the head node, for the superuser: how to read what Redis holds of all nodes."""


class MonitorError(Exception):
    """Something a person can act on, in one line."""


def read_json(path: Path) -> dict[str, Any]:
    """The configuration as it stands in the file.

    Raises:
        MonitorError: the file is missing or is not a JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise MonitorError(f"cannot read {path}: {error.strerror}; playbooks/site.yml writes it") from None
    except ValueError as error:
        raise MonitorError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise MonitorError(f"{path} holds no JSON object")
    return found


def ring_folder(path: Path) -> Path:
    """Folder of the ring, read without the model so that ``tail`` starts quickly.

    Raises:
        MonitorError: the file cannot be read or names no ring.
    """
    ring = read_json(path).get("ring")
    if not isinstance(ring, str):
        raise MonitorError(f"{path} names no folder in 'ring'")
    return Path(ring)
