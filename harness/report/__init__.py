"""Report: tables, figures and the HTML page."""

import os
from pathlib import Path

REPORT_NAME = "report.html"


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder, in one step; an earlier one is replaced.

    Returns:
        Path of the page.

    Raises:
        HarnessError: the folder is no run, its ``run.json`` cannot be used, or the page cannot be written.
    """
    from harness.errors import HarnessError
    from harness.report.load import load_run
    from harness.report.page import render

    page = render(load_run(run_dir))
    target = run_dir / REPORT_NAME
    temporary = run_dir / f".{REPORT_NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise HarnessError(f"cannot write {target}: {error.strerror}; free some space") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target
