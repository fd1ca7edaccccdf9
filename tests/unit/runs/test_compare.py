"""Runs side by side: what counts as worse, what as noise, and what as another trial."""

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.run_records import Outcome, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.compare import (
    RunFigures,
    compare,
    figures_of,
    label_trials,
    read_figures,
    slower,
    too_few_values,
)
from tests.unit.report_runs import RECORDED, change_lines, later_run

INFERENCE: dict[str, Any] = {
    "kind": "inference",
    "model": "m",
    "prompt_tokens": 35,
    "generated_tokens": 8,
    "repeats": 5,
}


def manifest(run: str, **more: Any) -> RunManifest:
    base: dict[str, Any] = {"run": run, "profile": "p", "profile_text": "", "inventory": "i", "started_ns": 0}
    return RunManifest.model_validate({**base, "harness_version": "1", "command": [], **more})


def figures(run: str, rates: list[float], *, outcome: Outcome = Outcome.PASSED, **step: Any) -> RunFigures:
    """A run of one inference trial, a request at each rate."""
    parameters = {**INFERENCE, **step}
    base: dict[str, Any] = {"id": "01-x", "kind": "inference", "model": "m", "started_ns": 0, "ended_ns": 1}
    details = {"step": json.dumps(parameters)}
    trial = Trial.model_validate({**base, "outcome": outcome, "answer": "", "details": details})
    requests = [
        Request(
            trial="01-x",
            index=index,
            route="coordinator",
            model="m",
            sent_ns=0,
            token_ns=[10**9, 10**9 + round(1e9 / rate)],
            completion_tokens=2,
        )
        for index, rate in enumerate(rates)
    ]
    return figures_of(manifest(run), [trial], requests)


STEADY = [10.0, 10.1, 9.9, 10.05, 9.95]


def verdicts(*runs: RunFigures) -> dict[str, str]:
    return {one.figure.name: one.verdict for one in compare(runs).changes}


def test_lower_rate_is_worse_a_higher_one_better_and_a_close_one_noise() -> None:
    before = figures("a", STEADY)
    slow = verdicts(before, figures("b", [rate * 0.8 for rate in STEADY]))
    assert (slow["decode_tokens_per_s"], slow["tpot_s"], slow["ttft_s"]) == ("worse", "worse", "same")
    assert verdicts(before, figures("b", [rate * 1.3 for rate in STEADY]))["decode_tokens_per_s"] == "better"
    assert verdicts(before, figures("b", [rate * 1.001 for rate in STEADY]))["decode_tokens_per_s"] == "same"


def test_regressions_come_first_and_only_those_beyond_the_share_fail() -> None:
    found = compare([figures("a", STEADY), figures("b", [rate * 0.8 for rate in STEADY])])
    assert found.changes[0].verdict == "worse"
    assert {one.figure.name for one in slower(found, 0.05)} == {"decode_tokens_per_s", "tpot_s"}
    assert slower(found, 0.5) == []
    assert found.changes[0].worse_by == pytest.approx(0.25)


def test_two_values_are_never_told_from_noise() -> None:
    found = compare([figures("a", [10.0, 10.1]), figures("b", [1.0, 1.1])])
    assert slower(found, 0.05) == []
    assert too_few_values(found) == len(found.changes) > 0


def test_other_lengths_are_another_trial_but_repeats_and_new_keys_are_not() -> None:
    assert compare([figures("a", STEADY), figures("b", STEADY, prompt_tokens=512)]).changes == []
    same = figures("b", STEADY, repeats=3, concurrency=1, limits={"ttft_s": 1})
    assert compare([figures("a", STEADY), same]).changes != []
    assert set(figures("a", STEADY).values) == {"inference m generated_tokens 8 prompt_tokens 35"}


def test_trial_that_fails_now_is_worse_and_has_no_figures() -> None:
    found = compare([figures("a", STEADY), figures("b", STEADY, outcome=Outcome.FAILED)])
    assert found.changes == []
    ((change),) = found.outcomes
    assert (change.before, change.after, change.worse) == ("1 passed", "1 failed", True)


def test_other_surroundings_are_named() -> None:
    node = {"name": "n", "address": "10.0.0.1", "groups": [], "build": 6751}
    runs = [
        RunFigures(manifest("a", nodes=[node]), [], {}),
        RunFigures(manifest("b", nodes=[{**node, "build": 6792}], inventory="other"), [], {}),
    ]
    assert compare(runs).surroundings == [
        "b: inventory other, not i",
        "b: llama.cpp of n 6792, not 6751",
    ]


