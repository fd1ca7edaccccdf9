"""Which release an installed llama-server is, from the manifest that stands beside it."""

import json
from pathlib import Path

from harness.errors import HarnessError
from harness.llama.releases.catalogue import Release, catalogue


def installed_build(binary: Path) -> int | None:
    """Build number of a binary below ``<build>/bin``; None without a manifest."""
    manifest = binary.resolve().parent.parent / "manifest.json"
    try:
        return int(json.loads(manifest.read_bytes())["build"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def installed_release(binary: Path) -> Release | None:
    """The release of that binary; None without a manifest, or for a build that is in no catalogue."""
    build = installed_build(binary)
    try:
        return catalogue().release(build) if build is not None else None
    except HarnessError:
        return None
