"""Which release an installed llama-server is, from the manifest that stands beside it."""

import json
from pathlib import Path

from harness.errors import HarnessError
from harness.releases.catalogue import Release, catalogue


def installed_release(binary: Path) -> Release | None:
    """The release of a binary below ``<build>/bin``; None without a manifest, or for an unknown build."""
    manifest = binary.resolve().parent.parent / "manifest.json"
    try:
        return catalogue().release(int(json.loads(manifest.read_bytes())["build"]))
    except (OSError, ValueError, KeyError, TypeError, HarnessError):
        return None
