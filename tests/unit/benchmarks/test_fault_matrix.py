"""The fault matrix: when a row is good, and what its table says."""

from pathlib import Path

import pytest
from harness.contracts.run_records import Request

from fault_matrix import CLOCK, HOSTILE, ROWS, Outcome, load, save, saw, table, told


def outcome(answered_s: float | None, classes: list[str], right: list[str] | None = None) -> Outcome:
    return Outcome("kill-backend", "kill -9", "502", answered_s, classes, right or ["backend_lost"])


@pytest.mark.parametrize(
    ("answered_s", "classes", "good", "result"),
    [
        (3.21, [], True, "survived, answered after 3.2 s"),
        (0.0, [], True, "survived, without a break"),
        (3.21, ["unknown"], True, "survived, answered after 3.2 s; unknown (wrong)"),
        (None, ["backend_lost"], True, "ended: backend_lost (right)"),
        (None, ["unknown", "backend_lost"], True, "ended: unknown (wrong), backend_lost (right)"),
        (None, ["unknown"], False, "ended: unknown (wrong)"),
        (None, [], False, "ended: nothing was named"),
    ],
)
def test_row_is_good_if_it_survived_or_was_named(
    answered_s: float | None, classes: list[str], good: bool, result: str
) -> None:
    one = outcome(answered_s, classes)
    assert (one.good, one.result) == (good, result)


def test_nothing_is_right_where_a_row_has_to_survive() -> None:
    assert not Outcome("redis-gone", "stopped", "", None, ["unknown"], []).good


def test_table_has_a_line_for_each_row_and_no_foreign_column() -> None:
    one = Outcome("cut-link", "cable | pulled", "502: a\nb", None, ["unknown"], [])
    head, rule, line = table([one]).splitlines()
    assert line == "| cut-link | cable / pulled | 502: a b | ended: unknown (wrong) | NO |"
    assert head.count("|") == rule.count("|") == line.count("|")


def test_client_saw_its_answer_an_error_or_no_end() -> None:
    request = Request(trial="", index=0, route="", model="m", sent_ns=0, status=200)
    assert saw(request, 0) == "its whole answer"
    assert saw(request.model_copy(update={"status": 503, "error": "busy"}), 0) == "503: busy"
    assert saw(None, 7) == "a stream without an end (7 tokens after the fault)"


def test_class_in_the_error_of_a_client_counts() -> None:
    texts = [
        "507: disk_full: the head node's disk is full",
        "the coordinator ended while it answered (backend_lost): see ps, state T",
        "the stream broke after 0 tokens: it was stopped (hm)",
    ]
    assert told(texts) == ["disk_full", "backend_lost"]


def test_outcomes_of_an_earlier_call_are_kept_in_the_order_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    assert load(path) == []
    late, early = outcome(1.0, []), outcome(None, ["unknown"])
    late.row, early.row = ROWS[3].name, ROWS[1].name
    save([late, early], path)
    assert load(path) == [early, late]


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("script", [CLOCK, HOSTILE], ids=["clock", "hostile samples"])
def test_script_of_a_node_can_be_compiled(script: str) -> None:
    compile(script, "script", "exec")
