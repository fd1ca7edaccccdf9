"""What a run's figures are to be taken with, as a table of measurements and sentences."""

import pytest
from harness.contracts.run_records import Outcome, Request, Trial
from harness.runs.cautions import NodeConditions, cautions, outliers

SECOND = 10**9
STEADY = [1.0, 1.01, 0.99, 1.02, 0.98]


def request(ttft_s: float, index: int, trial: str = "03-inference", *, warmup: bool = False) -> Request:
    """A request whose first token came after ``ttft_s``, and nine more at an even pace."""
    first = int(ttft_s * SECOND)
    return Request(
        trial=trial, index=index, warmup=warmup, route="coordinator", model="m", sent_ns=0,
        token_ns=[first + n * SECOND // 10 for n in range(10)], completion_tokens=10,
    )  # fmt: skip


def load(took_s: float, cache: str = "warm") -> Trial:
    return Trial(
        id=f"load-{took_s}", kind="load", model="13b", started_ns=0, ended_ns=1, outcome=Outcome.PASSED,
        answer="ready", metrics={"load_s": took_s}, details={"cache": cache, "nodes": ["node1"]},
    )  # fmt: skip


def said(values: list[float]) -> list[str]:
    return cautions([], [request(value, n) for n, value in enumerate(values)], [])


def test_steady_values_need_no_caution() -> None:
    assert said(STEADY) == []


def test_slow_first_request_is_told_as_that() -> None:
    (sentence,) = said([3.0, *STEADY])
    assert sentence.startswith("03-inference: the first request was slower than the rest (TTFT 3, median 1")


def test_outlier_in_the_middle_is_told_as_that() -> None:
    (sentence,) = said([*STEADY, 0.2, 1.0])
    assert "1 of 7 values of TTFT are outliers, the farthest 0.2 beside a median of 1" in sentence


def test_warm_up_and_failed_requests_are_no_values() -> None:
    slow = request(9.0, 0, warmup=True)
    failed = request(9.0, 9).model_copy(update={"error": "HTTP 503"})
    steady = [request(value, n) for n, value in enumerate(STEADY, 1)]
    assert cautions([], [slow, *steady, failed], []) == []


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([1.0, 9.0], []),
        ([1.0, 1.0, 1.0, 1.0, 1.04], []),
        ([1.0, 1.0, 1.0, 1.0, 1.06], [4]),
        ([1.0, 1.1, 0.9, 1.2, 0.8], []),
    ],
    ids=["too few to tell", "within five per cent", "beyond it", "all over the place"],
)
def test_outliers(values: list[float], places: list[int]) -> None:
    assert outliers(values) == places


def test_slow_first_load_is_told_apart_by_cache() -> None:
    warm = [load(value) for value in (30.0, 10.0, 10.1, 9.9, 10.0)]
    (sentence,) = cautions(warm, [], [])
    assert sentence.startswith("13b: the first warm load took 30.0 s, the median is 10.0 s")
    assert cautions([load(30.0, "cold"), *warm[1:]], [], []) == []


def test_too_few_repeats_are_counted_once() -> None:
    requests = [
        request(1.0, n, trial) for trial, count in (("a", 1), ("b", 2), ("c", 3)) for n in range(count)
    ]
    trials = [load(1.0).model_copy(update={"id": name, "kind": "inference"}) for name in "abc"]
    assert cautions([], requests, []) == []
    (sentence,) = cautions(trials, requests, [])
    assert sentence.startswith("2 of 3 trials with requests have fewer than 3 repeats")


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (NodeConditions("n", cpus=2, load1=3.4), "n: load average up to 3.4 on 2 CPUs"),
        (NodeConditions("n", cpus=2, load1=2.9), ""),
        (NodeConditions("n", load1=99.0), ""),
        (NodeConditions("n", memory_full=42.0), "n: every task waited for memory for up to 42 %"),
        (NodeConditions("n", memory_full=3.0), ""),
        (NodeConditions("n", clock_offset_s=-0.5), "n: its clock was up to 0.50 s behind the head node's"),
        (NodeConditions("n", clock_offset_s=0.05), ""),
    ],
)
def test_node_conditions(condition: NodeConditions, words: str) -> None:
    assert [sentence[: len(words)] for sentence in cautions([], [], [condition])] == (
        [words] if words else []
    )
