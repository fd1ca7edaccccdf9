"""The ``harness`` command; each module holds one command, or those that belong together."""

import sys

import typer

from harness.cli import cache, cluster, diagnose, lab, model, plan, release, report, run, runs
from harness.common.text import printable
from harness.errors import HarnessError

app = typer.Typer(
    name="harness",
    help="Deploy, route, measure and explain llama.cpp over RPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (lab, cache, model, release, runs):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])
for command in (
    cluster.deploy,
    cluster.discover,
    plan.plan,
    plan.calibrate,
    cache.warm,
    run.run,
    report.report,
    report.compare,
    diagnose.diagnose,
    cluster.watch,
):
    app.command()(command)


def main() -> None:
    """Entry point: a HarnessError becomes one line on stderr and exit status 1."""
    try:
        app()
    except HarnessError as error:
        print(f"harness: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
