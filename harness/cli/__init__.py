"""The ``harness`` command: one file per command."""

import importlib
import importlib.util
import sys

import typer

from harness.errors import HarnessError

app = typer.Typer(
    name="harness",
    help="Deploy, route, measure and explain llama.cpp over RPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for _name in ("lab", "release", "model", "report"):
    if importlib.util.find_spec(f"harness.cli.{_name}"):
        app.add_typer(importlib.import_module(f"harness.cli.{_name}").app, name=_name)
for _name in ("deploy", "run"):
    if importlib.util.find_spec(f"harness.cli.{_name}"):
        app.command(_name)(importlib.import_module(f"harness.cli.{_name}").command)


def main() -> None:
    """Entry point: a HarnessError becomes one line on stderr and exit status 1."""
    try:
        app()
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(1)
