"""What a run is to do: its trials in order, how long they will take, and its folder."""

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from harness.contracts.run_records import RunManifest, Trial
from harness.planner.forecast import DEFAULT_RATES
from harness.runs.folder import RunFolder, run_name
from harness.settings import REPOSITORY, shown_path
from harness.trials.kinds.release_switch import with_pins
from harness.trials.preflight import ClusterSnapshot
from harness.trials.profile.base_step import Pace
from harness.trials.profile.profile import Profile, arrange, load_profile, shuffle_seed
from harness.trials.profile.steps import LoadStep, Step
from harness.trials.progress import duration
from harness.trials.resume import (
    EarlierRun,
    Unfinished,
    drop_unfinished,
    earlier_runs,
    read_unfinished,
)

DECODE_BYTES_PER_S = 6e9
"""Each generated token reads the whole model once."""
PROMPT_SPEEDUP = 3.0
"""Prompt tokens are computed in batches, faster than generated ones."""
UNKNOWN_BYTES = 500e6
"""Assumed for a pool's model whose file the router does not see."""
STEP_S = 5.0
STARVED_SLOWDOWN = 5.0


@dataclass(frozen=True)
class Estimate:
    """Seconds of each trial of a run, in order."""

    seconds: list[float]
    measured: int
    """How many of them were measured in earlier runs."""

    @property
    def basis(self) -> str:
        """Where the seconds come from, for people."""
        if self.measured:
            return f"{self.measured} of {len(self.seconds)} trials timed in earlier runs"
        return (
            f"assuming loads at {DEFAULT_RATES.cold_bytes_per_s / 1e6:.0f} MB/s cold and "
            f"{DEFAULT_RATES.warm_bytes_per_s / 1e6:.0f} MB/s warm, tokens at "
            f"{DECODE_BYTES_PER_S / 1e9:.0f} GB/s of model"
        )


def step_signature(step: Step) -> str:
    """What makes the durations of two trials comparable, as JSON."""
    return step.model_dump_json(exclude={"deadline_s", "expected", "limits"})


def estimate(
    profile: Profile, models: Mapping[str, Mapping[str, Any]], measured: Mapping[str, float]
) -> Estimate:
    """Estimate each trial of a run.

    Args:
        models: as the router lists them, with ``file_bytes``.
        measured: seconds by the signature of a step.
    """
    seconds: list[float] = []
    slowdown = 1.0
    for step in profile.trials:
        if isinstance(step, LoadStep):
            slowdown = STARVED_SLOWDOWN if step.starve else 1.0
        size = float(models[step.model].get("file_bytes") or UNKNOWN_BYTES)
        pace = Pace(
            cold_load_s=size / DEFAULT_RATES.cold_bytes_per_s,
            warm_load_s=size / DEFAULT_RATES.warm_bytes_per_s,
            token_s=size / DECODE_BYTES_PER_S,
            prompt_token_s=size / DECODE_BYTES_PER_S / PROMPT_SPEEDUP,
        )
        assumed_s = step.assumed_s(pace) * slowdown + STEP_S
        seconds.append(measured.get(step_signature(step), assumed_s))
    return Estimate(seconds, sum(step_signature(step) in measured for step in profile.trials))


@dataclass(frozen=True)
class Options:
    """The options of ``harness run``."""

    profile: str
    inventory: Path
    reports: Path
    seed: int | None = None
    """Shuffle with this seed, whatever the profile says."""
    resume: str | None = None
    """A run to continue, instead of a new one."""
    models: Mapping[str, str] = field(default_factory=dict)
    """In place of those that the profile's ``models`` names."""
    pins: tuple[int, ...] = ()
    """Builds to try in turns, the first of which runs now."""
    force: bool = False
    """Begin though others use the coordinator: what does not end in time is stopped."""


@dataclass(frozen=True)
class RunSpec:
    """A run before it has touched anything."""

    name: str
    """Of its folder."""
    profile_name: str
    profile_text: str
    profile: Profile
    """Trials in the order they run."""
    seed: int | None
    options: Options
    earlier: list[EarlierRun]
    """Earlier runs on the inventory, newest first."""
    resumed: Unfinished | None = None

    @property
    def done(self) -> list[Trial]:
        """Trials that the run finished before it was interrupted."""
        return self.resumed.done if self.resumed else []


def read_run_spec(options: Options) -> RunSpec:
    """The run that the options describe.

    Raises:
        HarnessError: the profile is wrong, a pin cannot be tried, or there is no such run to go on with.
    """
    earlier = earlier_runs(options.reports, options.inventory)
    if options.resume:
        run = read_unfinished(options.resume, options.reports, options.inventory, earlier)
        manifest = run.manifest
        return RunSpec(
            manifest.run,
            manifest.profile,
            manifest.profile_text,
            run.profile,
            manifest.seed,
            options,
            earlier,
            run,
        )
    name, text, profile = load_profile(options.profile, options.models)
    seed = shuffle_seed(profile, options.seed)
    profile = profile.model_copy(update={"trials": arrange(profile, seed)})
    if options.pins:
        profile = with_pins(profile, options.pins)
    return RunSpec(run_name(datetime.now(UTC), name), name, text, profile, seed, options, earlier)


def announce(say: Callable[[str], None], spec: RunSpec, estimate: Estimate) -> None:
    """Print what will run and how long it takes."""
    count, done = len(spec.profile.trials), len(spec.done)
    left = f"about {duration(sum(estimate.seconds[done:]))}"
    if spec.resumed:
        say(f"Run {spec.name} continues: {done} of {count} trials are done, {left} left ({estimate.basis})")
    else:
        if spec.earlier and spec.earlier[0].interrupted:
            cut = spec.earlier[0].manifest.run
            where = f" --inventory {spec.options.inventory} --reports {spec.options.reports}"
            say(f"Run {cut} was interrupted; `harness run benchmark --resume {cut}{where}` continues it")
        say(f"Profile {spec.profile_name}: {count} trials, {left} ({estimate.basis})")
    if spec.seed is not None:
        say(f"Order shuffled with seed {spec.seed} (--seed {spec.seed} gives it again)")


