"""``python -m harness.llama.releases``: what the role llama_cpp runs on the control machine.

    admit BUILD   the catalogue's entry of a release that may be deployed, and what is known against it
    fetch BUILD   its source, in the cache
    flags BUILD   whether these options may be given to its llama-server

Prints one JSON object; a failure is one line on standard error and exit 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.llama.releases.catalogue import SourceKind, catalogue
from harness.llama.releases.server_flags import check_server_flags
from harness.llama.releases.source import UPSTREAM, SourceChoice, fetch_source, no_source


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m harness.llama.releases")
    commands = parser.add_subparsers(required=True)
    admit = commands.add_parser("admit", help="describe a release, if it may be deployed")
    admit.add_argument("build", type=int)
    admit.add_argument("--accepted", default="", help="ids of accepted issues, with commas between them")
    admit.add_argument("--source", help="where the source is to come from")
    admit.set_defaults(do=_admit)
    fetch = commands.add_parser("fetch", help="have a release's source in the cache")
    fetch.add_argument("build", type=int)
    fetch.add_argument("--source", type=SourceKind, choices=list(SourceKind))
    fetch.add_argument("--git-url", default=UPSTREAM)
    fetch.add_argument("--archive", type=Path)
    fetch.add_argument("--archive-sha256")
    fetch.add_argument("--cache", type=Path, required=True)
    fetch.set_defaults(do=_fetch)
    flags = commands.add_parser("flags", help="check options for llama-server")
    flags.add_argument("build", type=int, help="0 where it is not known")
    flags.add_argument("flags", nargs=argparse.REMAINDER)
    flags.set_defaults(do=_flags)
    arguments = parser.parse_args()
    try:
        print(json.dumps(arguments.do(arguments)))
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 1
    return 0


def _admit(arguments: argparse.Namespace) -> dict[str, Any]:
    accepted = [name.strip() for name in arguments.accepted.split(",") if name.strip()]
    release = catalogue().admit(arguments.build, accepted)
    if arguments.source and arguments.source not in release.sources.kinds:
        raise no_source(release, arguments.source)
    issues = [issue.model_dump() for issue in catalogue().known_issues(arguments.build)]
    return {"release": release.model_dump(mode="json"), "issues": issues}


def _fetch(arguments: argparse.Namespace) -> dict[str, Any]:
    choice = SourceChoice(arguments.source, arguments.git_url, arguments.archive, arguments.archive_sha256)
    return fetch_source(catalogue().release(arguments.build), choice, arguments.cache).as_json()


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    check_server_flags(arguments.flags, arguments.build or None)
    return {}


if __name__ == "__main__":
    sys.exit(main())
