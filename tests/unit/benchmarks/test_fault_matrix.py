"""The fault matrix: when a row is good, and what its table says."""

import pytest
from harness.contracts.run_records import Request

from fault_matrix import ROWS, Outcome, saw, table


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


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
