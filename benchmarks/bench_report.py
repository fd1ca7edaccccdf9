"""Reads llama-bench's JSON report (``-o json``) of generation at a depth."""

from typing import Any


def decode_rates(report: Any, *, depth: int, generated: int) -> list[float]:
    """Tokens per second of each repetition of the requested test.

    Raises:
        SystemExit: the report does not contain the test.
    """
    asked = {"n_prompt": 0, "n_gen": generated, "n_depth": depth}
    for test in report:
        if all(test.get(name) == value for name, value in asked.items()):
            return [float(rate) for rate in test["samples_ts"]]
    raise SystemExit(f"llama-bench did not measure {generated} tokens at depth {depth}")
