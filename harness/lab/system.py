"""Running this computer's tools, writing files and taking locks."""

import fcntl
import subprocess
import time
from pathlib import Path
from typing import IO

from harness.common.files import write_atomic
from harness.errors import HarnessError


def run(*argv: str | Path, stdin: str | None = None) -> str:
    """Standard output of ``argv``.

    Raises:
        HarnessError: the tool is missing or its exit status is not 0.
    """
    words = [str(word) for word in argv]
    try:
        result = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HarnessError(f"{words[0]} is not installed on this computer") from None
    if result.returncode != 0:
        output = " ".join((result.stderr or result.stdout).split()) or "no output"
        raise HarnessError(f"`{' '.join(words)}` failed with exit status {result.returncode}: {output}")
    return result.stdout


def succeeds(*argv: str | Path) -> bool:
    """Whether ``argv`` exits with 0; its output is dropped."""
    return subprocess.run([str(word) for word in argv], capture_output=True, check=False).returncode == 0


def write_if_changed(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write ``text`` to ``path`` in one step unless it is there; returns whether it changed."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text, mode=mode, sync=False)
    return True


def take_lock(file: IO[str], deadline_s: float = 0) -> bool:
    """Take an exclusive lock on an open file; returns False where another holds it until the deadline."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        else:
            return True
