"""``harness compare``: two or more runs side by side."""

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.report import find_run
from harness.errors import HarnessError
from harness.settings import REPORTS


def command(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: folders or names under reports/. The first is the base.")
    ],
    fail_if_slower: Annotated[
        str | None,
        typer.Option(help="5%: exit with 1 where something is worse by more than that and than the noise."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The page to write; by default beside the runs.")
    ] = None,
    reports: Annotated[Path, typer.Option(help="Folder of the runs.")] = REPORTS,
) -> None:
    """Say which figures differ between runs, by how much and whether by more than the noise; write a page."""
    share = _share(fail_if_slower) if fail_if_slower is not None else None
    if len(runs) < 2:
        raise HarnessError("give two runs at least: harness compare BEFORE AFTER; `harness runs` lists them")
    folders = [find_run(run, reports) for run in runs]
    places = [folder.resolve() for folder in folders]
    names = [place.name for place in places]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise HarnessError(f"{place.name} cannot be compared with itself; give another run")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.report.changes import rows
    from harness.report.compare_page import write_comparison
    from harness.runs.compare import slower, told, untold

    target = output or places[0].parent / f"compare-{'-'.join(names)}.html"
    comparison = write_comparison(folders, target)
    console = Console(soft_wrap=True)
    table = Table("trial", "figure", "run", "before", "after", "ratio", "95% interval", "verdict")
    for row in rows(comparison.changes):
        cells = (row.what, row.figure, row.run, row.before, row.after, row.ratio, row.interval, row.verdict)
        table.add_row(*map(Text, cells))
    for one in comparison.outcomes:
        console.print(Text(f"{one.what}: {one.before} in {names[0]}, {one.after} in {one.run}"))
    for line in comparison.surroundings:
        console.print(Text(line))
    console.print(table if comparison.changes else "These runs have no trial in common that passed in both.")
    if unknown := untold(comparison):
        print(f"{unknown} figures have fewer than three values on a side: nobody can tell them from noise")
    print(f"Page: {target}")
    if share is None:
        return
    bad = [f"{o.what} ({o.after}, was {o.before})" for o in comparison.outcomes if o.worse]
    bad += [f"{c.what} {c.figure.label} {_by(c.worse_by)} in {c.run}" for c in slower(comparison, share)]
    if bad:
        raise HarnessError(f"worse than {names[0]}: {'; '.join(bad)}")
    if not told(comparison):
        raise HarnessError(
            f"nothing here can be told from noise, so nothing shows that {names[-1]} is not slower; "
            "compare runs of one profile with five repeats or more"
        )


def _by(share: float) -> str:
    return f"by {share:.0%}" if isfinite(share) else "where there was none"


def _share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1
    if not 0 <= share < 100:
        raise HarnessError(f"--fail-if-slower {text}: give a percentage, say 5%")
    return share
