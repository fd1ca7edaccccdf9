"""Helpers that several packages share; imports nothing else of the harness but its error type."""
