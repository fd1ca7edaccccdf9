"""llama-harness: deploy, route, measure and explain llama.cpp over RPC.

``from harness import HybridRouter, auto_discover_rpc_backends`` is for scripts; both are imported when asked
for, so that a node's monitor stays small.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.router.nodes.discovery import auto_discover_rpc_backends
    from harness.router.sdk import HybridRouter

__version__ = "0.1.0"

__all__ = ["HybridRouter", "auto_discover_rpc_backends"]

_LAZY = {
    "HybridRouter": "harness.router.sdk",
    "auto_discover_rpc_backends": "harness.router.nodes.discovery",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
