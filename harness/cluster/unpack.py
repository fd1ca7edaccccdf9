"""``python -m harness.cluster.unpack ARCHIVE FOLDER``: unpacks what a node has packed (collect.yml).

The node may be anybody's: only files and folders are unpacked, without their owners and modes, inside the
folder, up to a limit.
"""

import argparse
import resource
import sys
import tarfile
import zlib
from pathlib import Path

from harness.common.text import gib, parse_size, printable
from harness.errors import HarnessError

MAX_FILES = 100_000
_MEMORY_BYTES = 1 << 30
"""A header of an archive may be as long as it says."""


def unpack(archive: Path, folder: Path, limit_bytes: int) -> None:
    """Unpack a gzipped tar archive into an existing folder.

    Raises:
        HarnessError: it is no such archive, would write elsewhere, or holds more than ``limit_bytes``.
    """
    files = unpacked_bytes = 0
    try:
        with tarfile.open(archive, "r|gz") as packed:
            for member in packed:
                if not (member.isreg() or member.isdir()):
                    continue
                files, unpacked_bytes = files + 1, unpacked_bytes + member.size
                if unpacked_bytes > limit_bytes or files > MAX_FILES:
                    raise HarnessError(
                        f"{archive.name} holds more than {gib(limit_bytes)} or {MAX_FILES} files: "
                        "see what fills that node's logs, or raise collect_limit"
                    )
                packed.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, MemoryError, UnicodeError, ValueError) as error:
        raise HarnessError(f"{archive.name} cannot be unpacked: {error!r}") from error
    except OSError as error:
        raise HarnessError(f"{archive.name} cannot be unpacked: {error.strerror or error}") from error


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="unpack", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=parse_size, required=True, metavar="SIZE", help="such as 4G")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        unpack(arguments.archive, arguments.folder, arguments.limit)
    except HarnessError as error:
        print(f"harness: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
