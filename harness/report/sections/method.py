"""Section 7: how the figures were made, with what, and where the raw data are."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.report.load import RunData
from harness.report.numbers import seconds, size
from harness.report.sections.memory import peaks

FORMULAS = {
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


def method(run: RunData) -> Method:
    """Formulas, versions, models, warnings and files of a run."""
    manifest = run.manifest
    harness = manifest.harness_version
    if manifest.harness_commit:
        harness += f" ({manifest.harness_commit[:12]})"
    return Method(
        command=shlex.join(manifest.command),
        formulas=list((manifest.formulas | FORMULAS).items()),
        versions=[("llama-harness", harness), *sorted(manifest.versions.items())],
        models=[_model(name, facts) for name, facts in manifest.models.items()],
        warnings=_warnings(run),
        files=_files(run.folder),
        profile_text=manifest.profile_text,
        estimate=_estimate(run),
    )


def _model(name: str, facts: dict[str, Any]) -> ModelRow:
    # Unknown of a model whose file the router does not see, as one that only the pool has.
    synthetic = facts.get("synthetic")
    real = "" if synthetic is None else "synthetic" if synthetic else "real"
    return ModelRow(name, real, [(key, _fact(key, value)) for key, value in facts.items()])


def _fact(key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return f"{size(value)} ({value:,} bytes)"
    return str(value)


def _warnings(run: RunData) -> list[str]:
    found = list(run.warnings)
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
