"""``harness diagnose``: why a run's trial, a unit or a log ended as it did, with the deciding line."""

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import InventoryOption, JsonOption, find_run
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY, REPORTS

if TYPE_CHECKING:
    from harness.contracts.diagnosis import Diagnosis

_UNIT = re.compile(r"(?:(?P<node>[\w.-]+):)?(?P<unit>llama-[\w-]+(?:\.service)?)")
_Result = tuple[dict[str, Any], str, "Diagnosis"]
"""Fields that name the subject, the subject as a heading, and the diagnosis."""


def diagnose(
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
        typer.Option(help="Exit status of the log's process: 134, -6, SIGABRT, 0xC0000005.", metavar="N"),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Journal or kernel log of the process's machine.", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
    inventory: InventoryOption = DEFAULT_INVENTORY,
) -> None:
    """Say why a process ended: the cause, the deciding line, the causes ruled out, and what to do."""
    results, several = _diagnose(what, exit_status, journal, inventory)
    if as_json:
        documents = [{**names, **diagnosis.model_dump(mode="json")} for names, _, diagnosis in results]
        typer.echo(json.dumps(documents if several else documents[0], indent=2))
        return
    typer.echo("\n\n".join("\n".join(_text(heading, diagnosis)) for _, heading, diagnosis in results))


def _diagnose(
    what: str, exit_status: str | None, journal: Path | None, inventory: Path
) -> tuple[list[_Result], bool]:
    """The results, and whether the subject may have several."""
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
    from harness.runs.folder import MANIFEST

    if what == "latest":
        return find_run(what, REPORTS)
    folders = (Path(what), REPORTS / what)
    try:
        runs = [folder for folder in folders if (folder / MANIFEST).is_file()]
        if not runs and any(folder.is_dir() for folder in folders):
            raise HarnessError(f"{what} is a folder without {MANIFEST}: no run, and no log")
    except (OSError, ValueError):
        return None
    return runs[0] if runs else None


def _of_log(path: Path, exit_status: str | None, journal: Path | None) -> _Result:
    from harness.diagnosis.classify import diagnose_log
    from harness.diagnosis.exit_status import parse_exit_status

    ended = parse_exit_status(exit_status) if exit_status is not None else None
    for file in (path, journal):
        try:
            if file is not None:
                file.open("rb").close()
        except OSError as error:
            raise HarnessError(f"cannot read {file}: {error.strerror}") from None
    around = {journal.name: journal} if journal else None
    return {}, str(path), diagnose_log({path.name: path}, ended, around)


def _of_run(run: Path) -> list[_Result]:
    from harness.trials.kinds.diagnosis_inputs import diagnose_run

    results: list[_Result] = []
    for trial, diagnosis, recorded in diagnose_run(run):
        heading = f"{trial.id} ({trial.outcome}"
        heading += f", expected {trial.expected})" if trial.expected else ")"
        if recorded and recorded != diagnosis.failure_class.value:
            heading += f"; recorded as {recorded}"
        names = {"trial": trial.id, "outcome": trial.outcome.value, "recorded": recorded}
        results.append((names, heading, diagnosis))
    if not results:
        raise HarnessError(
            f"{run.name}: no trial ended a coordinator or failed; there is nothing to diagnose"
        )
    return results


def _of_unit(inventory: Path, node: str | None, unit: str) -> list[_Result]:
    from harness.cluster.inventory import load_inventory
    from harness.cluster.unit_inspection import diagnose_units

    cluster = load_inventory(inventory)
    nodes = [cluster.node(node)] if node else list(cluster.nodes.values())
    return [
        (
            {"node": unit_on_node.node, "unit": unit_on_node.unit, "state": unit_on_node.state},
            f"{unit_on_node.node}: {unit_on_node.unit} is {unit_on_node.state}",
            unit_on_node.diagnosis,
        )
        for unit_on_node in asyncio.run(diagnose_units(nodes, unit, lambda line: typer.echo(line, err=True)))
    ]


def _text(heading: str, diagnosis: "Diagnosis") -> Iterable[str]:
    yield heading
    yield f"  {diagnosis.failure_class} ({diagnosis.confidence})"
    for number, evidence in enumerate(diagnosis.evidence):
        label = "because" if number == 0 else "       "
        yield f"  {label} {evidence.source}: {_one_line(evidence.line)}"
    for other in diagnosis.ruled_out:
        yield f"  not     {_one_line(other)}"
    yield f"  do      {diagnosis.advice}"


def _one_line(text: str) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= 300 else f"{line[:299]}…"
