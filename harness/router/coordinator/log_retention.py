"""The folders of past starts: never written over, and pruned so that they do not fill the disk."""

import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.router.logs import log

_NAME = re.compile(r"\d{8}T\d{6}\.\d+Z-.+")
"""``Start.id``: the moment first, so that names sort by time."""


@dataclass(frozen=True)
class StartFolder:
    """One past start's log and record."""

    path: Path
    total_bytes: int


def surplus(folders: Sequence[StartFolder], *, keep: int, keep_bytes: int) -> list[StartFolder]:
    """Those to remove, oldest first: more than ``keep`` of them, or more than ``keep_bytes`` together.

    Args:
        folders: oldest first. The newest one always stays.
    """
    kept_bytes = 0
    for kept, folder in enumerate(reversed(folders)):
        kept_bytes += folder.total_bytes
        if kept and (kept >= keep or kept_bytes > keep_bytes):
            return list(folders[: len(folders) - kept])
    return []


def prune(log_dir: Path, *, keep: int, keep_bytes: int) -> None:
    """Remove the oldest starts' folders; anything else in ``log_dir`` is left alone."""
    if not log_dir.is_dir():
        return
    found = sorted(path for path in log_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    folders = [StartFolder(path, sum(_size(file) for file in path.iterdir())) for path in found]
    for folder in surplus(folders, keep=keep, keep_bytes=keep_bytes):
        try:
            shutil.rmtree(folder.path)
        except OSError as error:
            log("start folder not removed", level=logging.ERROR, folder=str(folder.path), error=str(error))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a draft that has just become start.json
