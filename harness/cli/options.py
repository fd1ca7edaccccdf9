"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

InventoryOption = Annotated[Path, typer.Option(help="Ansible inventory.", envvar="HARNESS_INVENTORY")]
