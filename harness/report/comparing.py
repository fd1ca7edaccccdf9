"""The page of several runs side by side."""

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.report.changes import rows
from harness.report.page import TEMPLATES, environment
from harness.runs.compare import Comparison, compare, read_figures


def render_comparison(comparison: Comparison) -> str:
    """One self-contained HTML page."""
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    worse = sum(one.verdict == "worse" for one in comparison.changes)
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            first=comparison.runs[0].manifest,
            others=[run.manifest for run in comparison.runs[1:]],
            rows=rows(comparison.changes),
            worse=worse + sum(one.worse for one in comparison.outcomes),
            better=sum(one.verdict == "better" for one in comparison.changes),
            style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=f"sha256-{digest}",
        )
    )


def write_comparison(folders: Sequence[Path], target: Path) -> Comparison:
    """Compare runs and write the page in one step.

    Raises:
        HarnessError: a folder is no run, or the page cannot be written.
    """
    comparison = compare([read_figures(folder) for folder in folders])
    page = render_comparison(comparison)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise HarnessError(f"cannot write {target}: {error.strerror}; give --output") from error
    finally:
        temporary.unlink(missing_ok=True)
    return comparison
