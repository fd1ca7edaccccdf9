"""Converts the report of guidellm 0.3 to the figures of ``harness/runs/metrics.py``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.contracts.run_records import Request
from harness.runs.metrics import summarise

_TIMINGS = re.compile(
    r"prompt eval time = +([\d.]+) ms / +(\d+) tokens.*\n.*\beval time = +([\d.]+) ms / +(\d+) tokens"
)


@dataclass(frozen=True)
class Figures:
    """One client's figures of one round."""

    ttft_ms: float
    """Median of first token - request sent."""
    itl_ms: float
    """Median over requests of (last token - first token) / (tokens - 1): guidellm's inter-token latency."""
    tokens_per_s: float
    """Output tokens of the round / its time."""
    prompt_tokens: float
    """Median of the server's count."""


@dataclass(frozen=True)
class Server:
    """The same round by llama-server's own clock."""

    prompt_ms: float
    """Median time of prompt processing."""
    gap_ms: float
    """Median over requests of the decode time / (tokens - 1)."""
    tokens_per_s: float
    """Output tokens / the sum of prompt and decode times, as for sequential requests."""


def of_server(log: str, requests: int, generated: int) -> Server:
    """Figures of one round from llama-server's log.

    Args:
        log: its output during the round; requests of another length are ignored, because guidellm sends a
            test request first.

    Raises:
        SystemExit: the log does not contain every request.
    """
    seen = [match.groups() for match in _TIMINGS.finditer(log)]
    kept = [(float(prompt), float(decode)) for prompt, _, decode, count in seen if int(count) == generated]
    if len(kept) != requests:
        raise SystemExit(f"the server's log contains {len(kept)} of {requests} requests")
    prompts, decodes = zip(*kept, strict=True)
    return Server(
        prompt_ms=median(prompts),
        gap_ms=median(decodes) / (generated - 1),
        tokens_per_s=requests * generated / (sum(prompts) + sum(decodes)) * 1e3,
    )


def of_guidellm(report: Any, requests: int, generated: int) -> Figures:
    """The figures as guidellm defines them, from the report of one benchmark.

    Raises:
        SystemExit: requests failed or are missing, or answers do not have the requested length.
    """
    (benchmark,) = report["benchmarks"]
    sent, metrics = benchmark["requests"], benchmark["metrics"]
    good, bad = sent["successful"], [*sent["errored"], *sent["incomplete"]]
    if bad or len(good) != requests:
        why = f", one with: {bad[0].get('error')}" if bad else ""
        raise SystemExit(f"guidellm: {len(good)} of {requests} requests were answered{why}")
    if lengths := sorted({one["output_tokens"] for one in good} - {generated}):
        raise SystemExit(f"guidellm: answers of {lengths} tokens, {generated} asked")
    return Figures(
        ttft_ms=metrics["time_to_first_token_ms"]["successful"]["median"],
        itl_ms=metrics["inter_token_latency_ms"]["successful"]["median"],
        tokens_per_s=metrics["output_tokens_per_second"]["successful"]["mean"],
        prompt_tokens=metrics["prompt_token_count"]["successful"]["median"],
    )


def of_ours(sent: Sequence[Request], generated: int) -> Figures:
    """The same figures from the requests of one round, computed by the code that trials use.

    Raises:
        SystemExit: a request failed, or an answer does not have the requested length.
    """
    for request in sent:
        if request.error or request.completion_tokens != generated:
            raise SystemExit(f"harness: {request.error or f'{request.completion_tokens} tokens came'}")
    metrics = summarise(sent)
    counts = sorted(request.prompt_tokens or 0 for request in sent)
    return Figures(
        ttft_ms=metrics["ttft_s_median"] * 1e3,
        itl_ms=metrics["tpot_s_median"] * 1e3,
        tokens_per_s=metrics["tokens_per_s"],
        prompt_tokens=counts[len(counts) // 2],
    )
