"""``harness runs``: list runs; remove old ones."""

import re
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from harness.cli.options import JsonOption, ReportsOption
from harness.errors import HarnessError
from harness.runs.listing import OUTCOMES, RunEntry, RunFilter, is_active, list_runs, remove, to_prune
from harness.settings import REPORTS

app = typer.Typer(help="Runs under reports/.", invoke_without_command=True)
_AGE = re.compile(r"(\d+)([hdw])")
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}

ProfileOption = Annotated[str | None, typer.Option(help="Only runs of this profile.")]
OutcomeOption = Annotated[str | None, typer.Option(help=f"Only runs that ended as: {', '.join(OUTCOMES)}.")]
ModelOption = Annotated[str | None, typer.Option(help="Only runs that used this model.")]
SinceOption = Annotated[str | None, typer.Option(help="Only runs started in the last 12h, 7d, 4w, ...")]


@app.callback()
def show(
    ctx: typer.Context,
    profile: ProfileOption = None,
    outcome: OutcomeOption = None,
    model: ModelOption = None,
    since: SinceOption = None,
    reports: ReportsOption = REPORTS,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    if ctx.invoked_subcommand:
        return
    runs = list_runs(reports, _filter(profile, outcome, model, since))
    if as_json:
        import json

        print(json.dumps([_entry(run) for run in runs], indent=1))
        return
    if not runs:
        print(
            f"No run of {reports} matches; `harness runs` lists all"
            if profile or outcome or model or since
            else f"No run in {reports}; `harness run benchmark` makes one"
        )
        return
    _table(runs)


@app.command()
def prune(
    keep: Annotated[int | None, typer.Option(min=0, help="Remove all but this many of the newest.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Remove runs started longer ago: 30d, 4w.")] = None,
    profile: ProfileOption = None,
    outcome: OutcomeOption = None,
    model: ModelOption = None,
    reports: ReportsOption = REPORTS,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only show what would go.")] = False,
) -> None:
    """Remove old runs; never one that is still running, nor the example."""
    if keep is None and older_than is None:
        raise HarnessError("say which runs to remove: --keep 10, --older-than 30d, or both")
    before_ns = None if older_than is None else _ago_ns("--older-than", older_than)
    runs = list_runs(reports, _filter(profile, outcome, model, None))
    removed: list[RunEntry] = []
    for run in to_prune(runs, keep=keep, before_ns=before_ns):
        if is_active(run):
            print(f"kept {run.folder.name}: it is still running")
            continue
        if yes:
            remove(run)
        removed.append(run)
        print(f"{'removed' if yes else 'would remove'} {run.folder.name}")
    freed = sum(run.size_bytes for run in removed)
    print(f"{len(removed)} runs, {freed / 1e6:,.0f} MB{'' if yes or not removed else '; --yes removes them'}")


def _filter(profile: str | None, outcome: str | None, model: str | None, since: str | None) -> RunFilter:
    if outcome is not None and outcome not in OUTCOMES:
        raise HarnessError(f"unknown outcome '{outcome}'; known: {', '.join(OUTCOMES)}")
    return RunFilter(profile, outcome, model, None if since is None else _ago_ns("--since", since))


def _ago_ns(option: str, text: str) -> int:
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise HarnessError(f"{option} {text}: give a time as 12h, 7d or 4w")
    return time.time_ns() - int(match[1]) * _SECONDS[match[2]] * 10**9


def _entry(run: RunEntry) -> dict[str, object]:
    manifest = run.manifest
    return {
        "run": run.folder.name,
        "profile": manifest.profile,
        "inventory": manifest.inventory,
        "outcome": manifest.outcome.value if manifest.outcome else "cut",
        "took_s": run.took_s,
        "models": sorted(manifest.models),
        "questions": {question.text: question.verdict.value for question in manifest.questions},
        "size_bytes": run.size_bytes,
    }


def _table(runs: list[RunEntry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "started", "profile", "outcome", "took", "models", "answers", "MB")
    for run in runs:
        manifest = run.manifest
        started = f"{datetime.fromtimestamp(manifest.started_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC"
        took = "" if run.took_s is None else f"{run.took_s / 60:.0f} min"
        answers = [question.verdict.value for question in manifest.questions]
        counts = ", ".join(f"{answers.count(answer)} {answer}" for answer in dict.fromkeys(answers))
        outcome = manifest.outcome.value if manifest.outcome else "cut"
        models, size = ", ".join(sorted(manifest.models)), f"{run.size_bytes / 1e6:,.1f}"
        cells = (run.folder.name, started, manifest.profile, outcome, took, models, counts, size)
        table.add_row(*map(Text, cells))
    Console(soft_wrap=True).print(table)
