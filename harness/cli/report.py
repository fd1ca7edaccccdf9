"""``harness report`` and ``compare``: the pages of one run, and of several side by side."""

from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import ReportsOption, find_run
from harness.errors import HarnessError
from harness.settings import REPORTS


def report(
    run: Annotated[str, typer.Argument(help="Run folder, a name under reports/, or `latest`.")],
    output: Annotated[
        Literal["html", "markdown"],
        typer.Option("--format", help="html: a page in the run's folder; markdown: the short status."),
    ] = "html",
) -> None:
    """Write report.html, one self-contained file, into a run's folder; or print the short status."""
    folder = find_run(run, REPORTS)
    if output == "markdown":
        from harness.report.data import load_run
        from harness.report.markdown_status import render_markdown

        typer.echo(render_markdown(load_run(folder)), nl=False)
        return
    from harness.report.page import write_report

    typer.echo(write_report(folder))


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: folders or names under reports/. The first is the base.")
    ],
    fail_if_slower: Annotated[
        str | None,
        typer.Option(help="5%: exit status 1 if a figure is worse by more than that and than the noise."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The page to write; by default beside the runs.")
    ] = None,
    reports: ReportsOption = REPORTS,
) -> None:
    """Show which figures differ between runs, and whether by more than the noise; write a page."""
    share = _share(fail_if_slower) if fail_if_slower is not None else None
    if len(runs) < 2:
        raise HarnessError("give at least two runs: harness compare BEFORE AFTER; `harness runs` lists them")
    folders = [find_run(run, reports) for run in runs]
    places = [folder.resolve() for folder in folders]
    names = [place.name for place in places]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise HarnessError(f"{place.name} cannot be compared with itself; give another run")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.report.page import write_comparison
    from harness.report.sections.changes import change_rows
    from harness.runs.compare import slower, too_few_values

    target = output or places[0].parent / f"compare-{'-'.join(names)}.html"
    comparison = write_comparison(folders, target)
    console = Console(soft_wrap=True)
    table = Table("trial", "figure", "run", "before", "after", "ratio", "95% interval", "verdict")
    for row in change_rows(comparison.changes):
        cells = (row.what, row.figure, row.run, row.before, row.after, row.ratio, row.interval, row.verdict)
        table.add_row(*map(Text, cells))
    for outcome in comparison.outcomes:
        line = f"{outcome.what}: {outcome.before} in {names[0]}, {outcome.after} in {outcome.run}"
        console.print(Text(line))
    for line in comparison.surroundings:
        console.print(Text(line))
    console.print(table if comparison.changes else "These runs have no trial in common that passed in both.")
    if too_few := too_few_values(comparison):
        print(f"{too_few} figures have fewer than three values on a side: too few to separate from noise")
    print(f"Page: {target}")
    if share is None:
        return
    worse = [f"{o.what} ({o.after}, was {o.before})" for o in comparison.outcomes if o.worse]
    worse += [f"{c.what} {c.figure.label} {_by(c.worse_by)} in {c.run}" for c in slower(comparison, share)]
    if worse:
        raise HarnessError(f"worse than {names[0]}: {'; '.join(worse)}")
    if too_few == len(comparison.changes):
        raise HarnessError(
            f"no figure has enough values to separate it from noise, so {names[-1]} is not proven equal; "
            "compare runs of one profile with five repeats or more"
        )


def _by(share: float) -> str:
    return f"by {share:.0%}" if isfinite(share) else "from zero"


def _share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1
    if not 0 <= share < 100:
        raise HarnessError(f"--fail-if-slower {text}: give a percentage, say 5%")
    return share
