"""``python -m harness.releases fetch BUILD``: what the role llama_cpp runs on the control machine.

Prints one JSON object; a failure is one line on standard error and exit 1.
"""

import argparse
import json
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.releases.catalogue import SourceKind, catalogue
from harness.releases.source import UPSTREAM, SourceChoice, fetch_source


def main() -> int:
    """Fetch the source that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m harness.releases")
    commands = parser.add_subparsers(required=True)
    fetch = commands.add_parser("fetch", help="have a release's source in the cache")
    fetch.add_argument("build", type=int)
    fetch.add_argument("--source", type=SourceKind, choices=list(SourceKind))
    fetch.add_argument("--git-url", default=UPSTREAM)
    fetch.add_argument("--archive", type=Path)
    fetch.add_argument("--archive-sha256")
    fetch.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    choice = SourceChoice(given.source, given.git_url, given.archive, given.archive_sha256)
    try:
        source = fetch_source(catalogue().release(given.build), choice, given.cache)
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 1
    print(json.dumps(source.as_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
