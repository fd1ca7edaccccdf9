"""Which layers, KV cache and buffers go to which backend, and what each node has left."""
