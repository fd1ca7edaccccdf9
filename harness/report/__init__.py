"""Report: tables, figures and the HTML page."""

from pathlib import Path

REPORT_NAME = "report.html"


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder, in one step; an earlier one is replaced.

    Returns:
        Path of the page.

    Raises:
        HarnessError: the folder is no run, its ``run.json`` cannot be used, or the page cannot be written.
    """
    from harness.report.data import load_run
    from harness.report.page import render
    from harness.runs.store import write_whole

    target = run_dir / REPORT_NAME
    write_whole(target, render(load_run(run_dir)).encode())
    return target
