"""Every figure that a run records is explained in the table that the run carries."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from harness.contracts.run_records import Request
from harness.runs.metrics import summarise
from harness.runs.read import read_trials
from harness.trials.formulas import FORMULAS

RUNS = sorted((Path(__file__).parents[2] / "data" / "runs").glob("*/run.json"))


@pytest.mark.parametrize("run", RUNS, ids=[run.parent.name for run in RUNS])
def test_every_figure_of_a_run_has_its_formula(run: Path) -> None:
    assert not unexplained({name for trial in read_trials(run.parent) for name in trial.metrics})


def test_every_figure_of_requests_has_its_formula() -> None:
    assert RUNS
    server = {"predicted_n": 3, "predicted_ms": 9.0, "prompt_n": 3, "prompt_ms": 9.0}
    times = {"sent_ns": 0, "token_ns": [1, 2, 3], "completion_tokens": 3, "server": server}
    base = {"trial": "t", "index": 1, "route": "coordinator", "model": "m"}
    assert not unexplained(set(summarise([Request.model_validate(base | times)], {"ttft_s": 1.0})))


def unexplained(figures: set[str]) -> set[str]:
    plain = {re.sub("_(median|min|max)$", "", name) for name in figures}
    return {name for name in plain if not any(fnmatchcase(name, known) for known in FORMULAS)}
