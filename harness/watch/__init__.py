"""The live view of all nodes and backends: where it comes from, what it says, how it looks."""
