"""What llama-bench writes about generation at a depth, ``-o json``."""

from typing import Any


def decode_rates(report: Any, *, depth: int, generated: int) -> list[float]:
    """Tokens per second of each repetition of the one test that was asked for.

    Raises:
        SystemExit: the report has no such test.
    """
    asked = {"n_prompt": 0, "n_gen": generated, "n_depth": depth}
    for test in report:
        if all(test.get(name) == value for name, value in asked.items()):
            return [float(rate) for rate in test["samples_ts"]]
    raise SystemExit(f"llama-bench did not measure {generated} tokens at depth {depth}")