def test_other_plans_and_flags_of_the_same_load_are_named(tmp_path: Path) -> None:
    def change(trial: dict[str, Any]) -> None:
        if state := trial["coordinator"]:
            state["argv"] = [*(word for word in state["argv"] if word != "--no-webui"), "--no-repack"]
            state["plan"]["shares"][0]["layers"] = 3

    later = later_run(tmp_path)
    change_lines(later, "trials", change)
    found = compare([read_figures(tmp_path / RECORDED.name), read_figures(later)]).surroundings
    cold = "later: load smollm2-sharded-cold-load"
    assert f"{cold} placed node1 3, node2 15, not node1 16, node2 15" in found
    assert f"{cold} with --no-repack set, not none" in found
    assert f"{cold} with --no-webui none, not set" in found


def test_runs_on_equal_terms_have_nothing_else_to_name(tmp_path: Path) -> None:
    later = later_run(tmp_path)
    assert compare([read_figures(tmp_path / RECORDED.name), read_figures(later)]).surroundings == []


def test_swap_where_there_was_none_comes_first_and_fails(tmp_path: Path) -> None:
    def swapped(size: int) -> Any:
        def change(trial: dict[str, Any]) -> None:
            trial |= {"kind": "load", "model": "m", "outcome": "passed", "details": {"step": "{}"}}
            trial["peak"] = {"node1": {"rpc_swap_bytes": size}}

        return change

    later = later_run(tmp_path)
    change_lines(later, "trials", swapped(3 << 30))
    before = tmp_path / RECORDED.name
    change_lines(before, "trials", swapped(1 << 20))
    found = compare([read_figures(before), read_figures(later)])
    assert (found.changes[0].figure.name, found.changes[0].verdict) == ("swap_bytes", "worse")
    assert slower(found, 0.05)[0].figure.name == "swap_bytes"
    growth = found.changes[0].difference
    assert (growth.ratio, growth.low, growth.high) == (inf, inf, inf)
    change_lines(later, "trials", swapped(15 << 20))
    found = compare([read_figures(before), read_figures(later)])
    assert "swap_bytes" not in {one.figure.name for one in found.changes if one.verdict != "same"}


def test_comparison_with_itself_through_the_library_is_all_noise() -> None:
    run = figures("a", STEADY)
    assert set(verdicts(run, run).values()) == {"same"}
    with pytest.raises(HarnessError, match=r"run\.json"):
        read_figures(Path("/nowhere"))


LOAD: dict[str, Any] = {"kind": "load", "model": "m", "cache": "cold", "nodes": None, "n_gpu_layers": None}


def labels(*steps: dict[str, Any]) -> list[str]:
    base: dict[str, Any] = {"model": "m", "started_ns": 0, "ended_ns": 1, "outcome": "passed", "answer": ""}
    trials = [
        Trial.model_validate(
            {**base, "id": f"{number:02d}", "kind": step["kind"], "details": {"step": json.dumps(step)}}
        )
        for number, step in enumerate(steps, 1)
    ]
    return list(label_trials(trials).values())


def test_load_that_is_not_distributed_is_another_load() -> None:
    assert labels(LOAD, LOAD | {"n_gpu_layers": 0}) == [
        "load m cache cold",
        "load m cache cold n_gpu_layers 0",
    ]


def test_requests_are_compared_with_those_of_the_same_load_only() -> None:
    asked = "generated_tokens 8 prompt_tokens 35"
    starved = {"starve": {"node": "node1", "memory": 3 << 29}, "flags": ["--no-repack"]}
    assert labels(
        LOAD,
        INFERENCE,
        LOAD | {"cache": "warm"},
        INFERENCE,
        LOAD | {"nodes": 3},
        INFERENCE,
        LOAD | {"n_gpu_layers": 0, "context": 2048},
        INFERENCE | {"kind": "soak"},
        LOAD | starved,
        INFERENCE,
    )[1::2] == [
        f"inference m {asked}",
        f"inference m {asked}",
        f"inference m {asked}; load nodes 3",
        f"soak m {asked}; load n_gpu_layers 0",
        f'inference m {asked}; load flags ["--no-repack"] starve node1 to 1.5 GiB',
    ]


def test_trial_of_an_old_run_is_known_by_its_id() -> None:
    record: dict[str, Any] = {"id": "07-m-cold-load-ngl0", "kind": "load", "model": "m", "started_ns": 0}
    trial = Trial.model_validate(record | {"ended_ns": 1, "outcome": "passed", "answer": ""})
    assert label_trials([trial]) == {trial.id: "load m-cold-load-ngl0"}
