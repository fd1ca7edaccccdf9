"""The ggml RPC wire protocol."""
