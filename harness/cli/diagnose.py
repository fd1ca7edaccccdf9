"""``harness diagnose``: why a run's trial, a unit or a log ended as it did, and the line that decides it."""

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import InventoryOption
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY, REPORTS

if TYPE_CHECKING:
    from harness.contracts.diagnosis import Diagnosis

_UNIT = re.compile(r"(?:(?P<node>[\w.-]+):)?(?P<unit>llama-[\w-]+(?:\.service)?)")
_Answer = tuple[dict[str, Any], str, "Diagnosis"]
"""Fields that name what was diagnosed, the same as a heading, and the diagnosis."""


def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|UNIT|LOGFILE",
            help="A run (folder, name under reports/, `latest`); a unit (`llama-rpc-server`, "
            "`node1:llama-rpc-server`); or any log.",
        ),
    ],
    exit_status: Annotated[
        str | None,
        typer.Option(help="How the log's process ended: 134, -6, SIGABRT, 0xC0000005.", metavar="N"),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Journal or kernel log of the process's machine.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    inventory: InventoryOption = DEFAULT_INVENTORY,
) -> None:
    """Name the cause of an end, the line that decides it, what else was considered, and what to do."""
    answers, several = _diagnose(what, exit_status, journal, inventory)
    if as_json:
        shown = [{**names, **diagnosis.model_dump(mode="json")} for names, _, diagnosis in answers]
        typer.echo(json.dumps(shown if several else shown[0], indent=2))
        return
    typer.echo("\n\n".join("\n".join(_text(heading, diagnosis)) for _, heading, diagnosis in answers))


def _diagnose(
    what: str, exit_status: str | None, journal: Path | None, inventory: Path
) -> tuple[list[_Answer], bool]:
    """The answers, and whether they are a list by nature."""
    path = Path(what)
    if _is_file(path):
        return [_of_log(path, exit_status, journal)], False
    if exit_status is not None or journal is not None:
        raise HarnessError(f"--exit-status and --journal belong to a log; '{what}' is no file")
    run = _run_folder(what)
    if run is not None:
        return _of_run(run), True
    if unit := _UNIT.fullmatch(what):
        return _of_unit(inventory, unit["node"], unit["unit"]), unit["node"] is None
    raise HarnessError(
        f"'{what}' is no log, no run under {REPORTS.name}/ and no unit of ours "
        "(llama-rpc-server, node1:llama-router, ...)"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file() or path.is_fifo() or path.is_char_device()
    except (OSError, ValueError):
        return False


def _run_folder(what: str) -> Path | None:
    from harness.cli.report import find_run
    from harness.runs.store import MANIFEST

    if what == "latest":
        return find_run(what, REPORTS)
    folders = (Path(what), REPORTS / what)
    try:
        found = [folder for folder in folders if (folder / MANIFEST).is_file()]
        if not found and any(folder.is_dir() for folder in folders):
            raise HarnessError(f"{what} is a folder without {MANIFEST}: no run, and no log")
    except (OSError, ValueError):
        return None
    return found[0] if found else None


def _of_log(path: Path, exit_status: str | None, journal: Path | None) -> _Answer:
    from harness.diagnosis.exit_status import parse_exit_status
    from harness.diagnosis.logs.log_file import diagnose_log

    ended = parse_exit_status(exit_status) if exit_status is not None else None
    for file in (path, journal):
        if file is not None:
            _check_readable(file)
    around = {journal.name: journal} if journal else None
    return {}, str(path), diagnose_log({path.name: path}, ended, around)


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}") from None


def _of_run(run: Path) -> list[_Answer]:
    from harness.trials.rediagnose import diagnose_run

    answers: list[_Answer] = []
    for one in diagnose_run(run):
        heading = f"{one.trial} ({one.outcome}"
        heading += f", expected {one.expected})" if one.expected else ")"
        if one.before and one.before != one.diagnosis.failure_class.value:
            heading += f"; recorded as {one.before}"
        names = {"trial": one.trial, "outcome": one.outcome, "recorded": one.before}
        answers.append((names, heading, one.diagnosis))
    if not answers:
        raise HarnessError(
            f"{run.name}: no trial ended a coordinator or failed; there is nothing to diagnose"
        )
    return answers


def _of_unit(inventory: Path, node: str | None, unit: str) -> list[_Answer]:
    from harness.cluster.inventory import load_inventory
    from harness.cluster.unit_inspection import diagnose_units

    known = load_inventory(inventory)
    nodes = [known.node(node)] if node else list(known.nodes.values())
    return [
        (
            {"node": one.node, "unit": one.unit, "state": one.state},
            f"{one.node}: {one.unit} is {one.state}",
            one.diagnosis,
        )
        for one in asyncio.run(diagnose_units(nodes, unit))
    ]


def _text(heading: str, diagnosis: "Diagnosis") -> Iterable[str]:
    yield heading
    yield f"  {diagnosis.failure_class} ({diagnosis.confidence})"
    for number, one in enumerate(diagnosis.evidence):
        yield f"  {'because' if number == 0 else '       '} {one.source}: {_one_line(one.line)}"
    for other in diagnosis.ruled_out:
        yield f"  not     {_one_line(other)}"
    yield f"  do      {diagnosis.advice}"


def _one_line(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= 300 else f"{shown[:299]}…"
