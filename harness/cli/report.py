"""``harness report``: the HTML page of a run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.errors import HarnessError
from harness.settings import REPORTS


def command(
    run: Annotated[str, typer.Argument(help="Run folder, a name under reports/, or `latest`.")],
    output: Annotated[
        Literal["html", "markdown"],
        typer.Option("--format", help="html: a page in the run's folder; markdown: the short status."),
    ] = "html",
) -> None:
    """Write report.html, one file that holds all it shows, into a run's folder; or print the short status."""
    folder = find_run(run, REPORTS)
    if output == "markdown":
        from harness.report.data import load_run
        from harness.report.markdown import render_markdown

        typer.echo(render_markdown(load_run(folder)), nl=False)
        return
    from harness.report import write_report

    typer.echo(write_report(folder))


def find_run(run: str, reports: Path) -> Path:
    """Folder of a run given as ``latest``, a path, or a name under ``reports``.

    Raises:
        HarnessError: there is no such run.
    """
    if run == "latest":
        runs = sorted(reports.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise HarnessError(f"no run in {reports}; `harness run benchmark` makes one")
        return runs[-1].parent
    for folder in (Path(run), reports / run):
        if folder.is_dir():
            return folder
    known = sorted(path.parent.name for path in reports.glob("*/run.json"))[-5:]
    hint = f"the last there are: {', '.join(known)}" if known else f"there is none in {reports} yet"
    raise HarnessError(f"no run '{run}', neither as a folder nor under reports/; {hint}")
