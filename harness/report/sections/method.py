"""Section 7: formulas, versions, flags and models of the run, and its raw files."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.contracts.run_records import RunManifest
from harness.report.data import Row, RunData
from harness.report.format import seconds, size, utc
from harness.report.sections.memory import PressureRow, peak_rows
from harness.runs.cautions import NodeConditions, cautions
from harness.runs.metrics import SWAP_NOISE_BYTES

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
    "rpc-server swap": f"VmSwap of rpc-server at its peak; up to {size(SWAP_NOISE_BYTES)} counts as none",
    "node swap": "SwapUsed of the node above the first sample of the run, at its peak; up to "
    f"{size(SWAP_NOISE_BYTES)} counts as none",
}
"""Figures that only the page computes; those of the run's own figures are in its run.json."""
LONGEST_GAP_S = 5.0
MOST_FILES = 300


def method_section(run: RunData, pressures: Sequence[PressureRow] = ()) -> Row:
    """Formulas, order, versions, flags, models, warnings and files of a run.

    Args:
        run: the run.
        pressures: the worst of each node, as in section 4.
    """
    manifest = run.manifest
    harness = manifest.harness_version
    if manifest.harness_commit:
        harness += f" ({manifest.harness_commit[:12]})"
    return {
        "command": _command(manifest),
        "formulas": list((manifest.formulas | FORMULAS).items()),
        "versions": [("llama-harness", harness), *sorted(manifest.versions.items())],
        "models": [_model(name, facts) for name, facts in manifest.models.items()],
        "warnings": _warnings(run, pressures),
        "files": _files(run.folder),
        "estimate": _estimate(run),
        "ran": _ran(run),
        "flags": _flags(run),
        "manifest_text": manifest.model_dump_json(indent=1, exclude={"profile_text", "formulas"}),
    }


def _command(manifest: RunManifest) -> str:
    """What repeats the run: as it was typed, with the seed that its order had."""
    typed = list(manifest.command)
    if manifest.seed is not None and not any(word.startswith("--seed") for word in typed):
        typed += ["--seed", str(manifest.seed)]
    return shlex.join(typed)


def _ran(run: RunData) -> list[tuple[str, str]]:
    """How the trials were run: order, repeats, what was left out."""
    manifest = run.manifest
    seed = manifest.seed
    order = "in the profile's order" if seed is None else f"shuffled with seed {seed}"
    measured = Counter(r.trial for r in run.requests if not r.warmup)
    warm = sum(r.warmup for r in run.requests)
    repeats = sorted(set(measured.values()))
    rows = [("Order", order), ("Trials", f"{len(run.trials)} ended")]
    if repeats:
        spread = str(repeats[0]) if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
        rows.append(
            ("Repeats", f"{spread} measured requests a trial; {warm} warm-ups and canaries are left out")
        )
    if manifest.stopped:
        rows.append(("Left out", manifest.stopped))
    if manifest.resumed_ns:
        rows.append(("Resumed", ", ".join(utc(moment) for moment in manifest.resumed_ns)))
    return rows


def _flags(run: RunData) -> list[tuple[str, str]]:
    """Trial and command line of each coordinator, once for each start."""
    flags: dict[str, tuple[str, str]] = {}
    for trial in run.trials:
        state = trial.coordinator
        if state and state.argv:
            flags.setdefault(state.start_id or trial.id, (trial.id, shlex.join(state.argv)))
    return list(flags.values())


def _model(name: str, facts: dict[str, Any]) -> Row:
    # Not recorded for a model whose file the router does not see, such as one that only the pool has.
    synthetic = facts.get("synthetic")
    real = "" if synthetic is None else "synthetic" if synthetic else "real"
    details = [(key, _fact(key, value)) for key, value in facts.items()]
    return {"name": name, "real": real, "details": details}


def _fact(key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return f"{size(value)} ({value:,} bytes)"
    return str(value)


def _warnings(run: RunData, pressures: Sequence[PressureRow]) -> list[str]:
    conditions = [
        NodeConditions(row.node, row.cpus, row.highest["load1"], row.highest["memory_full"], row.clock_offset)
        for row in pressures
    ]
    warnings = [*run.warnings, *cautions(run.trials, run.requests, conditions)]
    for event in run.events:
        if event.kind == "warning":
            message = event.data.get("message") or event.data.get("text") or event.data
            warnings.append(f"{event.node}: {message}" if event.node else str(message))
    synthetic = [name for name, facts in run.manifest.models.items() if facts.get("synthetic")]
    if synthetic:
        warnings.append(
            f"{', '.join(synthetic)}: random weights in the real model's shape. Memory, transfer and "
            "arithmetic cost the same as the real one's; the text they write means nothing."
        )
    for row in peak_rows(run):
        if row.longest_gap_s > LONGEST_GAP_S:
            warnings.append(
                f"{row.node}: {seconds(row.longest_gap_s)} without a sample; a peak in that time is missing"
            )
    if not run.samples:
        warnings.append("no node samples were recorded: memory and swap over time are unknown")
    return list(dict.fromkeys(warnings))


def _files(folder: Path) -> list[tuple[str, str]]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "report.html"]
    names = [(p.relative_to(folder).as_posix(), size(p.stat().st_size)) for p in files]
    return [row for row in names if not row[0].endswith(".tmp")][:MOST_FILES]


def _estimate(run: RunData) -> str:
    took = (run.end_ns - run.start_ns) / 1e9
    if run.manifest.estimate_s is None:
        return seconds(took)
    return f"{seconds(took)} (estimated before: {seconds(run.manifest.estimate_s)})"
