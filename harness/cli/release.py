"""``harness release``: the llama.cpp releases that can be deployed, and their sources."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="llama.cpp releases: what is known, and their sources.", no_args_is_help=True)


@app.command("list")
def list_releases() -> None:
    """Show every release in the catalogue."""
    from harness.releases.catalogue import catalogue

    table = Table("Build", "Commit", "RPC", "Sources", "Note")
    for release in catalogue().releases:
        kinds = ", ".join(release.sources.kinds)
        table.add_row(str(release.build), release.short_commit, release.protocol, kinds, release.note)
    Console().print(table)


@app.command()
def show(build: Annotated[int, typer.Argument(help="Build number, as in 6751.")]) -> None:
    """Show one release and what is known against it."""
    from harness.releases.catalogue import catalogue

    release = catalogue().release(build)
    typer.echo(f"llama.cpp {release.build} ({release.short_commit}), RPC protocol {release.protocol}")
    typer.echo(f"{release.note}; sources: {', '.join(release.sources.kinds)}")
    for issue in release.issues:
        typer.echo(f"- {issue.id}: {issue.text}")


@app.command()
def fetch(
    build: Annotated[int, typer.Argument(help="Build number, as in 6751.")],
    source: Annotated[str | None, typer.Option(help="pypi, git or archive.")] = None,
    git_url: Annotated[str | None, typer.Option(help="Repository to take tags from.")] = None,
    archive: Annotated[Path | None, typer.Option(help="Local archive of the source.")] = None,
    archive_sha256: Annotated[str | None, typer.Option(help="What that archive must hash to.")] = None,
) -> None:
    """Fetch a release's source into the cache and check it; nothing of it is run."""
    from harness.errors import HarnessError
    from harness.releases.catalogue import SourceKind, catalogue
    from harness.releases.source import UPSTREAM, SourceChoice, fetch_source
    from harness.settings import cache_dir

    if source is not None and source not in list(SourceKind):
        raise HarnessError(f"no source '{source}'; there are: {', '.join(SourceKind)}")
    if archive and source not in (None, SourceKind.ARCHIVE):
        raise HarnessError(
            f"--archive is for source archive, and --source {source} was asked for: give one of them"
        )
    kind = SourceKind.ARCHIVE if archive else SourceKind(source) if source else None
    choice = SourceChoice(kind, git_url or UPSTREAM, archive, archive_sha256)
    fetched = fetch_source(catalogue().release(build), choice, cache_dir())
    how = "fetched" if fetched.fetched else "in the cache already"
    typer.echo(f"llama.cpp {build}: {how}: {fetched.path} (sha256 {fetched.sha256})")
