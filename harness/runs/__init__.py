"""Runs: what is recorded, in which shape, and how it is kept."""
