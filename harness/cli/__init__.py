"""The ``harness`` command: one file per command."""

import sys

import typer

from harness.cli import (
    cache,
    calibrate,
    compare,
    deploy,
    diagnose,
    discover,
    lab,
    model,
    plan,
    release,
    report,
    run,
    runs,
    warm,
    watch,
)
from harness.errors import HarnessError

app = typer.Typer(
    name="harness",
    help="Deploy, route, measure and explain llama.cpp over RPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(lab.app, name="lab")
app.add_typer(cache.app, name="cache")
app.add_typer(model.app, name="model")
app.add_typer(release.app, name="release")
app.add_typer(runs.app, name="runs")
app.command("deploy")(deploy.command)
app.command("discover")(discover.command)
app.command("plan")(plan.command)
app.command("calibrate")(calibrate.command)
app.command("warm")(warm.command)
app.command("run")(run.command)
app.command("report")(report.command)
app.command("compare")(compare.command)
app.command("diagnose")(diagnose.command)
app.command("watch")(watch.command)


def main() -> None:
    """Entry point: a HarnessError becomes one line on stderr and exit status 1."""
    try:
        app()
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(1)
