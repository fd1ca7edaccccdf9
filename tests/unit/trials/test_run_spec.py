"""How long a run is estimated to take, and that every figure it records is explained in it."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from harness.contracts.run_records import Outcome, Request, RunManifest, Trial
from harness.runs.folder import RunFolder, read_trials
from harness.runs.metrics import summarise
from harness.trials.profile.profile import Profile, parse_profile
from harness.trials.resume import earlier_runs, trial_durations
from harness.trials.run_spec import FORMULAS, Estimate, estimate, step_signature

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


GIB = 1 << 30


def profile(text: str) -> Profile:
    return parse_profile(Path("mine.yml"), f"trials: [{text}]")


def test_estimate_grows_with_the_model_and_with_the_cold_cache() -> None:
    steps = profile(
        "{kind: load, model: small}, {kind: load, model: big}, {kind: load, model: big, cache: warm}"
    )
    found = estimate(steps, {"small": {"file_bytes": GIB}, "big": {"file_bytes": 9 * GIB}}, {})
    small, big, warm = found.seconds
    assert small < warm < big
    assert (found.measured, "assuming" in found.basis) == (0, True)


def test_soak_is_estimated_by_what_ends_it_first() -> None:
    steps = profile(
        "{kind: soak, model: m, duration_s: 3600}, {kind: soak, model: m, duration_s: 3600, requests: 1}, "
        "{kind: soak, model: m, duration_s: 9, requests: 999999}"
    )
    long, few, short = estimate(steps, {"m": {"file_bytes": GIB}}, {}).seconds
    assert long > 3600
    assert few < 60
    assert 9 < short < 60


def test_earlier_run_on_the_same_inventory_replaces_the_assumption(tmp_path: Path) -> None:
    step = profile("{kind: load, model: m}").trials[0]
    for name, inventory, seconds in (("a", "/mine", 40), ("b", "/other", 7)):
        folder = RunFolder.create(tmp_path, name)
        folder.write_manifest(
            RunManifest(
                run=name,
                profile="p",
                profile_text="",
                inventory=inventory,
                started_ns=0,
                harness_version="0",
                command=[],
            )
        )
        folder.append_trial(
            Trial(
                id="1",
                kind="load",
                model="m",
                started_ns=0,
                ended_ns=seconds * 10**9,
                outcome=Outcome.PASSED,
                answer="",
                details={"step": step_signature(step)},
            )
        )
        folder.close()
    measured = trial_durations(earlier_runs(tmp_path, Path("/mine")))
    again = profile("{kind: load, model: m, deadline_s: 5}")
    assert estimate(again, {"m": {"file_bytes": GIB}}, measured) == Estimate([40.0], measured=1)
