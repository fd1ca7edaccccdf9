"""Paths on the control machine and on the nodes, and ports."""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
"""The checkout on the control machine (playbooks, roles, inventories, reports)."""

PLAYBOOKS = REPOSITORY / "playbooks"
REPORTS = REPOSITORY / "reports"
DEFAULT_INVENTORY = REPOSITORY / "inventories" / "lab"

RPC_PORT = 50052
ROUTER_PORT = 11435
COORDINATOR_PORT = 18080
POOL_PORT = 18081

NODE_LLAMA_CPP = Path("/opt/llama.cpp")
NODE_VENV = Path("/opt/llama-harness/venv")
NODE_CONFIG = Path("/etc/llama-harness")
NODE_LOGS = Path("/var/log/llama-harness")
NODE_MODELS = Path("/srv/llama-models")
NODE_RPC_CACHE = Path("/var/cache/llama.cpp/rpc")


def cache_dir() -> Path:
    """Folder of files that can be made again: sources, builds, images, models, wheels.

    ``LLAMA_HARNESS_CACHE`` overrides it; roles receive the same folder as ``llama_harness_cache_dir``.
    """
    override = os.environ.get("LLAMA_HARNESS_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "llama-harness"


def state_dir(inventory: Path) -> Path:
    """Private folder of one inventory: the router's keys.

    Named after the inventory's folder and a digest of its path, so that two inventories never share a key.
    The roles ``router`` and ``pool_server`` make the same name of ``inventory_dir``.
    """
    override = os.environ.get("LLAMA_HARNESS_STATE")
    base = Path(override) if override else Path.home() / ".local" / "state" / "llama-harness"
    folder = (inventory if inventory.is_dir() else inventory.parent).resolve()
    return base / f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def shown_path(path: Path) -> str:
    """A path as records and reports show it: relative to the checkout where it is inside."""
    resolved = path.resolve()
    return str(resolved.relative_to(REPOSITORY) if resolved.is_relative_to(REPOSITORY) else resolved)
