"""Installs the programs of a comparison, each from its lock file into its own virtual environment."""

import hashlib
import subprocess
import sys
from pathlib import Path

from harness.settings import cache_dir

LOCKS = Path(__file__).parents[1] / "requirements"


def environment(name: str) -> Path:
    """The virtual environment of ``requirements/peer-<name>.lock``; created again if the lock changes.

    The lock is complete, so pip resolves nothing: packages that the lock omits on purpose are not installed.
    """
    lock = LOCKS / f"peer-{name}.lock"
    folder = cache_dir() / "peers" / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if (folder / ".installed").exists():
        return folder
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", lock]
    subprocess.run(install, check=True)
    (folder / ".installed").touch()
    return folder
