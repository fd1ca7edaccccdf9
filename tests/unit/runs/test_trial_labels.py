"""Which trials are compared with each other: those of the same kind, model, parameters and load."""

import json
from typing import Any

from harness.contracts.run_records import Trial
from harness.runs.compare import label_trials

INFERENCE: dict[str, Any] = {
    "kind": "inference",
    "model": "m",
    "prompt_tokens": 35,
    "generated_tokens": 8,
    "repeats": 5,
}
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
