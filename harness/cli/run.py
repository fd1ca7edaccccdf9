"""``harness run``: the trials of a profile, through the router, into a run folder with a report."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import InventoryOption
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY, REPORTS

KINDS = ("benchmark", "founding", "schema")
INTERRUPTED_STATUS = 130


def run(
    what: Annotated[
        str,
        typer.Argument(
            help="benchmark: a profile; founding: the founding report's questions; schema: of profiles."
        ),
    ],
    profile: Annotated[
        str | None,
        typer.Option(help="smoke, default, full or another shipped one; or the path of one of your own."),
    ] = None,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    reports: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = REPORTS,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Shuffle the trials with this seed, as an earlier run did.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL: put a model in place of one that the profile names.")
    ] = None,
    pins: Annotated[
        str | None, typer.Option(help="Builds to try in turns, what runs now first: 11549,11434.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Continue a run that was interrupted: its name, or last.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Begin though requests of others are in flight, and stop them.")
    ] = False,
) -> None:
    """Load and exercise models through the router, watch every node, and write a report.

    Nothing is touched before all is checked; a loaded model that others use is unloaded with --force alone.

    Exit status: 0 when every trial ended as expected, 1 when one did not, 130 after Ctrl-C.
    """
    if what not in KINDS:
        raise HarnessError(f"nothing called '{what}' can be run; known: {', '.join(KINDS)}")
    if what == "schema":
        from harness.trials.profile.profile import schema_text

        print(schema_text(), end="")
        return
    import asyncio

    from rich.console import Console

    from harness.contracts.run_records import Outcome
    from harness.report.page import write_report
    from harness.trials.interrupts import Interrupted
    from harness.trials.progress import RunProgress
    from harness.trials.run_spec import Options
    from harness.trials.runner import run_benchmark

    if what == "founding" and profile:
        raise HarnessError("run founding has a profile of its own; leave --profile out, or use run benchmark")
    if resume and (seed is not None or model or pins):
        raise HarnessError("--resume continues the run's own trials; leave --seed, --model and --pins out")
    options = Options(
        profile or ("founding" if what == "founding" else "default"),
        inventory,
        reports,
        seed,
        resume=resume,
        models=_pairs(model or []),
        pins=_builds(pins),
        force=force,
    )
    with RunProgress(Console()) as progress:
        try:
            result = asyncio.run(run_benchmark(options, progress))
        except Interrupted:
            progress.say("Stopped before a trial ran.")
            raise typer.Exit(INTERRUPTED_STATUS) from None
        report = write_report(result.folder)
        progress.say(f"\nRun {result.folder.name}: {result.outcome}")
        progress.summary(result.trials)
        progress.say(f"Report: {report}")
    if result.outcome is Outcome.INTERRUPTED:
        raise typer.Exit(INTERRUPTED_STATUS)
    if result.outcome is not Outcome.PASSED:
        raise typer.Exit(1)


def _pairs(given: list[str]) -> dict[str, str]:
    models = {}
    for pair in given:
        name, equals, model = pair.partition("=")
        if not (name and equals and model):
            raise HarnessError(f"--model {pair}: give NAME=MODEL, say 13b=codellama:13b")
        models[name] = model
    return models


def _builds(pins: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(pin.strip().removeprefix("b")) for pin in pins.split(",")) if pins else ()
    except ValueError:
        raise HarnessError(f"--pins {pins}: give build numbers, say 11549,11434") from None
