"""Faults on purpose: each is injected on a node, recorded, and undone whatever happens in between."""
