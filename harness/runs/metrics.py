"""Figures of a batch of requests, whose formulas are in ``run.json`` and the report, and swap of backends."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from harness.contracts.run_records import Request, Trial

LIMITED = ("ttft_s", "tpot_s", "e2e_s")
"""Figures of one request that a limit can be stated for."""


def measured_by_trial(requests: Iterable[Request]) -> dict[str, list[Request]]:
    """By trial the requests that figures are made of: neither warm-ups nor failures."""
    groups: dict[str, list[Request]] = {}
    for request in requests:
        if not request.warmup and request.error is None:
            groups.setdefault(request.trial, []).append(request)
    return groups


def summarise(requests: Sequence[Request], limits: Mapping[str, float] | None = None) -> dict[str, float]:
    """Metrics of the measured requests (warm-ups left out), each named with its unit.

    A figure for which no request has the data is absent, not zero.

    Args:
        limits: seconds that a request may take, by a name of ``LIMITED``; without one there is no goodput.
    """
    measured = [request for request in requests if not request.warmup]
    good = [request for request in measured if request.error is None]
    figures: dict[str, float] = {"requests": len(measured), "errors": len(measured) - len(good)}
    for name, values in (
        ("ttft_s", [r.ttft_s for r in good]),
        ("tpot_s", [r.tpot_s for r in good]),
        ("e2e_s", [r.e2e_s for r in good]),
        ("itl_s", [gap for r in good for gap in r.itl_s]),
        ("decode_tokens_per_s", [decode_rate(r) for r in good]),
        ("server_decode_tokens_per_s", [server_decode_rate(r) for r in good]),
        ("server_prompt_tokens_per_s", [server_prompt_rate(r) for r in good]),
    ):
        figures |= _spread(name, [value for value in values if value is not None])
    figures["output_tokens"] = sum(r.completion_tokens or 0 for r in good)
    if rate := stage_rate(good):
        figures["tokens_per_s"] = rate
    if limits and measured:
        met = sum(_meets(request, limits) for request in good)
        wall_ns = max(_ended_ns(r) for r in measured) - min(r.sent_ns for r in measured)
        figures |= {"requests_within_limits": met, "goodput_per_s": met / wall_ns * 1e9 if wall_ns else 0.0}
    return figures


def decode_rate(request: Request) -> float | None:
    """Tokens per second after the first, by their arrival at the client."""
    return 1 / request.tpot_s if request.tpot_s else None


def server_decode_rate(request: Request) -> float | None:
    """The same figure from llama.cpp's ``timings``: its clock starts at the first token, so n - 1 gaps."""
    tokens, elapsed_ms = request.server.get("predicted_n", 0), request.server.get("predicted_ms", 0)
    return (tokens - 1) / elapsed_ms * 1e3 if tokens > 1 and elapsed_ms > 0 else None


def server_prompt_rate(request: Request) -> float | None:
    """Prompt tokens per second from llama.cpp's ``timings``."""
    tokens, elapsed_ms = request.server.get("prompt_n", 0), request.server.get("prompt_ms", 0)
    return tokens / elapsed_ms * 1e3 if tokens > 0 and elapsed_ms > 0 else None


def stage_rate(requests: Sequence[Request]) -> float | None:
    """Output tokens of all requests / time from the first request sent to the last token."""
    ended = [r for r in requests if r.token_ns]
    if not ended:
        return None
    wall = (max(r.token_ns[-1] for r in ended) - min(r.sent_ns for r in ended)) / 1e9
    return sum(r.completion_tokens or 0 for r in ended) / wall if wall > 0 else None


def _ended_ns(request: Request) -> int:
    return request.done_ns or max(request.token_ns, default=request.sent_ns)


def _meets(request: Request, limits: Mapping[str, float]) -> bool:
    """Whether every figure with a limit is known and within it; a single token has no TPOT, and meets any."""
    return all(
        (value := getattr(request, name)) is not None and value <= limit
        for name, limit in limits.items()
        if name != "tpot_s" or request.completion_tokens != 1
    )


def _spread(name: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"{name}_median": median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


SWAP_NOISE_BYTES = 16 << 20
"""Swap of one node's rpc-server up to this counts as none: the kernel moves idle pages without need.

"Swap used" is memory of rpc-server processes in swap (``rpc_swap_bytes`` of the samples), not the node's swap
as a whole, which holds pages of every other process too.
"""


def backend_swap(trials: Iterable[Trial]) -> dict[str, int]:
    """Per node the most that its rpc-server had in swap during these trials, bytes; 0 up to the noise limit.

    Nodes whose samples did not say are left out.
    """
    most: dict[str, int] = {}
    for trial in trials:
        for node, peak in trial.peak.items():
            if (size := peak.get("rpc_swap_bytes")) is not None:
                most[node] = max(most.get(node, 0), size if size > SWAP_NOISE_BYTES else 0)
    return most


def most_backend_swap(trials: Iterable[Trial]) -> int | None:
    """The most of any node, bytes; None where no node's samples said."""
    return max(backend_swap(trials).values(), default=None)


def describe_backend_swap(trials: Iterable[Trial]) -> str:
    """The same for people, with the noise limit and the nodes named."""
    by_node = backend_swap(trials)
    if not by_node:
        return "swap of rpc-server unknown: no monitor reported it"
    used = [f"{node} {size / 2**20:,.0f} MiB" for node, size in sorted(by_node.items()) if size]
    if not used:
        return f"no rpc-server in swap (up to {SWAP_NOISE_BYTES >> 20} MiB is noise)"
    return f"rpc-server in swap: up to {', '.join(used)}"
