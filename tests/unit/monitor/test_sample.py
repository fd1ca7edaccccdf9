"""What a node says is a sample within bounds, or is refused in one short line."""

import json
import math
import re
from typing import Any

import pytest
from harness.monitor.sample import MAX_SAMPLE_BYTES, RefusedSampleError, Sample, check_time, parse_sample
from hypothesis import example, given
from hypothesis import strategies as st
from tests.node_samples import node_sample

NODE = "node1"
GOOD = json.loads(node_sample(10**9).model_dump_json())
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=1 << 62, max_value=1 << 70),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)


def judged(data: bytes | str) -> Sample | None:
    """The sample, or None for one that is refused in a line that can be printed."""
    try:
        return parse_sample(data, NODE)
    except RefusedSampleError as error:
        reason = str(error)
    assert len(reason) < 300
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", reason)
    return None


@given(st.binary(max_size=300))
@example(b"\xff")
@example(b'{"time_ns": 1, "node": "\\ud800"}')
@example(b"[" * 100_000)
@example(b'{"time_ns": ' + b"9" * 5000 + b"}")
def test_any_bytes_are_refused_in_one_line(data: bytes) -> None:
    assert judged(data) is None


def all_floats(value: Any) -> list[float]:
    match value:
        case dict():
            return [number for inner in value.values() for number in all_floats(inner)]
        case list():
            return [number for inner in value for number in all_floats(inner)]
        case float():
            return [value]
    return []


@given(st.sampled_from(sorted(Sample.model_fields)), WRONG)
@example("cpu_s", float("nan"))
@example("load1", float("inf"))
@example("clock_offset_s", -float("inf"))
@example("time_ns", 1 << 70)
def test_sample_with_any_figure_is_finite_json_and_has_an_age_or_is_refused(name: str, wrong: object) -> None:
    sample = judged(json.dumps(GOOD | {name: wrong}))
    if sample is not None:
        assert all(map(math.isfinite, all_floats(sample.model_dump())))
        json.loads(json.dumps(sample.model_dump(mode="json"), allow_nan=False))
        assert abs(sample.head_time_ns) < 1 << 64


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"node": "node2"}, "it says that it is of node 'node2'"),
        ({"padding": "x" * MAX_SAMPLE_BYTES}, "it is longer than 256 KiB"),
        ({"memory": GOOD["memory"] | {"used_bytes": -1}}, "memory.used_bytes: "),
        ({"units": {f"u{number}": {} for number in range(300)}}, "units"),
        ({"gpus": [{}] * 300}, "gpus"),
    ],
)
def test_sample_out_of_bounds_is_refused_with_its_reason(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(RefusedSampleError) as caught:
        parse_sample(json.dumps(GOOD | changed), NODE)
    assert str(caught.value).startswith(reason)


def test_text_of_a_node_cannot_control_a_terminal() -> None:
    kernel = {"log": True, "last_oom": "\x1b[2J\x9b31mred\n\tKilled"}
    sample = parse_sample(json.dumps(GOOD | {"kernel": kernel}), NODE)
    assert sample.kernel
    assert sample.kernel.last_oom == "\ufffd[2J\ufffd31mred\ufffd\tKilled"


def test_sample_from_the_future_is_refused_beyond_what_clocks_differ() -> None:
    check_time(4 * 10**9, 0)
    with pytest.raises(RefusedSampleError, match="its time is 6 s ahead of the clock here"):
        check_time(6 * 10**9, 0)
