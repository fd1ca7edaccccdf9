"""Figures of requests, on token times made by hand; prompts of an exact length; and swap of backends."""

import pytest
from harness.contracts.run_records import Outcome, Request, Trial
from harness.runs.metrics import (
    SWAP_NOISE_BYTES,
    backend_swap,
    describe_backend_swap,
    most_backend_swap,
    summarise,
)

S = 10**9


def request(sent_s: float, tokens_s: list[float], **fields: object) -> Request:
    values = {
        "trial": "t",
        "index": 1,
        "route": "coordinator",
        "model": "m",
        "sent_ns": int(sent_s * S),
        "token_ns": [int(at * S) for at in tokens_s],
        "completion_tokens": len(tokens_s),
        **fields,
    }
    return Request.model_validate(values)


def test_figures_follow_their_formulas() -> None:
    figures = summarise([request(10, [12, 12.5, 13.5]), request(20, [21, 22, 23])])
    assert figures["ttft_s_median"] == pytest.approx(1.5)
    assert (figures["ttft_s_min"], figures["ttft_s_max"]) == pytest.approx((1.0, 2.0))
    assert figures["e2e_s_median"] == pytest.approx(3.25)
    assert figures["tpot_s_median"] == pytest.approx((0.75 + 1.0) / 2)
    assert figures["itl_s_median"] == pytest.approx(1.0)
    assert figures["output_tokens"] == 6
    assert figures["tokens_per_s"] == pytest.approx(6 / 13)


def test_tpot_counts_tokens_as_the_server_did() -> None:
    """Two tokens may arrive in one piece, where a character spans them."""
    figures = summarise([request(0, [1, 3], completion_tokens=5)])
    assert figures["tpot_s_median"] == pytest.approx(0.5)
    assert figures["decode_tokens_per_s_median"] == pytest.approx(2.0)


def test_server_rate_counts_the_gaps_as_the_client_does() -> None:
    server = {"predicted_n": 3, "predicted_ms": 1000.0, "prompt_n": 35, "prompt_ms": 500.0}
    figures = summarise([request(0, [1, 1.5, 2], server=server)])
    assert figures["server_decode_tokens_per_s_median"] == pytest.approx(2.0)
    assert figures["decode_tokens_per_s_median"] == pytest.approx(2.0)
    assert figures["server_prompt_tokens_per_s_median"] == pytest.approx(70.0)


def test_warmup_is_left_out_and_errors_are_counted() -> None:
    figures = summarise(
        [
            request(0, [9, 99], warmup=True),
            request(0, [], error="broke", completion_tokens=None),
            request(0, [1, 2]),
        ]
    )
    assert (figures["requests"], figures["errors"]) == (2, 1)
    assert figures["ttft_s_max"] == pytest.approx(1.0)


def test_goodput_counts_requests_that_meet_every_limit_and_an_error_as_a_miss() -> None:
    requests = [
        request(0, [1, 1.5, 2]),
        request(0, [3, 3.5, 4]),  # TTFT too long
        request(4, [5, 7, 9]),  # TPOT too long
        request(8, [9]),  # one token: no TPOT to be too long
        request(9, [], error="no end within 11 s", completion_tokens=None, done_ns=20 * S),
    ]
    figures = summarise(requests, {"ttft_s": 1.0, "tpot_s": 0.5})
    assert figures["requests_within_limits"] == 2
    assert figures["goodput_per_s"] == pytest.approx(2 / 20)
    assert summarise(requests, {"e2e_s": 4})["requests_within_limits"] == 3
    assert summarise(requests[-1:], {"e2e_s": 4})["goodput_per_s"] == 0
    assert "goodput_per_s" not in summarise(requests)


def test_figures_without_data_are_absent() -> None:
    figures = summarise([request(0, [], error="broke", completion_tokens=None)])
    assert figures == {"requests": 1, "errors": 1, "output_tokens": 0}


MIB = 1 << 20


def trial(**peak: dict[str, int]) -> Trial:
    base = {"id": "1", "kind": "load", "model": "m", "started_ns": 0, "ended_ns": 1, "answer": ""}
    return Trial.model_validate(base | {"outcome": Outcome.PASSED, "peak": peak})


def test_only_rpc_server_counts_and_the_noise_limit_is_none() -> None:
    quiet = trial(
        a={"swap_bytes": 900 * MIB, "rpc_swap_bytes": SWAP_NOISE_BYTES}, b={"swap_bytes": 900 * MIB}
    )
    assert backend_swap([quiet]) == {"a": 0}
    assert "no rpc-server in swap" in describe_backend_swap([quiet])


def test_most_of_all_trials_is_named_with_its_node() -> None:
    trials = [trial(a={"rpc_swap_bytes": 20 * MIB}), trial(a={"rpc_swap_bytes": 134 * MIB})]
    assert most_backend_swap(trials) == 134 * MIB
    assert "a 134 MiB" in describe_backend_swap(trials)


@pytest.mark.parametrize("trials", [[], [trial()], [trial(a={"swap_bytes": 1})]])
def test_what_no_monitor_reported_is_unknown(trials: list[Trial]) -> None:
    assert most_backend_swap(trials) is None
    assert "unknown" in describe_backend_swap(trials)
