"""Which llama.cpp build is installed, from the manifest beside its binaries."""

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.monitor.sample import Build

_HASHED = ("build", "commit", "binaries")
"""What makes two builds the same; a manifest also says where and when it was made."""


class BuildReader:
    """Reads the manifest again only when it, or the link to it, has changed."""

    def __init__(self, folder: Path) -> None:
        self._manifest = folder / "manifest.json"
        self._seen: tuple[int, int, int] | None = None
        self._build: Build | None = None

    def read(self) -> Build | None:
        """The build behind the folder now; None where none is installed."""
        try:
            status = self._manifest.stat()
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if seen != self._seen:
                self._build = parse_manifest(self._manifest.read_bytes())
                self._seen = seen
        except OSError:
            self._seen = self._build = None
        return self._build


def parse_manifest(data: bytes) -> Build:
    """The build that a manifest describes; one that is not JSON still has its own hash."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return Build(build=None, commit=None, sha256=hashlib.sha256(data).hexdigest())
    text = json.dumps({key: found.get(key) for key in _HASHED}, sort_keys=True)
    return Build(
        build=_as(int, found.get("build")),
        commit=_as(str, found.get("commit")),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _as(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else None
