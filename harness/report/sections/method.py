"""Section 7: how the figures were made, with what, and where the raw data are."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts.run_records import RunManifest
from harness.report.data import RunData
from harness.report.format import seconds, size, utc
from harness.report.sections.memory import peaks
from harness.report.sections.pressure import PressureRow
from harness.runs.cautions import Conditions, cautions

FORMULAS = {
    "interval": "95 % interval of the median: percentile bootstrap, seeded; none below three values",
    "ITL in the report": "median of the requests' median gaps, its interval over requests; p95 over all gaps",
    "pressure": "PSI: per cent of 10 s in which a task (some) or every task (full) waited",
    "faults per s": "major page faults over the last 10 s / 10 s, of the node or its machine's cgroup",
    "exposure": "systemd-analyze security: 0 is closed, 10 is open",
    "decode rate apart": "(client - server) / server, of the medians",
    "off plan": "(reported - planned) / planned, of model + KV + compute buffers",
    "memory used": "resident anonymous and shared memory; page cache never counts as used",
    "memory available": "min(MemAvailable, limit - resident - shared)",
    "swap began": "first sample with 4 MiB more swap than the first sample of the run",
}
"""What the page itself computes; the run brings the formulas of its own figures."""
LONGEST_GAP_S = 5.0


@dataclass(frozen=True)
class ModelRow:
    """One model of the run."""

    name: str
    real: str
    """``real``, ``synthetic``, or empty where it is not known."""
    details: list[tuple[str, str]]


@dataclass(frozen=True)
class Method:
    """What somebody needs to judge the figures or to make them again."""

    command: str
    formulas: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    models: list[ModelRow]
    warnings: list[str]
    files: list[tuple[str, str]]
    """Path relative to the run folder, and size."""
    profile_text: str
    estimate: str
    ran: list[tuple[str, str]]
    """How the trials were run: order, repeats, what was left out."""
    flags: list[tuple[str, str]]
    """Trial and command line of each coordinator that it started."""
    manifest_text: str


def method(run: RunData, pressures: Sequence[PressureRow] = ()) -> Method:
    """Formulas, order, versions, flags, models, warnings and files of a run.

    Args:
        run: the run.
        pressures: the worst of each node, as section 4 tells it.
    """
    manifest = run.manifest
    harness = manifest.harness_version
    if manifest.harness_commit:
        harness += f" ({manifest.harness_commit[:12]})"
    return Method(
        command=_command(manifest),
        formulas=list((manifest.formulas | FORMULAS).items()),
        versions=[("llama-harness", harness), *sorted(manifest.versions.items())],
        models=[_model(name, facts) for name, facts in manifest.models.items()],
        warnings=_warnings(run, pressures),
        files=_files(run.folder),
        profile_text=manifest.profile_text,
        estimate=_estimate(run),
        ran=_ran(run),
        flags=_flags(run),
        manifest_text=manifest.model_dump_json(indent=1, exclude={"profile_text", "formulas"}),
    )


def _command(manifest: RunManifest) -> str:
    """What repeats the run: as it was typed, with the seed that its order had."""
    typed = list(manifest.command)
    if manifest.seed is not None and not any(word.startswith("--seed") for word in typed):
        typed += ["--seed", str(manifest.seed)]
    return shlex.join(typed)


def _ran(run: RunData) -> list[tuple[str, str]]:
    manifest = run.manifest
    seed = manifest.seed
    order = "in the profile's order" if seed is None else f"shuffled with seed {seed}"
    measured = Counter(r.trial for r in run.requests if not r.warmup)
    warm = sum(r.warmup for r in run.requests)
    repeats = sorted(set(measured.values()))
    told = [("Order", order), ("Trials", f"{len(run.trials)} ended")]
    if repeats:
        spread = str(repeats[0]) if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
        told.append(
            ("Repeats", f"{spread} measured requests a trial; {warm} warm-ups and canaries are left out")
        )
    if manifest.stopped:
        told.append(("Left out", manifest.stopped))
    if manifest.resumed_ns:
        told.append(("Taken up again", ", ".join(utc(moment) for moment in manifest.resumed_ns)))
    return told


def _flags(run: RunData) -> list[tuple[str, str]]:
    """Each coordinator once, by its start."""
    seen: dict[str, tuple[str, str]] = {}
    for trial in run.trials:
        state = trial.coordinator
        if state and state.argv:
            seen.setdefault(state.start_id or trial.id, (trial.id, shlex.join(state.argv)))
    return list(seen.values())


def _model(name: str, facts: dict[str, Any]) -> ModelRow:
    # Unknown of a model whose file the router does not see, as one that only the pool has.
    synthetic = facts.get("synthetic")
    real = "" if synthetic is None else "synthetic" if synthetic else "real"
    return ModelRow(name, real, [(key, _fact(key, value)) for key, value in facts.items()])


def _fact(key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return f"{size(value)} ({value:,} bytes)"
    return str(value)


def _warnings(run: RunData, pressures: Sequence[PressureRow]) -> list[str]:
    conditions = [
        Conditions(row.node, row.cpus, row.load1, row.memory_full, row.clock_offset) for row in pressures
    ]
    found = [*run.warnings, *cautions(run.trials, run.requests, conditions)]
    for event in run.events:
        if event.kind == "warning":
            message = event.data.get("message") or event.data.get("text") or event.data
            found.append(f"{event.node}: {message}" if event.node else str(message))
    synthetic = [
        m.name for m in (_model(n, f) for n, f in run.manifest.models.items()) if m.real == "synthetic"
    ]
    if synthetic:
        found.append(
            f"{', '.join(synthetic)}: random weights in the real model's shape. Memory, transfer and "
            "arithmetic cost the same as the real one's; the text they write means nothing."
        )
    for row in peaks(run):
        if row.longest_gap_s > LONGEST_GAP_S:
            found.append(
                f"{row.node}: {seconds(row.longest_gap_s)} without a sample; a peak in it would not be seen"
            )
    if not run.samples:
        found.append("no node samples were recorded: nothing is known about memory and swap over time")
    return list(dict.fromkeys(found))


def _files(folder: Path) -> list[tuple[str, str]]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "report.html"]
    shown = [(p.relative_to(folder).as_posix(), size(p.stat().st_size)) for p in files]
    return [f for f in shown if not f[0].endswith(".tmp")][:300]


def _estimate(run: RunData) -> str:
    took = (run.end_ns - run.start_ns) / 1e9
    if run.manifest.estimate_s is None:
        return seconds(took)
    return f"{seconds(took)} (estimated before: {seconds(run.manifest.estimate_s)})"
