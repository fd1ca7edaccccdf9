"""``harness release``: the llama.cpp releases that can be deployed, and their sources."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

WHO = {
    "backend": "who can connect to a backend",
    "request": "who may send a request",
    "model": "who makes the model file",
}


def _build(text: str) -> int:
    """A build number, also as llama.cpp's tags have it: b11549."""
    try:
        return int(text.removeprefix("b"))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no build number, such as 11549") from None


BuildArgument = Annotated[
    int, typer.Argument(parser=_build, metavar="BUILD", help="Build number, as in 6751.")
]

app = typer.Typer(help="llama.cpp releases: what is known, and their sources.", no_args_is_help=True)


@app.command("list")
def list_releases() -> None:
    """Show every release in the catalogue."""
    from harness.llama.releases.catalogue import catalogue

    table = Table("Build", "Commit", "RPC", "Sources", "Vulnerabilities", "Deployed", "Note")
    for release in catalogue().releases:
        table.add_row(
            str(release.build),
            release.short_commit,
            release.protocol,
            ", ".join(release.sources.kinds),
            _count(release.build),
            "only if accepted" if catalogue().refusals(release.build) else "yes",
            release.note,
        )
    Console().print(table)
    typer.echo(
        "Vulnerabilities are what somebody can bring about (release show). 'Only if accepted': a newer "
        "release has fixed a remote code execution, which llama_cpp_accepted_issues must name."
    )


def _count(build: int) -> str:
    """How many vulnerabilities of each severity a release has."""
    from harness.llama.releases.catalogue import Reach, Severity, catalogue

    found = [issue.severity for issue in catalogue().known_issues(build) if issue.reach is not Reach.CHANCE]
    return ", ".join(f"{found.count(one)} {one}" for one in Severity if one in found) or "none known"


@app.command()
def show(build: BuildArgument) -> None:
    """Show one release and what is known against it."""
    from harness.llama.releases.catalogue import Reach, catalogue

    release = catalogue().release(build)
    typer.echo(f"llama.cpp {release.build} ({release.short_commit}), RPC protocol {release.protocol}")
    typer.echo(f"{release.note}; sources: {', '.join(release.sources.kinds)}")
    for issue in catalogue().known_issues(build):
        by = "" if issue.reach is Reach.CHANCE else f", by {WHO[issue.reach]}"
        fixed = f"fixed in {issue.fixed_in}" if issue.fixed_in else "not fixed"
        typer.echo(f"- {issue.id} [{issue.severity}{by}; {fixed}]: {issue.text}")
        if issue.mitigation:
            typer.echo(f"  here: {issue.mitigation}")
    if refused := ", ".join(issue.id for issue in catalogue().refusals(build)):
        typer.echo(f"Refused unless the inventory says llama_cpp_accepted_issues: [{refused}]")


@app.command()
def fetch(
    build: BuildArgument,
    source: Annotated[str | None, typer.Option(help="pypi, git or archive.")] = None,
    git_url: Annotated[str | None, typer.Option(help="Repository to take tags from.")] = None,
    archive: Annotated[Path | None, typer.Option(help="Local archive of the source.")] = None,
    archive_sha256: Annotated[str | None, typer.Option(help="What that archive must hash to.")] = None,
) -> None:
    """Fetch a release's source into the cache and check it; nothing of it is run."""
    from harness.errors import HarnessError
    from harness.llama.releases.catalogue import SourceKind, catalogue
    from harness.llama.releases.source import UPSTREAM, SourceChoice, fetch_source
    from harness.settings import cache_dir

    if source is not None and source not in list(SourceKind):
        raise HarnessError(f"no source '{source}'; there are: {', '.join(SourceKind)}")
    if archive and source not in (None, SourceKind.ARCHIVE):
        raise HarnessError(
            f"--archive is for source archive, and --source {source} was given too: give one of them"
        )
    kind = SourceKind.ARCHIVE if archive else SourceKind(source) if source else None
    choice = SourceChoice(kind, git_url or UPSTREAM, archive, archive_sha256)
    fetched = fetch_source(catalogue().release(build), choice, cache_dir())
    how = "fetched" if fetched.fetched else "in the cache already"
    typer.echo(f"llama.cpp {build}: {how}: {fetched.path} (sha256 {fetched.sha256})")


@app.command()
def prove(
    build: BuildArgument,
    backends: Annotated[int, typer.Option(help="rpc-servers on this computer, 1 to 15.")] = 4,
    rounds: Annotated[int, typer.Option(help="Each is one llama-bench over all of them.")] = 20,
    model: Annotated[str, typer.Option(help="A small one: a name in the cache, a GGUF path.")] = "smollm2",
    deadline: Annotated[float, typer.Option(help="Seconds that a round may take.")] = 120,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; progress goes to standard error.")
    ] = False,
) -> None:
    """Prove that a release does not hang over several backends; build it here if need be."""
    from harness.release_proof.gate import Gate, proof_model
    from harness.release_proof.gate import prove as run_gate
    from harness.release_proof.local import local_build

    gate = Gate(build, backends, rounds, deadline)
    gate.check()
    gguf = proof_model(model)
    gate.check(gguf)
    proof = run_gate(gate, local_build(build), gguf, lambda result: typer.echo(result.line(), err=as_json))
    if as_json:
        typer.echo(proof.model_dump_json(indent=2))
    for line in proof.evidence():
        typer.echo(f"  {line}", err=as_json)
    typer.echo(proof.verdict(), err=as_json)
    raise typer.Exit(0 if proof.passed else 1)
