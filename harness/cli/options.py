"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError

InventoryOption = Annotated[Path, typer.Option(help="Ansible inventory.", envvar="HARNESS_INVENTORY")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NodesOption = Annotated[str | None, typer.Option(help="Only these backends: node1,node3.")]
ReportsOption = Annotated[Path, typer.Option(help="Folder of the runs.")]


def node_names(nodes: str | None) -> list[str] | None:
    """The names in ``node1,node3``; None for all backends."""
    return [name.strip() for name in nodes.split(",") if name.strip()] or None if nodes else None


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
    latest = sorted(path.parent.name for path in reports.glob("*/run.json"))[-5:]
    hint = f"the latest are: {', '.join(latest)}" if latest else f"{reports} holds no run yet"
    raise HarnessError(f"no run '{run}', neither as a folder nor under reports/; {hint}")
