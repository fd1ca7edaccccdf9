"""llama-harness: deploy, route, measure and explain llama.cpp over RPC."""

__version__ = "0.1.0"
