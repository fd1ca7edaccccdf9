"""When a trial passes."""

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.run_records import Outcome
from harness.trials.context import grade


def diagnosis(failure: FailureClass) -> Diagnosis:
    return Diagnosis(
        failure_class=failure,
        evidence=[Evidence(source="s", line="l")],
        confidence=Confidence.CERTAIN,
        advice="",
    )


@pytest.mark.parametrize(
    ("seen", "expected", "outcome"),
    [
        (None, None, Outcome.PASSED),
        (FailureClass.BACKEND_LOST, None, Outcome.FAILED),
        (FailureClass.NOT_DISTRIBUTED, FailureClass.NOT_DISTRIBUTED, Outcome.PASSED),
        (None, FailureClass.NOT_DISTRIBUTED, Outcome.FAILED),
        (FailureClass.OOM_KILLED, FailureClass.NOT_DISTRIBUTED, Outcome.FAILED),
    ],
)
def test_expected_class_has_to_come(
    seen: FailureClass | None, expected: FailureClass | None, outcome: Outcome
) -> None:
    assert grade("what was seen", expected, diagnosis(seen) if seen else None).outcome is outcome


@pytest.mark.parametrize(
    "answer", ["request 1 failed", "request 1 failed: it ended (backend_lost): find why"]
)
def test_answer_names_its_class_once(answer: str) -> None:
    result = grade(answer, None, diagnosis(FailureClass.BACKEND_LOST))
    assert result.answer.count("backend_lost") == 1
