"""A run's folder: JSON lines written as things happen, packed to parquet at the end."""

import contextlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel

from harness.contracts.run_records import Event, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.monitor.sample import Sample

MANIFEST = "run.json"
LONGEST_LINE = 16 << 20
"""No record is longer than this, in bytes."""


def run_name(started: datetime, profile: str) -> str:
    """Name of a run's folder: ``20261123T211900Z-default``."""
    return f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{profile}"


class RunFolder:
    """``reports/<UTC>-<profile>/``: appends records, each synced before the call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, BinaryIO] = {}

    @classmethod
    def create(cls, reports: Path, name: str) -> "RunFolder":
        """Make a new run's folder.

        Raises:
            HarnessError: the folder is there already, or cannot be made.
        """
        path = reports / name
        try:
            (path / "logs").mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise HarnessError(f"run {path} is there already; start again in a second") from None
        except OSError as error:
            raise HarnessError(f"cannot make the run folder {path}: {error.strerror}") from error
        return cls(path)

    @property
    def logs(self) -> Path:
        """Folder of logs and journals."""
        return self.path / "logs"

    def write_manifest(self, manifest: RunManifest) -> None:
        """Write ``run.json`` whole, or leave the earlier one."""
        write_whole(self.path / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")

    def append_event(self, event: Event) -> None:
        """Append one line to ``events.jsonl``."""
        self._append("events", [event])

    def append_trial(self, trial: Trial) -> None:
        """Append one line to ``trials.jsonl``."""
        self._append("trials", [trial])

    def append_request(self, request: Request) -> None:
        """Append one line to ``requests.jsonl``."""
        self._append("requests", [request])

    def append_samples(self, samples: Iterable[Sample]) -> None:
        """Append a batch of lines to ``samples.jsonl``, with one sync for all of them."""
        self._append("samples", samples)

    def write_log(self, name: str, text: str) -> Path:
        """Keep a log under ``logs/``; a later copy of the same log replaces the earlier one."""
        target = self.logs / name
        write_whole(target, text.encode())
        return target

    def close(self) -> None:
        """Close the files; what was appended is on disk already."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, table: str, records: Iterable[BaseModel]) -> None:
        lines = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        if not lines:
            return
        file = self._files.get(table)
        try:
            if file is None:
                file = self._files[table] = _open_for_append(self.path / f"{table}.jsonl")
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise HarnessError(f"cannot write {self.path / table}.jsonl: {error.strerror}") from error


def write_whole(target: Path, content: bytes) -> None:
    """Put ``content`` in ``target`` by a temporary file and a rename: readers see all of it or none.

    Raises:
        HarnessError: it cannot be written, say for want of space.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise HarnessError(
            f"cannot write {target}: {error.strerror}; free some space there, or write elsewhere"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _open_for_append(path: Path) -> BinaryIO:
    """Open for appending, after cutting off a last line that a kill left half-written."""
    if path.exists():
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - LONGEST_LINE)
            file.seek(start)
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(start + tail.rfind(b"\n") + 1)
    return path.open("ab")
