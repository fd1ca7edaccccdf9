"""Run a system tool and say plainly what it answered when it fails."""

import subprocess
from pathlib import Path

from harness.errors import HarnessError


def run(*argv: str | Path, stdin: str | None = None) -> str:
    """Standard output of ``argv``.

    Raises:
        HarnessError: the tool is missing or its exit status is not 0.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HarnessError(f"{words[0]} is not installed on this computer") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or "nothing"
        raise HarnessError(f"`{' '.join(words)}` ended with {done.returncode} and said: {said}")
    return done.stdout


def succeeds(*argv: str | Path) -> bool:
    """Whether ``argv`` exits with 0; its output is dropped."""
    return subprocess.run([str(word) for word in argv], capture_output=True, check=False).returncode == 0


def write_atomically(path: Path, text: str, mode: int = 0o644) -> bool:
    """Leave ``path`` holding ``text``, whole or not at all; tells whether it changed."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(path)
    return True