def open_folder(spec: RunSpec, cluster: ClusterSnapshot, estimate: Estimate) -> tuple[RunFolder, RunManifest]:
    """The run's folder with its manifest written.

    Raises:
        HarnessError: it cannot be made or written.
    """
    if spec.resumed is None:
        folder = RunFolder.create(spec.options.reports, spec.name)
        manifest = _new_manifest(spec, cluster, estimate)
    else:
        drop_unfinished(spec.resumed)
        folder = RunFolder(spec.resumed.folder)
        manifest = spec.resumed.manifest
        reset = {"resumed_ns": [*manifest.resumed_ns, time.time_ns()], "outcome": None, "ended_ns": None}
        manifest = manifest.model_copy(update={**reset, "stopped": None})
    folder.write_manifest(manifest)
    return folder, manifest


def _new_manifest(spec: RunSpec, cluster: ClusterSnapshot, estimate: Estimate) -> RunManifest:
    builds = sorted({str(facts.build) for facts in cluster.facts.values() if facts.build})
    return RunManifest(
        run=spec.name,
        profile=spec.profile_name,
        profile_text=spec.profile_text,
        inventory=shown_path(spec.options.inventory),
        started_ns=time.time_ns(),
        harness_version=harness.__version__,
        harness_commit=_commit(),
        command=["harness", *sys.argv[1:]],
        versions={"python": platform.python_version(), "llama.cpp": ", ".join(builds) or "unknown"},
        nodes=list(cluster.facts.values()),
        models=cluster.models,
        formulas=FORMULAS,
        estimate_s=sum(estimate.seconds),
        seed=spec.seed,
        steps=spec.profile.model_dump(mode="json"),
    )


def _commit() -> str | None:
    output = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return output.stdout.strip() or None if output.returncode == 0 else None


FORMULAS = {
    "load_s": "coordinator exec -> /health 200, on the head node's clock",
    "canary_s": "coordinator exec -> first token of a one-token request",
    "overhead_s": "request received -> coordinator exec, plus the last poll that found it loading -> ready: "
    "what the router adds at most, one poll of 50 ms included",
    "phase_*_s": "between two moments of the coordinator's log: connect, open, transfer, kv, warmup",
    "file_bytes": "size of the model's file",
    "layers_offloaded": "as llama.cpp printed them",
    "rpc_model_bytes": "sum of the model buffers that llama.cpp printed for RPC devices",
    "local_*_bytes": "model buffers that llama.cpp printed for the coordinator's own devices",
    "local_model_to_file_ratio": "local_model_bytes / file_bytes",
    "wire_bytes": "received bytes of the backends' interfaces over the load (counters of the node samples); "
    "the head node's own backend is reached over loopback and not counted",
    "wire_floor_s": "8 * wire_bytes / stated link rate of the head node",
    "disk_floor_s": "cold loads: size of the model's file / rate of reading 128 MiB of it on the head node",
    "hash_floor_s": "bytes of tensors over 10 MiB on backends / rate of llama.cpp's hash on one of the head "
    "node's processors",
    "ttft_s": "first non-empty token - request sent",
    "itl_s": "gaps between successive tokens, pooled over requests",
    "tpot_s": "(E2E - TTFT) / (n - 1), n = usage.completion_tokens",
    "e2e_s": "last token - request sent",
    "tokens_per_s": "sum of output tokens / wall time from the first request sent to the last token",
    "prompt_tokens": "asked for, and counted by the server",
    "generated_tokens": "asked for, and counted by the server",
    "concurrency": "requests in flight at once, as asked",
    "requests": "measured ones, warm-ups left out",
    "requests_within_limits": "requests that met every stated limit",
    "output_tokens": "sum of usage.completion_tokens",
    "errors": "requests that were refused, broke off, or were over their deadline",
    "goodput_per_s": "requests that meet every stated limit / time from the first request sent to the last "
    "end, answered or not; an error is a miss",
    "decode_tokens_per_s": "1 / tpot_s, median over requests (client's clock)",
    "server_decode_tokens_per_s": "(predicted_n - 1) / predicted_ms of llama.cpp's timings, median over "
    "requests; llama.cpp's own predicted_per_second divides predicted_n by the time of predicted_n - 1 gaps",
    "server_prompt_tokens_per_s": "prompt_n / prompt_ms of llama.cpp's timings, median over requests",
    "stop_s": "first signal sent to the coordinator -> its exit",
    "pin_s": "pin: playbooks/upgrade.yml from its start to its end",
    "tokens_compared": "parity: greedy tokens of the longer of the two answers",
    "tokens_equal": "parity: greedy tokens before the first whose id differs from the coordinator's alone",
    "largest_logprob_gap": "parity: largest difference of a token's log probability among the equal ones",
    "rate_drift_percent_per_hour": "soak: Theil-Sen slope of the client's decode rate over the requests' "
    "start times, both in ten block medians, in percent of their median an hour",
    "memory_drift": "soak: Theil-Sen slope of a node's used memory over ten block medians of its samples, "
    "bytes an hour",
    "fault_s": "fault: trial's first load -> fault undone",
    "found_after_s": "fault: injection -> the first look whose diagnosis is the injected cause",
    "restarts": "soak: coordinators started after the first, plus restarts of the backends' units",
    "peak": "highest value of the 1 Hz node samples between the trial's start and end",
}
