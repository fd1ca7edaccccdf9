"""Every figure that a run records is explained in the table that the run carries."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from harness.runs.read import read_trials
from harness.trials.formulas import FORMULAS

RUNS = sorted(Path("tests/data/runs").glob("*/run.json"))


@pytest.mark.parametrize("run", RUNS, ids=[run.parent.name for run in RUNS])
def test_every_figure_of_a_run_has_its_formula(run: Path) -> None:
    figures = {name for trial in read_trials(run.parent) for name in trial.metrics}
    plain = {re.sub("_(median|min|max)$", "", name) for name in figures}
    assert {name for name in plain if not any(fnmatchcase(name, known) for known in FORMULAS)} == set()
