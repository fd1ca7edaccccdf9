"""Puts the sections, figures and templates together into one HTML page."""

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.report import format as numbers
from harness.report.data import RunData
from harness.report.figures import draw as figures
from harness.report.figures import inference as strips
from harness.report.figures import timeline as node_figures
from harness.report.figures.placement import placement_figure
from harness.report.figures.scaling import panels, scaling_figure
from harness.report.figures.soak import soak_figure
from harness.report.previous_run import since_last
from harness.report.sections.cluster import cluster
from harness.report.sections.failures import ends, moments
from harness.report.sections.inference import request_rows, stages
from harness.report.sections.kinds import faults, parities, soaks
from harness.report.sections.loads import loads, plan_tables
from harness.report.sections.memory import peaks
from harness.report.sections.method import method
from harness.report.sections.pressure import pressures
from harness.report.sections.units import units
from harness.report.sections.verdict import verdict
from harness.runs.statistics import FEW

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


def render(run: RunData) -> str:
    """The run as one self-contained HTML page."""
    return self_contained("report.html.j2", run=run, sections=SECTIONS, **_content(run))


def self_contained(template: str, **content: Any) -> str:
    """A page with its style and its one script in it, and a policy that lets nothing else run."""
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    page = _environment().get_template(template)
    return page.render(style=style, script=script, script_hash=f"sha256-{digest}", **content)


def _content(run: RunData) -> dict[str, Any]:
    load_rows, stage_rows, moment_rows, peak_rows = loads(run), stages(run), moments(run), peaks(run)
    requests, machines, pressure_rows = request_rows(run), cluster(run), pressures(run)
    soak_rows = soaks(run)
    timed = [row for row in load_rows if row.load_s]
    return {
        "verdict": verdict(run),
        "since": since_last(run),
        "most_evidence": MOST_EVIDENCE,
        "cluster": machines,
        "units": units(run),
        "placed_figures": [placement_figure(placed, machines.pool) for placed in machines.placements],
        "builds": sorted({f"{n.build} ({n.commit or '?'})" for n in run.manifest.nodes if n.build}),
        "loads": load_rows,
        "plans": plan_tables(run),
        "floors": any(row.floors for row in load_rows),
        "phases": figures.phase_legend(timed),
        "load_figure": figures.load_figure(timed) if timed else None,
        "peaks": peak_rows,
        "decimated": any(row.samples > MANY_SAMPLES for row in peak_rows),
        "memory_figure": node_figures.memory_figure(run, peak_rows) if peak_rows else None,
        "pressures": pressure_rows,
        "pressure_figure": node_figures.pressure_figure(run, pressure_rows),
        "stages": stage_rows,
        "few": FEW,
        "requests": requests[:MOST_REQUESTS],
        "request_count": len(requests),
        "inference_figure": strips.inference_figure(stage_rows) if any(s.ttft for s in stage_rows) else None,
        "scaling_figure": scaling_figure(panels(stage_rows)),
        "parities": parities(run),
        "soaks": soak_rows,
        "soak_figure": soak_figure(soak_rows),
        "faults": faults(run),
        "ends": ends(run),
        "moments": moment_rows,
        "timeline_figure": figures.timeline_figure(run, moment_rows) if run.trials else None,
        "method": method(run, pressure_rows),
    }


def _clean(value: object) -> object:
    """Whatever a template shows, without control characters; the page's own markup stays as it is."""
    return numbers.printable(value) if type(value) is str else value


def _environment() -> Environment:
    """Templates with everything that they show escaped and freed of control characters."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_clean
    )
    environment.filters |= {
        "size": numbers.size,
        "seconds": numbers.seconds,
        "digits": lambda v: numbers.DASH if v is None else numbers.digits(v),
        "percent": numbers.percent,
        "utc": numbers.utc,
        "offset": numbers.offset,
        "slug": numbers.slug,
        "urlpath": lambda path: quote("./" + path),
    }
    return environment
