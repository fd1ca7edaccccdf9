"""A release of llama.cpp on this computer, by the role that builds it for nodes and from the same cache."""

import fcntl
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue
from harness.settings import PLAYBOOKS, REPOSITORY, cache_dir

PROGRAMS = ("rpc-server", "llama-server", "llama-bench", "llama-tensor-cache")
"""A whole build; one with fewer programs has a folder of its own."""


def local_build(build: int, programs: Sequence[str] = PROGRAMS, *, activate: bool = False) -> Path:
    """The folder with the release's programs, built here if neither this computer nor the cache has it.

    Releases that may only be deployed where their known issues are accepted are built all the same: what runs
    here listens on the loopback alone.

    Args:
        build: a release of the catalogue.
        programs: what to build of ``PROGRAMS``.
        activate: point ``local/current`` in the cache at it.

    Raises:
        HarnessError: no such release, its source cannot be had, or it could not be built.
    """
    release = catalogue().release(build)
    prefix = cache_dir() / "local"
    with _alone(prefix), tempfile.TemporaryDirectory(prefix="harness-build-") as scratch:
        note = Path(scratch, "folder")
        variables = {
            "llama_cpp_build": release.build,
            "llama_cpp_programs": list(programs),
            "llama_cpp_accepted_issues": [issue.id for issue in catalogue().refusals(build)],
            "llama_cpp_activate": activate,
            "llama_cpp_prefix": str(prefix),
            "llama_cpp_ccache_dir": str(cache_dir() / "ccache"),
            "local_build_note": str(note),
        }
        inventory = REPOSITORY / "inventories" / "localhost.yml"
        run_playbook(PLAYBOOKS / "local_build.yml", inventory, variables, title=f"llama.cpp {build}")
        return Path(note.read_text(encoding="utf-8")).resolve() / "bin"


@contextmanager
def _alone(prefix: Path) -> Iterator[None]:
    """One build at a time: two of one release would overwrite each other's work."""
    try:
        prefix.mkdir(parents=True, exist_ok=True)
        lock = (prefix / ".lock").open("ab")
    except OSError as error:
        raise HarnessError(
            f"cannot keep builds in {prefix}: {error.strerror}; set LLAMA_HARNESS_CACHE"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"harness: waits for another build in {prefix}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
