"""Reading a run back: records one by one, or tables for pandas."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.contracts.run_records import Event, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.monitor.sample import Sample
from harness.runs.store import MANIFEST
from harness.runs.tables import flatten

if TYPE_CHECKING:
    import pandas as pd

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
        raise HarnessError(f"{path} cannot be read: {first_fault(error)}") from error


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


def read_table(run: Path, table: str) -> "pd.DataFrame":
    """``trials``, ``requests`` or ``samples`` as a pandas table; from parquet where the run was packed.

    Columns are the record's fields; nested ones are joined by a dot (``memory.used_bytes``), and what has no
    fixed shape (plans, units, details) is JSON text.
    """
    import pandas as pd

    packed = run / f"{table}.parquet"
    if packed.exists():
        return pd.read_parquet(packed)
    return pd.DataFrame([flatten(table, line) for line in read_lines(run / f"{table}.jsonl")])


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of one file, line by line; a last line cut short by a kill is left out.

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


def first_fault(error: ValidationError) -> str:
    """The first thing pydantic found wrong, in a few words."""
    fault = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"


def _records(path: Path, model: type[RecordT]) -> Iterator[RecordT]:
    for number, value in enumerate(read_lines(path), start=1):
        try:
            yield model.model_validate(value)
        except ValidationError as error:
            raise HarnessError(f"{path}:{number} cannot be read: {first_fault(error)}") from error
