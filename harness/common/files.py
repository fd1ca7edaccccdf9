"""Writing files so that a reader, a crash or a full disk never meets half of one."""

import contextlib
import os
import tempfile
from pathlib import Path

from harness.errors import HarnessError


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o644, sync: bool = True) -> None:
    """Write ``content`` to a temporary file in the same folder, then rename it to ``path``.

    The file has ``mode`` from its first byte on: a secret is never readable by others.

    Args:
        sync: wait until the disk has it; leave it out for what may be lost with the machine.

    Raises:
        HarnessError: it cannot be written; ``path`` is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    draft: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        draft = Path(name)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            if sync:
                os.fsync(descriptor)
        draft.replace(path)
    except OSError as error:
        raise HarnessError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if draft:
            with contextlib.suppress(OSError):
                draft.unlink()
