"""Puts sections, figures and templates together into one self-contained page, of a run or of a comparison."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.common.files import write_atomic
from harness.report import format as numbers
from harness.report.data import RunData, load_run
from harness.report.figures.compare import MOST_ROWS, compare_figure
from harness.report.figures.inference import inference_figure, scaling_figure, scaling_panels, soak_figure
from harness.report.figures.load_phases import load_figure, phase_legend
from harness.report.figures.timeline import memory_figure, pressure_figure, timeline_figure
from harness.report.sections.changes import change_rows, compare_with_previous
from harness.report.sections.cluster import cluster_section, unit_rows
from harness.report.sections.failures import end_rows, event_rows, fault_rows
from harness.report.sections.inference import parity_rows, request_status, soak_rows, stage_rows
from harness.report.sections.loads import load_rows, plan_tables
from harness.report.sections.memory import peak_rows, pressure_rows
from harness.report.sections.method import method_section
from harness.report.sections.verdict import verdict_section
from harness.runs.compare import Comparison, compare, read_figures
from harness.runs.metrics import SWAP_NOISE_BYTES, decode_rate, server_decode_rate
from harness.runs.statistics import FEW

REPORT_NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    ("verdict", "Verdict"),
    ("cluster", "The cluster"),
    ("load", "Load"),
    ("memory", "Memory and swap"),
    ("inference", "Inference"),
    ("failures", "Failures and ends"),
    ("method", "Method"),
)
MOST_REQUESTS = 300
MANY_SAMPLES = 420
MOST_EVIDENCE = 12
"""Trials named under a question's answer; the others are counted."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder, in one step; an earlier one is replaced.

    Returns:
        Path of the page.

    Raises:
        HarnessError: the folder is no run, its ``run.json`` cannot be used, or the page cannot be written.
    """
    target = run_dir / REPORT_NAME
    write_atomic(target, render_report(load_run(run_dir)))
    return target


def render_report(run: RunData) -> str:
    """The run as one self-contained HTML page."""
    return _render("report.html.j2", run=run, sections=SECTIONS, **_content(run))


def _content(run: RunData) -> dict[str, Any]:
    loads, stages, moments, peaks = load_rows(run), stage_rows(run), event_rows(run), peak_rows(run)
    pressures, soaks = pressure_rows(run), soak_rows(run)
    timed = [row for row in loads if row.load_s]
    return {
        "verdict": verdict_section(run),
        "previous": compare_with_previous(run),
        "most_evidence": MOST_EVIDENCE,
        "cluster": cluster_section(run),
        "units": unit_rows(run),
        "builds": sorted({f"{n.build} ({n.commit or '?'})" for n in run.manifest.nodes if n.build}),
        "loads": loads,
        "plans": plan_tables(run),
        "floors": any(row.floors for row in loads),
        "phases": phase_legend(timed),
        "load_figure": load_figure(timed) if timed else None,
        "peaks": peaks,
        "swap_noise": SWAP_NOISE_BYTES,
        "decimated": any(row.samples > MANY_SAMPLES for row in peaks),
        "memory_figure": memory_figure(run, peaks) if peaks else None,
        "pressures": pressures,
        "pressure_figure": pressure_figure(run, pressures),
        "stages": stages,
        "few": FEW,
        "requests": run.requests[:MOST_REQUESTS],
        "request_count": len(run.requests),
        "decode_rate": decode_rate,
        "server_decode_rate": server_decode_rate,
        "request_status": request_status,
        "inference_figure": inference_figure(stages) if any(s.ttft for s in stages) else None,
        "scaling_figure": scaling_figure(scaling_panels(stages)),
        "parities": parity_rows(run),
        "soaks": soaks,
        "soak_figure": soak_figure(soaks),
        "faults": fault_rows(run),
        "ends": end_rows(run),
        "moments": moments,
        "timeline_figure": timeline_figure(run, moments) if run.trials else None,
        "method": method_section(run, pressures),
    }


def render_comparison(comparison: Comparison) -> str:
    """One self-contained HTML page."""
    worse = sum(change.verdict == "worse" for change in comparison.changes)
    return _render(
        "compare.html.j2",
        comparison=comparison,
        first=comparison.runs[0].manifest,
        others=[run.manifest for run in comparison.runs[1:]],
        rows=change_rows(comparison.changes),
        figure=compare_figure(comparison.changes),
        most_drawn=MOST_ROWS,
        worse=worse + sum(outcome.worse for outcome in comparison.outcomes),
        better=sum(change.verdict == "better" for change in comparison.changes),
    )


def write_comparison(folders: Sequence[Path], target: Path) -> Comparison:
    """Compare runs and write the page in one step.

    Raises:
        HarnessError: a folder is no run, or the page cannot be written.
    """
    comparison = compare([read_figures(folder) for folder in folders])
    write_atomic(target, render_comparison(comparison))
    return comparison


def _render(template: str, **content: Any) -> str:
    """A page with its style and its one script in it, and a policy that lets nothing else run."""
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    page = _environment().get_template(template)
    return page.render(style=style, script=script, script_hash=f"sha256-{digest}", **content)


def _clean(value: object) -> object:
    """Text that a template shows, without control characters; the page's own markup stays as it is."""
    return numbers.printable(value) if type(value) is str else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_clean
    )
    environment.filters |= {
        "size": numbers.size,
        "swap": numbers.swap,
        "seconds": numbers.seconds,
        "digits": lambda v: numbers.DASH if v is None else numbers.digits(v),
        "percent": numbers.percent,
        "utc": numbers.utc,
        "offset": numbers.offset,
        "slug": numbers.slug,
        "urlpath": lambda path: quote("./" + path),
    }
    return environment
