"""Runs on a node, as root: which of some paths is a file of a given size, and what it begins and ends with.

Standard library alone, Python 3.8 or later. Prints JSON: the first such path and its fingerprint, or null.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
from typing import Any

PART = 1 << 20


def fingerprint(path: pathlib.Path, size: int) -> str:
    """Hash of the first and last MiB: the header with all tensor names, and the last weights."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(PART))
        file.seek(max(0, size - PART))
        digest.update(file.read(PART))
    return digest.hexdigest()


def main(argument: dict[str, Any]) -> None:
    """Look at each path in turn."""
    size = int(argument["size"])
    for name in argument["paths"]:
        path = pathlib.Path(name)
        try:
            if path.is_file() and path.stat().st_size == size:
                print(json.dumps({"path": name, "fingerprint": fingerprint(path, size)}))
                return
        except OSError:
            continue
    print("null")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
