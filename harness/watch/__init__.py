"""The live view of all nodes and backends: its sources, its rows, its table."""
