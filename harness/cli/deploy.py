"""``harness deploy``: site.yml through ansible-runner, with progress."""

from typing import Annotated

import typer

from harness.cli.options import InventoryOption
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY, REPOSITORY


def command(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: Annotated[str | None, typer.Option(help="Only these hosts or groups.")] = None,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Only build llama.cpp and install it; start no service.")
    ] = False,
    extra: Annotated[list[str] | None, typer.Option("--extra", "-e", help="key=value for Ansible.")] = None,
) -> None:
    """Deploy everything: the same as ``ansible-playbook site.yml``."""
    from harness.cluster.ansible import run_playbook

    for pair in extra or []:
        if "=" not in pair:
            raise HarnessError(f"--extra {pair} is not key=value, such as llama_cpp_build=11549")
    pairs = dict(pair.split("=", 1) for pair in extra or [])
    if build_only:  # beside the build that runs, which stays current
        pairs["llama_cpp_activate"] = "false"
    run_playbook(
        REPOSITORY / "site.yml",
        inventory,
        extra_vars=pairs,
        limit=limit,
        tags="llama_cpp" if build_only else None,
        title="Deploying",
    )
