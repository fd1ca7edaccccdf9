"""A run's folder: JSON lines written as things happen, and read back record by record."""

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.common.files import write_atomic
from harness.common.text import first_error
from harness.contracts.run_records import Event, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.monitor.sample import Sample

MANIFEST = "run.json"
LONGEST_LINE = 16 << 20
"""No record is longer than this, in bytes."""


def run_name(started: datetime, profile: str) -> str:
    """Name of a run's folder: ``20261123T211900Z-default``."""
    return f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{profile}"


def ensure_writable(reports: Path) -> None:
    """Make the folder of runs where there is none, and see that a run can be written into it.

    Raises:
        HarnessError: it cannot.
    """
    try:
        reports.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=reports):
            pass
    except OSError as error:
        raise HarnessError(
            f"cannot write into the reports folder {reports}: {error.strerror}; name another with --reports"
        ) from error


class RunFolder:
    """``reports/<UTC>-<profile>/``: appends records, each synced before the call returns.

    Any thread may append: while tokens are timed, those that wait for the disk do so in a thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, FileIO] = {}
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

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
        """Replace ``run.json``; after an error the earlier one is whole."""
        write_atomic(self.path / MANIFEST, manifest.model_dump_json(indent=1) + "\n")

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
        """Write a log under ``logs/``; a later copy of the same log replaces the earlier one."""
        target = self.logs / name
        write_atomic(target, text)
        return target

    def close(self) -> None:
        """Close the files; what was appended is on disk already."""
        for table in list(self._files):
            with self._locks[table]:
                self._files.pop(table).close()

    def _append(self, table: str, records: Iterable[BaseModel]) -> None:
        """Append all lines or none: after an error the file is as it was, and the call can be repeated."""
        lines = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        if not lines:
            return
        path = self.path / f"{table}.jsonl"
        with self._locks[table]:
            try:
                file = self._files.get(table) or self._files.setdefault(table, _open_for_append(path))
                _write_all(file, lines)
            except OSError as error:
                raise HarnessError(f"cannot write {path}: {error.strerror}") from error


def _write_all(file: FileIO, content: bytes) -> None:
    size, rest = os.fstat(file.fileno()).st_size, memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(size)
        raise


def _open_for_append(path: Path) -> FileIO:
    """Open without a buffer, after cutting off a last line that a kill left half-written."""
    if path.exists():
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - LONGEST_LINE)
            file.seek(start)
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(start + tail.rfind(b"\n") + 1)
    return path.open("ab", buffering=0)


RecordT = TypeVar("RecordT", bound=BaseModel)


def read_manifest(run: Path) -> RunManifest:
    """``run.json`` of a run.

    Raises:
        HarnessError: the folder is no run, or its manifest cannot be read.
    """
    path = run / MANIFEST
    try:
        return RunManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise HarnessError(f"{run} is not a run folder: it has no {MANIFEST}") from None
    except ValidationError as error:
        raise HarnessError(f"{path} cannot be read: {first_error(error)}") from error


def read_events(run: Path) -> Iterator[Event]:
    """Events in the order they were written."""
    return _records(run / "events.jsonl", Event)


def read_trials(run: Path) -> Iterator[Trial]:
    """Trials that ended, in order."""
    return _records(run / "trials.jsonl", Trial)


def read_requests(run: Path) -> Iterator[Request]:
    """Requests in the order they ended."""
    return _records(run / "requests.jsonl", Request)


def read_samples(run: Path) -> Iterator[Sample]:
    """Node samples as they arrived; one node's are in order, nodes are interleaved."""
    return _records(run / "samples.jsonl", Sample)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of one file, line by line; an incomplete last line is left out.

    Raises:
        HarnessError: a line other than the last is damaged.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    return
                raise HarnessError(f"{path}:{number} is not JSON; the file was damaged") from None
            yield value


def _records(path: Path, model: type[RecordT]) -> Iterator[RecordT]:
    for number, value in enumerate(read_lines(path), start=1):
        try:
            yield model.model_validate(value)
        except ValidationError as error:
            raise HarnessError(f"{path}:{number} cannot be read: {first_error(error)}") from error
