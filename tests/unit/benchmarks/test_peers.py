"""Reports of the programs we are measured beside (``tests/data/peers``), and what is made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.run_records import Request

from bench_report import decode_rates
from gguf_tokenizer import tokenizer_json
from guidellm_report import of_guidellm, of_ours, of_server
from ratio_table import Row, table

DATA = Path(__file__).parents[2] / "data" / "peers"


def guidellm() -> Any:
    return json.loads((DATA / "guidellm.json").read_text())


def bench() -> Any:
    return json.loads((DATA / "llama-bench.json").read_text())


def test_guidellms_figures_are_those_of_its_requests() -> None:
    sent = guidellm()["benchmarks"][0]["requests"]["successful"]
    first = [(one["first_token_time"] - one["start_time"]) * 1e3 for one in sent]
    gaps = [(one["last_token_time"] - one["first_token_time"]) * 1e3 / 3 for one in sent]
    wall = max(one["end_time"] for one in sent) - min(one["start_time"] for one in sent)

    figures = of_guidellm(guidellm(), requests=2, generated=4)

    # Of an even number of values guidellm calls the lower of the middle two the median.
    assert figures.ttft_ms == pytest.approx(min(first))
    assert figures.itl_ms == pytest.approx(min(gaps))
    # Its rate leaves out the very last token: nothing follows it.
    assert figures.tokens_per_s == pytest.approx((2 * 4 - 1) / wall)
    assert figures.prompt_tokens == 64


@pytest.mark.parametrize(("requests", "generated"), [(3, 4), (2, 5)])
def test_a_report_of_other_requests_than_asked_is_refused(requests: int, generated: int) -> None:
    with pytest.raises(SystemExit, match=r"asked|answered"):
        of_guidellm(guidellm(), requests, generated)


def test_a_failed_request_of_guidellm_is_told_with_its_error() -> None:
    report = guidellm()
    sent = report["benchmarks"][0]["requests"]
    sent["errored"].append(sent["successful"].pop() | {"error": "connection refused"})
    with pytest.raises(SystemExit, match="1 of 2 requests were answered, one with: connection refused"):
        of_guidellm(report, 2, 4)


def test_the_servers_account_passes_over_requests_of_another_length() -> None:
    log = (DATA / "llama-server.log").read_text()
    server = of_server(log, requests=2, generated=4)
    assert server.prompt_ms == pytest.approx((375.25 + 364.09) / 2)
    assert server.gap_ms == pytest.approx((35.79 + 36.38) / 2 / 3)
    assert server.tokens_per_s == pytest.approx(8 / (0.37525 + 0.03579 + 0.36409 + 0.03638))


def test_a_log_without_every_request_is_refused() -> None:
    log = (DATA / "llama-server.log").read_text()
    with pytest.raises(SystemExit, match="2 of 3 requests"):
        of_server(log, requests=3, generated=4)


def asked(index: int, start_ms: int) -> Request:
    arrivals = [(start_ms + ms) * 1_000_000 for ms in (400, 410, 420, 430)]
    return Request(
        trial="", index=index, route="direct", model="m", sent_ns=start_ms * 1_000_000, token_ns=arrivals,
        prompt_tokens=64, completion_tokens=4,
    )  # fmt: skip


def test_our_figures_have_guidellms_meaning() -> None:
    figures = of_ours([asked(1, 1000), asked(2, 1500)], generated=4)
    assert figures.ttft_ms == pytest.approx(400)
    assert figures.itl_ms == pytest.approx(10)
    assert figures.tokens_per_s == pytest.approx(8 / 0.93)


def test_our_answers_of_another_length_are_refused() -> None:
    with pytest.raises(SystemExit, match="4 tokens came"):
        of_ours([asked(1, 1000)], generated=5)


def test_llama_benchs_rates_are_those_of_the_depth_asked_for() -> None:
    seconds = [one / 1e9 for one in bench()[0]["samples_ns"]]
    assert decode_rates(bench(), depth=48, generated=7) == pytest.approx([7 / s for s in seconds], rel=1e-5)


@pytest.mark.parametrize(("depth", "generated"), [(0, 7), (48, 8)])
def test_a_test_that_llama_bench_did_not_run_is_not_made_up(depth: int, generated: int) -> None:
    with pytest.raises(SystemExit, match="did not measure"):
        decode_rates(bench(), depth=depth, generated=generated)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine became ten times slower halfway: for both.
    row = Row("ITL", [10, 10.1, 100], [10, 10, 100], within=0.005)
    assert row.ratio.median == pytest.approx(1)
    assert row.met
    assert not Row("ITL", [10.2, 102, 10.2], [10, 100, 10], within=0.01).met


def test_a_figure_without_a_bar_is_shown_and_misses_nothing() -> None:
    row = Row("TTFT", [20.0], [10.0], within=None)
    assert row.met
    assert "2.000" in table("", "ours", "theirs", [row])
    assert "MISSED" not in table("", "ours", "theirs", [row])


def test_a_tokenizer_keeps_ids_and_takes_special_tokens_whole() -> None:
    content = tokenizer_json(["<|end|>", "a", "b", "ab"], [3, 1, 1, 1], ["a b"], "smollm")
    assert content["model"]["vocab"] == {"<|end|>": 0, "a": 1, "b": 2, "ab": 3}
    assert content["model"]["merges"] == [["a", "b"]]
    assert [(one["id"], one["content"]) for one in content["added_tokens"]] == [(0, "<|end|>")]
    assert content["pre_tokenizer"]["pretokenizers"][0]["type"] == "Digits"
